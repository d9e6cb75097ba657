"""One training step: the loss of a batch and its gradient with respect to the weights.

Predictions are those of plain torch, or of generated code (`PotentialLoss.learning`). On a GPU, `RecordedStep` launches
all that this takes as one CUDA graph. `CompiledStep` has torch compile loss and gradient as a whole, for networks that
have no generated code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ase_segnn.engines.captured import Recorder, record_cuda_graph
from ase_segnn.engines.learning import LearningPotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

from ..data.batches import LabeledGraph

if TYPE_CHECKING:
    from typing_extensions import Self

_SMALLEST_SQUARE = 1e-12  # the root of 0 has no slope


class Batch(Protocol):
    """Batch of labeled graphs, as the trainer sees it.

    Attributes
    ----------
    frames : (B,) int64, indices of the frames; -1 for padding
    """

    frames: Tensor

    def n_labels(self) -> Tensor:
        """Numbers of values of each of the L kinds of labels, (L,) float64."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch on a device."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""

    @classmethod
    def from_tensors(cls, tensors: list[Tensor]) -> Self:
        """Make a batch of the tensors that `tensors` returned."""


class Loss(nn.Module):
    """Weighted sum of the errors of a network; the network is a part of the module."""

    def forward(self, batch: Any, coefficients: Tensor) -> Tensor:
        """Loss of a batch, (), with coefficients (L,) of the L kinds of labels."""
        raise NotImplementedError


class PotentialLoss(Loss):
    r"""Weighted sum of errors of energies, forces and virials, which are stresses times volume V.

    .. math::
        L = c_E \sum_\text{structures} w\, \rho\big(\Delta E^2 / n\big)
          + c_F \sum_\text{atoms} w\, 3\rho\big(|\Delta F|^2 / 3\big)
          + c_S \sum_\text{structures} w\, \rho\big(|V \Delta\sigma|^2 / 9n\big)

    The squared error of an energy or a virial is divided by its number of atoms n, not by n²: errors of atoms are
    nearly independent, so their variances add up and every structure then counts alike. Missing labels have w = 0.

    With x the mean square over components of one error, ρ(x) is x ("mse"), its root ("l1"), or

    .. math:: \rho(x) = 2\delta^2 \left(\sqrt{1 + x / \delta^2} - 1\right)

    ("huber"), which is x for small and proportional to the root for large errors. All are invariant under rotations.

    Parameters
    ----------
    potential : whose weights are fitted
    kind : "mse", "l1" or "huber"
    delta : δ of "huber", in eV or eV/Å
    stress : whether to predict stresses
    """

    def __init__(self, potential: Potential, kind: str = "mse", delta: float = 0.01, *, stress: bool = False) -> None:
        super().__init__()
        self.potential = potential
        self.kind, self.delta, self.stress = kind, delta, stress
        self.learning: LearningPotential | None = None  # predicts instead of `potential` during a fit

    def forward(self, batch: LabeledGraph, coefficients: Tensor) -> Tensor:
        """Loss of a batch, () float64, with coefficients (3,) of energies, forces and stresses."""
        if self.learning is None:
            prediction = self.potential.predict(batch.graph, stress=self.stress, create_graph=True)
        else:
            prediction = self.learning.predict(batch.graph, stress=self.stress)
        return (coefficients * self.penalties(prediction, batch)).sum()

    def evaluate(self, graph: AtomicGraph) -> Prediction:
        """Predict what the loss compares with labels, not to be differentiated."""
        if self.learning is None:
            return self.potential.predict(graph, stress=self.stress)
        with torch.no_grad():
            return self.learning.predict(graph, stress=self.stress)

    def penalties(self, prediction: Prediction, batch: LabeledGraph) -> Tensor:
        """Return the three sums of the formula, (3,) float64."""
        assert prediction.forces is not None
        ones = torch.ones_like(batch.forces_weights)
        n_atoms = torch.zeros_like(batch.energy).index_add(0, batch.graph.structure, ones)
        energy = self._penalty((prediction.energy - batch.energy).square() / n_atoms)
        forces = 3 * self._penalty((prediction.forces - batch.forces).square().mean(1))
        sums = [(batch.energy_weights * energy).sum(), (batch.forces_weights * forces).sum()]
        if prediction.stress is None:
            sums.append(torch.zeros_like(sums[0]))
        else:
            virials = (prediction.stress - batch.stress) * batch.graph.volumes()[:, None, None]
            stress = self._penalty(virials.square().mean((1, 2)) / n_atoms)
            sums.append((batch.stress_weights * stress).sum())
        return torch.stack(sums)

    def _penalty(self, square: Tensor) -> Tensor:
        if self.kind == "l1":
            return (square + _SMALLEST_SQUARE).sqrt()
        if self.kind == "huber":
            return 2 * self.delta**2 * ((1 + square / self.delta**2).sqrt() - 1)
        return square


class CompiledStep:
    """The loss and all its gradients as one compiled function.

    torch.compile alone does not differentiate twice. Loss, forces and gradients are therefore traced into one flat
    graph of tensor operations first; the flat graph needs no differentiation. The compiled function is for batches of
    the first batch's shape. Other batches take the plain way.

    Parameters
    ----------
    loss : its parameters are read again at each call
    backend : of torch.compile
    """

    def __init__(self, loss: Loss, *, backend: str = "inductor") -> None:
        self._loss = loss
        self._backend = backend
        self._compiled: Callable[..., list[Tensor]] | None = None
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what `gradients` returns."""
        parameters = {name: value for name, value in self._loss.named_parameters() if value.requires_grad}
        tensors = [coefficients, *batch.tensors()]
        shapes = [tensor.shape for tensor in tensors]
        if self._compiled is not None and shapes != self._shapes:
            return gradients(self._loss, batch, coefficients)
        values = [parameter.detach() for parameter in parameters.values()]
        if self._compiled is None:
            with torch.enable_grad():
                traced = make_fx(self._flat(list(parameters), type(batch)))(values, tensors)
            self._compiled = torch.compile(traced, backend=self._backend, fullgraph=True, dynamic=False)
            self._shapes = shapes
        with torch.no_grad():
            loss, *derivatives = self._compiled(values, tensors)
        return loss, derivatives

    def _flat(self, names: list[str], kind: type[Batch]) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
        def function(values: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
            leaves = [value.requires_grad_() for value in values]
            coefficients, *rest = tensors
            arguments = (kind.from_tensors(rest), coefficients)
            loss = functional_call(self._loss, dict(zip(names, leaves, strict=True)), arguments)
            derivatives = torch.autograd.grad(loss, leaves, materialize_grads=True)
            return [loss.detach(), *derivatives]

        return function


class RecordedStep:
    """The loss and all its gradients, recorded once as a CUDA graph and launched together.

    What is recorded is for batches of the first batch's shape. Other batches take the plain way. Results are written
    over by the next call.

    Parameters
    ----------
    loss : its parameters are read where they are at each call
    record : what records a function and can run it again, as `record_cuda_graph` does
    """

    def __init__(self, loss: Loss, *, record: Recorder = record_cuda_graph) -> None:
        self._loss, self._record = loss, record
        self._still: list[Tensor] = []  # what everything recorded acts on
        self._recorded: tuple[tuple[Tensor, list[Tensor]], Callable[[], None]] | None = None

    def __call__(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what `gradients` returns."""
        tensors = [coefficients, *batch.tensors()]
        if self._recorded is None:
            still = self._still = [tensor.clone() for tensor in tensors]
            kind = type(batch)
            self._recorded = self._record(
                lambda: gradients(self._loss, kind.from_tensors(still[1:]), still[0]), coefficients.device
            )
        elif [tensor.shape for tensor in tensors] != [tensor.shape for tensor in self._still]:
            return gradients(self._loss, batch, coefficients)
        for target, tensor in zip(self._still, tensors, strict=True):
            target.copy_(tensor)
        results, replay = self._recorded
        replay()
        return results


def gradients(loss: Loss, batch: Batch, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss of a batch, detached, and its gradient with respect to each parameter that is not frozen, in their order."""
    leaves = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    value = loss(batch, coefficients)
    return value.detach(), list(torch.autograd.grad(value, leaves, materialize_grads=True))
