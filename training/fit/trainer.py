"""The fit itself: Lightning's trainer around the module, checkpoints, the learning curve as CSV and a progress bar."""

from __future__ import annotations

import csv
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ase_segnn.files import written_whole

from ..recipe import FitSection, RunSection
from .module import TrainingModule
from .progress import ProgressBar

logger = logging.getLogger(__name__)

_EPOCHS, _MOST_EPOCHS = 300, 10**6  # without and with a time limit
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
_Section = TypeVar("_Section", bound=FitSection)
_AVERAGED_SHARE = 0.05  # of the steps

CHECKPOINT, CURVE = "last.ckpt", "metrics.csv"


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the lines of its history, and its duration in seconds."""

    history: list[dict[str, float]]
    seconds: float


def fit(module: TrainingModule, recipe: RunSection, folder: Path, *, resume: bool) -> FitResult:
    """Fit the parameters of a network that require gradients; leave the weights that validated best in the network.

    Parameters
    ----------
    module : with the network and its weights at the start; `resume` replaces these by the checkpoint's
    recipe : settled: the number of epochs is given
    folder : of checkpoint and learning curve; exists
    resume : go on from the checkpoint in `folder`, which may be that of a finished fit

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, as ever; the last checkpoint is kept.
    FloatingPointError
        If the loss is not finite; the frames are named.
    ValueError
        If the checkpoint is of another run (other data, network or settings) or of a version with other keys.
    """
    checkpoint = folder / CHECKPOINT
    finished = False
    if resume:
        before = _load_run(checkpoint)["run"]
        _check_identity(checkpoint, before.get("identity", {}), module.settings.identity)
        finished = before["finished"]
    if finished:
        logger.info("%s was finished before, after %d epochs; nothing is fitted", recipe.name, len(before["history"]))
    else:
        trainer = _trainer(recipe, folder)
        with _quiet_lightning():
            try:
                trainer.fit(module, ckpt_path=checkpoint if resume else None, weights_only=True)
            except SystemExit as error:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from error
    # with several processes the file alone has the results, so they are read from there in any case
    run = _load_run(checkpoint)["run"]
    module.model.load_state_dict(run["best"]["weights"])
    logger.info("%s: weights of epoch %d are the best on validation frames", recipe.name, run["best"]["epoch"])
    return FitResult(run["history"], run["seconds"])


def _check_identity(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ValueError if a checkpoint is of another run, or of a version whose recipes had other keys."""
    keys, known = (set(identity.get("settings", {}).get("optimization", {})) for identity in (before, now))
    if keys != known or set(before) != set(now):
        differing = ", ".join(f"optimization.{key}" for key in sorted(keys ^ known))
        raise ValueError(
            f"'{checkpoint}' is of another version of ase-segnn"
            + f", whose recipes differ in {differing}" * bool(keys and differing)
            + "; resume the run with that version, or start anew with --force or in another folder"
        )
    differing = " and ".join(name for name, value in now.items() if before[name] != value)
    if differing:
        raise ValueError(
            f"'{checkpoint}' is of another run, with other {differing}; resume with what it began with, or start anew "
            "with --force or in another folder"
        )


def check_machine(recipe: RunSection) -> None:
    """Raise an ImportError if the package of the logger is not installed, a ValueError if there is no such device."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: cuda is not available, torch {torch.__version__} finds no GPU here; use auto or cpu")
    if recipe.logger is not None and not any(find_spec(name) for name in _PACKAGES[recipe.logger]):
        raise ImportError(f"logger: {recipe.logger} needs the package: pip install {_PACKAGES[recipe.logger][0]}")


def with_epochs(optimization: _Section) -> _Section:
    """Return the settings with a number of epochs."""
    if optimization.epochs is not None:
        return optimization
    return optimization.model_copy(update={"epochs": _EPOCHS if optimization.max_time is None else _MOST_EPOCHS})


def _trainer(recipe: RunSection, folder: Path) -> pl.Trainer:
    epochs = recipe.optimization.epochs
    assert epochs is not None
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    interactive = sys.stderr.isatty()
    callbacks: list[Callback] = [
        WeightAveraging(use_buffers=False, multi_avg_fn=partial(_average, recipe.optimization.ema_decay)),
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
            accelerator="cuda" if on_gpu else "cpu",  # accelerators of other kinds have no float64
            devices=recipe.processes,
            strategy=strategy,
            plugins=[_PlainFiles()],
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


def _average(decay: float, averaged: list[Tensor], weights: list[Tensor], n_steps: Tensor) -> None:
    """Update exponential moving averages, whose window is at most a twentieth of the steps so far."""
    window = min(_AVERAGED_SHARE * float(n_steps), 1 / (1 - decay) - 1)
    get_ema_multi_avg_fn(window / (1 + window))(averaged, weights, n_steps)


class _LastCheckpoint(Checkpoint):
    """Writes checkpoint and learning curve after each epoch; an interruption leaves the files as they were."""

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


def _load(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # torch raises whatever it stumbles over
        raise ValueError(
            f"'{path}' is no checkpoint, or broken; start anew with --force or in another folder"
        ) from error


def _load_run(path: Path) -> dict[str, Any]:
    checkpoint = _load(path)
    if not isinstance(checkpoint, dict) or "run" not in checkpoint:
        raise ValueError(f"'{path}' is a checkpoint of another program; start anew with --force or in another folder")
    return checkpoint


class _PlainFiles(TorchCheckpointIO):
    """Writes checkpoints directly; Lightning itself goes through the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch takes a full disk for a broken archive
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> Any:
        return _load(Path(path))  # processes hand over bare weights this way, too


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
