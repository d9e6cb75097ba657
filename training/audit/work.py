r"""Whether energies agree with forces and stresses: their differences against the work done between similar frames.

From one frame to another with the same atoms, displaced by d and strained by ε a little,

.. math:: \Delta E \approx -\sum_i \bar{\mathbf F}_i \cdot \mathbf d_i + V \bar\sigma : \varepsilon,

with means over the two frames. The slope of energy differences against work is one if signs and units are right; any
other slope tells what is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from ase import units
from ase.geometry import complete_cell
from numpy.typing import NDArray

from ase_segnn.quantities import COMPONENTS, VOIGT

from ..data.frames import Frame

_Floats = NDArray[np.float64]

_KEPT = 64  # frames to compare the next ones with, each of another kind
_LONGEST_STEP = 0.5  # Å, displacement of an atom between frames whose forces are compared
_NEAR_STEP = 0.3  # Å, displacement up to which energies must follow the work
_LONGEST_STRAINED_STEP = 0.1  # Å, displacement beside the strain between frames whose stresses are compared
_SAME_CELL = 1e-6  # strain below which two cells count as one
_TYPICAL_STRAIN = 0.01  # pairs of frames that are strained are weighted by the inverse of their strain
_STRAINS = (1e-4, 0.12)  # between frames whose stresses are compared
_SMALLEST_VOLUME = 1e-3  # Å³, of the mean of two cells
_FEWEST_PAIRS = 10
_NOISE = 1e-3  # eV, of energies that are converged as usual
_NO_RELATION = 0.5  # correlation below which energies come from elsewhere; data in use have 0.97 and more
_CLEAR = 0.9  # correlation from which a slope means something
_RIGHT = (0.7, 1.4)  # slopes that count as one
_SMALL_STRAIN = 0.03  # up to which the mean of two stresses is exact enough to see a constant that is wrong
_OFFSET = 0.005  # eV/Å³, 0.8 GPa, such a constant that is reported
_EXPLAINED = 0.5  # part of the squared difference of energies and work that it must explain

_PER_BOHR = units.Hartree / units.Bohr
_ENERGY_AND_FORCES = {
    units.Hartree: "forces are in Hartree/Å",
    _PER_BOHR: "forces are in Hartree/Bohr",
    1 / units.Bohr: "energies are in Hartree and forces in Hartree/Bohr, or forces in eV/Bohr",
    units.Rydberg: "forces are in Rydberg/Å",
    _PER_BOHR / 2: "forces are in Rydberg/Bohr",
    1 / units.Hartree: "energies are in Hartree",
    1 / units.Rydberg: "energies are in Rydberg",
    units.mol / units.kcal: "energies are in kcal/mol",
    units.kcal / units.mol: "forces are in kcal/mol/Å",
    units.mol / units.kJ: "energies are in kJ/mol",
    units.kJ / units.mol: "forces are in kJ/mol/Å",
}
_ENERGIES = {
    1 / units.Hartree: "energies are in Hartree",
    1 / units.Rydberg: "energies are in Rydberg",
    units.mol / units.kcal: "energies are in kcal/mol",
    units.mol / units.kJ: "energies are in kJ/mol",
}
_ENERGY_AND_STRESS = {
    units.GPa: "stresses are in GPa",
    units.GPa / 10: "stresses are in kbar",
    units.Hartree / units.Bohr**3: "stresses are in Hartree/Bohr³",
    units.Rydberg / units.Bohr**3: "stresses are in Rydberg/Bohr³",
    1 / units.Hartree: "energies are in Hartree",
    1 / units.Rydberg: "energies are in Rydberg",
}
_SHEARS = COMPONENTS[3:]
_OF_SHEARS = VOIGT[0][3:], VOIGT[1][3:]  # rows and columns


@dataclass(frozen=True)
class Slope:
    """Energy differences against work.

    Parameters
    ----------
    slope : 1 if energies agree with forces or stresses
    correlation : of the two, about zero rather than about the mean
    n_pairs : of frames that were compared
    shears : the stress components found where yz, xz and xy should be
    diagnosis : what explains a slope that is clear and wrong; empty otherwise
    size : eV, root mean square of the energy differences, or of the work if that is larger
    offset : eV/Å³, what to take from all normal stresses so that energies follow them; 0 unless that is clear
    """

    slope: float
    correlation: float
    n_pairs: int
    shears: tuple[str, ...] = _SHEARS
    diagnosis: str = ""
    size: float = 0.0
    offset: float = 0.0

    @property
    def is_clear(self) -> bool:
        """Whether there are pairs enough and they agree on the slope."""
        return self.n_pairs >= _FEWEST_PAIRS and abs(self.correlation) > _CLEAR

    @property
    def is_absent(self) -> bool:
        """Whether there are pairs enough, and the energy goes its own way beyond what noise does."""
        return self.n_pairs >= _FEWEST_PAIRS and abs(self.correlation) < _NO_RELATION and self.size > _NOISE

    @property
    def is_wrong(self) -> bool:
        """Whether it is clear, and not about one."""
        return self.is_clear and not _RIGHT[0] <= self.slope <= _RIGHT[1]

    @property
    def is_permuted(self) -> bool:
        """Whether shear stresses are clearly in another order."""
        return self.is_clear and self.shears != _SHEARS


@dataclass(frozen=True, eq=False)
class _Place:
    """A frame, its energy, and its cell, with unit vectors along directions that are not periodic."""

    frame: Frame
    energy: float
    periodic: NDArray[np.bool_]
    cell: _Floats
    scaled: _Floats


@dataclass
class Work:
    """Compares each frame with the previous frame of the same kind; keeps this frame and numbers of each pair."""

    _previous: OrderedDict[Hashable, _Place] = field(default_factory=OrderedDict)
    _force_pairs: list[tuple[float, float, float]] = field(default_factory=list)
    _stress_pairs: list[tuple[float, ...]] = field(default_factory=list)
    _strained_pairs: list[tuple[float, float, float]] = field(default_factory=list)
    _near_pairs: list[tuple[float, float]] = field(default_factory=list)

    def add(self, frame: Frame) -> None:
        """Compare with the last frame of the same atoms, in the same order, of the same group and periodicity."""
        if frame.energy is None or (frame.forces is None and frame.stress is None):
            return
        periodic = np.asarray(frame.atoms.pbc)
        cell = complete_cell(np.where(periodic[:, None], frame.atoms.cell.array, 0.0))
        place = _Place(frame, frame.energy, periodic, cell, frame.atoms.positions @ np.linalg.inv(cell))
        key = (frame.group, frame.atoms.numbers.tobytes(), periodic.tobytes())
        previous = self._previous.pop(key, None)
        self._previous[key] = place
        if len(self._previous) > _KEPT:
            self._previous.popitem(last=False)
        if previous is not None:
            self._compare(previous, place)

    def _compare(self, first: _Place, second: _Place) -> None:
        cell = (first.cell + second.cell) / 2
        moved = second.scaled - first.scaled
        moved -= moved[0]  # before wrapping, since a structure that moved as a whole has not moved
        moved -= np.where(first.periodic, np.round(moved), 0.0)
        displacements = (moved - moved.mean(axis=0)) @ cell
        step = math.sqrt(np.square(displacements).sum(axis=1).max())
        volume = abs(float(np.linalg.det(cell)))
        if step > _LONGEST_STEP or volume < _SMALLEST_VOLUME:
            return
        gradient = np.linalg.solve(cell, second.cell - first.cell)
        strain = (gradient + gradient.T) / 2
        largest_strain = np.abs(strain).max()
        change = second.energy - first.energy
        force_work = 0.0
        forces = first.frame.forces, second.frame.forces
        if forces[0] is not None and forces[1] is not None:
            force_work = -float(np.vdot(forces[0] + forces[1], displacements)) / 2
            if largest_strain < _SAME_CELL and step > 1e-4:
                self._force_pairs.append((change, force_work, len(moved)))
                if step < _NEAR_STEP:
                    self._near_pairs.append((change, force_work))
        stresses = first.frame.stress, second.frame.stress
        if stresses[0] is None or stresses[1] is None or not _STRAINS[0] < largest_strain < _STRAINS[1]:
            return
        stress = (stresses[0] + stresses[1]) / 2
        normal = volume * float(np.diag(stress) @ np.diag(strain))
        shears = 2 * volume * np.outer(stress[_OF_SHEARS], strain[_OF_SHEARS])
        if forces[0] is not None and forces[1] is not None:
            self._strained_pairs.append((change, force_work + normal + float(np.trace(shears)), len(moved)))
        if step < _LONGEST_STRAINED_STEP:
            works = (change - force_work, normal, *shears.ravel().tolist())
            weight = 1 / largest_strain  # taking the mean stress is less exact for large strains
            expansion = volume * float(np.trace(strain))
            self._stress_pairs.append((*(weight * work for work in (*works, expansion)), largest_strain, volume))

    def near_forces(self) -> Slope:
        """Energy differences against the work of the forces, between frames so near that they must agree."""
        if len(self._near_pairs) < _FEWEST_PAIRS:
            return Slope(math.nan, 0.0, len(self._near_pairs))
        change, work = _without_outliers(np.array(self._near_pairs)).T
        slope, correlation, _ = _fit(change, work)
        return Slope(slope, correlation, len(change), size=_size(change, work))

    def forces(self) -> Slope:
        """Energy differences against the work of the forces."""
        if len(self._force_pairs) < _FEWEST_PAIRS:
            return Slope(math.nan, 0.0, len(self._force_pairs))
        change, work, n_atoms = _without_outliers(np.array(self._force_pairs)).T
        slope, correlation, _ = _fit(change, work)
        known = _ENERGY_AND_FORCES | {1 / float(np.median(n_atoms)): "energies are per atom instead of per frame"}
        return Slope(slope, correlation, len(change), diagnosis=_diagnosis(slope, known, "forces"))

    def both(self) -> Slope:
        """Energy differences against the work of forces and stresses together, between frames of different cells.

        Changes of the cell are not small, so that only slopes off by a factor of two or more tell something.
        """
        if len(self._strained_pairs) < _FEWEST_PAIRS:
            return Slope(math.nan, 0.0, len(self._strained_pairs))
        change, work, n_atoms = _without_outliers(np.array(self._strained_pairs)).T
        slope, correlation, _ = _fit(change, work)
        known = _ENERGIES | {1 / float(np.median(n_atoms)): "energies are per atom instead of per frame"}
        diagnosis = "" if 0.5 < slope < 2 else _diagnosis(slope, known, "forces and stresses", tolerance=0.6)
        return Slope(slope, correlation, len(change), diagnosis=diagnosis)

    def stress(self) -> Slope:
        """Energy differences against the work of the stresses, also with their shear components permuted."""
        if len(self._stress_pairs) < _FEWEST_PAIRS:
            return Slope(math.nan, 0.0, len(self._stress_pairs))
        pairs = _without_outliers(np.array(self._stress_pairs))
        change, normal, shears = pairs[:, 0], pairs[:, 1], pairs[:, 2:-3].reshape(-1, 3, 3)
        expansion, strain, volume = pairs[:, -3:].T
        right = (0, 1, 2)
        works = {order: normal + shears[:, order, right].sum(axis=1) for order in itertools.permutations(right)}
        fits = {order: _fit(change, work) for order, work in works.items()}
        best = min(fits, key=lambda order: fits[order][2])
        if fits[right][2] < 2 * fits[best][2]:
            best = right
        slope, correlation, _ = fits[best]
        known = _ENERGY_AND_STRESS | {1 / float(np.median(volume)): "stresses were multiplied by the volume"}
        found = [""] * 3
        for place, component in enumerate(best):
            # the stress that does the work of strain `place` lies at `component`
            found[component] = _SHEARS[place]
        size = _TYPICAL_STRAIN * _size(change, works[best])
        small = strain < _SMALL_STRAIN
        offset = _offset((works[best] - change)[small], expansion[small])
        return Slope(slope, correlation, len(pairs), tuple(found), _diagnosis(slope, known, "stresses"), size, offset)


def _size(change: _Floats, work: _Floats) -> float:
    return math.sqrt(max(float(np.square(change).mean()), float(np.square(work).mean())))


def _without_outliers(pairs: _Floats) -> _Floats:
    """Drop pairs whose energy difference, in the first column, is far from those of the others."""
    deviations = np.abs(pairs[:, 0] - np.median(pairs[:, 0]))
    return pairs[deviations <= 20 * max(float(np.median(deviations)), 1e-12)]


def _fit(change: _Floats, work: _Floats) -> tuple[float, float, float]:
    """Slope and correlation of a line through zero, and the root mean square of the residuals."""
    product, changes, works = float(change @ work), float(change @ change), float(work @ work)
    if changes == 0 or works == 0:
        return math.nan, 0.0, math.sqrt(changes / len(change))
    slope, correlation = product / works, product / math.sqrt(changes * works)
    return slope, correlation, math.sqrt(changes * max(1 - correlation**2, 0.0) / len(change))


def _offset(excess: _Floats, expansion: _Floats) -> float:
    """Stress whose work explains the excess of work over energy differences; 0 if it is small or explains little."""
    if len(excess) < _FEWEST_PAIRS:
        return 0.0
    offset, correlation, _ = _fit(excess, expansion)
    return offset if abs(offset) > _OFFSET and correlation**2 > _EXPLAINED else 0.0


def _diagnosis(slope: float, known: dict[float, str], label: str, tolerance: float = 0.25) -> str:
    """Name what makes a slope that is not one; `tolerance` is that of its logarithm."""
    if math.isnan(slope) or _RIGHT[0] <= slope <= _RIGHT[1]:
        return ""
    sign = [f"{label} have the wrong sign"] if slope < 0 else []
    if _RIGHT[0] <= -slope <= _RIGHT[1]:
        return sign[0]
    distances = {abs(math.log(abs(slope) / factor)): text for factor, text in known.items()}
    close = [text for distance, text in distances.items() if distance < min(tolerance, min(distances) + 0.1)]
    return " and ".join([*sign, " or ".join(close) or "another unit of energy or length is in play"])
