"""From labeled frames to batches of graphs with energies and forces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ase_segnn.graph import AtomicGraph
from ase_segnn.structures import read_structures


@dataclass(frozen=True, eq=False)
class LabeledGraph:
    """A graph of N atoms in B structures with the labels to learn; structures of weight 0 are padding.

    Parameters
    ----------
    graph : the structures
    energy : (B,) float64, eV
    forces : (N, 3) float64, eV/Å
    stress : (B, 3, 3) float64, eV/Å³, symmetric, positive in tension; zero where it is not learned
    structure_weights : (B,) float64
    """

    graph: AtomicGraph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    structure_weights: Tensor

    @classmethod
    def from_atoms(cls, atoms: Atoms, cutoff: float, *, stress: bool = False) -> LabeledGraph:
        """Take structure and labels of one frame, as checked by `read_frames`; the stress only if asked for."""
        tensor = atoms.get_stress(voigt=False, apply_constraint=False) if stress else np.zeros((3, 3))
        return cls(
            graph=AtomicGraph.from_atoms(atoms, cutoff),
            energy=torch.tensor([atoms.get_potential_energy()], dtype=torch.float64),
            forces=torch.as_tensor(atoms.get_forces(apply_constraint=False), dtype=torch.float64),
            stress=torch.as_tensor(tensor, dtype=torch.float64)[None],
            structure_weights=torch.ones(1, dtype=torch.float64),
        )

    @classmethod
    def padding(cls, n_atoms: int, n_edges: int, cutoff: float, atomic_number: int) -> LabeledGraph:
        """Make a structure of lone atoms and of edges that are too long to matter, with weight 0.

        The edges join the first atom with its own image in a cell of twice the cutoff.
        """
        graph = AtomicGraph(
            positions=torch.zeros(n_atoms, 3, dtype=torch.float64),
            atomic_numbers=torch.full((n_atoms,), atomic_number),
            cell=2 * cutoff * torch.eye(3, dtype=torch.float64)[None],
            pbc=torch.ones(1, 3, dtype=torch.bool),
            centers=torch.zeros(n_edges, dtype=torch.int64),
            neighbors=torch.zeros(n_edges, dtype=torch.int64),
            cell_shifts=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(n_edges, 1),
            structure=torch.zeros(n_atoms, dtype=torch.int64),
        )
        zero = torch.zeros(1, dtype=torch.float64)
        return cls(graph, zero, torch.zeros_like(graph.positions), torch.zeros_like(graph.cell), zero)

    @classmethod
    def batch(cls, parts: Sequence[LabeledGraph]) -> LabeledGraph:
        """Put several side by side."""
        return cls(
            graph=AtomicGraph.batch([part.graph for part in parts]),
            energy=torch.cat([part.energy for part in parts]),
            forces=torch.cat([part.forces for part in parts]),
            stress=torch.cat([part.stress for part in parts]),
            structure_weights=torch.cat([part.structure_weights for part in parts]),
        )

    def to(self, device: torch.device | str) -> LabeledGraph:
        """Return this with every tensor on `device`."""
        return LabeledGraph(
            self.graph.to(device),
            self.energy.to(device),
            self.forces.to(device),
            self.stress.to(device),
            self.structure_weights.to(device),
        )


def read_frames(path: Path, labels: Sequence[str] = ("energy", "forces")) -> list[Atoms]:
    """Read all frames of a file and check that each has the labels, in ASE's names and units.

    Raises
    ------
    ValueError
        If the file cannot be read, holds no frame, or a frame lacks a label or has values that are not finite; the
        error names file and frame.
    """
    frames = read_structures(path)
    _check_labels(frames, path, labels)
    return frames


def check_stresses(frames: Sequence[Atoms], path: Path) -> None:
    """Check that each frame has a stress that can be learned.

    Raises
    ------
    ValueError
        If a frame lacks it, or is not periodic along all three vectors; the error names file and frame.
    """
    _check_labels(frames, path, ["stress"])
    for index, atoms in enumerate(frames):
        if not atoms.pbc.all() or atoms.cell.rank < 3:
            raise ValueError(
                f"frame {index} of '{path}' has a stress but pbc={atoms.pbc.tolist()}; stress is energy per volume and "
                "needs a cell that is periodic along all three vectors; stress_weight: 0 leaves stresses out"
            )


def _check_labels(frames: Sequence[Atoms], path: Path, labels: Sequence[str]) -> None:
    for index, atoms in enumerate(frames):
        results = atoms.calc.results if atoms.calc is not None else {}
        for label in labels:
            if label not in results:
                raise ValueError(
                    f"frame {index} of '{path}' has no {label}; it has {', '.join(results) or 'no labels'}"
                )
            if not np.isfinite(results[label]).all():
                raise ValueError(f"frame {index} of '{path}' has {label} that are not finite")


def split(frames: Sequence[Atoms], n_validation: int, seed: int) -> tuple[list[Atoms], list[Atoms]]:
    """Divide frames at random into those to train on and `n_validation` to validate on.

    Raises
    ------
    ValueError
        If that leaves no frame to train on.
    """
    if n_validation >= len(frames):
        raise ValueError(f"{n_validation} validation frames of {len(frames)} leave none to train on")
    order = np.random.default_rng(seed).permutation(len(frames))
    held_out = set(order[:n_validation].tolist())
    training = [atoms for index, atoms in enumerate(frames) if index not in held_out]
    return training, [frames[index] for index in sorted(held_out)]


def elements_of(frames: Sequence[Atoms]) -> tuple[str, ...]:
    """Chemical symbols of all frames, by atomic number."""
    return tuple(chemical_symbols[number] for number in sorted({int(z) for atoms in frames for z in atoms.numbers}))


def least_squares_energies(frames: Sequence[Atoms], energies: NDArray[np.float64]) -> dict[str, float]:
    """Energies per element whose sums fit `energies` best; of several that do equally well, those nearest to equal."""
    elements = elements_of(frames)
    counts = np.array([[atoms.symbols.count(symbol) for symbol in elements] for atoms in frames], dtype=np.float64)
    mean = energies.sum() / counts.sum()
    correction, *_ = np.linalg.lstsq(counts, energies - mean * counts.sum(1), rcond=None)
    return {symbol: float(mean + value) for symbol, value in zip(elements, correction, strict=True)}


def isolated_atom_energies(path: Path, elements: Sequence[str]) -> dict[str, float]:
    """Read reference energies of `elements` from a file with one frame per isolated atom.

    Raises
    ------
    ValueError
        If a frame holds more than one atom, or an element has no frame.
    """
    energies = {}
    for index, atoms in enumerate(read_frames(path, labels=["energy"])):
        if len(atoms) != 1:
            raise ValueError(f"frame {index} of '{path}' has {len(atoms)} atoms; reference energies need single atoms")
        energies[atoms.get_chemical_symbols()[0]] = float(atoms.get_potential_energy())
    missing = [symbol for symbol in elements if symbol not in energies]
    if missing:
        raise ValueError(f"'{path}' has no isolated atom of {', '.join(missing)}")
    return {symbol: energies[symbol] for symbol in elements}


class _Graphs(Dataset[LabeledGraph]):
    def __init__(self, graphs: Sequence[LabeledGraph]) -> None:
        self._graphs = graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, index: int) -> LabeledGraph:
        return self._graphs[index]


class _PaddedCollate:
    """Batch graphs and fill up to one size, so that a compiled step meets a single shape."""

    def __init__(self, graphs: Sequence[LabeledGraph], batch_size: int, cutoff: float) -> None:
        self._batch_size, self._cutoff = batch_size, cutoff
        self._n_atoms = sum(sorted((g.graph.n_atoms for g in graphs), reverse=True)[:batch_size]) + 1
        self._n_edges = sum(sorted((g.graph.n_edges for g in graphs), reverse=True)[:batch_size])
        self._number = int(graphs[0].graph.atomic_numbers[0])

    def __call__(self, parts: Sequence[LabeledGraph]) -> LabeledGraph:
        n_atoms = self._n_atoms - sum(part.graph.n_atoms for part in parts)
        n_edges = self._n_edges - sum(part.graph.n_edges for part in parts)
        missing = self._batch_size - len(parts)
        lone = [LabeledGraph.padding(1, 0, self._cutoff, self._number)] * missing
        last = LabeledGraph.padding(n_atoms - missing, n_edges, self._cutoff, self._number)
        return LabeledGraph.batch([*parts, *lone, last])


def training_loader(
    graphs: Sequence[LabeledGraph], batch_size: int, seed: int, *, pad_with_cutoff: float | None = None
) -> DataLoader[LabeledGraph]:
    """Batches in an order that depends on `seed` and epoch alone; padded to one size if a cutoff (Å) is given."""
    collate = LabeledGraph.batch if pad_with_cutoff is None else _PaddedCollate(graphs, batch_size, pad_with_cutoff)
    sampler: DistributedSampler[LabeledGraph] = DistributedSampler(
        _Graphs(graphs), num_replicas=1, rank=0, shuffle=True, seed=seed
    )
    return DataLoader(_Graphs(graphs), batch_size=batch_size, sampler=sampler, collate_fn=collate)


def validation_loader(graphs: Sequence[LabeledGraph], batch_size: int) -> DataLoader[LabeledGraph]:
    """Batches in the order given."""
    return DataLoader(_Graphs(graphs), batch_size=batch_size, collate_fn=LabeledGraph.batch)
