"""A training run from recipe to potential file: read, fit, evaluate, write."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.evaluation import evaluate
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance, load_potential, save_potential
from ase_segnn.potentials import path_of

from .card import write_card
from .data import TrainingData, least_squares_energies
from .finetuning import adapt_energies, freeze, start_from
from .fit import CHECKPOINT, FitResult, fit
from .frames import LABELS
from .recipe import Recipe

logger = logging.getLogger(__name__)

_BATCH_EDGES = 1000  # of a step; small steps learn most from small data
_STRESS_WEIGHT = 0.1
# Compiling takes minutes and halves the time of a step, so it pays in runs that are longer than this.
_FEWEST_STEPS_TO_COMPILE, _SHORTEST_TO_COMPILE = 5000, 1500.0  # seconds


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Parameters
    ----------
    potential : the potential
    potential_path, card_path : its files
    errors : data set -> measure -> value, the unit is in the measure's name
    """

    potential: Potential
    potential_path: Path
    card_path: Path
    errors: dict[str, dict[str, float]]


def run(recipe: Recipe, output: Path | None = None, *, resume: bool = False, overwrite: bool = False) -> TrainingResult:
    """Train a potential by a recipe.

    The folder `output` receives ``<name>.safetensors``, the model card ``<name>.md``, the recipe with everything
    settled, ``metrics.csv`` with losses and errors on validation frames, and ``last.ckpt``, from which an interrupted
    run resumes.

    Parameters
    ----------
    recipe : what to do
    output : folder of the run; default is the recipe's name, in the working directory
    resume : go on from ``last.ckpt`` in `output`
    overwrite : start anew in a folder that holds a run already

    Raises
    ------
    FileExistsError
        If `output` holds a run and neither `resume` nor `overwrite` is set, or another run is using it.
    FileNotFoundError
        If a data file, or with `resume` the checkpoint, is missing.
    ValueError
        If the data cannot be learned from.
    """
    output = output or Path(recipe.name)
    files = _Files(output, recipe.name)
    files.check(resume=resume, overwrite=overwrite)
    network, base = recipe.network, None
    if recipe.base is not None:
        base = load_potential(path_of(recipe.base))
        network = base.config.network
    data = TrainingData.read(recipe.data, network.cutoff, recipe.seed)
    recipe = settled(recipe, data)
    with files.reserved():
        files.check(resume=resume, overwrite=overwrite)
        if overwrite and not resume:
            files.checkpoint.unlink(missing_ok=True)
        return _train(recipe, data, base, files, resume=resume)


def settled(recipe: Recipe, data: TrainingData) -> Recipe:
    """Return the recipe with what it left open decided: batches, weight of stress, compilation.

    Raises
    ------
    ValueError
        If a label with a weight is in no training frame, or none has a weight.
    """
    training, optimization = data.training, recipe.optimization
    changes: dict[str, Any] = {}
    n_labels = training.n_labels()
    if optimization.stress_weight is None:
        changes["stress_weight"] = _STRESS_WEIGHT if n_labels["stress"] else 0.0
    if optimization.batch_size is None and optimization.batch_edges is None:
        changes["batch_edges"] = _BATCH_EDGES
    optimization = optimization.model_copy(update=changes)
    weights = {label: getattr(optimization, f"{label}_weight") for label in LABELS}
    for label, weight in weights.items():
        if weight > 0 and n_labels[label] == 0:
            raise ValueError(
                f"{label}_weight is {weight:g}, but no training frame has {label}; name the label in the files with "
                f"data.{label}_key, or set {label}_weight: 0"
            )
    if not any(weights.values()):
        raise ValueError("the weights of energy, forces and stress are all 0; nothing would be learned")
    compile_it = recipe.compile
    if compile_it == "auto":
        edges = optimization.batch_edges
        n_edges = int(training.store.n_edges[training.indices].sum())
        per_epoch = len(training) / optimization.batch_size if optimization.batch_size else n_edges / (edges or 1)
        compile_it = optimization.epochs * min(per_epoch, len(training)) > _FEWEST_STEPS_TO_COMPILE
        compile_it = compile_it and (optimization.max_time is None or optimization.max_time > _SHORTEST_TO_COMPILE)
    return recipe.model_copy(update={"optimization": optimization, "compile": bool(compile_it)})


def _train(
    recipe: Recipe, data: TrainingData, base: Potential | None, files: _Files, *, resume: bool
) -> TrainingResult:
    commit = _commit()
    files.recipe.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    potential, result = _fitted(recipe, data, base, files.folder, resume=resume)
    calculator = SEGNNCalculator(potential)
    errors = {
        name: evaluate(calculator, [frame.labeled_atoms() for frame in subset.frames()]).errors()
        for name, subset in data.sets.items()
    }
    provenance = Provenance(
        recipe=recipe.model_dump(mode="json"),
        data=data.checksums,
        commit=commit,
        seed=recipe.seed,
        versions={name: version(name) for name in ("ase-segnn", "torch", "e3nn", "ase", "numpy", "lightning")},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        errors=errors,
    )
    save_potential(potential, files.potential, provenance=provenance, overwrite=True)
    write_card(files.card, recipe, potential, provenance, minutes=result.seconds / 60)
    return TrainingResult(potential, files.potential, files.card, errors)


def _fitted(
    recipe: Recipe, data: TrainingData, base: Potential | None, folder: Path, *, resume: bool
) -> tuple[Potential, FitResult]:
    """Build one potential and fit it."""
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(recipe.seed)
        potential = _new_potential(recipe, data) if base is None else _from_base(recipe, data, base)
        logger.info(
            "%s: %d training and %d validation frames, %d weights",
            recipe.name,
            len(data.training),
            len(data.validation),
            sum(p.numel() for p in potential.parameters() if p.requires_grad),
        )
        result = fit(potential, data.training, data.validation, recipe, folder, resume=resume)
    return potential.requires_grad_(False).eval(), result


def _new_potential(recipe: Recipe, data: TrainingData) -> Potential:
    """Build the potential with statistics of the training frames and random weights."""
    training = data.training
    elements = training.elements()
    counts = training.counts(elements)
    composition = counts @ np.array([data.reference_energies[symbol] for symbol in elements])
    config = PotentialConfig(
        elements=elements,
        reference_energies=data.reference_energies,
        energy_shifts=least_squares_energies(elements, counts, training.energies() - composition),
        energy_scale=max(training.forces_rms(), 1e-3),
        average_neighbors=max(training.average_neighbors(), 1.0),
        zbl=recipe.zbl,
        network=recipe.network,
    )
    return Potential(config)


def _from_base(recipe: Recipe, data: TrainingData, base: Potential) -> Potential:
    """Start from another potential, with the energies of the training frames and their elements."""
    elements = data.training.elements()
    given = data.origin_of_references != "least squares"
    new = {symbol: data.reference_energies[symbol] for symbol in elements if given or symbol not in base.elements}
    potential = start_from(base, elements, new)
    energies = data.training.energies()
    known = np.isfinite(energies)
    if known.any():
        calculator = SEGNNCalculator(potential.requires_grad_(False))
        structures = [frame.atoms for frame, labeled in zip(data.training.frames(), known, strict=True) if labeled]
        predictions = [results["energy"] for results in calculator.evaluate_many(structures, ["energy"])]
        counts = data.training.counts(potential.elements)[known]
        potential = adapt_energies(
            potential, counts, energies[known], np.array(predictions), keep_reference_energies=given
        )
    if recipe.frozen:
        logger.info("%d weights of the base are frozen", freeze(potential, recipe.frozen))
    return potential


@dataclass(frozen=True)
class _Files:
    """Where things are in the folder of a run."""

    folder: Path
    name: str

    @property
    def potential(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        return self.folder / f"{self.name}.md"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that nothing is lost in the folder that should be kept, and that there is what is resumed."""
        if resume and not self.checkpoint.is_file():
            raise FileNotFoundError(
                f"no checkpoint '{self.checkpoint}' to resume from; leave out the option to start a run"
            )
        if not (resume or overwrite) and any(path.exists() for path in (self.checkpoint, self.potential, self.card)):
            raise FileExistsError(
                f"'{self.folder}' holds a run already; resume it, overwrite it, or choose another folder"
            )

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the folder, which is made if there is none, to this run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise FileExistsError(f"another run is using '{self.folder}'; choose another folder") from error


def _commit() -> str | None:
    """Return the commit of the code in use, marked if it was changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")
