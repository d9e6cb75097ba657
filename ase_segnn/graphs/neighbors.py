r"""Neighbor lists: all ordered pairs of a center i and a neighbor j in cell S that are closer than the cutoff.

.. math:: \mathbf r_{ij} = \mathbf x_j - \mathbf x_i + \mathbf S\,\mathbf h, \qquad |\mathbf r_{ij}| < r_c

Atoms may lie anywhere, also far outside the cell. Cell vectors along directions that are not periodic are ignored.

===============  =============================================================================================
backend          what it is
===============  =============================================================================================
"matscipy"       linear scaling, any cell and periodicity, on the CPU
"vesin"          likewise, also on the GPU; needs the extra ``ase-segnn[vesin]``
"torch-cluster"  on the GPU, for structures that are not periodic; needs the extra ``ase-segnn[cluster]``
"brute-force"    every pair in every cell in reach, in plain NumPy: the reference that the others are tested with
"auto"           what `choose_backend` says
===============  =============================================================================================
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ase_segnn.graphs.arguments import check_volume, checked_backend, checked_length, checked_structure
from ase_segnn.graphs.backends import brute_force_pairs, matscipy_pairs, torch_cluster_pairs, vesin_pairs
from ase_segnn.graphs.cells import Bools, Floats

_log = logging.getLogger(__name__)

# Backends search this much further than the cutoff, so that one formula decides at the cutoff for all of them.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Ordered pairs; both directions of a pair are listed, and an atom can be its own neighbor in another cell.

    Parameters
    ----------
    centers, neighbors : (E,) int64, sorted by center
    cell_shifts : (E, 3) int64, zero along directions that are not periodic
    """

    centers: Tensor
    neighbors: Tensor
    cell_shifts: Tensor

    def equals(self, other: NeighborList) -> bool:
        """Whether two lists hold the same pairs, in any order."""
        rows = [torch.column_stack([x.centers, x.neighbors, x.cell_shifts]).cpu().numpy() for x in (self, other)]
        mine, others = (array[np.lexsort(array.T)] for array in rows)
        return np.array_equal(mine, others)

    def __repr__(self) -> str:
        return f"NeighborList({len(self.centers)} pairs, {self.centers.device})"


def choose_backend(pbc: ArrayLike, device: torch.device | str = "cpu") -> str:
    """Return the name of the backend that "auto" stands for.

    For a list on a GPU it is torch-cluster if that is installed and nothing is periodic, or vesin if that is installed;
    else matscipy.

    Parameters
    ----------
    pbc : (3,) bool, or one bool
    device : where the list is wanted
    """
    if torch.device(device).type == "cuda":
        if not np.any(pbc) and importlib.util.find_spec("torch_cluster") is not None:
            return "torch-cluster"
        if importlib.util.find_spec("vesin") is not None:
            return "vesin"
    return "matscipy"


def neighbor_list(
    positions: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    cutoff: float,
    *,
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> NeighborList:
    """List all pairs closer than `cutoff`.

    Parameters
    ----------
    positions : (N, 3) Å
    cell : (3, 3) Å, rows are the cell vectors
    pbc : (3,) bool
    cutoff : Å, positive
    backend : one of `ase_segnn.graphs.backends.BACKENDS`, or "auto"
    device : where the list is wanted

    Raises
    ------
    ValueError
        If an argument has a wrong shape or value, a position or cell vector is not finite, the periodic cell vectors
        span no volume (area, length), or something is periodic and the backend cannot handle that.
    ImportError
        If vesin or torch-cluster is asked for and not installed.

    Examples
    --------
    A simple cubic crystal has six nearest neighbors, all of them images of its one atom:

    >>> import numpy as np
    >>> pairs = neighbor_list(np.zeros((1, 3)), 3.0 * np.eye(3), [True, True, True], cutoff=3.5)
    >>> sorted(pairs.cell_shifts.tolist())
    [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """
    x, h, periodic = checked_structure(positions, cell, pbc)
    cutoff = checked_length("cutoff", cutoff, positive=True)
    check_volume(h, periodic)
    name = checked_backend(backend)
    if name == "auto":
        name = choose_backend(periodic, device)
        _log.debug("neighbor list backend: %s (%d atoms, pbc=%s, %s)", name, len(x), periodic.tolist(), device)
    if name in ("vesin", "torch-cluster"):
        return _on_device(name, x, h, periodic, cutoff, torch.device(device))
    search = matscipy_pairs if name == "matscipy" else brute_force_pairs
    centers, neighbors, cell_shifts = search(x, h, periodic, cutoff * _ROUNDING)
    vectors = x[neighbors] - x[centers] + cell_shifts @ h
    close = np.flatnonzero(np.einsum("ea,ea->e", vectors, vectors) < cutoff**2)
    close = close[np.argsort(centers[close], kind="stable")]
    return NeighborList(*(torch.as_tensor(array[close], device=device) for array in (centers, neighbors, cell_shifts)))


def _on_device(name: str, x: Floats, h: Floats, periodic: Bools, cutoff: float, device: torch.device) -> NeighborList:
    if name == "vesin":
        centers, neighbors, cell_shifts = vesin_pairs(x, h, periodic, cutoff * _ROUNDING, device)
    elif periodic.any():
        raise ValueError(
            f"the backend 'torch-cluster' finds no pairs across cells, got pbc={periodic.tolist()}; use 'matscipy' or "
            "'auto' for this structure"
        )
    else:
        centers, neighbors = torch_cluster_pairs(x, cutoff * _ROUNDING, device)
        cell_shifts = centers.new_zeros(len(centers), 3)
    order = torch.argsort(centers, stable=True)
    centers, neighbors, cell_shifts = centers[order], neighbors[order], cell_shifts[order]
    close = close_pairs(centers, neighbors, components(cell_shifts), x, h if periodic.any() else None, cutoff)
    return NeighborList(centers[close], neighbors[close], cell_shifts[close])


def close_pairs(
    centers: Tensor, neighbors: Tensor, shifts: Tensor, x: Floats, h: Floats | None, cutoff: float
) -> Tensor:
    """Return the indices (n,) of the pairs that are closer than the cutoff.

    Parameters
    ----------
    centers, neighbors : (E,) int64
    shifts : (3, E) float64, see `components`
    x, h : positions (N, 3) and cell (3, 3) in Å; None for the cell of a structure that is not periodic
    cutoff : Å
    """
    device = centers.device
    shift_vectors = None if h is None else torch.tensor(h.T, device=device) @ shifts
    squared = torch.zeros(len(centers), dtype=torch.float64, device=device)
    for axis, coordinates in enumerate(torch.tensor(x.T, device=device).unbind()):
        differences = coordinates.index_select(0, neighbors) - coordinates.index_select(0, centers)
        if shift_vectors is not None:
            differences += shift_vectors[axis]
        squared += differences.square()
    return (squared < cutoff**2).nonzero().squeeze(1)


def components(cell_shifts: Tensor) -> Tensor:
    """Return cell shifts (E, 3) by component, (3, E) float64: contiguous numbers are gathered several times faster."""
    return cell_shifts.T.to(torch.float64).contiguous()
