"""A training run from recipe to potential file: read, audit, fit, evaluate, report, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ase_segnn.files import written_whole
from ase_segnn.model.committee import Committee
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.model.zbl import ends_below, nearest

from .audit import Auditor, one_line
from .base import Base
from .conclusion import Fitted, TrainingResult, concluded
from .data import Subset, TrainingData
from .data.batches import LabeledGraph
from .fit import CHECKPOINT, FitResult, PotentialModule, check_machine, fit, with_epochs
from .folder import RunFiles, now, provenance_of
from .pretraining import Pretraining, with_share
from .recipe import Recipe
from .report.physics import load_systems

logger = logging.getLogger(__name__)

_CALIBRATED = 16  # frames from which the scale of products is taken
_BATCH_EDGES, _FEWEST_STEPS = 1000, 25  # edges per step, and steps per epoch of small data
_STEPS, _EPOCHS = 30_000, (20, 600)  # of a run without a limit
_STRESS_WEIGHT = 0.01  # ten times more is most of the loss of silicon, see benchmarks/README.md


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
        first = {} if pretraining is None else {"pretraining": pretraining.note()}
        seconds = sum(result.seconds for result in results) + (0.0 if pretraining is None else pretraining.seconds)
        report = data.training.store.labels
        return concluded(
            Fitted(
                potential,
                recipe,
                provenance.model_copy(update={"created": now(), "data": checksums}),
                history=results[0].history,
                minutes=seconds / 60,
                n_frames=len(data.training),
                labels="" if report is None else report.line(),
                first=first,
                notes=notes,
                read=tuple(data.checksums),
            ),
            {name: subset.frames for name, subset in {**data.sets, **old}.items()},
            files,
            base,
            old,
            systems=systems,
        )


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
    findings = audited(data, recipe, files, () if base is None else base.potential.elements)
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


def audited(data: TrainingData, recipe: Recipe, files: RunFiles, known_elements: Sequence[str]) -> list[str]:
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
                potential, member = pretraining.fit(new_potential, member, folder, resume=resume)
                torch.manual_seed(seed)
            else:
                potential = new_potential(recipe, data) if base is None else base.start(recipe.frozen, data)
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


def new_potential(recipe: Recipe, data: TrainingData, beside: Subset | None = None) -> Potential:
    """Return a potential with statistics of the training frames and random weights.

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
