"""A potential compiled for evaluation: one fused function that serves structures of any number of atoms and edges."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Literal

import torch
from ase.data import atomic_numbers
from torch import Tensor
from torch._inductor import compile as inductor_compile
from torch.fx.experimental.proxy_tensor import make_fx

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

_log = logging.getLogger(__name__)

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative; above rounding, below what wrong kernels gave
# Of the structure to compile with: all sizes differ from one another and from every dimension of a network, so that no
# two are taken for the same, and are large enough for the kernels to use all threads.
_N_ATOMS, _N_EDGES = 997, 20011


class CompiledPotential:
    """Energy, forces and stress as `Potential.predict` gives them, by functions that Inductor has made.

    Energies and derivatives are traced together into one flat graph of tensor operations with symbolic sizes, and that
    is compiled as it is, without torch.compile's analysis of Python and its checks at every call. Compiling happens at
    the first prediction, takes up to two minutes, and is not repeated for another number of atoms or edges; what
    Inductor compiled it keeps on disk for other processes. That first result is compared with the plain one.

    Parameters
    ----------
    potential : frozen, in evaluation mode, and not to be changed any more
    backend : "inductor", which needs a C++ compiler, or "eager" to run the graph operation by operation
    """

    def __init__(self, potential: Potential, *, backend: Literal["inductor", "eager"] = "inductor") -> None:
        self._potential = potential
        self._backend = backend
        self._compiled: dict[bool, Callable[..., list[Tensor]]] = {}

    def predict(self, graph: AtomicGraph, *, stress: bool = False) -> Prediction:
        """Return energies, forces and, where asked for, stress of one structure.

        A structure with fewer than two atoms or edges is evaluated without the compiled function, which has no size 0
        or 1.

        Raises
        ------
        ValueError
            If `graph` holds more than one structure.
        RuntimeError
            If the potential cannot be compiled, or, at the first use, if compiled and plain results differ.
        """
        if graph.n_structures != 1:
            raise ValueError(f"a compiled potential takes one structure at a time, got {graph.n_structures}")
        if min(graph.n_atoms, graph.n_edges) < 2:
            return self._potential.predict(graph, stress=stress)
        function = self._compiled[stress] if stress in self._compiled else self._compile(stress)
        with torch.no_grad():
            energy, atom_energies, forces, *rest = function(*_tensors(graph))
        prediction = Prediction(energy, atom_energies, forces, rest[0] if rest else None)
        if stress not in self._compiled:
            compare_with_plain(self._potential, prediction, graph, stress=stress)
            self._compiled[stress] = function
        return prediction

    def _compile(self, stress: bool) -> Callable[..., list[Tensor]]:
        started = time.perf_counter()
        example = _tensors(self._example())

        def function(*tensors: Tensor) -> list[Tensor]:
            graph = AtomicGraph(*tensors)
            for vectors in (graph.positions, graph.cell_shifts, graph.cell, graph.cell.mT):
                torch._check(vectors.shape[-1] == 3)  # noqa: SLF001  # always, unlike other sizes
            result = self._potential.predict(graph, stress=stress)
            assert result.forces is not None
            return [
                result.energy,
                result.atom_energies,
                result.forces,
                *([] if result.stress is None else [result.stress]),
            ]

        traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
        if self._backend == "eager":
            return traced
        symbolic = [node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"]
        # Inductor's reuse of buffers gives wrong forces here with torch 2.13, on the CPU and with symbolic sizes.
        options = {"allow_buffer_reuse": False, "size_asserts": False}
        try:
            with torch.no_grad():
                compiled: Callable[..., list[Tensor]] = inductor_compile(traced, symbolic, options)
        except RuntimeError as error:
            raise RuntimeError(
                f"the potential could not be compiled: {error}; compiling needs a C++ compiler such as g++, "
                "compile=False does without"
            ) from error
        _log.info("compiled the potential in %.0f s", time.perf_counter() - started)
        return compiled

    def _example(self) -> AtomicGraph:
        """Make a structure whose edges join atoms at random."""
        generator = torch.Generator().manual_seed(0)
        centers = torch.randint(_N_ATOMS, (_N_EDGES,), generator=generator).sort().values
        side = 10 * self._potential.cutoff
        graph = AtomicGraph(
            positions=torch.rand(_N_ATOMS, 3, generator=generator, dtype=torch.float64) * side,
            atomic_numbers=torch.full((_N_ATOMS,), atomic_numbers[self._potential.elements[0]]),
            cell=side * torch.eye(3, dtype=torch.float64)[None],
            pbc=torch.ones(1, 3, dtype=torch.bool),
            centers=centers,
            neighbors=torch.randint(_N_ATOMS, (_N_EDGES,), generator=generator),
            cell_shifts=torch.ones(_N_EDGES, 3, dtype=torch.float64),
            structure=torch.zeros(_N_ATOMS, dtype=torch.int64),
        )
        return graph.to(self._potential.device)


def compare_with_plain(
    potential: Potential, result: Prediction, graph: AtomicGraph, *, stress: bool, what: str = "compiled"
) -> None:
    """Stop if a result is not that of `Potential.predict`, by the scale of forces and energies in training or here.

    Raises
    ------
    RuntimeError
    """
    plain = potential.predict(graph, stress=stress)
    reference = potential.reference_energies[potential.species_of_number[graph.atomic_numbers]]
    scale = potential.config.energy_scale
    checks = [("energies", result.atom_energies - reference, plain.atom_energies - reference, scale)]
    if result.forces is not None and plain.forces is not None:
        checks.append(("forces", result.forces, plain.forces, scale))
    if result.stress is not None and plain.stress is not None:
        checks.append(("stress", result.stress, plain.stress, scale * graph.n_atoms / graph.volumes().item()))
    for name, value, expected, usual in checks:
        error = (value - expected).abs().max().item()
        allowed = _TOLERANCES[potential.dtype] * max(expected.abs().max().item(), usual)
        if expected.isfinite().all() and not error <= allowed:
            raise RuntimeError(
                f"{what} {name} differ from the plain ones by {error:.2e}, at most {allowed:.2e} is allowed; use "
                "compile=False, and please report this with your versions of torch and of the C++ or CUDA compiler"
            )


def _tensors(graph: AtomicGraph) -> list[Tensor]:
    return [getattr(graph, field.name) for field in fields(AtomicGraph)]
