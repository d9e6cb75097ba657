"""The potential as Lightning trains it: step, schedule and validation errors."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ase_segnn.model.potential import Potential

from .data import LabeledGraph
from .optimizers import make_optimizers
from .recipe import Recipe
from .step import CompiledStep, Loss

logger = logging.getLogger(__name__)

_UNITS = {"energy": ("meV", "meV"), "forces": ("meV/Å", "meV_per_A"), "stress": ("meV/Å³", "meV_per_A3")}


class TrainingModule(pl.LightningModule):
    """Optimizes a potential by the recipe; logs `validation_energy_RMSE_meV` and its like of forces and stress."""

    def __init__(self, potential: Potential, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.automatic_optimization = False
        weights = recipe.optimization
        self.loss = Loss(potential, weights.energy_weight, weights.forces_weight, weights.stress_weight)
        self._squared_errors: dict[str, list[Tensor]] = {}  # label -> those of each batch
        self._compiled_step: CompiledStep | None = None

    @property
    def potential(self) -> Potential:
        """The potential in training."""
        potential = self.loss.potential
        assert isinstance(potential, Potential)
        return potential

    def configure_optimizers(self) -> Any:
        """All learning rates rise linearly, then fall to zero along a cosine."""
        total: float = self.trainer.estimated_stepping_batches
        warmup: int = self.recipe.optimization.warmup_steps

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (warmup + 1))
            return 0.5 * rise * (1 + math.cos(math.pi * min(1.0, step / total)))

        optimizers = make_optimizers(self.potential, self.recipe.optimization)
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]

    def training_step(self, batch: LabeledGraph, batch_idx: int) -> None:
        """One step of each optimizer."""
        optimizers = _as_list(self.optimizers())
        self.potential.zero_grad()
        loss = self._set_gradients(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in batch {batch_idx} of epoch {self.current_epoch + 1}; lower the "
                "learning rates or look for frames with wrong labels"
            )
        torch.nn.utils.clip_grad_norm_(self.potential.parameters(), self.recipe.optimization.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in _as_list(self.lr_schedulers()):
            schedule.step()
        self.log("loss", loss.float(), prog_bar=True, batch_size=1)

    def _set_gradients(self, batch: LabeledGraph) -> Tensor:
        if self.recipe.compile:
            if self._compiled_step is None:
                self._compiled_step = CompiledStep(self.loss)
            return self._compiled_step(batch)
        loss: Tensor = self.loss(batch)
        loss.backward()
        return loss.detach()

    def on_validation_epoch_start(self) -> None:
        """Forget the errors of the validation before."""
        self._squared_errors = {}

    def validation_step(self, batch: LabeledGraph, batch_idx: int) -> None:
        """Collect squared errors."""
        names = ["energy", "forces", *["stress"] * (self.loss.stress_weight > 0)]
        prediction = self.potential.predict(batch.graph, stress="stress" in names)
        for name in names:
            squared = (getattr(prediction, name) - getattr(batch, name)).square().flatten()
            self._squared_errors.setdefault(name, []).append(squared)

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the averaged weights."""
        errors = {name: 1e3 * torch.cat(parts).mean().sqrt() for name, parts in self._squared_errors.items()}
        shown = ", ".join(f"{error:.2f} {_UNITS[name][0]}" for name, error in errors.items())
        logger.info("epoch %d: validation RMSE %s", self.current_epoch + 1, shown)
        named = {f"validation_{name}_RMSE_{_UNITS[name][1]}": error for name, error in errors.items()}
        self.log_dict(named, prog_bar=True)

    def transfer_batch_to_device(self, batch: LabeledGraph, device: torch.device, dataloader_idx: int) -> LabeledGraph:
        """Move a batch, float64 as it is."""
        return batch.to(device)


def _as_list(one_or_many: Any) -> list[Any]:
    """Undo Lightning's unpacking of lists of one."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
