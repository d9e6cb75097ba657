"""The row of numbers that the audit keeps of each frame, small whatever the size of the frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell
from numpy.typing import NDArray

from ase_segnn.graphs.neighbors import NeighborList, neighbor_list
from ase_segnn.labels import LABELS

from ..data.frames import Frame

_Floats = NDArray[np.float64]
Row = tuple[float | int | bool | tuple[float, ...], ...]

# One row per frame. A number is nan where the frame lacks the label, has no weight for it, or is not periodic.
ROW = np.dtype(
    [
        ("data_set", "i4"),
        ("group", "i4"),
        ("composition", "i4"),
        ("n_atoms", "i4"),
        ("isolated", "?"),
        ("present", "?", len(LABELS)),
        ("weights", "f4", len(LABELS)),
        ("energy", "f8"),  # eV
        ("largest_force", "f8"),  # eV/Å
        ("force_rms", "f8"),  # eV/Å, of components
        ("net_force", "f8"),  # eV/Å, length of the sum
        ("untold_forces", "i4"),  # forces that are exactly zero where symmetry does not ask for it
        ("forces_hash", "i8"),
        ("largest_stress", "f8"),  # eV/Å³, of components
        ("stress_hash", "i8"),
        ("constant", "?", 2),  # whether all components of forces, of stress are the same number and not zero
        ("mean_stress", "f8"),  # eV/Å³, a third of the trace
        ("volume", "f8"),  # Å³
        ("closeness", "f8"),  # shortest distance over the sum of the two covalent radii
        ("shortest", "f8"),  # Å, that distance
        ("lone_atoms", "i4"),  # atoms without a neighbor
        ("structure", "i8", 2),  # hashes
    ]
)

# Å per radius: pairs closer than this times the sum of their covalent radii are looked at
_BOND = 1.3
# Numbers of periods and phases of the functions that tell structures apart, (3, 8); none of them is special.
_PERIODS = np.array([[1, 2, 1, 1, 2, 1, 3, 1], [1, 1, 2, 1, 1, 3, 1, 2], [1, 1, 1, 2, 3, 2, 1, 1]])
_PHASES = np.random.default_rng(0).uniform(0, 2 * np.pi, _PERIODS.shape)
_STEP = 1e-4  # of the numbers that stand for a structure: Å for the cell, about Å for positions
# An environment whose weighted sum of unit vectors is less than this of the sum of weights counts as symmetric.
_LOPSIDED = 1e-2


@dataclass
class Spread:
    """Number, least, mean, largest and root mean square of values, added array by array."""

    count: int = 0
    least: float = math.inf
    largest: float = -math.inf
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: _Floats) -> None:
        """Add the values of an array of any shape, not empty."""
        self.count += values.size
        self.least = min(self.least, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        self.total += float(values.sum())
        self.squares += float(np.vdot(values, values))

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return self.total / self.count

    @property
    def rms(self) -> float:
        """Root mean square of the values."""
        return math.sqrt(self.squares / self.count)


@dataclass
class Rows:
    """A table that grows by a row per frame."""

    _blocks: list[NDArray[np.void]] = field(default_factory=list)
    _recent: list[Row] = field(default_factory=list)

    def append(self, row: Row) -> None:
        """Add values in the order of `ROW`."""
        self._recent.append(row)
        if len(self._recent) == 4096:  # an array takes a tenth of the memory of tuples
            self._blocks.append(np.array(self._recent, dtype=ROW))
            self._recent.clear()

    def table(self) -> NDArray[np.void]:
        """Return all rows, dtype `ROW`."""
        return np.concatenate([*self._blocks, np.array(self._recent, dtype=ROW)])


def measure(frame: Frame, data_set: int, group: int, composition: int, cutoff: float) -> Row:
    """Compute the row of a frame, in the order of `ROW`.

    Raises
    ------
    ValueError
        If the periodic cell vectors span no volume; the error names the frame.
    """
    nan, atoms = math.nan, frame.atoms
    counted = without_placeholders(frame)
    energy, all_forces, stress = counted.energy, counted.forces, counted.stress
    try:
        shortest, closeness, lone_atoms = _distances(frame, cutoff)
        forces = (nan, nan, nan, 0, 0) if all_forces is None else _force_numbers(frame, all_forces, cutoff)
    except ValueError as error:
        raise ValueError(f"{frame.source}: {error}") from error
    return (
        data_set,
        group,
        composition,
        len(atoms),
        frame.is_isolated_atom or lone_atoms == len(atoms) == 1,
        tuple(label in frame.labels for label in LABELS),
        tuple(frame.weights.get(label, 1.0) for label in LABELS),
        nan if energy is None else energy,
        *forces,
        nan if stress is None else float(np.abs(stress).max()),
        0 if stress is None else hash(stress.tobytes()),
        (_is_constant(all_forces), _is_constant(stress)),
        nan if stress is None else float(np.trace(stress)) / 3,
        float(atoms.get_volume()) if atoms.pbc.all() else nan,
        closeness,
        shortest,
        lone_atoms,
        _structure_hashes(frame),
    )


def without_placeholders(frame: Frame) -> Frame:
    """Return the frame without labels of weight zero, whose values mean nothing."""
    placeholders: dict[str, Any] = {label: None for label in frame.labels if label not in frame.weighted_labels}
    return replace(frame, **placeholders)


def _distances(frame: Frame, cutoff: float) -> tuple[float, float, int]:
    """Return the distance that is shortest for its elements, in Å and over the radii, and the number of lone atoms."""
    atoms = frame.atoms
    radii = covalent_radii[atoms.numbers]
    reach = min(2 * _BOND * float(radii.max()), cutoff)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    n_lone = _without_pairs(len(atoms), pairs)
    if n_lone and reach < cutoff:  # only then is the longer list needed
        all_pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        n_lone = _without_pairs(len(atoms), all_pairs)
    if len(pairs.centers) == 0:
        return math.inf, math.inf, n_lone
    centers, neighbors, vectors = _edges(frame, pairs)
    lengths = np.linalg.norm(vectors, axis=1)
    ratios = lengths / (radii[centers] + radii[neighbors])
    closest = int(ratios.argmin())
    return float(lengths[closest]), float(ratios[closest]), n_lone


def _without_pairs(n_atoms: int, pairs: NeighborList) -> int:
    return int((np.bincount(pairs.centers.numpy(), minlength=n_atoms) == 0).sum())


def _edges(frame: Frame, pairs: NeighborList) -> tuple[NDArray[np.int64], NDArray[np.int64], _Floats]:
    centers, neighbors = pairs.centers.numpy(), pairs.neighbors.numpy()
    x = frame.atoms.positions
    return centers, neighbors, x[neighbors] - x[centers] + pairs.cell_shifts.numpy() @ frame.atoms.cell.array


def _force_numbers(frame: Frame, forces: _Floats, cutoff: float) -> tuple[float, float, float, int, int]:
    zero = ~forces.any(axis=1)
    return (
        math.sqrt(np.square(forces).sum(axis=1).max()),
        math.sqrt(np.square(forces).mean()),
        float(np.linalg.norm(forces.sum(axis=0))),
        int((zero & _lopsided(frame, cutoff)).sum()) if zero.any() and len(forces) > 1 else 0,
        hash(forces.tobytes()),
    )


def _is_constant(values: _Floats | None) -> bool:
    return values is not None and bool(values.flat[0]) and bool((values == values.flat[0]).all())


def _lopsided(frame: Frame, cutoff: float) -> NDArray[np.bool_]:
    r"""Tell the atoms, (n,), whose environment is not so symmetric that the force must vanish.

    A symmetry that makes the force zero makes any other vector zero, and so the sum
    :math:`\sum_j w_j \hat{\mathbf r}_{ij}` with :math:`w_j = r^\mathrm{cov}_j e^{-r_{ij}} (1 - r_{ij} / r_c)^2`.
    """
    atoms = frame.atoms
    centers, neighbors, vectors = _edges(
        frame, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=cutoff)
    )
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
    weights = covalent_radii[atoms.numbers[neighbors]] * np.exp(-lengths) * (1 - lengths / cutoff) ** 2
    sums, totals = np.zeros((len(atoms), 3)), np.zeros(len(atoms))
    np.add.at(sums, centers, (weights / lengths)[:, None] * vectors)
    np.add.at(totals, centers, weights)
    return np.asarray(np.linalg.norm(sums, axis=1) > _LOPSIDED * totals)


def _structure_hashes(frame: Frame) -> tuple[int, int]:
    r"""Hash a structure twice; two frames with either hash in common are the same structure.

    The hashes do not change if the whole structure is translated, atoms are moved by cell vectors, or atoms other than
    the first are reordered. They are made of elements, periodic cell vectors and, for some m and φ, sums over atoms j

    .. math:: \sum_j Z_j \exp \sum_a \cos(2 \pi m_a s_{ja} + \varphi_a)

    with fractional coordinates s from the first atom, along directions that are not periodic Å without 2π. The numbers
    are rounded on two grids, half a step apart: a number at an edge of one grid, which could be rounded either way, is
    inside a step of the other.
    """
    atoms = frame.atoms
    periodic = np.asarray(atoms.pbc)
    cell = complete_cell(np.where(periodic[:, None], atoms.cell.array, 0.0))
    scaled = (atoms.positions - atoms.positions[0]) @ np.linalg.inv(cell)
    factors = np.where(periodic, 2 * np.pi, 1.0)[:, None] * _PERIODS
    waves = np.exp(sum(np.cos(scaled[:, [a]] * factors[a] + _PHASES[a]) for a in range(3)))
    sums = (atoms.numbers / np.linalg.norm(atoms.numbers)) @ waves
    numbers = np.concatenate([sums, cell[periodic].ravel()]) / _STEP
    kinds = (np.sort(atoms.numbers).tobytes(), periodic.tobytes())
    first, second = (hash((*kinds, np.floor(numbers + offset).astype(np.int64).tobytes())) for offset in (0.25, 0.75))
    return first, second
