"""The base of a fine-tuning: the potential to start from, and its errors on its own data before and after."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.labels import LABELS
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import PotentialHeader, load_potential, read_header
from ase_segnn.potentials import path_of
from ase_segnn.quantities import shown_errors

from .data import Subset, TrainingData, read_store, whole
from .fit import adapt_energies, freeze, start_from
from .recipe import DataSection
from .report import evaluate_sets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A potential to start from.

    Parameters
    ----------
    name : as the recipe gives it
    potential, header : of its file
    """

    name: str
    potential: Potential
    header: PotentialHeader

    @classmethod
    def load(cls, name: str) -> Base:
        """Load a shipped potential or a potential file.

        Raises
        ------
        ValueError
            If there is none, or it is a committee.
        """
        path = path_of(name)
        potential = load_potential(path)
        if isinstance(potential, Committee):
            raise ValueError(f"base '{name}' is a committee of {len(potential.members)}; start from one potential")  # noqa: TRY004
        return cls(name, potential, read_header(path))

    def start(self, frozen: Sequence[str], data: TrainingData) -> Potential:
        """Return a copy to be trained, with the elements of the training frames and energies corrected for them."""
        potential = adapted(self.potential, data)
        if frozen:
            logger.info("%d weights of the base are frozen", freeze(potential, frozen))
        return potential

    def sets(self, settings: DataSection, new_elements: Sequence[str]) -> dict[str, Subset]:
        """Find the test frames of the base, or its training frames if it has no test.

        Files that are missing or have changed are left out with a warning.
        """
        provenance = self.header.provenance
        data: dict[str, Any] = provenance.recipe.get("data", {})
        named: dict[str, Any] = dict(data.get("test", {}))
        if not named and "train" in data:
            named = {"training frames": data["train"]}
        keys = {f"{label}_key": data.get(f"{label}_key") for label in LABELS}
        keys["stress_offset"] = data.get("stress_offset", 0.0)
        found = {}
        for name, files in named.items():
            try:
                store, checksums = read_store(
                    [files] if isinstance(files, str) else files,
                    settings.model_copy(update=keys),
                    self.potential.cutoff,
                    f"{name} of {Path(self.name).stem}",
                    required=False,
                )
            except FileNotFoundError as error:
                logger.warning("%s of the base '%s' cannot be evaluated: %s", name, self.name, error)
                continue
            subset = whole(store)
            if any(provenance.data.get(file) != checksum for file, checksum in checksums.items()):
                logger.warning("%s of the base '%s' cannot be evaluated: the files are others now", name, self.name)
            elif set(subset.elements()) <= {*self.potential.elements, *new_elements}:
                found[f"{name} of {Path(self.name).stem}"] = subset
        return found

    def compared(self, sets: Mapping[str, Subset], errors: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return a sentence for each set: errors of the base, and after fine-tuning.

        Both are errors of `Predictions.with_fitted_elements`: energies of base and new frames may have other zeros.
        """
        if not sets:
            return [f"The data that the base '{self.name}' was made for are not at hand; what it forgot is unknown."]
        evaluated = evaluate_sets(SEGNNCalculator(self.potential), {name: s.frames() for name, s in sets.items()})
        sentences = []
        for name, predictions in evaluated.predictions.items():
            own = predictions.with_fitted_elements().errors()
            before, after = (shown_errors(found, LABELS) for found in (own, errors[name]))
            parts = [f"{first} became {second}" for first, second in zip(before, after, strict=True)]
            sentences.append(
                f"On {name}, RMSE of the base and after fine-tuning, with a constant fitted to the energy of each "
                f"element: {', '.join(parts)}."
            )
        return sentences


def adapted(potential: Potential, data: TrainingData) -> Potential:
    """Return a trainable copy with the elements of the training frames and energies corrected for them.

    Shifts are corrected if the reference energies are given, else the reference energies; see `adapt_energies`.
    """
    elements = data.training.elements()
    given = data.origin_of_references != "least squares"
    energies = {s: data.reference_energies[s] for s in elements if given or s not in potential.elements}
    copy = start_from(potential, elements, energies, shortest_distances=data.training.shortest_distances())
    labels = data.training.energies()
    labeled = np.isfinite(labels)
    if labeled.any():
        calculator = SEGNNCalculator(copy.requires_grad_(False))
        structures = [frame.atoms for frame, use in zip(data.training.frames(), labeled, strict=True) if use]
        predictions = [results["energy"] for results in calculator.evaluate_many(structures, ["energy"])]
        counts = data.training.counts(copy.elements)[labeled]
        copy = adapt_energies(copy, counts, labels[labeled], np.array(predictions), keep_reference_energies=given)
    return copy.requires_grad_(True)
