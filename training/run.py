"""A training run from recipe to potential file: read, split, fit, evaluate, write."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from ase import Atoms
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.evaluation import evaluate
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance, save_potential

from .card import write_card
from .data import (
    LabeledGraph,
    check_stresses,
    elements_of,
    isolated_atom_energies,
    least_squares_energies,
    read_frames,
    split,
    training_loader,
    validation_loader,
)
from .module import TrainingModule
from .recipe import Recipe
from .sources import locate, sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Files of a finished run, and its errors: data set -> measure -> value, the unit is in the measure's name."""

    potential_path: Path
    card_path: Path
    errors: dict[str, dict[str, float]]


def train(
    recipe: Recipe, output: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> TrainingResult:
    """Train a potential.

    The folder `output` receives ``<name>.safetensors``, the model card ``<name>.md``, ``metrics/`` with losses and
    the errors on validation frames as CSV, and ``last.ckpt``, from which an interrupted run resumes.

    Parameters
    ----------
    recipe : what to do
    output : folder of the run; default is the recipe's name, in the working directory
    resume : go on from ``last.ckpt`` in `output`
    overwrite : start anew in a folder that holds a run already

    Raises
    ------
    FileExistsError
        If `output` holds a run and neither `resume` nor `overwrite` is set.
    FileNotFoundError
        If a data file, or with `resume` the checkpoint, is missing.
    ValueError
        If the data cannot be learned from.
    """
    output = output or Path(recipe.name)
    checkpoint = output / "last.ckpt"
    potential_path, card_path = output / f"{recipe.name}.safetensors", output / f"{recipe.name}.md"
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint '{checkpoint}' to resume from; leave out the option to start a run")
    if not (resume or overwrite) and any(path.exists() for path in (checkpoint, potential_path, card_path)):
        raise FileExistsError(f"'{output}' holds a run already; resume it, overwrite it, or choose another folder")
    if overwrite and not resume:
        checkpoint.unlink(missing_ok=True)

    commit = _commit()
    data = _Data.read(recipe)
    started = datetime.now(timezone.utc)
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(recipe.seed)
        potential = _new_potential(recipe, data)
        _fit(recipe, potential, data, output, checkpoint if resume else None)
    minutes = (datetime.now(timezone.utc) - started).total_seconds() / 60

    calculator = SEGNNCalculator(potential)
    errors = {name: evaluate(calculator, frames).errors() for name, frames in data.evaluated.items()}
    provenance = Provenance(
        recipe=recipe.model_dump(mode="json"),
        data=data.checksums,
        commit=commit,
        seed=recipe.seed,
        versions={name: version(name) for name in ("ase-segnn", "torch", "e3nn", "ase", "numpy", "lightning")},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        errors=errors,
    )
    save_potential(potential, potential_path, provenance=provenance, overwrite=resume or overwrite)
    write_card(card_path, recipe, potential, provenance, minutes=minutes)
    return TrainingResult(potential_path, card_path, errors)


@dataclass(frozen=True)
class _Data:
    training: list[Atoms]
    validation: list[Atoms]
    tests: dict[str, list[Atoms]]
    reference_energies: dict[str, float]
    checksums: dict[str, str]

    @classmethod
    def read(cls, recipe: Recipe) -> _Data:
        """Read and check all files, the test sets too, before the first step."""
        settings = recipe.data
        paths = {name: locate(name, settings.folder) for name in (settings.train, *settings.test.values())}
        frames = {name: read_frames(path) for name, path in paths.items()}
        if recipe.optimization.stress_weight > 0:
            check_stresses(frames[settings.train], paths[settings.train])
        training, validation = split(frames[settings.train], settings.validation, recipe.seed)
        elements = elements_of(frames[settings.train])
        for name in settings.test.values():
            foreign = set(elements_of(frames[name])) - set(elements)
            if foreign:
                raise ValueError(f"test file '{name}' has {', '.join(foreign)}, which '{settings.train}' lacks")
        reference = settings.reference_energies
        if isinstance(reference, dict):
            energies = reference
        elif reference == "least-squares":
            energies = least_squares_energies(training, _energies(training))
        else:
            paths[reference] = locate(reference, settings.folder)
            energies = isolated_atom_energies(paths[reference], elements)
        return cls(
            training,
            validation,
            {name: frames[file] for name, file in settings.test.items()},
            energies,
            {name: sha256(path) for name, path in paths.items()},
        )

    @property
    def evaluated(self) -> dict[str, list[Atoms]]:
        return {"validation": self.validation, **self.tests}


def _new_potential(recipe: Recipe, data: _Data) -> Potential:
    """Build the potential with statistics of the training frames and random weights."""
    elements = elements_of(data.training)
    composition = np.array([sum(data.reference_energies[s] for s in atoms.symbols) for atoms in data.training])
    graphs = [LabeledGraph.from_atoms(atoms, recipe.network.cutoff).graph for atoms in data.training]
    forces = np.concatenate([atoms.get_forces(apply_constraint=False) for atoms in data.training])
    config = PotentialConfig(
        elements=elements,
        reference_energies=data.reference_energies,
        energy_shifts=least_squares_energies(data.training, _energies(data.training) - composition),
        energy_scale=max(float(np.sqrt(np.mean(forces**2))), 1e-3),
        average_neighbors=max(sum(g.n_edges for g in graphs) / sum(g.n_atoms for g in graphs), 1.0),
        zbl=recipe.zbl,
        network=recipe.network,
    )
    return Potential(config)


def _fit(recipe: Recipe, potential: Potential, data: _Data, output: Path, checkpoint: Path | None) -> None:
    settings, cutoff = recipe.optimization, recipe.network.cutoff
    stress = settings.stress_weight > 0
    training = [LabeledGraph.from_atoms(atoms, cutoff, stress=stress) for atoms in data.training]
    validation = [LabeledGraph.from_atoms(atoms, cutoff, stress=stress) for atoms in data.validation]
    logger.info(
        "%s: %d training and %d validation frames, %d weights",
        recipe.name,
        len(training),
        len(validation),
        sum(p.numel() for p in potential.parameters()),
    )
    callbacks: list[Callback] = [
        EMAWeightAveraging(decay=settings.ema_decay, use_buffers=False),
        ModelCheckpoint(
            output, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
        ),
    ]
    interactive = sys.stderr.isatty()
    if interactive:
        callbacks.append(RichProgressBar())
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[recipe.device],
            devices=1,
            max_epochs=settings.epochs,
            check_val_every_n_epoch=min(recipe.validate_every, settings.epochs),
            callbacks=callbacks,
            logger=CSVLogger(output, name="metrics"),  # a new version_<n> each time the run is resumed
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=interactive,
            inference_mode=False,
        )
        trainer.fit(
            TrainingModule(potential, recipe),
            training_loader(
                training, settings.batch_size, recipe.seed, pad_with_cutoff=cutoff if recipe.compile else None
            ),
            validation_loader(validation, 25),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    if trainer.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints and its use of deprecated parts of torch out of the log of the run."""
    lightning_logger = logging.getLogger("lightning.pytorch")
    level = lightning_logger.level
    lightning_logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # graphs are in memory already
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*", category=FutureWarning)
            yield
    finally:
        lightning_logger.setLevel(level)


def _energies(frames: Sequence[Atoms]) -> Any:
    return np.array([atoms.get_potential_energy() for atoms in frames])


def _commit() -> str | None:
    """Return the commit of the code in use, marked if it was changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")
