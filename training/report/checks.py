"""Physical checks of a finished potential that need no labels: repulsion at short range and under compression."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from ase_segnn.evaluation import predict
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.physics.verdicts import Verdict
from ase_segnn.quantities import MILLI, QUANTITIES

from ..data.frames import Frame
from .predictions import Calibration, Predictions

_log = logging.getLogger(__name__)

Pair = tuple[int, int]  # of atomic numbers, the smaller first

# As shares of the sum of the covalent radii, and never beyond the shortest distance in the data. Nearer than the first
# no two atoms attract each other: the shortest bonds of all, such as those of N2, O-H and Mo2, are longer. Nearer than
# the second the energy has no maximum.
_CORE, _SUMMIT = 0.6, 1.25
_SURVEYED_DISTANCE = 4.0  # Å, of the pairs that are looked at for the shortest
_LARGEST_START = 200  # atoms of the structure that dynamics starts from, if there is a choice
_LEAST_CORRELATION = 0.3  # of deviations with errors
_LARGEST_SHARE = 0.5  # error of forces, relative to the forces
_MOST_HOLES = 3  # that are named
_NOISE = 0.05  # eV; shallower holes are no trouble


class Survey:
    """Facts about frames that the checks need, collected while the frames pass by.

    Attributes
    ----------
    elements : atomic numbers
    shortest : pair of elements -> their shortest distance, Å, if they ever come within 4 Å
    start : name and structure for the start of molecular dynamics: the largest of at most 200 atoms, of several the one
        with the smallest forces; None before the first frame of two atoms or more
    """

    def __init__(self) -> None:
        self.elements: set[int] = set()
        self.shortest: dict[Pair, float] = {}
        self.start: tuple[str, Atoms] | None = None
        self._rank: tuple[float, ...] = ()

    def watch(self, frames: Iterable[Frame], *, as_start: bool) -> Iterator[Frame]:
        """Yield the frames unchanged and collect their facts; `as_start` lets one of them be the start."""
        for frame in frames:
            self.elements.update(frame.atoms.numbers.tolist())
            graph = AtomicGraph.from_atoms(frame.atoms, _SURVEYED_DISTANCE)
            for pair, distance in graph.shortest_distances().items():
                self.shortest[pair] = min(distance, self.shortest.get(pair, np.inf))
            n_atoms = len(frame.atoms)
            if as_start and n_atoms > 1:
                size = n_atoms if n_atoms <= _LARGEST_START else -n_atoms
                rank = (size, -np.inf if frame.forces is None else -float(np.sqrt(np.mean(frame.forces**2))))
                if self.start is None or rank > self._rank:
                    self._rank, self.start = rank, (frame.source, frame.atoms.copy())
            yield frame


@dataclass(frozen=True, eq=False)
class DimerCurve:
    """Two atoms alone at n distances.

    Parameters
    ----------
    pair : name such as "C-H"
    distances : (n,) Å, ascending
    energies : (n,) eV, less the one at the largest distance
    shortest_in_data : Å, None if the data have no such pair within 4 Å
    hole : distances (Å) between which near atoms attract each other; None if there is no such hole
    barrier : eV, of the wall before the hole, above the lowest energy outside; None without a hole
    """

    pair: str
    distances: NDArray[np.float64]
    energies: NDArray[np.float64]
    shortest_in_data: float | None
    hole: tuple[float, float] | None
    barrier: float | None


def dimer_curves(
    calculator: Calculator, elements: Iterable[int], shortest: Mapping[Pair, float], *, most_pairs: int = 15
) -> list[DimerCurve]:
    """Energy over distance from 0.3 to 6 Å of two atoms alone, for each pair of elements; at most `most_pairs` pairs.

    Parameters
    ----------
    calculator : anything that ASE takes as one
    elements : atomic numbers
    shortest : of pairs in the data, see `Survey`; pairs that come nearest in the data go first
    most_pairs : the others are left out
    """
    pairs = sorted(combinations_with_replacement(sorted(elements), 2), key=lambda pair: shortest.get(pair, np.inf))
    distances = np.concatenate([np.arange(0.30, 2.5, 0.025), np.arange(2.5, 6.01, 0.1)])
    curves = []
    for pair in pairs[:most_pairs]:
        dimers = [Atoms(pair, [[0, 0, 0], [0, 0, distance]]) for distance in distances]
        energies = _energies(calculator, dimers)
        in_data = shortest.get(pair)
        core, summit = (
            min(share * float(covalent_radii[list(pair)].sum()), np.inf if in_data is None else in_data)
            for share in (_CORE, _SUMMIT)
        )
        hole, barrier = _hole(distances, energies, core, summit)
        name = "-".join(chemical_symbols[number] for number in pair)
        curves.append(DimerCurve(name, distances, energies - energies[-1], in_data, hole, barrier))
    return curves


def _energies(calculator: Calculator, structures: list[Atoms]) -> NDArray[np.float64]:
    """Return the energies, eV; NaN for all if the calculator fails."""
    with np.errstate(all="ignore"):
        try:
            return np.array([results["energy"] for results in predict(calculator, structures, ["energy"])], np.float64)
        except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            _log.warning("no energies of %d structures: %s", len(structures), error)
            return np.full(len(structures), np.nan)


def _hole(
    distances: NDArray[np.float64], energies: NDArray[np.float64], core: float, summit: float
) -> tuple[tuple[float, float] | None, float | None]:
    """Find the outermost stretch where atoms wrongly attract each other, and how high the wall around it is.

    The energy rises with the distance there, and the stretch begins inside of `core` or ends in a maximum that is
    nearer than `summit`.
    """
    rises = np.concatenate([[False], np.diff(energies) > 0, [False]]).astype(int)
    starts, ends = np.flatnonzero(np.diff(rises) == 1), np.flatnonzero(np.diff(rises) == -1)
    for start, end in zip(starts[::-1], ends[::-1], strict=True):  # from outside, as an atom would come in
        if energies[end] - energies[start] > _NOISE and (distances[end] <= summit or distances[start] < core):
            hole = float(distances[start]), float(distances[end])
            return hole, float(energies[end] - energies[end:].min())
    return None, None


def check_dimers(curves: list[DimerCurve], n_pairs: int) -> Verdict:
    """Whether all pairs repel each other at short range; `n_pairs` is the number that there could be."""
    name = "Repulsion at short range"
    if not curves:
        return Verdict(name, "not applicable", "There were no pairs of elements to look at.")
    scope = f"{len(curves)} of {n_pairs} pairs of elements" if len(curves) < n_pairs else "all pairs of elements"
    endless = [f"{curve.pair} have no finite energy" for curve in curves if not np.isfinite(curve.energies).all()]
    holes = sorted(
        (curve.barrier, curve.hole, curve.pair) for curve in curves if curve.hole and curve.barrier is not None
    )
    found = endless + [
        f"{pair} attract each other from {near:.2f} to {far:.2f} Å, "
        + ("with no barrier before it" if barrier < 0.1 else f"behind a barrier of {barrier:.1f} eV")
        for barrier, (near, far), pair in holes
    ]
    if found:
        text = "; ".join(found[:_MOST_HOLES]) + f"; and {len(found) - _MOST_HOLES} more pairs" * (
            len(found) > _MOST_HOLES
        )
        advice = (
            "Atoms that come so near, in hot or compressed systems, stick together. Training with `zbl: true` makes "
            "them repel each other somewhat below the distances of the training frames; between these, only frames "
            "with such distances help."
        )
        return Verdict(name, "failed", f"Hole at short range: {text}. {advice}")
    return Verdict(name, "passed", f"Two atoms alone repel each other at short distances, for {scope}, down to 0.3 Å.")


@dataclass(frozen=True, eq=False)
class VolumeCurve:
    """A periodic structure scaled uniformly.

    Parameters
    ----------
    source : name of the structure
    volumes : (n,) Å³ per atom, ascending
    energies : (n,) eV per atom, less the lowest
    own_volume : Å³ per atom, of the structure itself
    verdict : whether compression costs energy
    """

    source: str
    volumes: NDArray[np.float64]
    energies: NDArray[np.float64]
    own_volume: float
    verdict: Verdict


def volume_curve(calculator: Calculator, source: str, atoms: Atoms) -> VolumeCurve:
    """Energy over volume of `atoms`, periodic along all three vectors, scaled from 0.7 to 1.2 in length."""
    scales = np.linspace(0.7, 1.2, 26)
    scaled = []
    for scale in scales:
        scaled.append(atoms.copy())
        scaled[-1].set_cell(scale * atoms.cell.array, scale_atoms=True)
    energies = _energies(calculator, scaled) / len(atoms)
    lowest = int(energies.argmin())
    own = atoms.get_volume() / len(atoms)
    name = "Resistance to compression"
    falls = np.flatnonzero(np.diff(energies[: lowest + 1]) > 0)
    if not np.isfinite(energies).all():
        verdict = Verdict(name, "failed", f"{source}, when scaled, has no finite energy.")
    elif lowest == 0 or len(falls) > 0:
        limit = scales[0] if lowest == 0 else scales[falls[-1] + 1]
        statement = (
            f"The energy of {source} falls again when its lengths are compressed to {limit:.2f} of what they were: "
            "under pressure it would collapse."
        )
        verdict = Verdict(name, "failed", statement)
    else:
        statement = (
            f"Compressing {source} costs more and more energy, down to {scales[0]:.1f} of its lengths; the energy is "
            f"lowest at {own * scales[lowest] ** 3:.2f} Å³ per atom, the frame has {own:.2f}."
        )
        verdict = Verdict(name, "passed", statement)
    return VolumeCurve(source, own * scales**3, energies - energies.min(), own, verdict)


def check_accuracy(predictions: Predictions) -> Verdict:
    """Whether forces were learned at all: their errors are less than half of what they are themselves."""
    name = "Accuracy of forces"
    unit = QUANTITIES["forces"].error_unit
    typical = MILLI * float(np.sqrt(np.mean(predictions.evaluation().labels.get("forces", np.zeros(1)) ** 2)))
    if typical == 0:
        return Verdict(name, "not applicable", "No frame has forces that are not zero to compare with.")
    share = predictions.errors()[QUANTITIES["forces"].error_name("RMSE")] / typical
    statement = f"Force components are off by {100 * share:.1f} % of what they typically are, {typical:.0f} {unit}."
    if share >= _LARGEST_SHARE:
        return Verdict(name, "failed", statement + " The potential has hardly learned them.")
    return Verdict(name, "passed", statement)


def check_deviations(calibrations: Mapping[str, Calibration | None]) -> Verdict:
    """Whether the deviations of a committee tell large errors of forces from small ones; by set of frames."""
    name = "Deviations as a warning"
    given = {data: calibration for data, calibration in calibrations.items() if calibration is not None}
    if not given:
        return Verdict(name, "not applicable", "This is a single potential, it knows nothing about its own errors.")
    texts = [
        f"{data}: rank correlation {calibration.rank_correlation:.2f} with the errors, which are on average "
        f"{calibration.factor:.1f} times the deviation"
        for data, calibration in given.items()
    ]
    weakest = min(calibration.rank_correlation for calibration in given.values())
    return Verdict(name, "passed" if weakest >= _LEAST_CORRELATION else "failed", "; ".join(texts) + ".")
