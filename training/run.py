"""A training run from recipe to potential file: read, audit, fit, evaluate, report, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.files import written_whole
from ase_segnn.model.committee import Committee
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.model.zbl import ends_below, nearest
from ase_segnn.physics.verdicts import Verdict
from ase_segnn.potential_file import save_potential
from ase_segnn.quantities import LABELS, shown_errors

from .audit import Auditor, one_line
from .base import Base
from .data import Subset, TrainingData
from .data.batches import LabeledGraph
from .fit import CHECKPOINT, FitResult, PotentialModule, check_machine, fit, with_epochs
from .folder import RunFiles, now, provenance_of, without_places
from .pretraining import Pretraining, with_share
from .recipe import Recipe
from .report import evaluate_sets, write_report
from .report.card import write_card
from .report.physics import load_systems, measured_cost, study_systems

logger = logging.getLogger(__name__)

_CALIBRATED = 16  # frames from which the scale of products is taken
_BATCH_EDGES, _FEWEST_STEPS = 1000, 25  # edges per step, and steps per epoch of small data
_STEPS, _EPOCHS = 30_000, (20, 600)  # of a run without a limit
_STRESS_WEIGHT = 0.01  # ten times more is most of the loss of silicon, see benchmarks/README.md


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


def run_recipe(
    recipe: Recipe, output: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> TrainingResult:
    """Train a potential by a recipe.

    The folder `output` receives

    - ``<name>.safetensors``: the potential;
    - ``<name>.md``: its model card;
    - ``report.html``: errors and physical checks, to see whether to trust the potential;
    - ``audit.md``: contents of the data, and what seems wrong with them;
    - ``recipe.yaml``: the recipe with everything settled;
    - ``metrics.csv``: loss and validation errors by epoch, for a committee in the folder of each member;
    - ``pretraining/``, if the recipe has a section `pretrain`: labels of the reference, and the fit of these
    - ``last.ckpt``, beside each ``metrics.csv``: the checkpoint to resume an interrupted run from.

    Parameters
    ----------
    recipe : what to do
    output : folder of the run; default is the recipe's name, in the working directory
    resume : go on from the last checkpoint in `output`
    overwrite : start anew in a folder that holds a run already

    Raises
    ------
    FileExistsError
        If `output` holds a run and neither `resume` nor `overwrite` is set, or another run is using it.
    FileNotFoundError
        If a data file, or with `resume` the checkpoint, is missing.
    ValueError
        If the data cannot be learned from, or the reference of `pretrain` cannot compute the training frames.
    """
    files = RunFiles(output or Path(recipe.name), recipe.name, recipe.committee)
    files.check(resume=resume, overwrite=overwrite)
    base = None if recipe.base is None else Base.load(recipe.base)
    network = recipe.network if base is None else base.potential.config.network
    known = () if base is None else base.potential.elements
    data = TrainingData.read(recipe.data, network.cutoff, recipe.seed, known)
    return run_on(data, recipe, files, base, resume=resume, overwrite=overwrite)


def run_on(
    data: TrainingData,
    recipe: Recipe,
    files: RunFiles,
    base: Base | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train as `run_recipe`, on data in memory."""
    recipe = settled(recipe, data)
    systems = load_systems(recipe, data.training.elements())
    pretraining = None if recipe.pretrain is None else Pretraining(recipe, data)
    with files.reserved(resume=resume, overwrite=overwrite):
        provenance = provenance_of(recipe, data.checksums)  # of the code as it is now
        old = {} if base is None else base.sets(recipe.data, data.training.elements())
        potential, results, notes = fit_on(data, recipe, files, base, pretraining, resume=resume)
        checksums = provenance.data | ({} if pretraining is None else pretraining.checksums)
        provenance = provenance.model_copy(update={"created": now(), "data": checksums})
        # before evaluation and report, which may fail
        save_potential(potential, files.potential, provenance=provenance, overwrite=True)
        calculator = SEGNNCalculator(potential)
        sets = {**data.sets, **old}
        evaluated = evaluate_sets(calculator, {name: subset.frames() for name, subset in sets.items()})
        for name in old:  # which may be of another level of theory
            evaluated.predictions[name] = evaluated.predictions[name].with_fitted_elements()
        errors = {name: found.errors() for name, found in evaluated.predictions.items() if found.n_frames}
        provenance = provenance.model_copy(update={"errors": errors})
        save_potential(potential, files.potential, provenance=provenance, overwrite=True)
        if base is not None:
            notes = [*notes, *base.compared(old, errors)]
        first = {} if pretraining is None else {"pretraining": pretraining.note()}
        seconds = sum(result.seconds for result in results) + (0.0 if pretraining is None else pretraining.seconds)
        minutes = seconds / 60
        public = Recipe.model_validate(provenance.recipe)  # without places, for the card
        report = data.training.store.labels
        card = partial(
            write_card,
            files.card,
            public,
            potential,
            provenance,
            minutes=minutes,
            labels="" if report is None else report.line(),
            cost=measured_cost(calculator, evaluated.survey),
            pretraining=first.get("pretraining", ""),
            notes=without_places(notes, data.checksums),
        )
        card()  # physics may take hours
        verdicts = write_report(
            files.report,
            calculator,
            evaluated,
            results[0].history,
            title=recipe.name,
            facts={
                "training": f"{minutes:.0f} minutes, {len(data.training)} frames",
                **first,
                "created": provenance.created,
            },
            notes=notes,
        )
        if systems:
            card(physics=study_systems(systems, public, potential))
        return TrainingResult(potential, files.potential, files.card, files.report, files.audit, errors, verdicts)


def fit_on(
    data: TrainingData,
    recipe: Recipe,
    files: RunFiles,
    base: Base | None,
    pretraining: Pretraining | None,
    *,
    resume: bool = False,
) -> tuple[Potential | Committee, list[FitResult], list[str]]:
    """Audit the data and fit by a settled recipe, without evaluation or report.

    Returns
    -------
    the potential, how each fit went, and the warnings of the audit
    """
    findings = _audit(data, recipe, files, () if base is None else base.potential.elements)
    files.write_recipe(recipe)
    if pretraining is not None:
        pretraining.label(files.pretraining)
    potential, results = _members(recipe, data, base, pretraining, files, resume=resume)
    return potential, results, findings


def settled(recipe: Recipe, data: TrainingData) -> Recipe:
    """Return the recipe with nothing left open: number of epochs, weight of the stress, size of batches, pretraining.

    Raises
    ------
    ValueError
        If a label with a weight is in no training frame, or none has a weight.
    ImportError
        If the package of the logger is not installed.
    """
    check_machine(recipe)
    training, optimization = data.training, recipe.optimization
    n_labels = training.n_labels()
    if optimization.stress_weight is None:
        weight = _STRESS_WEIGHT if n_labels["stress"] else 0.0
        optimization = optimization.model_copy(update={"stress_weight": weight})
    n_edges = int(training.store.n_edges[training.indices].sum())
    batch_edges = optimization.batch_edges or max(1, min(_BATCH_EDGES, n_edges // _FEWEST_STEPS))
    per_epoch = max(1.0, min(n_edges / batch_edges, len(training)))
    optimization = optimization.model_copy(update={"batch_edges": batch_edges})
    if optimization.epochs is None and optimization.max_time is None:
        epochs = min(max(round(_STEPS / per_epoch), _EPOCHS[0]), _EPOCHS[1])
        optimization = optimization.model_copy(update={"epochs": epochs})
    optimization = with_epochs(optimization)
    weights = optimization.weights()
    for label, weight in weights.items():
        if weight > 0 and n_labels[label] == 0:
            raise ValueError(
                f"{label}_weight is {weight:g}, but no training frame has {label}; name the label in the files with "
                f"data.{label}_key, or set {label}_weight: 0"
                + "; stresses count only in cells that are periodic along all three vectors"
                * (label == "stress")
            )
    if not any(weights.values()):
        raise ValueError("the weights of energy, forces and stress are all 0; nothing would be learned")
    watched = data.validation.n_labels()
    if not any(watched[label] for label, weight in weights.items() if weight > 0):
        raise ValueError("no validation frame has a label that is learned; give others as data.validation")
    pretrain = None if recipe.pretrain is None else with_share(recipe.pretrain, len(training))
    return recipe.model_copy(update={"optimization": optimization, "pretrain": pretrain})


def _audit(data: TrainingData, recipe: Recipe, files: RunFiles, known_elements: Sequence[str]) -> list[str]:
    """Audit the labels, keep the page, and return warnings in one line each.

    Raises
    ------
    ValueError
        If the data cannot be learned from.
    """
    auditor = Auditor(recipe.optimization.weights(), data.training.store.cutoff, known_elements)
    for name, subset in {"training": data.training, **data.sets}.items():
        if subset.store.labels is not None and (name == "training" or subset.store is not data.training.store):
            auditor.add_labels(subset.store.labels, name)
        for frame in subset.frames():
            auditor.add(frame, name)
    audit = auditor.finish(data.reference_energies, data.origin_of_references)
    with written_whole(files.audit) as path:
        path.write_text(audit.to_markdown(), encoding="utf-8")
    logger.info("audit of the data, details in %s\n%s", files.audit, audit.to_text())
    audit.check()
    return [one_line(finding) for finding in audit.findings if finding.severity == "warning"]


def _members(
    recipe: Recipe,
    data: TrainingData,
    base: Base | None,
    pretraining: Pretraining | None,
    files: RunFiles,
    *,
    resume: bool,
) -> tuple[Potential | Committee, list[FitResult]]:
    """Fit one potential, or the members of a committee one after another."""
    potentials, results = [], []
    for number, folder in enumerate(files.members):
        folder.mkdir(exist_ok=True)
        seed = recipe.seed + number
        training = data.training
        if recipe.bootstrap:
            training = training.drawn(np.random.default_rng([seed, len(training)]))
        logger.info(
            "%s: %d training and %d validation frames", _name(recipe, number), len(training), len(data.validation)
        )
        optimization = recipe.optimization
        if optimization.max_time is not None:
            share = optimization.max_time / recipe.committee
            optimization = optimization.model_copy(update={"max_time": share})
        member = recipe.model_copy(update={"seed": seed, "optimization": optimization})
        with torch.random.fork_rng():  # the caller's random numbers stay as they are
            torch.manual_seed(seed)
            if pretraining is not None:
                potential, member = pretraining.fit(_new_potential, member, folder, resume=resume)
                torch.manual_seed(seed)
            else:
                potential = _new_potential(recipe, data) if base is None else base.start(recipe.frozen, data)
            logger.info("%d weights to fit", sum(p.numel() for p in potential.parameters() if p.requires_grad))
            result = fit(
                PotentialModule(potential, training, data.validation, member),
                member,
                folder,
                resume=resume and (folder / CHECKPOINT).is_file(),
            )
        potentials.append(potential.requires_grad_(False).eval())
        results.append(result)
    return potentials[0] if len(potentials) == 1 else Committee(potentials), results


def _name(recipe: Recipe, number: int) -> str:
    return recipe.name if recipe.committee == 1 else f"member {number + 1} of {recipe.name}"


def _new_potential(recipe: Recipe, data: TrainingData, beside: Subset | None = None) -> Potential:
    """Build the potential with statistics of the training frames and random weights.

    Shortest distances are those of the training frames and the frames `beside` them.
    """
    training = data.training
    shortest = training.shortest_distances()
    if beside is not None:
        shortest = nearest(shortest, beside.shortest_distances())
    config = PotentialConfig(
        elements=training.elements(),
        reference_energies=data.reference_energies,
        energy_shifts=data.energy_shifts(),
        energy_scale=max(training.forces_rms(), 1e-3),
        average_neighbors=max(training.average_neighbors(), 1.0),
        zbl=recipe.zbl,
        zbl_ends=ends_below(shortest) if recipe.zbl else {},
        shortest_distances=shortest if recipe.zbl else None,
        network=recipe.network,
    )
    potential = Potential(config)
    frames = np.linspace(0, len(training) - 1, min(len(training), _CALIBRATED)).astype(int)
    potential.calibrate(LabeledGraph.batch([training[int(training.indices[k])] for k in frames]).graph)
    return potential
