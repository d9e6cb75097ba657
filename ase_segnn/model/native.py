"""Potentials as compiled C++ for inference on a CPU: one function from positions and pairs to energies and forces.

The source is made for each shape of network (`native_source`), compiled at first use and kept on disk by torch for
other processes. With the weights of both layers of a message taken to the nodes, what happens along an edge works on
each channel alone: add what center and neighbor send, steer, gate, multiply by functions of the distance, steer again,
and add up. One loop does all of this in registers, so that no array of edges and channels is ever stored. The
derivative computes the message again. Functions of the distance are splines, see `ase_segnn.model.spline`, and what
enters the forces is the slope of the spline.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._inductor.codecache import CppCodeCache

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.native_source import ARGUMENTS, lanes
from ase_segnn.model.segnn import MessageNetwork

_FEWEST_LANES = 4  # shorter vectors are no gain
_MOST_EXTRA_BYTES = 4 * 2**30  # of workspace for threads beyond the first; more than that allows are not used
_TYPES: dict[str, Any] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


def why_not(messages: MessageNetwork, dtype: torch.dtype) -> str | None:
    """Say why a potential with these messages has no such function, or None if it has."""
    multiplicities = {mul for mul, _ in messages.linear_2.irreps_in}
    if messages.gate_2 is not None:
        return "its messages are gated"
    if messages.weights is None:
        return "it has no radial weights"
    if len(multiplicities) > 1:
        return f"its irreps have different numbers of channels, {', '.join(map(str, sorted(multiplicities)))}"
    [channels] = multiplicities
    if lanes(channels, dtype) < _FEWEST_LANES:
        return f"the number of channels, {channels}, is no multiple of {_FEWEST_LANES}"
    return None


class NoCompilerError(RuntimeError):
    """There is no C++ compiler, or it fails."""


class _Input(ctypes.Structure):
    _fields_ = [(name, _TYPES.get(kind, ctypes.c_void_p)) for name, kind in ARGUMENTS.items()]


class NativeFunction:
    """The compiled function of one source.

    It keeps the memory it works in, which grows to what the largest structure needed, from one call to the next.

    Parameters
    ----------
    source : see `native_source`
    constants : what does not change from call to call: numbers, tensors, and lists of tensors, by their names there

    Raises
    ------
    NoCompilerError
    """

    def __init__(self, source: str, constants: dict[str, Any]) -> None:
        try:
            self._library: Any = CppCodeCache.load(source, extra_flags=("-ffp-contract=fast",))
        except (RuntimeError, OSError) as error:
            raise NoCompilerError(
                f"compiled loops need a C++ compiler such as g++: {error}; compile=False does without"
            ) from error
        self._library.workspace_size.restype = self._library.evaluate.restype = ctypes.c_int64
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._laid_out_for: tuple[int, ...] = ()
        self._constants = constants  # keeps the tensors alive
        self._input = _Input()
        for name, value in constants.items():
            setattr(self._input, name, _as_argument(value))

    def __call__(self, graph: AtomicGraph, species: Tensor, *, forces: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (N,), forces (N, 3) and virials (N, 3, 3), all float64; the latter two empty unless `forces`.

        The virial of an atom is the sum over its pairs of the outer product of vector and derivative of the energy.

        Raises
        ------
        ValueError
            If the pairs are not sorted by their centers.
        """
        n = graph.n_atoms
        sizes = (n, graph.n_edges, self._n_threads(n, graph.n_edges, forces=forces), int(forces))
        tensors = {
            name: getattr(graph, name).contiguous()
            for name in ("positions", "cell_shifts", "centers", "neighbors", "structure")
        }
        results = [torch.empty(n, dtype=torch.float64)]
        results += [torch.empty((n if forces else 0), *shape, dtype=torch.float64) for shape in ((3,), (3, 3))]
        tensors |= {"cells": graph.cell.contiguous(), "species": species}
        tensors |= dict(zip(("energies", "forces", "virials"), results, strict=True))
        size = self._library.workspace_size(*map(ctypes.c_int64, sizes))
        if size > self._workspace.numel():
            self._workspace = torch.empty(0, dtype=torch.uint8)  # so that both are never there at once
            self._workspace, self._laid_out_for = torch.empty(size + size // 8, dtype=torch.uint8), ()
        arguments = self._input
        arguments.n_atoms, arguments.n_edges, arguments.n_threads, arguments.forces_wanted = sizes
        arguments.workspace_is_clean = int(self._laid_out_for == sizes)
        arguments.workspace = self._workspace.data_ptr()
        for name, tensor in tensors.items():
            setattr(arguments, name, tensor.data_ptr())
        if self._library.evaluate(ctypes.byref(arguments)):
            raise ValueError("the edges of the graph are not sorted by their centers")
        self._laid_out_for = sizes
        return results[0], results[1], results[2]

    def _n_threads(self, n_atoms: int, n_edges: int, *, forces: bool) -> int:
        n_threads = min(torch.get_num_threads(), max(1, n_atoms // 4))
        if n_threads == 1 or not forces:
            return n_threads
        one, two = (self._library.workspace_size(*map(ctypes.c_int64, (n_atoms, n_edges, n, 1))) for n in (1, 2))
        return min(n_threads, 1 + int(_MOST_EXTRA_BYTES // (two - one)))


def _as_argument(value: float | Tensor | Sequence[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, (int, float)):
        return value
    pointers = (ctypes.c_void_p * len(value))(*[x.data_ptr() for x in value])
    return ctypes.cast(pointers, ctypes.c_void_p)
