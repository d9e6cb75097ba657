"""The module of Lightning for any network: step, schedule, validation, and the state in a checkpoint."""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ..recipe import FitSection, RunSection
from .optimizers import make_optimizers
from .step import Batch, CompiledStep, Loss, RecordedStep, gradients

logger = logging.getLogger(__name__)

_FEWEST_STEPS_TO_COMPILE, _SHORTEST_TO_COMPILE = 5000, 1500.0  # seconds
_LONGEST_WARMUP = 0.1  # share of a run
_PATIENCE = 10  # validations without improvement until the learning rates are halved
_COUNTERS = ("_seconds_to_first_step", "_n_steps", "_waited", "_waited_for_plateau", "_plateau_factor")


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit.

    Parameters
    ----------
    optimization : of the recipe, with its number of epochs
    seed : of the order of frames
    compile : whether the step is compiled by torch, if there is no code generated for the network
    identity : plain data that must be the same when a run is resumed
    """

    optimization: FitSection
    seed: int
    compile: bool
    identity: dict[str, Any]


def fit_settings(recipe: RunSection, steps_per_epoch: float, **identity: Any) -> FitSettings:
    """Return the settings of a fit by a settled recipe; `identity` adds data and network to the identity of the run."""
    long = _worth_compiling(recipe.optimization, steps_per_epoch)
    settings = recipe.model_dump(
        mode="json", include={"optimization", "seed", "frozen", "base", "bootstrap", "pretrain"}
    )
    if settings.get("pretrain") is None:
        settings.pop("pretrain", None)  # which recipes of earlier checkpoints had not
    for name in ("epochs", "max_time", "early_stopping"):
        del settings["optimization"][name]
    return FitSettings(
        optimization=recipe.optimization,
        seed=recipe.seed,
        compile=recipe.compile is True or (recipe.compile == "auto" and long),
        identity={**identity, "settings": settings},
    )


def _worth_compiling(optimization: FitSection, steps_per_epoch: float) -> bool:
    """Whether a run is so long that compilation by torch, which takes minutes and halves the time of a step, pays."""
    assert optimization.epochs is not None
    long_enough = optimization.max_time is None or optimization.max_time > _SHORTEST_TO_COMPILE
    return long_enough and optimization.epochs * steps_per_epoch > _FEWEST_STEPS_TO_COMPILE


class Measure(NamedTuple):
    """An error on validation frames: the name of its column in the learning curve, value, unit."""

    name: str
    value: float
    unit: str


class TrainingModule(pl.LightningModule):
    """Optimizes a network; keeps the history of the run and the averaged weights that validated best.

    A child class provides the batches and measures the errors.

    Parameters
    ----------
    loss : of a batch, with the network in it
    model : that network; its parameters that require gradients are fitted
    n_labels : L, how many kinds of labels are learned
    settings : see `FitSettings`
    """

    def __init__(self, loss: Loss, model: nn.Module, n_labels: int, settings: FitSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = settings
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}  # "score" on validation frames, "epoch" and "weights"
        self.finished = False
        self.progress = self.progress_at_start = 0.0  # share of the run that is over, now and when this session began
        self.last_loss = math.nan
        self.last_measures: Sequence[Measure] = []  # on validation frames
        self.loss = loss
        self._model = [model]  # in a list: a module would be registered, and its weights twice
        self._step: CompiledStep | RecordedStep | partial[tuple[Tensor, list[Tensor]]] = partial(gradients, loss)
        self._seconds_before = 0.0  # of sessions before this one
        self._started = time.monotonic()
        self._n_steps = self._waited = self._waited_for_plateau = 0
        self._plateau_factor = 1.0
        self._seconds_to_first_step = 0.0  # most of them for compiling
        self._losses: list[Tensor] = []  # of the steps of this epoch
        self._sums = torch.zeros(2, n_labels, dtype=torch.float64)  # squared errors, numbers of values
        self._averaged: dict[str, Tensor] = {}
        self._validated = False  # in this epoch

    def predict_by_generated_code(self) -> bool:
        """Have the network predict by code generated for it until `on_fit_end`; return whether there is any."""
        return False

    @abstractmethod
    def weights(self, progress: float) -> list[float]:
        """Weights of the L kinds of labels in the objective after a share of the run, 0 to 1."""

    @abstractmethod
    def evaluate(self, batch: Any) -> Tensor:
        """Return sums of squared errors and numbers of values of a validation batch, (2, L)."""

    @abstractmethod
    def measures(self, mean_squares: Sequence[float | None]) -> list[Measure]:
        """Errors to show, from the mean squared error of each kind of label; None stands for no label."""

    @abstractmethod
    def source(self, frame: int, *, validation: bool = False) -> str:
        """Return the name of a training or validation frame, for messages."""

    @abstractmethod
    def single(self, frame: int) -> Any:
        """Return the batch of one training frame."""

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self._model[0]

    @property
    def session_seconds(self) -> float:
        """Duration of the fit since it began or was resumed."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Duration of the fit so far, sessions before an interruption included."""
        return self._seconds_before + self.session_seconds

    def on_fit_start(self) -> None:
        """Start the clock, and compile."""
        self._started = time.monotonic()
        if self.predict_by_generated_code():
            if self.device.type == "cuda":
                self._step = RecordedStep(self.loss)
        elif self.settings.compile:
            self._step = CompiledStep(self.loss)
        self.progress_at_start = self._progress(0)

    def on_train_epoch_start(self) -> None:
        """Have the last epoch validated."""
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of the recipe; each group remembers its highest learning rate."""
        optimizers = make_optimizers(self.model, self.settings.optimization)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["highest_lr"] = group["lr"]
        return optimizers

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of each optimizer, with the gradient of the batches of all processes together."""
        self.progress = progress = self._progress(batch_idx)
        n_labels = self._sum_over_processes(batch.n_labels())
        coefficients = n_labels.new_tensor(self.weights(progress)) / n_labels.clamp(min=1)
        loss, derivatives = self._step(batch, coefficients)
        self._stop_unless_finite(loss, derivatives, batch)
        leaves = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        for parameter, derivative in zip(leaves, derivatives, strict=True):
            parameter.grad = self._sum_over_processes(derivative)
        if self.settings.optimization.gradient_clip is not None:
            nn.utils.clip_grad_norm_(leaves, self.settings.optimization.gradient_clip)
        factor = self._learning_rate_factor(progress)
        for optimizer in _as_list(self.optimizers()):
            for group in optimizer.param_groups:
                group["lr"] = factor * group["highest_lr"]
            optimizer.step()
        self._n_steps += 1
        self._losses.append(self._sum_over_processes(loss))
        self.last_loss = float(self._losses[-1])
        self.log("loss", self.last_loss, batch_size=1)
        if progress == 1.0:  # out of time
            self.trainer.should_stop = True
            self.trainer.check_val_every_n_epoch = 1
        if self._seconds_to_first_step == 0.0:
            self._seconds_to_first_step = self.seconds

    def on_validation_epoch_start(self) -> None:
        """Reset the sums, and copy the averaged weights, which are in the network during validation only."""
        self._sums = torch.zeros_like(self._sums, device=self.device)
        self._averaged = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the sums of a batch."""
        sums = self.evaluate(batch)
        if not bool(torch.isfinite(sums).all()):
            names = ", ".join(self.source(index, validation=True) for index in batch.frames.tolist())
            raise FloatingPointError(
                f"a prediction for one of the validation frames {names} is not finite; look at them"
            )
        self._sums += sums

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the averaged weights and keep these if they are the best so far.

        The best have the least product of the errors of all labels that are learned. The objective would be that of the
        forces nearly alone, and would take weights from before the energies are learned.
        """
        squares, numbers = self._sum_over_processes(self._sums).tolist()
        means = [square / number if number > 0 else None for square, number in zip(squares, numbers, strict=True)]
        self.last_measures, self._validated = self.measures(means), True
        logger.info("epoch %d: validation %s", self.current_epoch + 1, self.shown_errors())
        self.log_dict(self._validation_columns())
        learned = [
            mean for mean, weight in zip(means, self.weights(1.0), strict=True) if mean is not None and weight > 0
        ]
        score = sum(math.log(max(mean, sys.float_info.min)) for mean in learned)
        if score < self.best.get("score", math.inf):
            self.best = {"score": score, "epoch": self.current_epoch + 1, "weights": self._averaged}
            self._waited = self._waited_for_plateau = 0
            return
        self._waited += 1
        self._waited_for_plateau += 1
        settings = self.settings.optimization
        if settings.schedule == "plateau" and self._waited_for_plateau >= _PATIENCE:
            self._plateau_factor, self._waited_for_plateau = self._plateau_factor / 2, 0
            logger.info("epoch %d: learning rates halved", self.current_epoch + 1)
        if settings.early_stopping is not None and self._waited >= settings.early_stopping:
            logger.info("epoch %d: stopped, %d validations without improvement", self.current_epoch + 1, self._waited)
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Add a line to the history."""
        row = {
            "epoch": self.current_epoch + 1,
            "seconds": round(self.seconds, 3),
            "learning_rate": _as_list(self.optimizers())[-1].param_groups[0]["lr"],
            "loss": float(torch.stack(self._losses).mean()),
            **(self._validation_columns() if self._validated else {}),
        }
        self.history.append(row)
        self._losses, self._validated = [], False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add history, best weights, clock and counters to the checkpoint."""
        checkpoint["run"] = {
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "finished": self.finished,
            "identity": self.settings.identity,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state that `on_save_checkpoint` added."""
        run = checkpoint["run"]
        self.history, self.best, self._seconds_before = run["history"], run["best"], run["seconds"]
        for name in _COUNTERS:
            setattr(self, name, run[name])

    def shown_errors(self) -> str:
        """Errors on validation frames with their units."""
        return ", ".join(f"{measure.value:.4g} {measure.unit}".strip() for measure in self.last_measures)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch without a change of its dtypes."""
        return batch.to(device)

    def _validation_columns(self) -> dict[str, float]:
        return {f"validation_{measure.name}": measure.value for measure in self.last_measures}

    def _progress(self, batch_idx: int) -> float:
        """Share of the run so far, by epochs or by time from the first step on, whichever is larger."""
        settings = self.settings.optimization
        assert settings.epochs is not None
        epoch = self.current_epoch + batch_idx / max(1, self.trainer.num_training_batches)
        done = epoch / settings.epochs
        if settings.max_time is not None:
            began = min(self._seconds_to_first_step or self.seconds, settings.max_time - 1e-3)
            done = max(done, self._on_all_processes((self.seconds - began) / (settings.max_time - began)))
        return min(1.0, done)

    def _learning_rate_factor(self, progress: float) -> float:
        settings = self.settings.optimization
        rise = min(1.0, max((self._n_steps + 1) / (settings.warmup_steps + 1), progress / _LONGEST_WARMUP))
        if settings.schedule == "cosine":
            return 0.5 * rise * (1 + math.cos(math.pi * progress))
        return rise * self._plateau_factor

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.trainer.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def _on_all_processes(self, value: float) -> float:
        """Return the value of the first process on all processes."""
        if self.trainer.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def _stop_unless_finite(self, loss: Tensor, derivatives: list[Tensor], batch: Batch) -> None:
        """Stop the run, naming the frames that are to blame, if the loss or its gradient is not finite.

        Raises
        ------
        FloatingPointError
        """
        if _all_finite([loss, *derivatives]):
            return
        coefficients = torch.ones_like(self._sums[0], device=self.device)
        frames = [index for index in batch.frames.tolist() if index >= 0]
        blamed = []
        for index in frames:
            value, its_derivatives = gradients(self.loss, self.single(index).to(self.device), coefficients)
            if not _all_finite([value, *its_derivatives]):
                blamed.append(index)
        names = ", ".join(self.source(index) for index in blamed or frames)
        raise FloatingPointError(
            f"the loss or its gradient is not finite in epoch {self.current_epoch + 1}, frame {names}; the last "
            "checkpoint is kept; look at the labels and distances of that frame, or lower the learning rates"
        )


def _all_finite(tensors: list[Tensor]) -> bool:
    return bool(torch.isfinite(nn.utils.get_total_norm(tensors)))  # many small tensors are faster together


def _as_list(one_or_many: Any) -> list[Any]:
    """Undo Lightning's unpacking of lists of one."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
