"""Graphs of atoms that move: the neighbor search is repeated only when a pair could be missing.

`VerletGraphs.graph` is the one place that asks what changed since the last call: nothing but positions and cell, the
elements, the cell shifts of pairs, or the pairs. Engines need not ask: they take each graph as it comes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_segnn.checks import sum_of_squares
from ase_segnn.graphs.arguments import checked_backend, checked_length, checked_structure
from ase_segnn.graphs.atomic_graph import AtomicGraph, numbers_of
from ase_segnn.graphs.cells import Bools, Floats, cell_inverse, round_shifts
from ase_segnn.graphs.neighbors import NeighborList, choose_backend, close_pairs, components, neighbor_list

_log = logging.getLogger(__name__)


Setting = tuple[bytes, bytes, bytes]
SETTING = ("numbers", "cell", "pbc")


def setting_of(atoms: Atoms) -> Setting:
    """Return all that defines a structure but its positions, as named in `SETTING`.

    Bytes are compared faster than arrays of few numbers.
    """
    return atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes()


class VerletGraphs:
    r"""Graphs of one structure after another, from a neighbor list with a skin.

    All pairs up to cutoff + skin are kept and followed as the atoms move. A structure of other atoms is taken as well,
    and has its pairs searched for. Atoms that jump by cell vectors, as when they are wrapped into the cell, are
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
    skin : Å, not negative; 0 searches for every graph
    backend : one of `ase_segnn.graphs.backends.BACKENDS`, or "auto"
    device : where the graphs are wanted

    Raises
    ------
    ValueError
        If the cutoff, skin or backend is not allowed.
    """

    def __init__(self, cutoff: float, skin: float, backend: str = "auto", device: torch.device | str = "cpu") -> None:
        self._cutoff = checked_length("cutoff", cutoff, positive=True)
        self._skin = checked_length("skin", skin, positive=False)
        self._backend = checked_backend(backend)
        self._device = torch.device(device)
        self._kept: _Kept | None = None
        self._builds = 0
        self._compared = {"matscipy"}  # what has been found to be right, if "auto" chooses it

    @property
    def builds(self) -> int:
        """How often pairs were searched for."""
        return self._builds

    @property
    def reference(self) -> Floats | None:
        """Positions (N, 3) around which the kept pairs were searched for; None if none are kept.

        No pair is missing while nothing but positions changes, and no atom is farther than half the skin from there.
        """
        return None if self._kept is None else self._kept.positions

    def forget(self) -> None:
        """Search for pairs the next time."""
        self._kept = None

    def graph(self, atoms: Atoms, *, far_pairs: bool = False) -> AtomicGraph:
        """Return the graph of atoms, in tensors that later calls do not write into.

        Parameters
        ----------
        atoms : any number, in any cell and periodicity, which may differ from those of the last call
        far_pairs : whether to leave pairs in that are farther apart than the cutoff. Then all tensors but positions
            and cell are those of the last graph, as long as elements, pairs and their shifts are the same

        Raises
        ------
        ValueError, ImportError
            As `ase_segnn.graphs.neighbors.neighbor_list` does.
        """
        kept, h = self._updated(atoms)
        self._kept = kept if self._skin > 0 else None
        x = np.array(atoms.positions, dtype=np.float64)
        if self._device.type == "cpu":
            positions, cell = torch.from_numpy(x), torch.from_numpy(np.array(atoms.cell.array[None], dtype=np.float64))
        else:  # in one copy
            numbers = torch.from_numpy(np.concatenate([x, atoms.cell.array])).to(self._device)
            positions, cell = numbers[:-3], numbers[None, -3:]
        graph = kept.graph.moved(positions, cell)
        if far_pairs or self._skin == 0:
            return graph
        vectors = h if kept.pbc.any() else None
        close = close_pairs(graph.centers, graph.neighbors, kept.shifts, x, vectors, self._cutoff)
        return replace(
            graph,
            centers=graph.centers.index_select(0, close),
            neighbors=graph.neighbors.index_select(0, close),
            cell_shifts=graph.cell_shifts.index_select(0, close),
        )

    def _updated(self, atoms: Atoms) -> tuple[_Kept, Floats]:
        """Return what is to be kept from now on, the same object where nothing of it changed, and the present cell."""
        setting, kept = setting_of(atoms), self._kept
        if kept is not None and setting == kept.setting and kept.holds_near(atoms.positions, self._skin):
            return kept, kept.cell  # as in most steps of dynamics
        x, h, periodic = checked_structure(atoms.positions, atoms.cell.array, atoms.pbc)
        if kept is not None:
            kept = kept.followed(x, h, periodic, self._cutoff, self._skin)
            if kept is not None:
                return kept.adjusted(atoms, setting, h), h
        self._kept = None  # its memory may be needed
        pairs = self._search(x, h, periodic, self._cutoff + self._skin)
        self._builds += 1
        graph = AtomicGraph.from_pairs(atoms, pairs)
        return _Kept(setting, x.copy(), h, cell_inverse(h, periodic), periodic, graph), h

    def _search(self, x: Floats, h: Floats, periodic: Bools, cutoff: float) -> NeighborList:
        pairs = neighbor_list(x, h, periodic, cutoff, backend=self._backend, device=self._device)
        chosen = choose_backend(periodic, self._device)
        if self._backend == "auto" and chosen not in self._compared:
            expected = neighbor_list(x, h, periodic, cutoff, backend="matscipy", device=self._device)
            if not pairs.equals(expected):
                _log.warning(
                    "%s finds other pairs than matscipy here, matscipy is used instead; please report it", chosen
                )
                self._backend = "matscipy"
                return expected
            self._compared.add(chosen)
        return pairs


@dataclass(frozen=True, eq=False)
class _Kept:
    """The graph of all pairs up to cutoff + skin, and the structure it was built for.

    Positions (N, 3) are those of that moment, but for whole cell vectors by which atoms have jumped since; cell (3, 3)
    and its pseudo-inverse have zeros for vectors that are not periodic.
    """

    setting: Setting
    positions: Floats
    cell: Floats
    inverse: Floats
    pbc: Bools
    graph: AtomicGraph

    @cached_property
    def shifts(self) -> Tensor:
        """Cell shifts by component, (3, E)."""
        return components(self.graph.cell_shifts)

    def holds_near(self, positions: Floats, skin: float) -> bool:
        """Whether atoms in the same setting have moved so little, all together, that nothing needs a closer look."""
        if positions.shape != self.positions.shape:
            return False
        displacements = positions - self.positions
        return bool(sum_of_squares(displacements) <= (skin / 2) ** 2)  # not if one is not a number

    def followed(self, x: Floats, h: Floats, periodic: Bools, cutoff: float, skin: float) -> _Kept | None:
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
        graph = self.graph
        steps = torch.as_tensor(jumps.astype(np.float64), device=graph.centers.device)
        cell_shifts = graph.cell_shifts + steps[graph.centers] - steps[graph.neighbors]
        positions = self.positions + jumps @ self.cell
        return replace(self, positions=positions, graph=replace(graph, cell_shifts=cell_shifts))

    def adjusted(self, atoms: Atoms, setting: Setting, h: Floats) -> _Kept:
        """Return the same pairs for atoms that may be of other elements, in a cell that may differ where unused."""
        kept = self
        if setting[0] != kept.setting[0]:
            graph = replace(kept.graph, atomic_numbers=numbers_of(atoms, kept.graph.centers.device))
            kept = replace(kept, setting=(setting[0], *kept.setting[1:]), graph=graph)
        if setting != kept.setting and h.tobytes() == kept.cell.tobytes():
            kept = replace(kept, setting=setting)
        return kept


def _spread(displacements: Floats) -> float:
    """Return the radius of a sphere around all displacements (N, 3), in Å; its center is that of their bounding box."""
    if len(displacements) == 0:
        return 0.0
    center = (displacements.min(axis=0) + displacements.max(axis=0)) / 2
    return _longest(displacements - center)


def _longest(vectors: Floats) -> float:
    """Return the length of the longest of vectors (N, 3), 0 without any."""
    return math.sqrt((vectors * vectors).sum(axis=1).max(initial=0.0))
