r"""C++ kernels for the messages of a `MessageNetwork` along edges and their derivatives, for inference on a CPU.

With the weights of both layers taken to the nodes, what happens along an edge works on each channel alone: add what
center and neighbor send, steer, gate, multiply by functions of the distance, steer again, and add up. One loop does all
of this in registers, so that no array of edges and channels is ever stored. The functions of the distance are splines,
see `ase_segnn.model.spline`, and what enters the forces is the slope of the spline.

The backward pass computes the message again instead of storing it. Gradients of what neighbors send are added up by
each thread for itself first, so that no two write to the same place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._inductor.codecache import CppCodeCache

from ase_segnn.model.edge_source import Layout, edge_source, lanes
from ase_segnn.model.segnn import MessageNetwork

_FEWEST_LANES = 4  # shorter vectors are no gain
_MOST_EXTRA_BYTES = 4 * 2**30  # for sums of all threads but one; more threads than that allows are not used


def why_not(messages: MessageNetwork, dtype: torch.dtype) -> str | None:
    """Say why there are no kernels for these messages, or None if there are."""
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


class EdgeKernels:
    """Compiled functions for all message networks of one shape.

    Node features enter as `projected`, one tensor (N, 2l+1, 2 S C) per hidden entry: S slots of C channels that a
    center sends, then S that a neighbor sends. A slot is one product of the first layer. Sums come out as one tensor
    (N, 2l+1, P C) per hidden entry, P products of the second layer, for its weights to act on.

    Parameters
    ----------
    messages : of the shape, see `why_not`
    dtype : float32 or float64

    Raises
    ------
    NoCompilerError
    """

    def __init__(self, messages: MessageNetwork, dtype: torch.dtype) -> None:
        self.layout = Layout(messages)
        self.source = edge_source(self.layout, dtype)
        try:
            self._library: Any = CppCodeCache.load(self.source, extra_flags=("-ffp-contract=fast",))
        except (RuntimeError, OSError) as error:
            raise NoCompilerError(
                f"compiled loops need a C++ compiler such as g++: {error}; compile=False does without"
            ) from error
        self._real = ctypes.c_float if dtype == torch.float32 else ctypes.c_double

    def forward(self, edges: Sequence[Tensor], table: Tensor, step: float, projected: Sequence[Tensor]) -> list[Tensor]:
        """Sum the messages to each atom.

        Parameters
        ----------
        edges : what there is of the edges, sorted by center: rows (N + 1,) int64, where those of center i are from
            rows[i] to rows[i + 1]; neighbors (E,) int64; attributes (E, sum of 2l+1); distances (E,); weights (E,)
            of the messages
        table : (intervals + 5, functions * C), coefficients of the splines from distance 0 on
        step : length of an interval, in the unit of the distances
        projected : one tensor (N, 2l+1, 2 S C) per hidden entry
        """
        sums = [x.zero_() for x in self.empty_sums(projected)]
        inputs = self._arguments(edges, table, step, projected)
        self._library.forward(*inputs, _pointers(sums), ctypes.c_int(torch.get_num_threads()))
        return sums

    def backward(
        self,
        edges: Sequence[Tensor],
        table: Tensor,
        step: float,
        projected: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return gradients of attributes, distances, weights and each of `projected`, from those of the sums."""
        results = self.empty_gradients(edges, projected)
        gradients = [gradient.contiguous() for gradient in gradients]
        d_projected = [x.zero_() for x in results[3:]]
        n_extra = min(torch.get_num_threads() - 1, _MOST_EXTRA_BYTES // max(1, sum(x.nbytes for x in d_projected)))
        extra = [[torch.zeros_like(x) for x in d_projected] for _ in range(n_extra)]
        self._library.backward(
            *self._arguments(edges, table, step, projected),
            _pointers(gradients),
            _pointers([*d_projected, *chain.from_iterable(extra)]),
            *(ctypes.c_void_p(x.data_ptr()) for x in results[:3]),
            ctypes.c_int(1 + n_extra),
        )
        for of_thread in extra:
            torch._foreach_add_(d_projected, of_thread)
        return results

    def empty_sums(self, projected: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the shapes that `forward` returns, (N, 2l+1, P C) per hidden entry."""
        sizes = zip(projected, self.layout.dims, self.layout.n_products, strict=True)
        return [x.new_empty(x.shape[0], dim, size * self.layout.channels) for x, dim, size in sizes]

    @staticmethod
    def empty_gradients(edges: Sequence[Tensor], projected: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the shapes that `backward` returns."""
        return [torch.empty_like(x) for x in (*edges[2:], *projected)]

    def _arguments(self, edges: Sequence[Tensor], table: Tensor, step: float, projected: Sequence[Tensor]) -> list[Any]:
        assert all(x.is_contiguous() for x in (*edges, table, *projected))
        return [
            ctypes.c_int64(edges[0].shape[0] - 1),
            *(ctypes.c_void_p(x.data_ptr()) for x in (*edges, table)),
            ctypes.c_int64(table.shape[0]),
            self._real(1 / step),
            _pointers(projected),
        ]


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])
