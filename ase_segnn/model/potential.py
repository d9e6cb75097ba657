"""The potential: energies of a SEGNN on an atomic graph, forces and stress as their derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.angular import SphericalHarmonics
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.radial import bessel_basis, polynomial_envelope, seen_distances
from ase_segnn.model.segnn import SEGNN
from ase_segnn.model.steerable import sum_to
from ase_segnn.model.zbl import ZBLRepulsion, by_pair


def _nothing() -> None:
    return None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Energies, forces and stress of N atoms in B structures, as `Potential.predict` returns them.

    Parameters
    ----------
    energy : (B,) float64, eV
    atom_energies : (N,) float64, eV; their sum over a structure is its energy
    forces : (N, 3) float64, eV/Å; None if not asked for
    stress : (B, 3, 3) float64, eV/Å³, symmetric, positive in tension; None if not asked for
    """

    energy: Tensor
    atom_energies: Tensor
    forces: Tensor | None = field(default_factory=_nothing)  # a default would hide `__getattr__`
    stress: Tensor | None = field(default_factory=_nothing)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float64]]) -> Prediction:
        """Return a prediction from arrays in the memory of the CPU, by the names above.

        Each tensor shares the memory of its array and is made when it is read for the first time. To make all tensors
        at once takes 5 % of the time in which a small network in compiled C++ evaluates a molecule.
        """
        prediction = object.__new__(cls)
        vars(prediction)["_arrays"] = arrays
        return prediction

    if not TYPE_CHECKING:  # type checkers would take every name for an attribute

        def __getattr__(self, name: str) -> Tensor | None:
            arrays = vars(self).get("_arrays")
            if arrays is None or name not in {each.name for each in fields(self)}:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            tensor = torch.from_numpy(arrays[name]) if name in arrays else None
            vars(self)[name] = tensor
            return tensor

    def __repr__(self) -> str:
        shapes = [f"{name} {tuple(value.shape)}" for name, value in self._given().items()]
        return f"{type(self).__name__}({', '.join(shapes)}, {self.energy.device})"

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return all fields that are not None as arrays, by name; one copy brings all of them from a GPU."""
        arrays: dict[str, NDArray[np.float64]] | None = vars(self).get("_arrays")
        if arrays is None:
            given = self._given()
            if self.energy.device.type == "cpu":
                return {name: tensor.numpy(force=True) for name, tensor in given.items()}
            numbers = torch.cat([tensor.detach().flatten() for tensor in given.values()]).numpy(force=True)
            parts = np.split(numbers, np.cumsum([tensor.numel() for tensor in given.values()])[:-1])
            arrays = {
                name: part.reshape(tuple(tensor.shape))
                for part, (name, tensor) in zip(parts, given.items(), strict=True)
            }
        return arrays

    def _given(self) -> dict[str, Tensor]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class Potential(ModuleWithConstants):
    r"""Learned interatomic potential: the energy as a sum of local atom energies.

    `predict` gives energies, forces and stress. `forward` gives differentiable atom energies.

    .. math::
        E = \sum_i E^0_{Z_i} + s_i \left(\Delta_{Z_i} + \sigma e_i\right), \quad
        s_i = 1 - \exp\Big(-\sum_j u(d_{ij})\Big)

    e is the output of the `SEGNN`, u the envelope, E⁰ the reference energies, Δ the `energy_shifts` and σ the
    `energy_scale`. The factor s is 0 for a lone atom, and 1 to three digits or more from seven near neighbors on. So
    the energy of an isolated atom is exactly its reference energy, and energies go there smoothly as a structure comes
    apart.

    With `shortest_distances`, u and the radial functions are those of `seen_distances`.

    Species enter as one-hot scalars. The attribute of an edge is the spherical harmonics of its direction. The
    attribute of a node is the sum of its edge attributes times u over `average_neighbors`, up to the degree
    `l_max_node_attributes`, with a scalar part of 1.

    Positions, edge vectors and sums of energies are float64. The network is float32 or, after ``.double()``, float64.
    Reference energies stay float64 in both cases.

    Parameters
    ----------
    config : elements, reference energies and shape of the network
    """

    species_of_number: Tensor
    reference_energies: Tensor
    energy_shifts: Tensor
    one_hot: Tensor
    shortest: Tensor | None

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        numbers = [atomic_numbers[symbol] for symbol in config.elements]
        unknown = len(numbers)  # out of range of all tables by species: an unknown element is an error, not another one
        species_of_number = np.full(max(numbers) + 1, unknown)
        species_of_number[numbers] = np.arange(len(numbers))
        self.register_buffer("species_of_number", torch.tensor(species_of_number), persistent=False)
        reference = np.array([config.reference_energies[symbol] for symbol in config.elements])
        shifts = np.array([config.energy_shifts.get(symbol, 0.0) for symbol in config.elements])
        self.register_constant("reference_energies", reference, always_float64=True)
        self.register_constant("energy_shifts", shifts, always_float64=True)
        self.register_constant("one_hot", np.eye(len(numbers)) * math.sqrt(len(numbers)))  # of unit variance
        network = config.network
        self.harmonics = SphericalHarmonics(network.l_max_attributes)
        irreps_node_attributes, irreps_edge_attributes = (
            Irreps.spherical_harmonics(l_max) for l_max in (network.degree_of_nodes, network.l_max_attributes)
        )
        self.network = SEGNN(
            irreps_in=Irreps([(len(numbers), "0e")]),
            irreps_hidden=Irreps(network.irreps_hidden),
            rounds=network.rounds(),
            irreps_out=Irreps("1x0e"),
            irreps_node_attributes=irreps_node_attributes,
            irreps_edge_attributes=irreps_edge_attributes,
            n_message_scalars=network.n_radial,
            message_weights_hidden=network.radial_hidden,
            message_gates=2 if network.gated_messages else 1,
            unit_scalar_attributes=True,
        )
        if config.shortest_distances is None:
            self.shortest = None
        else:
            shortest = by_pair(numbers, config.shortest_distances)
            self.register_constant("shortest", np.minimum(shortest, network.cutoff), always_float64=True)
        self.zbl = ZBLRepulsion(numbers, network.cutoff, config.zbl_ends) if config.zbl else None

    @property
    def cutoff(self) -> float:
        """Distance up to which atoms are neighbors, Å."""
        return self.config.network.cutoff

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols of the elements that the potential knows."""
        return self.config.elements

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.one_hot.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.one_hot.device

    def __repr__(self) -> str:
        return f"Potential({self.config.summary}, {str(self.dtype).removeprefix('torch.')}, {self.device})"

    def forward(self, graph: AtomicGraph, edge_vectors: Tensor | None = None) -> Tensor:
        """Return the energy of each atom, differentiable by edge vectors and weights.

        Parameters
        ----------
        graph : with elements among `elements`; pairs beyond the cutoff contribute nothing
        edge_vectors : (E, 3) float64 Å, to differentiate by; default: the edge vectors of `graph`

        Returns
        -------
        (N,) float64, eV

        Raises
        ------
        IndexError
            If an element is not among `elements` (on a GPU, a device-side assertion).
        """
        if edge_vectors is None:
            edge_vectors = graph.edge_vectors()
        centers = graph.centers
        species = self.species_of_number[graph.atomic_numbers]
        distances = torch.linalg.vector_norm(edge_vectors, dim=1)
        directions = (edge_vectors / distances[:, None]).to(self.dtype)
        seen = distances
        if self.shortest is not None:
            seen = seen_distances(distances, self.shortest[species[centers], species[graph.neighbors]])
        d = seen.to(self.dtype)

        envelope = polynomial_envelope(d, self.cutoff, self.config.network.envelope_power)
        edge_attributes = self.harmonics(directions)
        directional = edge_attributes[:, 1 : self.network.irreps_node_attributes.dim]
        faded = directional * (envelope / self.config.average_neighbors)[:, None]
        node_attributes = sum_to(graph.n_atoms, centers, faded)
        node_attributes = torch.cat([node_attributes.new_ones(graph.n_atoms, 1), node_attributes], dim=1)
        scalars, weights = self.radial_functions(d)
        outputs: Tensor = self.network(
            self.one_hot[species],
            node_attributes,
            edge_attributes,
            centers,
            graph.neighbors,
            message_scalars=scalars,
            edge_weights=weights,
        )
        bonded = -torch.expm1(-sum_to(graph.n_atoms, centers, envelope.to(torch.float64)))
        learned = self.energy_shifts[species] + self.config.energy_scale * outputs[:, 0].to(torch.float64)
        energies: Tensor = self.reference_energies[species] + bonded * learned
        if self.zbl is None:
            return energies
        pair_energies = self.zbl(distances, species[centers], species[graph.neighbors])
        return energies + sum_to(graph.n_atoms, centers, pair_energies / 2)

    def calibrate(self, graph: AtomicGraph) -> None:
        """Scale all products of sums of messages to a mean square of 1 on the atoms of a graph.

        Call this once, before training; results change. A network without products stays as it is.

        Parameters
        ----------
        graph : some typical structures
        """
        products = [layer.products for layer in self.network.rounds if layer.products is not None]
        for each in products:
            each.is_calibrating = True
        with torch.no_grad():
            self(graph)
        for each in products:
            each.is_calibrating = False

    def radial_functions(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return message scalars (E, n_radial) and weights of messages (E,) at distances (E,) in Å."""
        network = self.config.network
        envelope = polynomial_envelope(distances, network.cutoff, network.envelope_power)
        scalars = bessel_basis(distances, network.cutoff, network.n_radial)
        return scalars, envelope / math.sqrt(self.config.average_neighbors)

    def predict(
        self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False, create_graph: bool = False
    ) -> Prediction:
        r"""Predict energies, and forces and stress by one differentiation with respect to edge vectors.

        With :math:`g_{ij} = \partial E / \partial r_{ij}`,

        .. math::
            F_i = \sum_j g_{ij} - g_{ji}, \quad
            \sigma = \frac{1}{V} \sum_{ij} \tfrac12 \left(r_{ij} g_{ij}^T + g_{ij} r_{ij}^T\right)

        Parameters
        ----------
        graph : one structure or a batch
        forces, stress : compute them besides the energies; stress needs cells with a volume
        create_graph : for training: results can be differentiated again; otherwise all results are detached

        Raises
        ------
        IndexError
            See `forward`.
        """
        edge_vectors = graph.edge_vectors().detach()
        if forces or stress:
            edge_vectors.requires_grad_()
        with torch.set_grad_enabled(forces or stress or create_graph):
            atom_energies = self(graph, edge_vectors)
            energy = sum_structures(graph, graph.structure, atom_energies)
            total = atom_energies.sum()
        atom_forces = stresses = None
        if forces or stress:
            (gradient,) = torch.autograd.grad(total, edge_vectors, create_graph=create_graph)
            if forces:
                atom_forces = sum_to(graph.n_atoms, graph.centers, gradient)
                atom_forces = atom_forces.index_add(0, graph.neighbors, gradient, alpha=-1)
            if stress:
                stresses = _stress(graph, edge_vectors, gradient)
        if not create_graph:
            atom_energies, energy = atom_energies.detach(), energy.detach()
            stresses = None if stresses is None else stresses.detach()
        return Prediction(energy, atom_energies, atom_forces, stresses)


def _stress(graph: AtomicGraph, edge_vectors: Tensor, gradient: Tensor) -> Tensor:
    virials = (edge_vectors[:, :, None] * gradient[:, None, :]).flatten(1)  # (E, 9)
    return stress_of(graph, sum_structures(graph, graph.structure[graph.centers], virials))


def stress_of(graph: AtomicGraph, virials: Tensor) -> Tensor:
    """Return the stress (B, 3, 3) from the virials (B, 9) of structures, the sums of r_ij times dE/dr_ij."""
    virial = virials.unflatten(1, (3, 3))
    stress: Tensor = (virial + virial.transpose(1, 2)) / (2 * graph.volumes()[:, None, None])
    return stress


def sum_structures(graph: AtomicGraph, structure: Tensor, values: Tensor) -> Tensor:
    """Sum the rows of each structure, to (B, ...).

    A single structure is summed without an index, because Inductor of torch 2.13 fails on a sum with one.

    Parameters
    ----------
    graph : with B structures
    structure : (n,) int64 index of the structure of each row
    values : (n, ...)
    """
    if graph.n_structures == 1:
        return values.sum(0, keepdim=True)
    return sum_to(graph.n_structures, structure, values)
