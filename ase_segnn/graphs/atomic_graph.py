"""The atomic graph: atoms as nodes, pairs within the cutoff as directed edges, one or many structures at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ase_segnn.checks import SMALLEST_VOLUME
from ase_segnn.graphs.neighbors import NeighborList, neighbor_list


@dataclass(frozen=True, eq=False)
class AtomicGraph:
    r"""Structures as tensors; an edge is an ordered pair of a center i and a neighbor j in cell S.

    .. math:: \mathbf r_{ij} = \mathbf x_j - \mathbf x_i + \mathbf S\,\mathbf h

    Nothing in the library writes into these tensors. N atoms, E edges, B structures.

    Parameters
    ----------
    positions : (N, 3) float64, Å
    atomic_numbers : (N,) int64
    cell : (B, 3, 3) float64, Å, rows are the cell vectors
    pbc : (B, 3) bool
    centers, neighbors : (E,) int64, sorted by center; atoms of one structure only
    cell_shifts : (E, 3) float64 holding integers
    structure : (N,) int64, ascending; the structure of each atom
    """

    positions: Tensor
    atomic_numbers: Tensor
    cell: Tensor
    pbc: Tensor
    centers: Tensor
    neighbors: Tensor
    cell_shifts: Tensor
    structure: Tensor

    @classmethod
    def from_atoms(
        cls,
        atoms: Atoms,
        cutoff: float,
        *,
        backend: str = "auto",
        device: torch.device | str = "cpu",
    ) -> AtomicGraph:
        """Build the graph of one structure; `backend` is one of `ase_segnn.graphs.backends.BACKENDS` or "auto"."""
        pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff, backend=backend, device=device)
        return cls.from_pairs(atoms, pairs)

    @classmethod
    def from_pairs(cls, atoms: Atoms, pairs: NeighborList) -> AtomicGraph:
        """Make the graph of one structure whose pairs are known, on the device of the pairs."""
        device = pairs.centers.device
        return cls(
            positions=torch.as_tensor(np.array(atoms.positions, dtype=np.float64), device=device),
            atomic_numbers=numbers_of(atoms, device),
            cell=torch.as_tensor(np.array(atoms.cell.array[None], dtype=np.float64), device=device),
            pbc=torch.tensor(atoms.pbc[None], device=device),
            centers=pairs.centers,
            neighbors=pairs.neighbors,
            cell_shifts=pairs.cell_shifts.to(torch.float64),
            structure=torch.zeros(len(atoms), dtype=torch.int64, device=device),
        )

    @classmethod
    def padding(
        cls, n_atoms: int, n_edges: int, cutoff: float, atomic_number: int, *, device: torch.device | str = "cpu"
    ) -> AtomicGraph:
        """Make a structure of lone atoms and of edges that are too long to matter, to fill a batch up to a fixed size.

        The edges join the first atom with its own image in a cell of twice the cutoff.
        """
        lengths = torch.eye(3, dtype=torch.float64, device=device)
        first_atom = torch.zeros(n_edges, dtype=torch.int64, device=device)
        return cls(
            positions=torch.zeros(n_atoms, 3, dtype=torch.float64, device=device),
            atomic_numbers=torch.full((n_atoms,), atomic_number, device=device),
            cell=2 * cutoff * lengths[None],
            pbc=torch.ones(1, 3, dtype=torch.bool, device=device),
            centers=first_atom,
            neighbors=first_atom,
            cell_shifts=lengths[:1].expand(n_edges, 3),
            structure=torch.zeros(n_atoms, dtype=torch.int64, device=device),
        )

    @classmethod
    def batch(cls, graphs: Sequence[AtomicGraph]) -> AtomicGraph:
        """Put several graphs side by side as one that has no edge between structures.

        Raises
        ------
        ValueError
            If `graphs` is empty.
        """
        if not graphs:
            raise ValueError("a batch needs at least one graph, got none")
        atom_offsets, structure_offsets = [0], [0]
        for graph in graphs[:-1]:
            atom_offsets.append(atom_offsets[-1] + graph.n_atoms)
            structure_offsets.append(structure_offsets[-1] + graph.n_structures)
        return cls(
            positions=torch.cat([g.positions for g in graphs]),
            atomic_numbers=torch.cat([g.atomic_numbers for g in graphs]),
            cell=torch.cat([g.cell for g in graphs]),
            pbc=torch.cat([g.pbc for g in graphs]),
            centers=torch.cat([g.centers + n for g, n in zip(graphs, atom_offsets, strict=True)]),
            neighbors=torch.cat([g.neighbors + n for g, n in zip(graphs, atom_offsets, strict=True)]),
            cell_shifts=torch.cat([g.cell_shifts for g in graphs]),
            structure=torch.cat([g.structure + n for g, n in zip(graphs, structure_offsets, strict=True)]),
        )

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures together."""
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of ordered pairs within the cutoff."""
        return self.centers.shape[0]

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return self.cell.shape[0]

    def __repr__(self) -> str:
        counts = (self.n_structures, "structure"), (self.n_atoms, "atom"), (self.n_edges, "edge")
        named = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
        return f"AtomicGraph({named}, {self.positions.device})"

    def volumes(self) -> Tensor:
        """Volumes of the cells, (B,) Å³; nan where the cell vectors span none, or one that is only rounding."""
        a, b, c = self.cell.unbind(1)
        volumes: Tensor = (a * torch.linalg.cross(b, c, dim=1)).sum(1).abs()
        spanned = volumes > SMALLEST_VOLUME * self.cell.norm(dim=2).prod(dim=1)
        return volumes.where(spanned, torch.nan)

    def edge_vectors(self) -> Tensor:
        """Vectors from center to neighbor, (E, 3) Å, differentiable in positions and cell."""
        cells = self.cell[self.structure[self.centers]]
        shifts = torch.einsum("ea,eab->eb", self.cell_shifts, cells)
        return self.positions[self.neighbors] - self.positions[self.centers] + shifts

    def shortest_distances(self) -> dict[tuple[int, int], float]:
        """Pair of atomic numbers, the smaller first, -> length of the shortest edge between two such atoms, Å."""
        distances = self.edge_vectors().norm(dim=1)
        ends = torch.stack([self.atomic_numbers[self.centers], self.atomic_numbers[self.neighbors]]).sort(dim=0).values
        pairs, which = ends.unique(dim=1, return_inverse=True)
        shortest = distances.new_full((pairs.shape[1],), torch.inf).scatter_reduce(0, which, distances, "amin")
        return {(a, b): d for a, b, d in zip(*pairs.tolist(), shortest.tolist(), strict=True)}

    def moved(self, positions: Tensor, cell: Tensor) -> AtomicGraph:
        """Return this graph with other positions (N, 3) and cells (B, 3, 3), and all else the same tensors."""
        graph = object.__new__(AtomicGraph)  # to go through `__init__` takes longer, and this is done at every step
        vars(graph).update(vars(self), positions=positions, cell=cell)
        return graph

    def to(self, device: torch.device | str) -> AtomicGraph:
        """Return this graph with every tensor on `device`."""
        return AtomicGraph(**{name: value.to(device) for name, value in vars(self).items()})


def numbers_of(atoms: Atoms, device: torch.device | str) -> Tensor:
    """Return the atomic numbers of atoms, (N,) int64."""
    return torch.as_tensor(np.array(atoms.numbers, dtype=np.int64), device=device)
