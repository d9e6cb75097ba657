"""Potentials as generated code for training: energies, forces and stress, differentiable by the parameters.

Torch makes the weights of the program from the parameters (above all, the functions of the distance at the knots of
splines, of which there are fewer than edges), and multiplies matrices for the gradients of weights. The program itself
runs as compiled C++ on a CPU, or as Triton kernels on a GPU.
"""

from __future__ import annotations

import copy
import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.fx import GraphModule, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.cpp import HEADERS
from ase_segnn.codegen.derivative import Outer, gradient_array
from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.interface import ctypes_struct
from ase_segnn.codegen.networks import INTERVALS
from ase_segnn.codegen.rules import check_supported
from ase_segnn.codegen.training import RESULTS, training_program, training_source, weights_of
from ase_segnn.engines.boundary import address, aligned
from ase_segnn.engines.build import load_library
from ase_segnn.engines.indices import checked_species
from ase_segnn.engines.surroundings import Lock, threads_may_run
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction, stress_of, sum_structures

_COST_OF_ATOM = 20  # an atom costs about as much as so many edges
_RESERVE = 1.25  # memory for so many times as many atoms and edges as are asked for
_tracing = Lock()


class LearningPotential(ABC):
    """The same potential, whose predictions can be differentiated by its parameters.

    Several threads may use it, but a thread that waits for gradients must not be overtaken, see `predict`.

    Parameters
    ----------
    potential : its parameters are read at each call. Device, dtype, and which parameters are frozen, must stay as they
        are

    Raises
    ------
    ValueError
        If there is no generated code for it, see `ase_segnn.codegen.rules.unsupported`.
    """

    def __init__(self, potential: Potential) -> None:
        self._potential = potential
        self._kind = potential.dtype, potential.device
        self.lock = Lock()
        self._parameters = dict(potential.named_parameters())
        self._frozen = {name for name, parameter in self._parameters.items() if not parameter.requires_grad}
        self._program, weights = training_program(potential)
        self._names = list(weights)
        with _tracing.now:  # which replaces parts of torch, and parameters of the module
            self._make_weights = _traced_weights(copy.deepcopy(potential), self._parameters)
        self.call = 0  # number of the last one

    @abstractmethod
    def run(self, graph: AtomicGraph, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Return energies (N,), forces (N, 3) and virials (N, 9) of atoms from detached weights, in new tensors."""

    @abstractmethod
    def differentiate(self, cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return gradients of weights from those of the results of the last run; zero ones may be missing."""

    def predict(self, graph: AtomicGraph, *, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns with ``create_graph=True``, once differentiable.

        Results are to be differentiated before the next call.

        Raises
        ------
        RuntimeError
            At the differentiation, if it comes later.
        ValueError
            If the potential has another dtype or other frozen parameters than it had.
        ValueError, IndexError
            As of `ase_segnn.engines.indices.checked_species`.
        """
        self._check_potential()
        weights = self._make_weights(list(self._parameters.values()))
        energies, forces, virials = _Evaluation.apply(self, graph, *weights)  # type: ignore[no-untyped-call]  # torch's
        energy = sum_structures(graph, graph.structure, energies)
        stresses = stress_of(graph, sum_structures(graph, graph.structure, virials)) if stress else None
        return Prediction(energy, energies, forces, stresses)

    def called(self, graph: AtomicGraph, weights: Sequence[Tensor]) -> list[Tensor]:
        """Run with the weights in their order, and take note of the call."""
        named = {name: x.detach() for name, x in zip(self._names, weights, strict=True)}
        named |= {new: named[name].t() for name, new in self._program.transposed.items()}
        self.call += 1
        return self.run(graph, named)

    def gradients(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of the weights in their order."""
        found = self.differentiate(cotangents)
        return [found.get(name) for name in self._names]

    def _check_potential(self) -> None:
        """Check that the potential is of the kind that was compiled."""
        kind = self._potential.dtype, self._potential.device
        if kind != self._kind:
            (before, where), (now, device) = self._kind, kind
            raise ValueError(
                f"this potential was compiled for training in {before} on {where} and is in {now} on {device} now; "
                "make another LearningPotential"
            )
        learned = [name for name in self._frozen if self._parameters[name].requires_grad]
        if learned and torch.is_grad_enabled():
            raise ValueError(
                f"{min(learned)} was frozen when this potential was compiled for training and is learned now; make "
                "another LearningPotential"
            )


class CompiledLearning(LearningPotential):
    """A potential that learns as compiled C++, on the CPU.

    Raises
    ------
    ValueError
        As of `LearningPotential`.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    """

    def __init__(self, potential: Potential) -> None:
        check_supported(potential, device="cpu")
        super().__init__(potential)
        self._library = load_library(training_source(self._program, potential.dtype), HEADERS)
        fields = self._program.fields
        self._used = fields.keys()
        self._tables = self._program.gradients
        self._arguments = ctypes_struct("Arguments", fields)(
            n_species=len(potential.elements),
            n_intervals=INTERVALS[potential.dtype],
            per_length=INTERVALS[potential.dtype] / potential.cutoff,
        )
        self._memory: dict[Array, Tensor] = {}
        self._capacity = self._sizes = {"node": -1, "edge": -1}  # no memory yet
        self._weights: dict[str, Tensor] = {}  # of the last call
        self._indices: dict[str, Tensor] = {}

    def run(self, graph: AtomicGraph, weights: Mapping[str, Tensor]) -> list[Tensor]:  # noqa: D102
        species = checked_species(graph, self._potential)
        centers, neighbors, vectors = _near_pairs(graph, self._potential.cutoff)
        self._reserve({"node": graph.n_atoms, "edge": len(centers)})
        rows = torch.searchsorted(centers, torch.arange(graph.n_atoms + 1))
        first_atoms = _first_atoms(graph, rows, torch.get_num_threads() if threads_may_run() else 1)
        self._indices = {"rows": rows, "neighbors": neighbors, "species": species, "first_atoms": first_atoms}
        self._weights = {name: x.contiguous() for name, x in weights.items()}
        self._arguments.n_threads = len(first_atoms) - 1
        for name, tensor in (self._indices | self._weights).items():
            if name in self._used:
                setattr(self._arguments, name, address(name, tensor, tensor.dtype, tuple(tensor.shape)))
        self._rows(VECTORS).copy_(vectors.flatten())
        self._library.predict(ctypes.byref(self._arguments))
        return [self._rows(array).reshape(graph.n_atoms, *size).clone() for array, size in RESULTS.items()]

    def differentiate(self, cotangents: Sequence[Tensor]) -> dict[str, Tensor]:  # noqa: D102
        for array, cotangent in zip(RESULTS, cotangents, strict=True):
            self._rows(gradient_array(array, "g_")).copy_(cotangent.flatten())
        of_threads: dict[str, Tensor] = {}
        for table, gradient in self._tables.items():
            name, weight = gradient.identifier, self._weights[table.identifier]
            of_threads[table.identifier] = x = weight.new_zeros(self._arguments.n_threads, *weight.shape)
            setattr(self._arguments, name, address(name, x, weight.dtype, tuple(x.shape)))
        self._library.differentiate(ctypes.byref(self._arguments))
        found = {name: x[0] if len(x) == 1 else x.sum(0) for name, x in of_threads.items()}
        add_outers(found, self._program.outers, lambda array: self._rows(array).view(-1, array.width))
        return found

    def _rows(self, array: Array) -> Tensor:
        return self._memory[array][: self._sizes[array.rows] * array.stride]

    def _reserve(self, sizes: dict[str, int]) -> None:
        """Have memory for the arrays of so many atoms and edges."""
        self._sizes = sizes
        if all(sizes[kind] <= self._capacity[kind] for kind in sizes):
            return
        self._capacity = {kind: max(self._capacity[kind], int(_RESERVE * n)) for kind, n in sizes.items()}
        for array in self._program.arrays:
            dtype = torch.float64 if array.is_double else self._potential.dtype
            self._memory[array] = x = aligned(self._capacity[array.rows] * array.stride, dtype)
            setattr(self._arguments, array.identifier, address(array.identifier, x, dtype, tuple(x.shape)))


def add_outers(found: dict[str, Tensor], outers: Iterable[Outer], rows: Callable[[Array], Tensor]) -> None:
    """Add the gradients of matrices to those that were found.

    Parameters
    ----------
    found : name -> gradient
    outers : of the program
    rows : array -> what it holds, (n, width)
    """
    for source, target, name in outers:
        x, y = rows(source), rows(target)
        found[name] = torch.addmm(found[name], x.t(), y) if name in found else x.t() @ y


class _Evaluation(torch.autograd.Function):
    """Results from the weights of a program."""

    @staticmethod
    def forward(ctx: Any, learning: LearningPotential, graph: AtomicGraph, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.learning = learning
        with learning.lock.now:
            results = learning.called(graph, weights)
            ctx.call = learning.call
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.learning.lock.now:
            if ctx.call != ctx.learning.call:
                raise RuntimeError("predictions of compiled C++ have to be differentiated before the next prediction")
            return (None, None, *ctx.learning.gradients(cotangents))


def _traced_weights(potential: Potential, parameters: Mapping[str, Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return a function from the parameters to the weights of the program, as a list of torch's operations."""

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.potential = potential

        def forward(self) -> list[Tensor]:
            return list(weights_of(self.potential).values())

    module = Weights()

    def function(values: list[Tensor]) -> list[Tensor]:
        named = {f"potential.{name}": value for name, value in zip(parameters, values, strict=True)}
        weights: list[Tensor] = functional_call(module, named, ())
        return weights

    traced = make_fx(function)(list(parameters.values()))
    _fold(traced)
    return traced


def _fold(traced: GraphModule) -> None:
    """Compute once what does not depend on arguments."""
    values: dict[Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(traced, node.target)
        elif node.op == "call_function" and all(one in values for one in node.all_input_nodes):
            arguments, keywords = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments, **keywords)
    for number, (node, value) in enumerate(values.items()):
        if node.op == "call_function" and isinstance(value, Tensor):
            traced.register_buffer(f"constant_{number}", value)
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.get_attr(f"constant_{number}"))
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _near_pairs(graph: AtomicGraph, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return centers, neighbors and vectors of the edges that are shorter than the cutoff, or not finite."""
    vectors = graph.edge_vectors()
    distances = torch.linalg.vector_norm(vectors, dim=1)
    near = (distances < cutoff) | ~distances.isfinite()
    if bool(near.all()):
        return graph.centers.contiguous(), graph.neighbors.contiguous(), vectors
    return graph.centers[near], graph.neighbors[near], vectors[near]


def _first_atoms(graph: AtomicGraph, rows: Tensor, n_threads: int) -> Tensor:
    """Return the first atom of each thread's structures, and the number of atoms; threads have about the same work."""
    first = torch.searchsorted(graph.structure, torch.arange(graph.n_structures + 1))
    work = rows[first] + _COST_OF_ATOM * first
    shares = torch.arange(1, n_threads) * (work[-1] / n_threads)
    ends = (work[:, None] - shares).abs().argmin(0)  # the structure before which a thread ends
    starts: Tensor = torch.cat([first[:1], first[ends], first[-1:]]).unique()
    return starts if len(starts) > 1 else starts.repeat(2)  # there may be no atoms
