"""The potential as Lightning trains it: step, schedule, validation, and what a checkpoint remembers of them."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ase_segnn.model.potential import Potential

from .batches import BatchLimits, LabeledGraph, divide, padded_batch
from .data import Subset
from .frames import LABELS
from .optimizers import make_optimizers
from .recipe import OptimizationSection
from .step import CompiledStep, Loss, gradients

logger = logging.getLogger(__name__)

UNITS = {"energy": ("meV", "meV"), "forces": ("meV/Å", "meV_per_A"), "stress": ("meV/Å³", "meV_per_A3")}
_VALIDATION_LIMITS = BatchLimits(structures=25, atoms=2000, edges=10000)  # of what is evaluated at a time
_LONGEST_WARMUP = 0.1  # share of a run
_COUNTERS = ("_seconds_to_first_step", "_n_steps", "_waited", "_waited_for_plateau", "_plateau_factor")


@dataclass(frozen=True)
class FitSettings:
    """What a fit needs to know besides its data.

    Parameters
    ----------
    optimization : of the recipe, with a `stress_weight`
    seed : of the order of frames
    compile : whether the step is compiled
    max_seconds : for the whole fit, or None
    identity : what a run that is resumed must have in common with the one before, as plain data
    """

    optimization: OptimizationSection
    seed: int
    compile: bool
    max_seconds: float | None
    identity: dict[str, Any]


class TrainingModule(pl.LightningModule):
    """Optimizes a potential; keeps the history of the run and the averaged weights that validated best.

    Parameters
    ----------
    potential : its parameters that require gradients are fitted
    training, validation : frames with their graphs
    limits : of the batches of one process
    settings : see `FitSettings`
    """

    def __init__(
        self, potential: Potential, training: Subset, validation: Subset, limits: BatchLimits, settings: FitSettings
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = settings
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}  # "objective" on validation frames, "epoch" and "weights"
        self.finished = False
        self.progress = self.progress_at_start = 0.0  # share of the run that is over, now and when this session began
        self.last_loss = math.nan
        self.last_errors: dict[str, float] = {}  # label -> RMSE on validation frames, meV and so on
        self._training, self._validation, self._limits = training, validation, limits
        self._a_number = int(training.store.numbers(int(training.indices[0]))[0])  # of an atom that only fills up
        optimization = settings.optimization
        self.loss = Loss(potential, optimization.loss, optimization.huber_delta, stress=self._weight("stress") > 0)
        self._labels = [label for label in LABELS if label != "stress" or self.loss.stress]
        self._step = CompiledStep(self.loss) if settings.compile else partial(gradients, self.loss)
        self._seconds_before = 0.0  # of sessions before this one
        self._started = time.monotonic()
        self._n_steps = self._waited = self._waited_for_plateau = 0
        self._plateau_factor = 1.0
        self._seconds_to_first_step = 0.0  # of which most goes into compiling
        self._losses: list[Tensor] = []  # of the steps of this epoch
        self._sums = torch.zeros(3, len(LABELS), dtype=torch.float64)  # penalties, squared errors, numbers of values
        self._averaged: dict[str, Tensor] = {}
        self._validated = False  # in this epoch

    @property
    def potential(self) -> Potential:
        """The potential in training."""
        potential = self.loss.potential
        assert isinstance(potential, Potential)
        return potential

    @property
    def session_seconds(self) -> float:
        """Duration of the fit since it began or was resumed."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Duration of the fit so far, sessions before an interruption included."""
        return self._seconds_before + self.session_seconds

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self.progress_at_start = self._progress(0)

    def on_train_epoch_start(self) -> None:
        """See to it that the last epoch is validated."""
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.trainer.check_val_every_n_epoch = 1

    def train_dataloader(self) -> DataLoader[LabeledGraph]:
        """Batches of this process in an order that depends on seed and epoch alone; made anew for each epoch."""
        store, world = self._training.store, self.trainer.world_size
        random = np.random.default_rng([self.settings.seed, self.current_epoch])
        order = self._training.indices[random.permutation(len(self._training))]
        batches = divide(order, store.n_atoms, store.n_edges, self._limits)
        n_steps = math.ceil(len(batches) / world)
        mine = batches[self.trainer.global_rank :: world]
        mine += [[]] * (n_steps - len(mine))
        collate = self._batch
        if self.settings.compile:
            collate = padded_batch(self._limits, store.cutoff, self._a_number)
        return DataLoader(self._training, batch_sampler=mine, collate_fn=collate)

    def _batch(self, parts: list[LabeledGraph]) -> LabeledGraph:
        """Batch graphs, of which there may be none if there are more processes than batches."""
        return LabeledGraph.batch(parts or [LabeledGraph.padding(1, 0, self._training.store.cutoff, self._a_number)])

    def val_dataloader(self) -> DataLoader[LabeledGraph]:
        """Share of the validation frames of this process, in their order."""
        store = self._validation.store
        mine = self._validation.indices[self.trainer.global_rank :: self.trainer.world_size]
        batches = divide(mine, store.n_atoms, store.n_edges, _VALIDATION_LIMITS)
        return DataLoader(self._validation, batch_sampler=batches or [[]], collate_fn=self._batch)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of the recipe; each group remembers its highest learning rate."""
        optimizers = make_optimizers(self.potential, self.settings.optimization)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["highest_lr"] = group["lr"]
        return optimizers

    def training_step(self, batch: LabeledGraph, batch_idx: int) -> None:
        """One step of each optimizer, with the gradient of the batches of all processes together."""
        self.progress = progress = self._progress(batch_idx)
        n_labels = self._sum_over_processes(batch.n_labels())
        coefficients = batch.energy.new_tensor([self._weight(label, progress) for label in LABELS])
        coefficients = coefficients / n_labels.clamp(min=1)
        loss, derivatives = self._step(batch, coefficients)
        self._stop_unless_finite(loss, derivatives, batch)
        leaves = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        for parameter, derivative in zip(leaves, derivatives, strict=True):
            parameter.grad = self._sum_over_processes(derivative)
        torch.nn.utils.clip_grad_norm_(leaves, self.settings.optimization.gradient_clip)
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
        """Forget the errors of the validation before, and keep the averaged weights, which are in place now only."""
        self._sums = torch.zeros_like(self._sums, device=self.device)
        self._averaged = {name: value.detach().clone() for name, value in self.potential.state_dict().items()}

    def validation_step(self, batch: LabeledGraph, batch_idx: int) -> None:
        """Add up penalties, squared errors and their numbers."""
        prediction = self.potential.predict(batch.graph, stress=self.loss.stress)
        squares = torch.zeros_like(self._sums[0])
        for column, label in enumerate(self._labels):
            known = getattr(batch, f"{label}_weights") > 0
            errors = (getattr(prediction, label) - getattr(batch, label))[known]
            if label == "stress":  # the six components that evaluation counts
                errors = errors[:, (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)] / math.sqrt(6)
            squares[column] = errors.square().sum()
        if not bool(torch.isfinite(squares).all()):
            names = ", ".join(self._validation.store.frame(index).source for index in batch.frames.tolist())
            raise FloatingPointError(
                f"a prediction for one of the validation frames {names} is not finite; look at them"
            )
        self._sums += torch.stack([self.loss.penalties(prediction, batch), squares, batch.n_labels()])

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the averaged weights and keep these if they are the best so far."""
        penalties, squares, n_labels = self._sum_over_processes(self._sums).tolist()
        errors = {}
        objective = 0.0
        for column, label in enumerate(self._labels):
            if n_labels[column] > 0:
                errors[label] = 1e3 * math.sqrt(squares[column] / n_labels[column])
                objective += self._weight(label, 1.0) * penalties[column] / n_labels[column]
        shown = ", ".join(f"{error:.2f} {UNITS[label][0]}" for label, error in errors.items())
        logger.info("epoch %d: validation RMSE %s", self.current_epoch + 1, shown)
        self.last_errors, self._validated = errors, True
        self.log_dict(_named(errors))
        if not self.best or objective < self.best["objective"]:
            self.best = {"objective": objective, "epoch": self.current_epoch + 1, "weights": self._averaged}
            self._waited = self._waited_for_plateau = 0
            return
        self._waited += 1
        self._waited_for_plateau += 1
        settings = self.settings.optimization
        if settings.schedule == "plateau" and self._waited_for_plateau >= settings.patience:
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
            **(_named(self.last_errors) if self._validated else {}),
        }
        self.history.append(row)
        self._losses, self._validated = [], False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what this module remembers besides weights."""
        checkpoint["run"] = {
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "finished": self.finished,
            "identity": self.settings.identity,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it again."""
        run = checkpoint["run"]
        self.history, self.best, self._seconds_before = run["history"], run["best"], run["seconds"]
        for name in _COUNTERS:
            setattr(self, name, run[name])

    def transfer_batch_to_device(self, batch: LabeledGraph, device: torch.device, dataloader_idx: int) -> LabeledGraph:
        """Move a batch, float64 as it is."""
        return batch.to(device)

    def _weight(self, label: str, progress: float = 0.0) -> float:
        """Weight of a label in the objective, from its start to its end along a geometric series."""
        start = getattr(self.settings.optimization, f"{label}_weight")
        end = getattr(self.settings.optimization, f"{label}_weight_end")
        return float(start if end is None else start * (end / start) ** progress)

    def _progress(self, batch_idx: int) -> float:
        """Share of the run after its first step that is over, by epochs or by time, whichever is more."""
        settings = self.settings
        assert settings.optimization.epochs is not None
        epoch = self.current_epoch + batch_idx / max(1, self.trainer.num_training_batches)
        done = epoch / settings.optimization.epochs
        if settings.max_seconds is not None:
            began = min(self._seconds_to_first_step or self.seconds, settings.max_seconds - 1e-3)
            done = max(done, self._on_all_processes((self.seconds - began) / (settings.max_seconds - began)))
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
        """Value of the first process, so that all decide alike."""
        if self.trainer.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def _stop_unless_finite(self, loss: Tensor, derivatives: list[Tensor], batch: LabeledGraph) -> None:
        """Stop the run, naming the frames that are to blame, if the loss or its gradient is not finite.

        Raises
        ------
        FloatingPointError
        """
        if _all_finite([loss, *derivatives]):
            return
        store, coefficients = self._training.store, torch.ones(len(LABELS), dtype=torch.float64, device=self.device)
        frames = [index for index in batch.frames.tolist() if index >= 0]
        blamed = []
        for index in frames:
            value, its_derivatives = gradients(self.loss, self._training[index].to(self.device), coefficients)
            if not _all_finite([value, *its_derivatives]):
                blamed.append(index)
        names = ", ".join(store.frame(index).source for index in blamed or frames)
        raise FloatingPointError(
            f"the loss or its gradient is not finite in epoch {self.current_epoch + 1}, frame {names}; the last "
            "checkpoint is kept; look at the labels and distances of that frame, or lower the learning rates"
        )


def _all_finite(tensors: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _named(errors: dict[str, float]) -> dict[str, float]:
    return {f"validation_{label}_RMSE_{UNITS[label][1]}": error for label, error in errors.items()}


def _as_list(one_or_many: Any) -> list[Any]:
    """Undo Lightning's unpacking of lists of one."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
