"""Labels beside predictions of a set of frames: the one place where their errors are computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ase_segnn.evaluation import Evaluation, predict_named
from ase_segnn.labels import LABELS
from ase_segnn.quantities import QUANTITIES

from ..data.frames import Frame
from ..data.reference_energies import least_squares_energies

_FRAMES_TOGETHER = 64  # that are held in memory


@dataclass(frozen=True)
class WorstFrame:
    """A frame with a large error; for forces also the atom where it is.

    Parameters
    ----------
    source, group, n_atoms : of the frame
    error : eV per atom, prediction minus label; or eV/Å, norm of the difference of the force on `atom`
    atom, symbol : index in the frame and chemical symbol, None for energies
    """

    source: str
    group: str
    n_atoms: int
    error: float
    atom: int | None = None
    symbol: str | None = None


@dataclass(frozen=True)
class Calibration:
    """Relation between the deviation among the members of a committee and the error of the force on an atom.

    Parameters
    ----------
    n_atoms : number of forces compared
    rank_correlation : Spearman's, 1 if deviations order the errors perfectly, 0 if they say nothing
    factor : root mean square error over root mean square deviation; above 1 the deviations are too small
    """

    n_atoms: int
    rank_correlation: float
    factor: float


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labels and predictions of F frames with N atoms altogether, in ASE's units.

    Parameters
    ----------
    sources, groups : (F,) of the frames, see `Frame`
    n_atoms : (F,)
    atomic_numbers : (N,) of all frames, one after another
    labels, predictions : "energy" and "energy_per_atom" (F,), "forces" (N, 3), "stress" (F, 6) in ASE's order; NaN
        where a frame lacks the label
    forces_std : (N,) eV/Å, deviation among the members of a committee, NaN in frames whose forces were not asked for;
        None for a single potential
    """

    sources: NDArray[np.str_]
    groups: NDArray[np.str_]
    n_atoms: NDArray[np.int64]
    atomic_numbers: NDArray[np.int64]
    labels: dict[str, NDArray[np.float64]]
    predictions: dict[str, NDArray[np.float64]]
    forces_std: NDArray[np.float64] | None = None

    @property
    def n_frames(self) -> int:
        """Number of labeled frames."""
        return len(self.sources)

    @property
    def frame_of_atom(self) -> NDArray[np.int64]:
        """Index of the frame of each atom, (N,)."""
        return np.repeat(np.arange(self.n_frames), self.n_atoms)

    def difference(self, name: str) -> NDArray[np.float64]:
        """Prediction minus label, in the shape of the labels `name`; NaN where there is no label."""
        return self.predictions[name] - self.labels[name]

    def with_fitted_elements(self) -> Predictions:
        """Return predictions whose energies have one more constant per element, fitted to the labels.

        Compare energies this way with labels of another level of theory: they differ by thousands of eV, and only
        differences within one level mean anything.
        """
        numbers = np.unique(self.atomic_numbers)
        counts = np.zeros((self.n_frames, len(numbers)))
        np.add.at(counts, (self.frame_of_atom, np.searchsorted(numbers, self.atomic_numbers)), 1)
        symbols = [chemical_symbols[number] for number in numbers]
        constants = least_squares_energies(symbols, counts, -self.difference("energy"))
        energy = self.predictions["energy"] + counts @ np.array([constants[symbol] for symbol in symbols])
        changed = {"energy": energy, "energy_per_atom": energy / self.n_atoms}
        return replace(self, predictions={**self.predictions, **changed})

    def forces_error(self) -> NDArray[np.float64]:
        """Norm of the error of the force on each atom, (N,) eV/Å; NaN where there is no label."""
        return np.asarray(np.linalg.norm(self.difference("forces"), axis=1))

    def evaluation(self, frames: NDArray[np.bool_] | None = None) -> Evaluation:
        """Return labels and predictions of some frames, (F,) bool, or of all; its `errors` are MAE and RMSE."""
        frames = np.ones(self.n_frames, dtype=bool) if frames is None else frames
        evaluation = Evaluation({}, {}, int(frames.sum()), {})
        for name, labels in self.labels.items():
            rows = (frames[self.frame_of_atom] if name == "forces" else frames) & _labeled(labels)
            if rows.any():
                evaluation.labels[name] = labels[rows].ravel()
                evaluation.predictions[name] = self.predictions[name][rows].ravel()
                of_frames = self.frame_of_atom[rows] if name == "forces" else np.flatnonzero(rows)
                evaluation.n_labeled[name] = len(np.unique(of_frames))
        return evaluation

    def errors(self) -> dict[str, float]:
        """Errors over all frames, named as by `Evaluation.errors`."""
        return self.evaluation().errors()

    def errors_by_group(self) -> dict[str, dict[str, float]]:
        """Group -> errors, in alphabetical order of the groups; frames without a group are the group ""."""
        return {str(group): self.evaluation(self.groups == group).errors() for group in np.unique(self.groups)}

    def forces_errors_by_element(self) -> dict[str, dict[str, float]]:
        """Chemical symbol -> errors of the forces on atoms of this element, by atomic number."""
        errors = {}
        labels, predictions = self.labels["forces"], self.predictions["forces"]
        for number in np.unique(self.atomic_numbers):
            rows = (self.atomic_numbers == number) & _labeled(labels)
            if rows.any():
                values = {"forces": labels[rows].ravel()}, {"forces": predictions[rows].ravel()}
                errors[chemical_symbols[number]] = Evaluation(*values, self.n_frames, {}).errors()
        return errors

    def worst_frames(self, name: Literal["energy_per_atom", "forces"], number: int = 5) -> list[WorstFrame]:
        """Frames with the largest errors, the largest first: of energy per atom, or of the force on any atom."""
        starts = np.cumsum(self.n_atoms) - self.n_atoms
        if name == "energy_per_atom":
            errors, atoms = self.difference(name), None
        else:
            per_atom = self.forces_error()
            atoms = np.array([s + per_atom[s : s + n].argmax() for s, n in zip(starts, self.n_atoms, strict=True)], int)
            errors = per_atom[atoms]
        with_label = np.flatnonzero(np.isfinite(errors))
        worst = []
        for frame in with_label[np.argsort(-np.abs(errors[with_label]), kind="stable")][:number]:
            known = str(self.sources[frame]), str(self.groups[frame]), int(self.n_atoms[frame]), float(errors[frame])
            if atoms is None:
                worst.append(WorstFrame(*known))
            else:
                symbol = chemical_symbols[self.atomic_numbers[atoms[frame]]]
                worst.append(WorstFrame(*known, atom=int(atoms[frame] - starts[frame]), symbol=symbol))
        return worst

    def calibration(self) -> Calibration | None:
        """Compare deviations with errors of forces; None without a committee or with too few or equal values."""
        if self.forces_std is None:
            return None
        errors = self.forces_error()
        known = np.isfinite(errors) & np.isfinite(self.forces_std)
        errors, deviations = errors[known], self.forces_std[known]
        if len(errors) < 3 or np.ptp(errors) == 0 or np.ptp(deviations) == 0:
            return None
        correlation = float(spearmanr(deviations, errors).statistic)
        factor = float(np.sqrt(np.mean(errors**2) / np.mean(deviations**2)))
        return Calibration(len(errors), correlation, factor)


def predict_frames(calculator: Calculator, frames: Iterable[Frame]) -> Predictions:
    """Predict the labels of frames, a few frames in memory at a time.

    Frames without labels are left out, and so are labels with a weight of zero, which are placeholders.

    Parameters
    ----------
    calculator : anything that ASE takes as one; a `SEGNNCalculator` evaluates several frames at a time. Results named
        `forces_std` are kept, as a committee gives them
    frames : may be read from a file as they are needed

    Raises
    ------
    ValueError, RuntimeError
        If the calculator fails for a frame, which the error names.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("source", "group", "n_atoms", "numbers", "forces_std")}
    labels: dict[str, list[Any]] = {name: [] for name in LABELS}
    predictions: dict[str, list[Any]] = {name: [] for name in LABELS}
    for frame, results in _results(calculator, frames):
        for name in LABELS:
            label = getattr(frame, name) if name in frame.weighted_labels else None
            missing = np.full(QUANTITIES[name].shape(len(frame.atoms)), np.nan)
            if name == "stress" and label is not None:
                label = full_3x3_to_voigt_6_stress(label)
            labels[name].append(missing if label is None else label)
            predictions[name].append(missing if label is None else np.array(results[name], dtype=np.float64))
        rows["source"].append(frame.source)
        rows["group"].append(frame.group)
        rows["n_atoms"].append(len(frame.atoms))
        rows["numbers"].append(frame.atoms.numbers)
        deviations = results.get("forces_std", np.full(len(frame.atoms), np.nan))
        rows["forces_std"].append(np.array(deviations, dtype=np.float64))
    n_atoms = np.array(rows["n_atoms"], dtype=np.int64)
    deviations = np.concatenate([np.empty(0), *rows["forces_std"]])
    return Predictions(
        np.array(rows["source"], dtype=np.str_),
        np.array(rows["group"], dtype=np.str_),
        n_atoms,
        np.concatenate([np.empty(0, dtype=np.int64), *rows["numbers"]]),
        _arrays(labels, n_atoms),
        _arrays(predictions, n_atoms),
        deviations if np.isfinite(deviations).any() else None,
    )


def _results(calculator: Calculator, frames: Iterable[Frame]) -> Iterator[tuple[Frame, dict[str, Any]]]:
    """Predict the labels of each frame; consecutive frames with the same labels go together."""
    labeled = (frame for frame in frames if frame.weighted_labels)
    for names, group in groupby(labeled, key=lambda frame: frame.weighted_labels):
        while together := list(islice(group, _FRAMES_TOGETHER)):
            named = [(frame.source, frame.atoms) for frame in together]
            yield from zip(together, predict_named(calculator, named, names), strict=True)


def _arrays(values: dict[str, list[Any]], n_atoms: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    energy = np.array(values["energy"], dtype=np.float64)
    return {
        "energy": energy,
        "energy_per_atom": energy / n_atoms,
        "forces": np.concatenate([np.empty((0, 3)), *values["forces"]]),
        "stress": np.array(values["stress"], dtype=np.float64).reshape(-1, 6),
    }


def _labeled(labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each row is a label."""
    return np.asarray(np.isfinite(labels).all(axis=tuple(range(1, labels.ndim))))
