"""The progress bar of a run in a terminal."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from .module import TrainingModule


class ProgressBar(Callback):
    """One line for the whole run: epoch, loss, errors on validation frames, frames per second and time left."""

    def __init__(self) -> None:
        self._bar = Progress(BarColumn(30), TextColumn("{task.description}"), console=Console(stderr=True))
        self._task: TaskID | None = None
        self._n_frames = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar."""
        if self._task is None:
            return
        assert isinstance(pl_module, TrainingModule)
        self._n_frames += int((batch.frames >= 0).sum()) * trainer.world_size
        text = describe(pl_module, trainer.current_epoch + 1, self._n_frames)
        self._bar.update(self._task, completed=pl_module.progress, description=text)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the bar; the last line stays."""
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the bar; the last line stays."""
        self._bar.stop()


def describe(module: TrainingModule, epoch: int, n_frames: int) -> str:
    """Text of the line in epoch `epoch`, after `n_frames` frames of this session."""
    parts = [f"epoch {epoch}", f"loss {module.last_loss:.3g}"]
    if module.last_measures:
        parts.append(f"validation {module.shown_errors()}")
    seconds = module.session_seconds
    parts.append(f"{n_frames / max(seconds, 1e-9):.0f} frames/s")
    gained = module.progress - module.progress_at_start
    if gained > 0:
        left = seconds * (1 - module.progress) / gained
        parts.append(f"{left // 3600:.0f}:{left // 60 % 60:02.0f}:{left % 60:02.0f} left")
    return ", ".join(parts)
