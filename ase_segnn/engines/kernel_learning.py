"""Potentials that learn as Triton kernels on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ase_segnn.codegen.derivative import gradient_array
from ase_segnn.codegen.rules import check_supported
from ase_segnn.codegen.training import RESULTS
from ase_segnn.engines.indices import checked_species
from ase_segnn.engines.kernels import KernelProgram, Sizes, check_triton
from ase_segnn.engines.learning import LearningPotential, add_outers
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

_MULTIPLE = 4  # of rows


class KernelLearning(LearningPotential):
    """A potential that learns as kernels, all of whose launches can be recorded as a CUDA graph.

    Indices of graphs are checked, but not while a graph is recorded, since the host would wait for the answer.

    Raises
    ------
    ValueError
        As of `LearningPotential`.
    ImportError
        If Triton is not installed.
    """

    def __init__(self, potential: Potential) -> None:
        check_supported(potential)
        check_triton()
        super().__init__(potential)
        program = self._program
        self._gradients = {array: gradient_array(array, "g_") for array in RESULTS}
        multiplied = [array for outer in program.outers for array in (outer.source, outer.target)]
        kept = [*RESULTS, *self._gradients.values(), *multiplied]
        cleared = [array for arrays in program.cleared for array in arrays]
        self._kernels = KernelProgram(program.tape, [*program.forward, *program.backward], potential, kept, cleared)
        self._fixed: dict[str, Tensor] = {}  # weights that no parameter changes, on the device
        self._indices = torch.empty(0), torch.empty(0)  # rows and species of the last run

    def run(self, graph: AtomicGraph, weights: Mapping[str, Tensor]) -> list[Tensor]:  # noqa: D102
        kernels, device = self._kernels, self._kernels.device
        for name, weight in weights.items():
            if weight.device != device and name not in self._fixed:
                self._fixed[name] = weight.to(device)
        transposed = self._program.transposed.values()
        kernels.weights = {
            name: self._fixed[name] if name in self._fixed else weight if name in transposed else weight.contiguous()
            for name, weight in weights.items()
        }
        n_atoms, n_edges = (-(-n // _MULTIPLE) * _MULTIPLE for n in (graph.n_atoms, graph.n_edges))
        kernels.reserve(Sizes(n_atoms, n_edges, graph.n_structures))
        rows = torch.searchsorted(graph.centers, torch.arange(n_atoms + 1, device=device))
        filled = graph.positions.new_zeros
        n_more = n_atoms - graph.n_atoms
        species, structure = (
            torch.cat([values, filled(n_more, dtype=torch.int64)]) for values in (self._species(graph), graph.structure)
        )
        positions = torch.cat([graph.positions, filled(n_more, 3)])
        kernels.select_pairs(
            AtomicGraph(**{**vars(graph), "positions": positions, "structure": structure}), rows.contiguous()
        )
        self._indices = rows, species
        kernels.run(rows, species, end=len(self._program.forward))
        return [
            kernels.memory[array][: graph.n_atoms].reshape(graph.n_atoms, *size).clone()
            for array, size in RESULTS.items()
        ]

    def differentiate(self, cotangents: Sequence[Tensor]) -> dict[str, Tensor]:  # noqa: D102
        kernels = self._kernels
        for array, cotangent in zip(RESULTS, cotangents, strict=True):
            rows = kernels.memory[self._gradients[array]]
            rows[: len(cotangent)] = cotangent.reshape(len(cotangent), -1)
            rows[len(cotangent) :] = 0
        found, tables = {}, {}
        for table, gradient in self._program.gradients.items():
            found[table.identifier] = zeros = torch.zeros_like(kernels.weights[table.identifier])
            tables[gradient.identifier] = zeros
        kernels.weights = {**kernels.weights, **tables}
        kernels.run(*self._indices, first=len(self._program.forward))
        add_outers(found, self._program.outers, lambda array: kernels.memory[array].view(-1, array.width))
        return found

    def _species(self, graph: AtomicGraph) -> Tensor:
        if graph.positions.is_cuda and torch.cuda.is_current_stream_capturing():
            return self._potential.species_of_number[graph.atomic_numbers]
        return checked_species(graph, self._potential)
