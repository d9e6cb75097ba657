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


class TrainingModule(pl.LightningModule):
    """Optimizes a potential by the recipe; logs `validation_energy_RMSE_meV` and `validation_forces_RMSE_meV_per_A`."""

    def __init__(self, potential: Potential, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.automatic_optimization = False
        self.loss = Loss(potential, recipe.optimization.energy_weight, recipe.optimization.forces_weight)
        self._squared_errors = torch.zeros(4, dtype=torch.float64)  # energies: sum, count; forces: sum, count
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
        """Forget the sums of the validation before."""
        self._squared_errors = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: LabeledGraph, batch_idx: int) -> None:
        """Add up squared errors."""
        prediction = self.potential.predict(batch.graph)
        assert prediction.forces is not None
        energy, forces = prediction.energy - batch.energy, prediction.forces - batch.forces
        self._squared_errors = self._squared_errors + torch.stack(
            [
                energy.square().sum(),
                energy.new_tensor(energy.numel()),
                forces.square().sum(),
                energy.new_tensor(forces.numel()),
            ]
        )

    def on_validation_epoch_end(self) -> None:
        """Log the errors of the averaged weights."""
        energy, n_energy, forces, n_forces = self._squared_errors.tolist()
        errors = {
            "validation_energy_RMSE_meV": 1e3 * math.sqrt(energy / n_energy),
            "validation_forces_RMSE_meV_per_A": 1e3 * math.sqrt(forces / n_forces),
        }
        logger.info("epoch %d: validation RMSE %.2f meV, %.2f meV/Å", self.current_epoch + 1, *errors.values())
        self.log_dict({name: torch.tensor(value) for name, value in errors.items()}, prog_bar=True)

    def transfer_batch_to_device(self, batch: LabeledGraph, device: torch.device, dataloader_idx: int) -> LabeledGraph:
        """Move a batch, float64 as it is."""
        return batch.to(device)


def _as_list(one_or_many: Any) -> list[Any]:
    """Undo Lightning's unpacking of lists of one."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
