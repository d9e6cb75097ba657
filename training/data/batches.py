"""Batches of labeled graphs: their limits, the division of frames into batches, and padding to one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.graphs.atomic_graph import AtomicGraph


@dataclass(frozen=True, eq=False)
class LabeledGraph:
    """A graph of N atoms in B structures with the labels to learn; a missing label has the weight 0.

    Parameters
    ----------
    graph : the structures
    energy : (B,) float64, eV
    forces : (N, 3) float64, eV/Å
    stress : (B, 3, 3) float64, eV/Å³, symmetric, positive in tension
    energy_weights, stress_weights : (B,) float64, factors of the squared errors
    forces_weights : (N,) float64
    frames : (B,) int64, index in the store of each structure's frame; -1 for padding
    """

    graph: AtomicGraph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    energy_weights: Tensor
    forces_weights: Tensor
    stress_weights: Tensor
    frames: Tensor

    @classmethod
    def padding(cls, n_atoms: int, n_edges: int, cutoff: float, atomic_number: int) -> LabeledGraph:
        """Return a structure without labels that only fills up a batch, see `AtomicGraph.padding`."""
        graph = AtomicGraph.padding(n_atoms, n_edges, cutoff, atomic_number)
        zero = torch.zeros(1, dtype=torch.float64)
        return cls(
            graph,
            energy=zero,
            forces=torch.zeros_like(graph.positions),
            stress=torch.zeros_like(graph.cell),
            energy_weights=zero,
            forces_weights=graph.positions.new_zeros(n_atoms),
            stress_weights=zero,
            frames=torch.tensor([-1]),
        )

    @classmethod
    def batch(cls, parts: Sequence[LabeledGraph]) -> LabeledGraph:
        """Join labeled graphs into one."""
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "graph"
        }
        return cls(graph=AtomicGraph.batch([part.graph for part in parts]), **tensors)

    def to(self, device: torch.device | str) -> LabeledGraph:
        """Return the same graph and labels on a device."""
        return LabeledGraph(**{name: value.to(device) for name, value in vars(self).items()})

    def tensors(self) -> list[Tensor]:
        """All tensors: those of the graph, then the labels, in the order of the fields."""
        return [*vars(self.graph).values(), *(value for name, value in vars(self).items() if name != "graph")]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> LabeledGraph:
        """Make a labeled graph of the tensors that `tensors` returned."""
        n = len(fields(AtomicGraph))
        return cls(AtomicGraph(*tensors[:n]), *tensors[n:])

    def times(self, factor: float) -> LabeledGraph:
        """Return a copy with all weights multiplied."""
        names = ("energy_weights", "forces_weights", "stress_weights")
        return replace(self, **{name: factor * getattr(self, name) for name in names})

    def n_labels(self) -> Tensor:
        """Numbers of energies, force components and stresses with a weight, (3,) float64."""
        energies, atoms, stresses = (
            (weights > 0).sum() for weights in (self.energy_weights, self.forces_weights, self.stress_weights)
        )
        return torch.stack([energies, 3 * atoms, stresses]).to(torch.float64)


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch; padded batches are filled up to them.

    Parameters
    ----------
    structures, atoms, edges : largest numbers
    """

    structures: int
    atoms: int
    edges: int

    @classmethod
    def of(cls, n_atoms: NDArray[np.int64], n_edges: NDArray[np.int64], batch_edges: int) -> BatchLimits:
        """Limits for frames of these sizes, (F,), with about `batch_edges` edges in a batch.

        The largest frame raises the limits if it alone has more edges. Batches have at most twice as many frames as
        `batch_edges` stands for on average: at most one, where that is half a frame or less.
        """
        typical = batch_edges / max(1.0, float(n_edges.mean()))  # number of frames
        edges = max(int(n_edges.max()), batch_edges)
        atoms = max(int(n_atoms.max()), math.ceil(1.5 * typical * float(n_atoms.mean())))
        # no batch of these frames can have more than the following, and padded batches need not
        smallest_first = np.cumsum(np.sort(n_edges))
        structures = min(math.ceil(2 * typical), int(np.searchsorted(smallest_first, edges, side="right")))
        most_atoms, most_edges = (int(np.sort(sizes)[::-1][:structures].sum()) for sizes in (n_atoms, n_edges))
        return cls(structures, min(atoms, most_atoms), min(edges, most_edges))


def divide(
    order: Sequence[int] | NDArray[np.int64],
    n_atoms: NDArray[np.int64],
    n_edges: NDArray[np.int64],
    limits: BatchLimits,
) -> list[list[int]]:
    """Divide frames into batches within the limits, in the order given; `n_atoms`, `n_edges` (F,) are of all frames."""
    batches: list[list[int]] = []
    atoms = edges = 0
    for frame in map(int, order):
        atoms, edges = atoms + int(n_atoms[frame]), edges + int(n_edges[frame])
        full = not batches or len(batches[-1]) == limits.structures or atoms > limits.atoms or edges > limits.edges
        if full:
            batches.append([])
            atoms, edges = int(n_atoms[frame]), int(n_edges[frame])
        batches[-1].append(frame)
    return batches


def padded_batch(limits: BatchLimits, cutoff: float, atomic_number: int) -> Callable[..., LabeledGraph]:
    """Return a function that batches graphs and fills them up to the limits, so that every batch has one shape.

    Parameters
    ----------
    limits : of the batches
    cutoff : Å
    atomic_number : of an element that the potential knows
    """

    def batch(parts: Sequence[LabeledGraph]) -> LabeledGraph:
        missing = limits.structures - len(parts)
        n_atoms = limits.atoms + len(parts) + 1 - sum(part.graph.n_atoms for part in parts)
        n_edges = limits.edges - sum(part.graph.n_edges for part in parts)
        lone = [LabeledGraph.padding(1, 0, cutoff, atomic_number)] * missing
        return LabeledGraph.batch([*parts, *lone, LabeledGraph.padding(n_atoms, n_edges, cutoff, atomic_number)])

    return batch
