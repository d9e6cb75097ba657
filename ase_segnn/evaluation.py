"""Evaluation of a calculator: predictions, and their errors against labeled frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.labels import LABELS, LabelChoice, LabelKeys, LabelReport, choose_labels
from ase_segnn.quantities import MILLI, QUANTITIES

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labels beside predictions in ASE's units, for each label of at least one frame.

    `errors` sums them up. For a scatter plot take `labels` and `predictions`.

    Parameters
    ----------
    labels, predictions : property -> (n,) values of all frames with the label, one after another: "energy" and
        "energy_per_atom" one per frame, "forces" three per atom, "stress" six per frame
    n_frames : number of frames, labeled or not
    n_labeled : property -> number of frames with the label
    report : sources of the labels, and labels that were not used; None if labels were chosen elsewhere
    """

    labels: dict[str, NDArray[np.float64]]
    predictions: dict[str, NDArray[np.float64]]
    n_frames: int
    n_labeled: dict[str, int]
    report: LabelReport | None = None

    def errors(self) -> dict[str, float]:
        """Return mean absolute and root mean square errors, named as in `ase_segnn.quantities`.

        Both are over values: energies of frames, components of forces, components of stress.
        """
        errors = {}
        for name, labels in self.labels.items():
            quantity, difference = QUANTITIES[name], MILLI * (self.predictions[name] - labels)
            errors[quantity.error_name("MAE")] = float(np.abs(difference).mean())
            errors[quantity.error_name("RMSE")] = float(np.sqrt((difference**2).mean()))
        return errors


def evaluate(
    calculator: Calculator,
    frames: Sequence[Atoms],
    *,
    keys: LabelKeys | None = None,
    on_frame: Callable[[], object] | None = None,
) -> Evaluation:
    """Evaluate a calculator against the labels of frames.

    Labels are chosen once for all frames, as in training, among results of a calculator and names in ``info`` and
    ``arrays``; see `ase_segnn.labels`. `Evaluation.report` names the sources, and the log warns of labels that are not
    used. Left out for a frame are labels that it lacks, labels of weight zero, and the stress if it has no volume.
    Frames are not changed.

    Parameters
    ----------
    calculator : any calculator of ASE; a `SEGNNCalculator` takes several frames at a time
    frames : with energy, forces or stress
    keys : names of the labels, if they have other names, or to choose one of several
    on_frame : called after each frame, for a progress bar

    Raises
    ------
    ValueError
        If no frame has any of the labels, if a label is not usable, or if no frame has a key; the error names frames.
        See `ase_segnn.labels.choose_labels`.
    ValueError, RuntimeError
        If the calculator fails for a frame; the error names the frame.
    """
    named = [(f"frame {index}", frame) for index, frame in enumerate(frames)]
    choice = choose_labels(named, keys)
    for remark in choice.report.remarks:
        _log.log(remark.level, "%s", remark)
    choice.report.check()
    return evaluate_chosen(calculator, named, choice, on_frame=on_frame)


def evaluate_chosen(
    calculator: Calculator,
    frames: Sequence[tuple[str, Atoms]],
    choice: LabelChoice,
    *,
    on_frame: Callable[[], object] | None = None,
) -> Evaluation:
    """Evaluate a calculator against labels that are chosen already; see `evaluate`.

    Parameters
    ----------
    calculator, on_frame : as of `evaluate`
    frames : each with a name for messages
    choice : of the labels of these frames
    """
    labels: dict[str, list[NDArray[np.float64]]] = {name: [] for name in QUANTITIES}
    predictions: dict[str, list[NDArray[np.float64]]] = {name: [] for name in QUANTITIES}
    n_labeled: dict[str, int] = {}
    given = [(source, frame, found) for source, frame in frames if (found := _labels(frame, choice))]
    # consecutive frames with the same labels are evaluated together
    for names, group in groupby(given, key=lambda item: [name for name in LABELS if name in item[2]]):
        alike = list(group)
        all_results = predict_named(calculator, [(source, frame.copy()) for source, frame, _ in alike], names)
        for (_, frame, found), results in zip(alike, all_results, strict=True):
            for name, label in found.items():
                predicted = np.asarray(results["energy" if name == "energy_per_atom" else name], dtype=float)
                predicted = predicted / len(frame) if name == "energy_per_atom" else predicted
                labels[name].append(label)
                predictions[name].append(predicted.ravel())
                n_labeled[name] = n_labeled.get(name, 0) + 1
            if on_frame is not None:
                on_frame()
    return Evaluation(
        {name: np.concatenate(labels[name]) for name in n_labeled},
        {name: np.concatenate(predictions[name]) for name in n_labeled},
        len(frames),
        n_labeled,
        choice.report,
    )


def predict(
    calculator: Calculator, structures: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
) -> Iterator[dict[str, Any]]:
    """Predict properties of structures, several structures at a time with a `SEGNNCalculator`.

    Parameters
    ----------
    calculator : any calculator of ASE
    structures : not changed
    properties : of ASE, such as "stress"

    Yields
    ------
    results of each structure, in order: property -> value, in ASE's units
    """
    if isinstance(calculator, SEGNNCalculator):
        yield from calculator.evaluate_many(structures, properties)
        return
    for atoms in structures:
        calculator.calculate(atoms, list(properties), all_changes)
        yield calculator.results


def predict_named(
    calculator: Calculator, structures: Sequence[tuple[str, Atoms]], properties: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Predict properties of named structures, with errors that name the structure; see `predict`.

    Raises
    ------
    ValueError, RuntimeError
        If the calculator fails for a structure; the error starts with its name.
    """
    done = 0
    try:
        for results in predict(calculator, [atoms for _, atoms in structures], properties):
            done += 1
            yield results
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        # one at a time: an error then belongs to one structure, and a structure too large among others may pass
        for source, atoms in structures[done:]:
            yield _predict_one(calculator, source, atoms, properties)


def _predict_one(calculator: Calculator, source: str, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(next(iter(predict(calculator, [atoms], properties))))
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{source}: {re.sub('^structure 0: ', '', str(error))}") from error


def _labels(frame: Atoms, choice: LabelChoice) -> dict[str, NDArray[np.float64]]:
    """Labels of a frame with a weight above zero, by the names of `QUANTITIES`."""
    labels = choice.labels(frame)
    found: dict[str, NDArray[np.float64]] = {}
    for name in LABELS:
        value = getattr(labels, name)
        if value is not None and labels.weights[name] > 0:
            found[name] = np.ravel(full_3x3_to_voigt_6_stress(value) if name == "stress" else value)
    if "energy" in found:
        found["energy_per_atom"] = found["energy"] / len(frame)
    return {name: found[name] for name in QUANTITIES if name in found}
