"""A network for particles in training: its batches, and its errors on validation trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..fit.module import Measure, TrainingModule, fit_settings
from ..fit.step import Loss
from .graphs import ParticleGraphs, ParticleSet
from .network import ParticleNetwork
from .recipe import ParticleRecipe

AT_A_TIME = 200  # trajectories, where no gradients are needed


class ParticleLoss(Loss):
    """Squared errors of the vectors that a network predicts."""

    def __init__(self, network: ParticleNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: ParticleGraphs, coefficients: Tensor) -> Tensor:
        """Sum the squares over components, times `coefficients` (1,)."""
        squares: Tensor = (self.network(batch) - batch.targets).square().sum()
        return coefficients[0] * squares


class ParticleModule(TrainingModule):
    """Optimizes a network for particles.

    Parameters
    ----------
    network : its parameters are fitted
    training, validation : trajectories
    recipe : settled, see `ase_segnn.training.particles.run`
    """

    def __init__(
        self, network: ParticleNetwork, training: ParticleSet, validation: ParticleSet, recipe: ParticleRecipe
    ) -> None:
        identity = {
            "trajectories": recipe.system.model_dump(mode="json", exclude={"cache"}),
            "network": recipe.network.model_dump(mode="json"),
        }
        steps_per_epoch = len(training) / recipe.optimization.batch_size
        super().__init__(ParticleLoss(network), network, 1, fit_settings(recipe, steps_per_epoch, **identity))
        self._training, self._validation = training, validation
        self._target, self._batch_size = recipe.system.target, recipe.optimization.batch_size

    def train_dataloader(self) -> DataLoader[ParticleGraphs]:
        """Batches of this process in an order that depends on seed and epoch alone; made anew for each epoch."""
        random = np.random.default_rng([self.settings.seed, self.current_epoch])
        return self._loader(self._training, random.permutation(len(self._training)), self._batch_size)

    def val_dataloader(self) -> DataLoader[ParticleGraphs]:
        """Share of the validation trajectories of this process."""
        return self._loader(self._validation, np.arange(len(self._validation)), AT_A_TIME)

    def _loader(self, trajectories: ParticleSet, order: np.ndarray, size: int) -> DataLoader[ParticleGraphs]:
        world = self.trainer.world_size
        batches = [order[first : first + size].tolist() for first in range(0, len(order), size)]
        batches += [[]] * (-len(batches) % world)
        return DataLoader(trajectories, sampler=batches[self.trainer.global_rank :: world], batch_size=None)

    def weights(self, progress: float) -> list[float]:  # noqa: ARG002  # they stay
        """There is one kind of label."""
        return [1.0]

    def evaluate(self, batch: ParticleGraphs) -> Tensor:
        """Squared errors and number of components."""
        with torch.no_grad():
            squares = (self.model(batch) - batch.targets).double().square().sum()
        return torch.stack([squares, batch.n_labels()[0]])[:, None]

    def measures(self, mean_squares: Sequence[float | None]) -> list[Measure]:
        """Mean squared error over components."""
        return [Measure(f"{self._target}_MSE", value, "") for value in mean_squares if value is not None]

    def source(self, frame: int, *, validation: bool = False) -> str:
        """Return the number of a trajectory."""
        return f"{frame} of the {'validation' if validation else 'training'} trajectories"

    def single(self, frame: int) -> ParticleGraphs:
        """Return the graph of a training trajectory."""
        return self._training[[frame]]
