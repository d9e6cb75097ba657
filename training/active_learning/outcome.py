"""The outcome of a run: the final potential with card and report, and its errors on fresh frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.electrons import noted_electrons
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.physics.verdicts import Verdict
from ase_segnn.potential_file import load_potential
from ase_segnn.quantities import LABELS, shown_errors

from ..conclusion import Fitted, TrainingResult, concluded
from ..data import Frame
from ..data.sources import sha256
from ..folder import RunFiles, now, provenance_of
from ..labeling import find_reference
from ..recipe import Recipe
from ..report.predictions import predict_frames
from ..report.rounds import rounds_sections
from ..run import audited, settled
from .fits import data_of, fitted, read_labels, recipe_of
from .folder import FRESH, LearnFolder
from .fresh import verdicts_in
from .rounds import FreshErrors
from .settings import LearnSettings

_MOST_TOLD = 10  # runs of dynamics, each in a line of its own


@dataclass(frozen=True, eq=False)
class LearnResult:
    """Result of a finished run.

    Parameters
    ----------
    training : potential, files and errors
    labels_path : file of all labels that were learned or validated
    fresh : errors on fresh frames of the potential's own dynamics, by temperature
    verdicts : on that dynamics
    """

    training: TrainingResult
    labels_path: Path
    fresh: list[FreshErrors]
    verdicts: list[Verdict]

    @property
    def potential(self) -> Potential | Committee:
        """The potential."""
        return self.training.potential

    def summary(self) -> list[str]:
        """Return the outcome in a few lines."""
        told = [verdict for verdict in self.verdicts if verdict.outcome != "passed"]
        told = told if len(self.verdicts) > _MOST_TOLD else list(self.verdicts)
        lines = [f"{verdict.name}: {verdict.outcome}. {verdict.statement}" for verdict in told]
        if len(told) < len(self.verdicts):
            lines.insert(0, f"Dynamics: {len(self.verdicts) - len(told)} of {len(self.verdicts)} runs passed")
        for each in self.fresh:
            errors = ", ".join(shown_errors(each.errors, ("energy_per_atom", *LABELS)))
            lines.append(f"fresh frames at {each.temperature:.0f} K: RMSE {errors or 'unknown, no frame has a label'}")
        return lines


def concluded_run(
    folder: LearnFolder, settings: LearnSettings, structures: Sequence[Atoms], best: Path, committee: Path
) -> LearnResult:
    """Evaluate the final potential, and write its file, card and report.

    Parameters
    ----------
    folder : with all labels
    settings, structures : of the run
    best : potential file of the member whose errors on validation frames are least
    committee : potential file of all members
    """
    files = RunFiles(folder.path, settings.name)
    labels = read_labels(folder.labels)
    recipe = _with_card(recipe_of(settings, folder.labels), folder, settings, structures)
    data = data_of(labels, recipe, recipe.network.cutoff, folder.work)
    recipe = settled(recipe, data)
    files.write_recipe(recipe)
    notes = audited(data, recipe, files, ())
    members = load_potential(committee)
    potential = members if settings.committee else load_potential(best)
    fresh = {rung: _of_rung(_read(folder.fresh), rung) for rung in settings.rungs}
    failed = {rung: _of_rung(_read(folder.failed), rung) for rung in settings.rungs}
    one, all_of_them = SEGNNCalculator(potential), SEGNNCalculator(members)
    errors = [_fresh_errors(rung, fresh[rung], failed[rung], one, all_of_them) for rung in settings.rungs]
    sets = {f"own dynamics at {rung:.0f} K": frames for rung, frames in fresh.items() if frames}
    checksums = {path.name: sha256(path) for path in (folder.labels, folder.fresh) if path.is_file()}
    report = data.training.store.labels
    training = concluded(
        Fitted(
            potential,
            recipe,
            provenance_of(recipe, checksums).model_copy(update={"created": now()}),
            history=fitted(best).history,
            minutes=folder.seconds / 60,
            n_frames=len(data.training),
            labels="" if report is None else report.line(),
            notes=notes,
            read=tuple(checksums),
        ),
        {"validation": data.validation.frames, **{name: _reader(frames, name) for name, frames in sets.items()}},
        files,
        sections=rounds_sections(folder.rounds, errors, labels),
    )
    return LearnResult(training, folder.labels, errors, verdicts_in(folder.work / FRESH))


def _with_card(recipe: Recipe, folder: LearnFolder, settings: LearnSettings, structures: Sequence[Atoms]) -> Recipe:
    """Fill in what the card can tell about the run, where the user said nothing."""
    card = recipe.card
    level = "labels made elsewhere"
    if settings.reference is not None:
        level = find_reference(settings.reference, settings.charge, settings.multiplicity).description
    formulas = ", ".join(dict.fromkeys(atoms.get_chemical_formula() for atoms in structures))
    ladder = ", ".join(f"{temperature:.0f}" for temperature in settings.rungs)
    pressures = "" if settings.pressures is None else " and {:g} to {:g} GPa".format(*settings.pressures)
    limits = [
        f"Learned for {formulas} at {ladder} K{pressures}; everything else is extrapolation.",
        "The potential is as right as its reference.",
    ]
    if settings.charge or settings.multiplicity:
        limits.append(
            "All labels have one charge and spin, those of the level of theory above. The potential does not know the "
            "charge or spin of a structure and predicts for these alone."
        )
    elif noted := {f"{name} {value}": None for atoms in structures for name, value in noted_electrons(atoms).items()}:
        limits.append(
            f"The structures had {', '.join(noted)}. The potential does not know the charge or spin of a structure: it "
            "tells ions apart by the arrangement of their atoms alone."
        )
    rounds = sum(bool(each.rungs) for each in folder.rounds)
    filled = {
        "description": card.description or f"{formulas}, learned from labels that the run made itself.",
        "level_of_theory": card.level_of_theory or level,
        "data_source": card.data_source or f"labels of ase-segnn learn, {rounds} rounds of exploration",
        "data_license": card.data_license or "that of the reference",
        "limits": card.limits or limits,
    }
    return recipe.model_copy(update={"card": card.model_copy(update=filled)})


def _fresh_errors(
    rung: float, frames: list[Atoms], failed: list[Atoms], one: SEGNNCalculator, committee: SEGNNCalculator
) -> FreshErrors:
    errors, expected = {}, None
    if frames:
        read = _reader(frames, "fresh")
        errors = predict_frames(one, read()).errors()
        deviations = predict_frames(committee, read()).forces_std
        expected = None if deviations is None else float(np.sqrt(np.mean(deviations**2) / 3))
    n_failed = sum(atoms.info["stage"] == FRESH for atoms in failed)
    return FreshErrors(temperature=rung, n_frames=len(frames), n_failed=n_failed, errors=errors, expected=expected)


def _read(path: Path) -> list[Atoms]:
    return list(ase.io.iread(path, ":", format="extxyz")) if path.is_file() and path.stat().st_size else []


def _of_rung(frames: Sequence[Atoms], rung: float) -> list[Atoms]:
    return [atoms for atoms in frames if abs(atoms.info.get("temperature", 0.0) - rung) < 1e-2]


def _reader(frames: Sequence[Atoms], name: str) -> Callable[[], Iterator[Frame]]:
    def read() -> Iterator[Frame]:
        return (Frame.from_atoms(atoms, f"{name}, label {atoms.info['id']}") for atoms in frames)

    return read
