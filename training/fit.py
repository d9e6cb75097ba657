"""The fit itself: Lightning's trainer around the module, checkpoints, the learning curve as CSV and a progress bar."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor

from ase_segnn.files import written_whole
from ase_segnn.model.potential import Potential

from .batches import BatchLimits
from .data import Subset
from .module import FitSettings, TrainingModule
from .progress import ProgressBar
from .recipe import Recipe

logger = logging.getLogger(__name__)

_AVERAGED_SHARE = 0.05  # of the steps

CHECKPOINT, CURVE = "last.ckpt", "metrics.csv"


@dataclass(frozen=True)
class FitResult:
    """What a finished fit leaves: the lines of its history, and how long it took."""

    history: list[dict[str, float]]
    seconds: float


def fit(
    potential: Potential, training: Subset, validation: Subset, recipe: Recipe, folder: Path, *, resume: bool
) -> FitResult:
    """Fit the parameters of `potential` that require gradients; at the end it has the weights that validated best.

    Parameters
    ----------
    potential : with the weights to start from; with `resume` those of the checkpoint take their place
    training, validation : frames
    recipe : settled, see `ase_segnn.training.run`
    folder : where checkpoint and learning curve are kept; exists
    resume : go on from the checkpoint there, which may be that of a finished fit

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, as ever; the last checkpoint is kept.
    FloatingPointError
        If the loss is not finite; the frames are named.
    ValueError
        If the checkpoint is of another run: of other data, another network or other settings.
    """
    checkpoint = folder / CHECKPOINT
    identity = _identity(potential, training, validation, recipe)
    finished = False
    if resume:
        before = _load(checkpoint)["run"]
        differing = [name for name, value in identity.items() if before["identity"][name] != value]
        if differing:
            raise ValueError(
                f"'{checkpoint}' is of another run, with other {' and '.join(differing)}; resume with what it began "
                "with, or start anew with --force or in another folder"
            )
        finished = before["finished"]
    if finished:
        logger.info("%s was finished before, after %d epochs; nothing is fitted", recipe.name, len(before["history"]))
    else:
        module = _module(potential, training, validation, recipe)
        trainer = _trainer(recipe, folder)
        with _quiet_lightning():
            try:
                trainer.fit(module, ckpt_path=checkpoint if resume else None, weights_only=True)
            except SystemExit as error:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from error
    # several processes leave their results in the file only, so that it is the way for one as well
    run = _load(checkpoint)["run"]
    potential.load_state_dict(run["best"]["weights"])
    logger.info("%s: weights of epoch %d are the best on validation frames", recipe.name, run["best"]["epoch"])
    return FitResult(run["history"], run["seconds"])


def _identity(potential: Potential, training: Subset, validation: Subset, recipe: Recipe) -> dict[str, Any]:
    """Return what a run must have in common with the one that it resumes."""
    settings = recipe.model_dump(mode="json", include={"optimization", "seed", "frozen", "base", "bootstrap"})
    for name in ("epochs", "max_time", "early_stopping"):
        del settings["optimization"][name]
    frames = [[subset.store.path.name, *subset.indices.tolist()] for subset in (training, validation)]
    return {
        "frames": hashlib.sha256(json.dumps(frames).encode()).hexdigest(),
        "settings": settings,
        "elements, energies or network": potential.config.model_dump(mode="json"),
    }


def _module(potential: Potential, training: Subset, validation: Subset, recipe: Recipe) -> TrainingModule:
    optimization, store = recipe.optimization, training.store
    limits = BatchLimits.of(
        store.n_atoms[training.indices],
        store.n_edges[training.indices],
        batch_size=optimization.batch_size,
        batch_edges=optimization.batch_edges,
    )
    settings = FitSettings(
        optimization=optimization,
        seed=recipe.seed,
        compile=bool(recipe.compile),
        max_seconds=optimization.max_time,
        identity=_identity(potential, training, validation, recipe),
    )
    return TrainingModule(potential, training, validation, limits, settings)


def _trainer(recipe: Recipe, folder: Path) -> pl.Trainer:
    epochs = recipe.optimization.epochs
    assert epochs is not None
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    interactive = sys.stderr.isatty()
    callbacks: list[Callback] = [
        WeightAveraging(use_buffers=False, avg_fn=partial(_average, recipe.optimization.ema_decay)),
        _LastCheckpoint(folder),
        *[ProgressBar()] * interactive,
    ]
    loggers: dict[str | None, Any] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
    strategy: str | Strategy = "auto"
    if recipe.processes > 1:
        strategy = DDPStrategy(start_method="spawn", process_group_backend="nccl" if on_gpu else "gloo")
    also: Logger | bool = False
    if recipe.logger is not None:
        also = loggers[recipe.logger](name=recipe.name, save_dir=folder)
    with _quiet_lightning():
        return pl.Trainer(
            accelerator="cuda" if on_gpu else "cpu",  # others have no float64
            devices=recipe.processes,
            strategy=strategy,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            max_epochs=epochs,
            check_val_every_n_epoch=min(recipe.validate_every, epochs),
            callbacks=callbacks,
            logger=also,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,
            inference_mode=False,
        )


def _average(decay: float, averaged: Tensor, weights: Tensor, n_steps: Tensor) -> Tensor:
    """Exponential moving average that at first remembers no more than a twentieth of the steps so far."""
    window = (_AVERAGED_SHARE * n_steps.to(averaged.dtype)).clamp(max=1 / (1 - decay) - 1)
    return averaged + (weights - averaged) / (1 + window)


class _LastCheckpoint(Checkpoint):
    """Keeps the state after each epoch, and the learning curve, each file whole or as it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        with written_whole(self._folder / CHECKPOINT) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            with written_whole(self._folder / CURVE) as temporary:
                temporary.write_text(_to_csv(pl_module.history), encoding="utf-8")


def _to_csv(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    names = dict.fromkeys(name for row in history for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return checkpoint


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints and its use of deprecated parts of torch out of the log of the run."""
    lightning_logger = logging.getLogger("lightning.pytorch")
    level = lightning_logger.level
    lightning_logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # graphs are in memory already
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*", category=FutureWarning)
            yield
    finally:
        lightning_logger.setLevel(level)
