"""The end of a training run: a fitted potential is evaluated, and gets its file, card and report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.physics.systems import LoadedSystem
from ase_segnn.physics.verdicts import Verdict
from ase_segnn.potential_file import Provenance, save_potential
from ase_segnn.quantities import LABELS, shown_errors

from .base import Base
from .data import Frame, Subset
from .folder import RunFiles, without_places
from .recipe import Recipe
from .report import evaluate_sets, write_report
from .report.card import write_card
from .report.physics import measured_cost, study_systems


@dataclass(frozen=True)
class TrainingResult:
    """Potential, files and findings of a finished run.

    Parameters
    ----------
    potential : the potential, or a committee of several
    potential_path, card_path, report_path, audit_path : its files
    errors : data set -> measure -> value, the unit is in the measure's name
    verdicts : what the checks of the report found
    """

    potential: Potential | Committee
    potential_path: Path
    card_path: Path
    report_path: Path
    audit_path: Path
    errors: dict[str, dict[str, float]]
    verdicts: list[Verdict]

    @property
    def files(self) -> dict[str, Path]:
        """Files for a reader: what each is -> its path."""
        return {"potential": self.potential_path, "model card": self.card_path, "report": self.report_path}

    def summary(self) -> list[str]:
        """Return the checks that failed and the errors on each data set, a line each."""
        failed = [f"{each.name} failed: {each.statement}" for each in self.verdicts if each.outcome == "failed"]
        order = ("energy_per_atom", *LABELS)
        return failed + [f"{name}: RMSE {', '.join(shown_errors(own, order))}" for name, own in self.errors.items()]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A potential that is fitted but not evaluated yet, and what is known about the fit.

    Parameters
    ----------
    potential : the potential, or a committee
    recipe : settled
    provenance : without errors
    history : of the fit, or that of the first member
    minutes : of all fits
    n_frames : that were learned
    labels : where labels are from, in a line
    first : what was learned before the training frames, if anything: "pretraining" -> a sentence
    notes : findings about the data, in a line each
    read : files of data, as the notes name them
    """

    potential: Potential | Committee
    recipe: Recipe
    provenance: Provenance
    history: list[dict[str, float]]
    minutes: float
    n_frames: int
    labels: str = ""
    first: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read: tuple[str, ...] = ()


def concluded(
    fitted: Fitted,
    sets: Mapping[str, Callable[[], Iterable[Frame]]],
    files: RunFiles,
    base: Base | None = None,
    old: Mapping[str, Subset] | None = None,
    *,
    systems: Sequence[LoadedSystem] = (),
    sections: Sequence[str] = (),
) -> TrainingResult:
    """Save a fitted potential, evaluate it on sets of frames, and write card and report.

    Parameters
    ----------
    fitted : the potential
    sets : name -> function that reads the frames
    files : of the run
    base, old : that the potential started from, and which of the sets are of that; they may be of another level of
        theory
    systems : whose physics the card shows
    sections : of the report, beside those of every run
    """
    potential, recipe, provenance, notes = fitted.potential, fitted.recipe, fitted.provenance, list(fitted.notes)
    # before evaluation and report, which may fail
    save_potential(potential, files.potential, provenance=provenance, overwrite=True)
    calculator = SEGNNCalculator(potential)
    evaluated = evaluate_sets(calculator, {name: frames() for name, frames in sets.items()})
    for name in old or {}:
        evaluated.predictions[name] = evaluated.predictions[name].with_fitted_elements()
    errors = {name: found.errors() for name, found in evaluated.predictions.items() if found.n_frames}
    provenance = provenance.model_copy(update={"errors": errors})
    save_potential(potential, files.potential, provenance=provenance, overwrite=True)
    if base is not None:
        notes += base.compared(old or {}, errors)
    public = Recipe.model_validate(provenance.recipe)  # without places, for the card
    card = partial(
        write_card,
        files.card,
        public,
        potential,
        provenance,
        minutes=fitted.minutes,
        labels=fitted.labels,
        cost=measured_cost(calculator, evaluated.survey),
        pretraining=fitted.first.get("pretraining", ""),
        notes=without_places(notes, fitted.read),
    )
    card()  # physics may take hours
    verdicts = write_report(
        files.report,
        calculator,
        evaluated,
        fitted.history,
        title=recipe.name,
        facts={
            "training": f"{fitted.minutes:.0f} minutes, {fitted.n_frames} frames",
            **fitted.first,
            "created": provenance.created,
        },
        notes=notes,
        sections=sections,
    )
    if systems:
        card(physics=study_systems(systems, public, potential))
    return TrainingResult(potential, files.potential, files.card, files.report, files.audit, errors, verdicts)
