"""One training step: the loss of a batch and its gradient with respect to the weights, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.potential import Potential

from .data import LabeledGraph


class Loss(nn.Module):
    r"""Weighted errors of energies, forces and virials, which are stresses times volume V.

    .. math::
        L = w_E \left\langle \Delta E^2 / n \right\rangle_\text{structures}
          + w_F \left\langle \Delta F^2 \right\rangle_\text{components}
          + w_S \left\langle (V \Delta\sigma)^2 / n \right\rangle_\text{structures, 9 components}

    The squared error of an energy or a virial is divided by its number of atoms n, not by n²: errors of atoms are
    nearly independent, so their variances add up and every structure then counts alike.

    Parameters
    ----------
    potential : its weights are what the gradient is for
    energy_weight : :math:`w_E`, in Å⁻²
    forces_weight : :math:`w_F`
    stress_weight : :math:`w_S`, in Å⁻²; 0 computes no stress
    """

    def __init__(
        self, potential: Potential, energy_weight: float, forces_weight: float, stress_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.potential = potential
        self.energy_weight, self.forces_weight, self.stress_weight = energy_weight, forces_weight, stress_weight

    def forward(self, batch: LabeledGraph) -> Tensor:
        """Loss of a batch, () float64 in eV²/Å²."""
        prediction = self.potential.predict(batch.graph, stress=self.stress_weight > 0, create_graph=True)
        assert prediction.forces is not None
        structures = batch.structure_weights
        atoms = structures[batch.graph.structure]
        n_atoms = torch.zeros_like(structures).index_add(0, batch.graph.structure, torch.ones_like(atoms))
        energy = (structures * (prediction.energy - batch.energy) ** 2 / n_atoms).sum() / structures.sum()
        forces = (atoms[:, None] * (prediction.forces - batch.forces) ** 2).sum() / (3 * atoms.sum())
        loss: Tensor = self.energy_weight * energy + self.forces_weight * forces
        if prediction.stress is None:
            return loss
        volume = torch.linalg.det(batch.graph.cell).abs()
        virials = (prediction.stress - batch.stress) * volume[:, None, None]
        stress = (structures * virials.square().mean((1, 2)) / n_atoms).sum() / structures.sum()
        total: Tensor = loss + self.stress_weight * stress
        return total


class CompiledStep:
    """The loss and all its gradients as one compiled function.

    torch.compile alone does not differentiate twice. Here loss, forces and gradients are traced together into one flat
    graph of tensor operations first, and that needs no differentiation any more. It holds for one shape of batch.

    Parameters
    ----------
    loss : its parameters are read again at each call
    backend : of torch.compile
    """

    def __init__(self, loss: Loss, *, backend: str = "inductor") -> None:
        self._loss = loss
        self._backend = backend
        self._compiled: Callable[..., list[Tensor]] | None = None

    def __call__(self, batch: LabeledGraph) -> Tensor:
        """Return the loss of a batch and set the gradient of each parameter."""
        parameters = dict(self._loss.named_parameters())
        tensors = _to_tensors(batch)
        values = [parameter.detach() for parameter in parameters.values()]
        if self._compiled is None:
            with torch.enable_grad():
                traced = make_fx(self._flat(list(parameters)))(values, tensors)
            self._compiled = torch.compile(traced, backend=self._backend, fullgraph=True, dynamic=False)
        with torch.no_grad():
            loss, *gradients = self._compiled(values, tensors)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return loss

    def _flat(self, names: list[str]) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
        def function(values: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
            leaves = [value.requires_grad_() for value in values]
            batch = _from_tensors(tensors)
            loss = functional_call(self._loss, dict(zip(names, leaves, strict=True)), (batch,))
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
            return [loss.detach(), *gradients]

        return function


def _to_tensors(batch: LabeledGraph) -> list[Tensor]:
    return [*vars(batch.graph).values(), batch.energy, batch.forces, batch.stress, batch.structure_weights]


def _from_tensors(tensors: list[Tensor]) -> LabeledGraph:
    n = len(fields(AtomicGraph))
    return LabeledGraph(AtomicGraph(*tensors[:n]), *tensors[n:])
