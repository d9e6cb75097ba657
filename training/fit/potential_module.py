"""A potential in training: its batches, weights of labels, and errors on validation frames."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines.build import NoCompilerError
from ase_segnn.engines.kernel_learning import KernelLearning
from ase_segnn.engines.learning import CompiledLearning
from ase_segnn.labels import LABELS
from ase_segnn.model.potential import Potential
from ase_segnn.quantities import COMPONENTS, MILLI, QUANTITIES, VOIGT

from ..data.batches import BatchLimits, LabeledGraph, divide, padded_batch
from ..data.subset import Subset
from ..recipe import Recipe
from .module import Measure, TrainingModule, fit_settings
from .step import CompiledStep, PotentialLoss, RecordedStep

logger = logging.getLogger(__name__)

_VALIDATION_LIMITS = BatchLimits(structures=25, atoms=2000, edges=10000)  # of what is evaluated at a time


class PotentialModule(TrainingModule):
    """Optimizes a potential.

    Parameters
    ----------
    potential : its parameters that require gradients are fitted
    training, validation : frames with their graphs
    recipe : settled, see `ase_segnn.training.run`
    """

    def __init__(self, potential: Potential, training: Subset, validation: Subset, recipe: Recipe) -> None:
        optimization, store = recipe.optimization, training.store
        frames = [[subset.store.path.name, *subset.indices.tolist()] for subset in (training, validation)]
        identity = {
            "frames": hashlib.sha256(json.dumps(frames).encode()).hexdigest(),
            "elements, energies or network": potential.config.model_dump(mode="json"),
        }
        with_stress = bool(optimization.stress_weight)
        loss = PotentialLoss(potential, optimization.loss, optimization.huber_delta, stress=with_stress)
        assert optimization.batch_edges is not None
        n_atoms, n_edges = store.n_atoms[training.indices], store.n_edges[training.indices]
        steps_per_epoch = min(n_edges.sum() / optimization.batch_edges, len(training))
        super().__init__(loss, potential, len(LABELS), fit_settings(recipe, float(steps_per_epoch), **identity))
        self._optimization, self._with_stress = optimization, with_stress
        self._training, self._validation = training, validation
        self._compile = recipe.compile
        self._limits = BatchLimits.of(n_atoms, n_edges, optimization.batch_edges)
        self._a_number = int(training.store.numbers(int(training.indices[0]))[0])  # of an atom that only fills up

    def train_dataloader(self) -> DataLoader[LabeledGraph]:
        """Return the batches of this process for one epoch; their order depends on seed and epoch alone."""
        store, world = self._training.store, self.trainer.world_size
        random = np.random.default_rng([self.settings.seed, self.current_epoch])
        order = self._training.indices[random.permutation(len(self._training))]
        batches = divide(order, store.n_atoms, store.n_edges, self._limits)
        n_steps = math.ceil(len(batches) / world)
        mine = batches[self.trainer.global_rank :: world]
        mine += [[]] * (n_steps - len(mine))
        collate = self._batch
        if isinstance(self._step, CompiledStep | RecordedStep):
            collate = padded_batch(self._limits, store.cutoff, self._a_number)
        return DataLoader(self._training, batch_sampler=mine, collate_fn=collate)

    def _batch(self, parts: list[LabeledGraph]) -> LabeledGraph:
        """Join graphs into a batch. Without graphs, if there are more processes than batches, the batch is padding."""
        return LabeledGraph.batch(parts or [LabeledGraph.padding(1, 0, self._training.store.cutoff, self._a_number)])

    def val_dataloader(self) -> DataLoader[LabeledGraph]:
        """Return the validation frames of this process, in their order."""
        store = self._validation.store
        mine = self._validation.indices[self.trainer.global_rank :: self.trainer.world_size]
        batches = divide(mine, store.n_atoms, store.n_edges, _VALIDATION_LIMITS)
        return DataLoader(self._validation, batch_sampler=batches or [[]], collate_fn=self._batch)

    def predict_by_generated_code(self) -> bool:
        """Predict by compiled C++ or kernels, unless the network has no such form or `compile` is False."""
        assert isinstance(self.loss, PotentialLoss)
        potential = self.loss.potential
        if not self._compile or unsupported(potential) is not None:
            return False
        learns = {"cpu": CompiledLearning, "cuda": KernelLearning}.get(potential.device.type)
        if learns is None:
            return False
        try:
            self.loss.learning = learns(potential)
        except (NoCompilerError, ImportError) as error:
            if self._compile is True:
                raise
            logger.warning("training without generated code, which takes several times as long: %s", error)
            return False
        return True

    def on_fit_end(self) -> None:
        """Switch back to plain torch."""
        assert isinstance(self.loss, PotentialLoss)
        self.loss.learning = None

    def weights(self, progress: float) -> list[float]:
        """Weights of energies, forces and stresses after a share of the run."""
        return list(self._optimization.weights(progress).values())

    def evaluate(self, batch: LabeledGraph) -> Tensor:
        """Return sums of squared errors and numbers of values, (2, 3)."""
        assert isinstance(self.loss, PotentialLoss)
        prediction = self.loss.evaluate(batch.graph)
        squares = torch.zeros(len(LABELS), dtype=torch.float64, device=self.device)
        for column, label in enumerate(LABELS):
            if label == "stress" and not self._with_stress:
                continue
            known = getattr(batch, f"{label}_weights") > 0
            errors = (getattr(prediction, label) - getattr(batch, label))[known]
            if label == "stress":  # the six components that evaluation counts
                errors = errors[:, VOIGT[0], VOIGT[1]] / math.sqrt(len(COMPONENTS))
            squares[column] = errors.square().sum()
        return torch.stack([squares, batch.n_labels()])

    def measures(self, mean_squares: Sequence[float | None]) -> list[Measure]:
        """Root mean square errors of the labels that are learned."""
        found = []
        for label, mean_square in zip(LABELS, mean_squares, strict=True):
            if mean_square is not None and (label != "stress" or self._with_stress):
                quantity = QUANTITIES[label]
                found.append(Measure(quantity.error_name("RMSE"), MILLI * math.sqrt(mean_square), quantity.error_unit))
        return found

    def source(self, frame: int, *, validation: bool = False) -> str:
        """File and number of a frame."""
        return (self._validation if validation else self._training).store.frame(frame).source

    def single(self, frame: int) -> LabeledGraph:
        """Graph of a training frame."""
        return self._training[frame]
