"""How the backends of `ase_segnn.neighbors` find pairs. They may find some that are farther apart than the cutoff."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]
_Bools = NDArray[np.bool_]

# matscipy makes bins as wide as the cutoff, which in a large vacuum would be slow and fill the memory.
_MAX_BINS = 1_000_000
# torch-cluster takes memory for this many neighbors of every atom, more if it turns out that they do not suffice.
_CLUSTER_NEIGHBORS = 64
# Places in the cell are exact to a millionth of its vectors there.
_MAX_CELLS_AWAY = 1e9


def matscipy_pairs(x: _Floats, h: _Floats, periodic: _Bools, cutoff: float) -> tuple[_Integers, _Integers, _Integers]:
    """Wrap the atoms into a box, periodic where the structure is and around all atoms elsewhere, and ask matscipy."""
    from matscipy.neighbours import neighbour_list

    if len(x) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    inside, box, outside = _in_box(x, h, periodic)
    # a wider search needs fewer bins, and what is too far is dropped later
    widths = (1 / np.linalg.norm(np.linalg.inv(box), axis=0)).tolist()
    while math.prod(max(width / cutoff, 1.0) for width in widths) > _MAX_BINS:
        cutoff *= 1.5
    i, j, s = neighbour_list("ijS", positions=inside, cell=box, pbc=periodic, cutoff=cutoff)
    return i.astype(np.int64), j.astype(np.int64), s + outside[i] - outside[j]


def vesin_pairs(
    x: _Floats, h: _Floats, periodic: _Bools, cutoff: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same with vesin, on the device.

    Raises
    ------
    ImportError
        If vesin is not installed.
    """
    try:
        from vesin import NeighborList
    except ImportError as error:
        raise ImportError(
            "the backend 'vesin' needs the package vesin: pip install \"ase-segnn[vesin]\"; or use the backend "
            "'matscipy'"
        ) from error
    if len(x) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty, empty.new_zeros(0, 3)
    inside, box, outside = _in_box(x, h, periodic)
    points, vectors, wrapped = (torch.tensor(array, device=device) for array in (inside, box, outside))
    search = NeighborList(cutoff=cutoff, full_list=True)
    i, j, s = search.compute(points, vectors, torch.tensor(periodic, device=device), "ijS")
    i, j, s = i.to(torch.int64), j.to(torch.int64), s.to(torch.int64)
    return i, j, s + wrapped[i] - wrapped[j]


def brute_force_pairs(
    x: _Floats, h: _Floats, periodic: _Bools, cutoff: float
) -> tuple[_Integers, _Integers, _Integers]:
    """Try, for each pair, every cell shift near the one that brings the two atoms next to each other.

    With b the reciprocal vectors (columns of the pseudo-inverse of h), a pair vector r of length below the cutoff has
    ``|r · b_k| <= cutoff · |b_k|``, and r · b_k differs from S_k by the fractional coordinates of the two atoms.
    """
    nearest = round_shifts(np.rint, x[:, None] - x[None, :], h, periodic)  # (N, N, 3)
    reach = np.ceil(cutoff * np.linalg.norm(cell_inverse(h, periodic), axis=0) + 0.5).astype(int)
    ranges = [range(-n, n + 1) if is_periodic else range(1) for n, is_periodic in zip(reach, periodic, strict=True)]
    found = []
    for step in itertools.product(*ranges):
        shifts = nearest + np.array(step)
        close = np.linalg.norm(x[None, :] - x[:, None] + shifts @ h, axis=-1) < cutoff
        if step == (0, 0, 0):
            np.fill_diagonal(close, val=False)
        i, j = np.nonzero(close)
        found.append((i, j, shifts[i, j]))
    centers, neighbors, cell_shifts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return centers, neighbors, cell_shifts


def torch_cluster_pairs(x: _Floats, cutoff: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Search without periodicity, on the device.

    torch-cluster leaves out neighbors, without a word, of atoms that have more than it was told to keep. So the search
    is repeated with room for more until no atom fills it.

    Raises
    ------
    ImportError
        If torch-cluster is not installed.
    """
    try:
        from torch_cluster import radius
    except ImportError as error:
        raise ImportError(
            "the backend 'torch-cluster' needs the package torch-cluster, which is compiled during installation: "
            "pip install --no-build-isolation \"ase-segnn[cluster]\"; or use the backend 'matscipy'"
        ) from error
    n_atoms = len(x)
    if n_atoms == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty
    points = torch.tensor(x, device=device)
    room = min(_CLUSTER_NEIGHBORS, n_atoms)
    while True:
        centers, neighbors = radius(points, points, cutoff, max_num_neighbors=room)  # each atom finds itself, too
        if room == n_atoms or int(torch.bincount(centers).max()) < room:
            break
        room = min(4 * room, n_atoms)
    distinct = centers != neighbors
    return centers[distinct], neighbors[distinct]


def _in_box(x: _Floats, h: _Floats, periodic: _Bools) -> tuple[_Floats, _Floats, _Integers]:
    """Wrap atoms into a box at the origin, the cell where the structure is periodic and around all atoms elsewhere.

    Returns
    -------
    positions in the box (N, 3), the box (3, 3), and by how many cells atoms had been outside (N, 3)
    """
    outside = round_shifts(np.floor, x, h, periodic)
    wrapped = x - outside @ h
    normals = np.linalg.svd(h)[2][np.count_nonzero(periodic) :]  # rows, orthonormal, across the periodic vectors
    heights = wrapped @ normals.T
    box = h.copy()
    box[~periodic] = (np.ptp(heights, axis=0) + 1.0)[:, None] * normals
    return wrapped - (heights.min(axis=0) - 0.5) @ normals, box, outside


def cell_inverse(h: _Floats, periodic: _Bools) -> _Floats:
    """Pseudo-inverse of the cell, (3, 3) 1/Å; its columns are the reciprocal vectors, zero where nothing repeats."""
    inverse = np.zeros((3, 3))
    if periodic.all():
        inverse[:] = np.linalg.inv(h)
    elif periodic.any():
        inverse[:, periodic] = np.linalg.pinv(h[periodic])
    return inverse


def round_shifts(rounding: Callable[[_Floats], _Floats], vectors: _Floats, h: _Floats, periodic: _Bools) -> _Integers:
    """Round (..., 3) Å to whole cell vectors, (..., 3); zero along directions that are not periodic.

    Raises
    ------
    ValueError
        If there is a vector so long that its place in the cell is lost in rounding errors.
    """
    shifts = rounding(vectors @ cell_inverse(h, periodic))
    farthest = np.abs(shifts).max(initial=0)
    if farthest > _MAX_CELLS_AWAY:
        raise ValueError(
            f"an atom is {farthest:.1e} cells away, at most {_MAX_CELLS_AWAY:.0e} are allowed, since positions lose "
            "their digits there; was the time step too long? Otherwise wrap the atoms into the cell"
        )
    return shifts.astype(np.int64)
