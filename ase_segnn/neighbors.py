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
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ase_segnn.checks import SMALLEST_VOLUME, all_finite
from ase_segnn.pair_search import (
    brute_force_pairs,
    cell_inverse,
    matscipy_pairs,
    round_shifts,
    torch_cluster_pairs,
    vesin_pairs,
)

BACKENDS = ("matscipy", "vesin", "torch-cluster", "brute-force")

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]
_Bools = NDArray[np.bool_]

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
    backend : one of `BACKENDS`, or "auto"
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
    x, h, periodic = _checked(positions, cell, pbc)
    cutoff = _checked_length("cutoff", cutoff, positive=True)
    _check_volume(h, periodic)
    name = _checked_backend(backend)
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


def _on_device(
    name: str, x: _Floats, h: _Floats, periodic: _Bools, cutoff: float, device: torch.device
) -> NeighborList:
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
    pairs = NeighborList(centers[order], neighbors[order], cell_shifts[order])
    shift_vectors = torch.tensor(h.T, device=device) @ _components(pairs.cell_shifts) if periodic.any() else None
    return _within(pairs, shift_vectors, torch.tensor(x.T, device=device), cutoff)


class VerletList:
    r"""A neighbor list that is searched for anew only when it could have become incomplete.

    All pairs up to cutoff + skin are kept, and each update picks those that are within the cutoff now, so the
    result is that of `neighbor_list`. Atoms that jump by cell vectors, as when they are wrapped into the cell, are
    recognised and have the cell shifts of their pairs changed.

    Notes
    -----
    Let the list have been built at positions :math:`\mathbf x^0` and cell :math:`\mathbf h^0`, and let
    :math:`\mathbf F` be any matrix that maps its periodic cell vectors to the present ones,
    :math:`\mathbf h^0 \mathbf F = \mathbf h`. Here it leaves what is perpendicular to them as it is:
    :math:`\mathbf F = 1 + (\mathbf h^0)^+ (\mathbf h - \mathbf h^0)` with the pseudo-inverse. With the rest of the
    motion of each atom, :math:`\mathbf u_i = \mathbf x_i - \mathbf x_i^0 \mathbf F - \mathbf c` for any vector
    :math:`\mathbf c`, a pair vector is

    .. math:: \mathbf r = \mathbf x_j - \mathbf x_i + \mathbf S \mathbf h
        = (\mathbf x_j^0 - \mathbf x_i^0 + \mathbf S \mathbf h^0)\,\mathbf F + \mathbf u_j - \mathbf u_i
        \quad\Rightarrow\quad |\mathbf r| \ge \sigma_{\min}(\mathbf F)\,|\mathbf r^0| - 2 \max_i |\mathbf u_i|

    A pair that is not in the list had :math:`|\mathbf r^0| \ge r_c + r_\mathrm{skin}`, so none is missing while

    .. math:: \sigma_{\min}(\mathbf F)\,(r_c + r_\mathrm{skin}) - 2 \max_i |\mathbf u_i| \ge r_c

    This holds for every cell shift, however far: a bound on the change of the cell vectors alone would have to grow
    with the largest S. Motion of all atoms together does not count, and deformation with the cell only as far as it
    brings atoms closer.

    Parameters
    ----------
    cutoff : Å, positive
    skin : Å, not negative; 0 searches at every update
    backend : one of `BACKENDS`, or "auto"
    device : where the lists are wanted

    Raises
    ------
    ValueError
        If the cutoff, skin or backend is not allowed.
    """

    def __init__(self, cutoff: float, skin: float, backend: str = "auto", device: torch.device | str = "cpu") -> None:
        self._cutoff = _checked_length("cutoff", cutoff, positive=True)
        self._skin = _checked_length("skin", skin, positive=False)
        self._backend = _checked_backend(backend)
        self._device = torch.device(device)
        self._kept: _Kept | None = None
        self._built_in: tuple[_Kept, bytes, bytes] | None = None  # with cell and pbc as they were given
        self._builds = 0
        self._compared = {"matscipy"}  # what has been found to be right, if "auto" chooses it

    @property
    def builds(self) -> int:
        """How often pairs were searched for anew."""
        return self._builds

    def update(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
        """Return exactly the pairs within the cutoff; arguments and errors are those of `neighbor_list`.

        The number of atoms, the cell and the periodicity may differ from those of the last call.
        """
        x, h, periodic = _checked(positions, cell, pbc)
        kept = self._updated(x, h, periodic)
        return kept.pairs if self._skin == 0 else kept.within(x, h, self._cutoff)

    def update_all(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
        """Do the same, but return further pairs up to cutoff + skin as well: the same object as long as it holds."""
        given = np.asarray(cell).tobytes(), np.asarray(pbc).tobytes()
        kept = self._kept
        if kept is not None and self._built_in == (kept, *given) and kept.holds_at(positions, self._skin):
            return kept.pairs  # as in most steps of dynamics
        x, h, periodic = _checked(positions, cell, pbc)
        kept = self._updated(x, h, periodic)
        self._built_in = (kept, *given) if h.tobytes() == kept.cell.tobytes() else None
        return kept.pairs

    def _updated(self, x: _Floats, h: _Floats, periodic: _Bools) -> _Kept:
        kept = None if self._skin == 0 else self._kept
        kept = None if kept is None else kept.moved(x, h, periodic, self._cutoff, self._skin)
        if kept is None:
            self._kept = None
            pairs = self._search(x, h, periodic, self._cutoff + self._skin)
            kept = _Kept(x.copy(), h, cell_inverse(h, periodic), periodic, pairs, _components(pairs.cell_shifts))
            self._builds += 1
        self._kept = kept
        return kept

    def _search(self, x: _Floats, h: _Floats, periodic: _Bools, cutoff: float) -> NeighborList:
        pairs = neighbor_list(x, h, periodic, cutoff, backend=self._backend, device=self._device)
        chosen = choose_backend(periodic, self._device)
        if self._backend == "auto" and chosen not in self._compared:
            expected = neighbor_list(x, h, periodic, cutoff, backend="matscipy", device=self._device)
            if not _same_pairs(pairs, expected):
                _log.warning(
                    "%s finds other pairs than matscipy here, matscipy is used instead; please report it", chosen
                )
                self._backend = "matscipy"
                return expected
            self._compared.add(chosen)
        return pairs


@dataclass(frozen=True, eq=False)
class _Kept:
    """Pairs up to cutoff + skin, and the positions (N, 3) and cell (3, 3), with its pseudo-inverse, of that moment."""

    positions: _Floats
    cell: _Floats
    inverse: _Floats
    pbc: _Bools
    pairs: NeighborList
    shifts: Tensor  # of the pairs, (3, E) float64

    def holds_at(self, positions: ArrayLike, skin: float) -> bool:
        """Whether atoms in the same cell have moved so little, all together, that nothing needs a closer look."""
        if not isinstance(positions, np.ndarray) or positions.shape != self.positions.shape:
            return False
        displacements = positions - self.positions
        return bool(np.vdot(displacements, displacements) <= (skin / 2) ** 2)  # not if one is not a number

    def moved(self, x: _Floats, h: _Floats, periodic: _Bools, cutoff: float, skin: float) -> _Kept | None:
        """Return the pairs with shifts that fit the present positions, or None if there could be others by now."""
        if len(x) != len(self.positions) or periodic.tobytes() != self.pbc.tobytes():
            return None
        displacements = x - self.positions
        smallest_stretch = 1.0
        if h.tobytes() != self.cell.tobytes():
            change = h - self.cell
            strain = self.inverse @ change
            displacements -= self.positions @ strain
            smallest_stretch = np.linalg.svd(np.eye(3) + strain, compute_uv=False)[-1]
        farthest = (smallest_stretch * (cutoff + skin) - cutoff) / 2
        if _longest(displacements) <= farthest or _spread(displacements) <= farthest:
            return self
        if farthest < 0 or not periodic.any():
            return None
        jumps = round_shifts(np.rint, displacements - displacements[:1], h, periodic)
        if not jumps.any() or not _spread(displacements - jumps @ h) <= farthest:
            return None
        pairs = self.pairs
        steps = torch.as_tensor(jumps, device=pairs.centers.device)
        cell_shifts = pairs.cell_shifts + steps[pairs.centers] - steps[pairs.neighbors]
        return replace(
            self,
            positions=self.positions + jumps @ self.cell,
            pairs=replace(pairs, cell_shifts=cell_shifts),
            shifts=_components(cell_shifts),
        )

    def within(self, x: _Floats, h: _Floats, cutoff: float) -> NeighborList:
        """Pick the pairs that are closer than the cutoff at these positions and cell."""
        device = self.shifts.device
        shift_vectors = torch.tensor(h.T, device=device) @ self.shifts if self.pbc.any() else None
        return _within(self.pairs, shift_vectors, torch.tensor(x.T, device=device), cutoff)


def _same_pairs(a: NeighborList, b: NeighborList) -> bool:
    rows = [torch.column_stack([x.centers, x.neighbors, x.cell_shifts]).cpu().numpy() for x in (a, b)]
    first, second = (array[np.lexsort(array.T)] for array in rows)
    return np.array_equal(first, second)


def _within(pairs: NeighborList, shift_vectors: Tensor | None, points: Tensor, cutoff: float) -> NeighborList:
    """Pick the pairs closer than the cutoff.

    Positions (3, N) and shift vectors (3, E) come by component: contiguous numbers are gathered several times faster.
    """
    squared = torch.zeros(len(pairs.centers), dtype=torch.float64, device=points.device)
    for axis, coordinates in enumerate(points.unbind()):
        components = coordinates.index_select(0, pairs.neighbors) - coordinates.index_select(0, pairs.centers)
        if shift_vectors is not None:
            components += shift_vectors[axis]
        squared += components.square()
    chosen = (squared < cutoff**2).nonzero().squeeze(1)
    return NeighborList(
        centers=pairs.centers.index_select(0, chosen),
        neighbors=pairs.neighbors.index_select(0, chosen),
        cell_shifts=pairs.cell_shifts.index_select(0, chosen),
    )


def _spread(displacements: _Floats) -> float:
    """Return the radius of a sphere around all displacements (N, 3), in Å; its center is that of their bounding box."""
    if len(displacements) == 0:
        return 0.0
    center = (displacements.min(axis=0) + displacements.max(axis=0)) / 2
    return _longest(displacements - center)


def _longest(vectors: _Floats) -> float:
    """Return the length of the longest of vectors (N, 3), 0 without any."""
    return math.sqrt((vectors * vectors).sum(axis=1).max(initial=0.0))


def _components(cell_shifts: Tensor) -> Tensor:
    return cell_shifts.T.to(torch.float64).contiguous()


def _checked(positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> tuple[_Floats, _Floats, _Bools]:
    """Return positions, the cell with zeros for vectors that are not periodic, and pbc."""
    x = np.asarray(positions, dtype=np.float64)
    h = np.asarray(cell, dtype=np.float64)
    periodic = np.array(pbc, dtype=bool)
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"positions have the shape (atoms, 3), got {x.shape}")
    if h.shape != (3, 3):
        raise ValueError(f"the cell has the shape (3, 3), its rows are the cell vectors, got {h.shape}")
    if periodic.shape != (3,):
        raise ValueError(f"pbc has the shape (3,), one bool for each cell vector, got {periodic.shape}")
    if not all_finite(x):
        atoms = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise ValueError(
            f"positions of {len(atoms)} atoms are not finite, the first is {x[atoms[0]].tolist()} of atom {atoms[0]}; "
            "was the time step too long?"
        )
    h = np.where(periodic[:, None], h, 0.0)
    if not all_finite(h):
        raise ValueError(f"the cell vectors along periodic directions are not finite, got {h.tolist()}")
    return x, h, periodic


def _check_volume(h: _Floats, periodic: _Bools) -> None:
    vectors = h[periodic]
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths > 0).all():
        singular_values = np.linalg.svd(vectors / lengths[:, None], compute_uv=False)
        if singular_values.prod() > SMALLEST_VOLUME:
            return
    raise ValueError(
        f"the cell vectors along periodic directions span no volume, got {vectors.tolist()} with pbc="
        f"{periodic.tolist()}; give them lengths and different directions, or set pbc to False where nothing repeats"
    )


def _checked_length(name: str, value: float, *, positive: bool) -> float:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(
            f"the {name} is a length in Å, finite and {'positive' if positive else 'not negative'}, got {value}"
        )
    return float(value)


def _checked_backend(name: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"a neighbor list backend is 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name
