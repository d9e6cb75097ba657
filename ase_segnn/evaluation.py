"""Errors of a calculator against labeled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from numpy.typing import NDArray

from ase_segnn.calculator import SEGNNCalculator

PROPERTIES = ("energy", "forces", "stress")
# Label -> unit of the errors and factor from ASE's unit to it.
ERROR_UNITS = {
    "energy": ("meV", 1e3),
    "energy_per_atom": ("meV", 1e3),
    "forces": ("meV_per_A", 1e3),
    "stress": ("meV_per_A3", 1e3),
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labels beside predictions, in ASE's units, for every label that at least one frame has.

    Parameters
    ----------
    labels, predictions : property -> (n,) values of all frames with that label, one after another: "energy" and
        "energy_per_atom" one per frame, "forces" three per atom, "stress" six per frame
    n_frames : number of frames looked at
    n_labeled : property -> number of frames that have the label
    """

    labels: dict[str, NDArray[np.float64]]
    predictions: dict[str, NDArray[np.float64]]
    n_frames: int
    n_labeled: dict[str, int]

    def errors(self) -> dict[str, float]:
        """Mean absolute and root mean square errors; names carry the units of `ERROR_UNITS`.

        Both are over values: energies of frames, components of forces and of stress.
        """
        errors = {}
        for name, labels in self.labels.items():
            unit, factor = ERROR_UNITS[name]
            difference = factor * (self.predictions[name] - labels)
            errors[f"{name}_MAE_{unit}"] = float(np.abs(difference).mean())
            errors[f"{name}_RMSE_{unit}"] = float(np.sqrt((difference**2).mean()))
        return errors


def evaluate(
    calculator: Calculator, frames: Sequence[Atoms], *, on_frame: Callable[[], object] | None = None
) -> Evaluation:
    """Compare a calculator with the labels that frames carry as calculator results.

    A label that a frame lacks is left out for that frame. The frames are not changed.

    Parameters
    ----------
    calculator : anything that ASE takes as one; a `SEGNNCalculator` evaluates several frames at a time
    frames : with energy, forces or stress in ``atoms.calc.results``
    on_frame : called after each frame, for a progress bar

    Raises
    ------
    ValueError
        If no frame has any of the labels, or a label is not finite; the error names the frame.
    """
    labels: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ERROR_UNITS}
    predictions: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ERROR_UNITS}
    n_labeled: dict[str, int] = {}
    given = [(frame, found) for index, frame in enumerate(frames) if (found := _labels(frame, index))]
    # consecutive frames with the same labels are evaluated together
    for names, group in groupby(given, key=lambda pair: [name for name in PROPERTIES if name in pair[1]]):
        alike = list(group)
        all_results = predict(calculator, [frame.copy() for frame, _ in alike], names)
        for (frame, found), results in zip(alike, all_results, strict=True):
            for name, label in found.items():
                predicted = np.asarray(results["energy" if name == "energy_per_atom" else name], dtype=float)
                predicted = predicted / len(frame) if name == "energy_per_atom" else predicted
                labels[name].append(label)
                predictions[name].append(predicted.ravel())
                n_labeled[name] = n_labeled.get(name, 0) + 1
            if on_frame is not None:
                on_frame()
    if not n_labeled:
        raise ValueError(f"none of the {len(frames)} frames has an energy, forces or a stress to compare with")
    return Evaluation(
        {name: np.concatenate(labels[name]) for name in n_labeled},
        {name: np.concatenate(predictions[name]) for name in n_labeled},
        len(frames),
        n_labeled,
    )


def predict(
    calculator: Calculator, structures: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
) -> Iterator[dict[str, Any]]:
    """Evaluate structures, several at a time if the calculator is a `SEGNNCalculator`.

    Parameters
    ----------
    calculator : anything that ASE takes as one
    structures : not changed
    properties : of ASE, such as "stress"

    Yields
    ------
    results of each structure in the order given: property -> value, in ASE's units
    """
    if isinstance(calculator, SEGNNCalculator):
        yield from calculator.evaluate_many(structures, properties)
        return
    for atoms in structures:
        calculator.calculate(atoms, list(properties), all_changes)
        yield calculator.results


def _labels(frame: Atoms, index: int) -> dict[str, NDArray[np.float64]]:
    results = frame.calc.results if frame.calc is not None else {}
    found = {
        name: np.asarray(results[name], dtype=np.float64).ravel()
        for name in PROPERTIES
        if results.get(name) is not None
    }
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise ValueError(f"frame {index} has a label that is not finite: {name}")
    if "energy" in found:
        found["energy_per_atom"] = found["energy"] / len(frame)
    return {name: found[name] for name in ERROR_UNITS if name in found}
