"""Sums of messages as compiled C++ that can be differentiated twice, for training on a CPU.

Messages are computed channel by channel in one loop along edges, with the weights of both layers at nodes, see
`MessageNetwork`. The first and the second derivative are loops of the same kind (`ase_segnn.codegen.training`).
Products of matrices, and the network from message scalars to weights, stay with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.cpp import HEADERS
from ase_segnn.codegen.derivative import gradient_array
from ase_segnn.codegen.interface import ctypes_struct
from ase_segnn.codegen.messages import MessageShape
from ase_segnn.codegen.program import Loop
from ase_segnn.codegen.rules import unsupported
from ase_segnn.codegen.training import training_loops, training_source
from ase_segnn.engines.boundary import address
from ase_segnn.engines.build import load_library
from ase_segnn.engines.surroundings import threads_may_run
from ase_segnn.model.segnn import SEGNN, Edges, MessageNetwork
from ase_segnn.model.steerable import Features


@contextmanager
def message_kernels(network: SEGNN) -> Iterator[None]:
    """Within the context the messages of a network are summed by compiled C++.

    Raises
    ------
    ValueError
        If they have no such form, see `ase_segnn.codegen.rules.unsupported`.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    """
    reason = unsupported(network)
    if reason is not None:
        raise ValueError(f"this network has no compiled messages: {reason}")
    messages = [layer.message for layer in network.rounds]
    try:
        for message in messages:
            message.instead = MessageKernels(message)
        yield
    finally:
        for message in messages:
            message.instead = None


class MessageKernels:
    """Drop-in for `MessageNetwork.forward`, in compiled C++ and twice differentiable.

    Parameters
    ----------
    message : whose weights are read at each call
    """

    def __init__(self, message: MessageNetwork) -> None:
        self._message, self._shape = message, MessageShape(message)
        self._loops = _Loops(message)

    def __call__(self, features: Features, edges: Edges) -> Features:
        """Sum the messages to each of the N nodes, made from the nodes' features."""
        shape, message = self._shape, self._message
        sent = [x @ shape.both_first_weights(entry) for entry, x in enumerate(features)]
        assert edges.scalars is not None
        weights = torch.ones_like(edges.steering.attributes[:, 0]) if edges.weights is None else edges.weights
        of_edges = (edges.steering.attributes, weights, *shape.functions(message, edges.scalars))
        indices = edges.centers, edges.neighbors
        sums = _Sums.apply(self._loops, *indices, *of_edges, *sent)  # type: ignore[no-untyped-call]  # torch's
        return tuple(x @ shape.second_weights(message, entry) for entry, x in enumerate(sums))


class _Loops:
    """The compiled loops: values, first derivatives, and the derivatives of these.

    Parameters
    ----------
    message : whose shape they have
    """

    def __init__(self, message: MessageNetwork) -> None:
        self._loops = training_loops(message)
        self._dtype = message.linear_1.weights[0].dtype
        self._inputs = [*self._loops.of_edges, *self._loops.sent]
        self._arguments = ctypes_struct("Arguments", self._loops.fields)
        self._library = load_library(training_source(self._loops, self._dtype), HEADERS)

    def sums(self, indices: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Sum the messages: per entry (N, 2l+1, products * C)."""
        given = dict(zip(self._inputs, inputs, strict=True))
        return self._call("sum_messages", indices, given, self._loops.sums)

    def gradients(self, d_sums: Sequence[Tensor], indices: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of what edges have, and of what nodes send, from those of the sums."""
        given = dict(zip([*self._inputs, *self._d_sums], [*inputs, *d_sums], strict=True))
        return self._call("first_derivatives", indices, given, [gradient_array(x, "g_") for x in self._inputs])

    def second_gradients(
        self,
        cotangents: Sequence[Tensor],
        d_sums: Sequence[Tensor],
        indices: Sequence[Tensor],
        inputs: Sequence[Tensor],
    ) -> list[Tensor]:
        """Gradients of what edges have, of what nodes send, and of `d_sums`, from those of `gradients`."""
        of_gradients = [gradient_array(x, "u_") for x in self._inputs]
        given = dict(zip([*self._inputs, *self._d_sums, *of_gradients], [*inputs, *d_sums, *cotangents], strict=True))
        wanted = [gradient_array(x, "g_") for x in (*self._inputs, *self._d_sums)]
        return self._call("second_derivatives", indices, given, wanted)

    @property
    def _d_sums(self) -> list[Array]:
        return [gradient_array(x) for x in self._loops.sums]

    def _call(
        self, name: str, indices: Sequence[Tensor], given: dict[Array, Tensor], wanted: Sequence[Array]
    ) -> list[Tensor]:
        """Run a loop, and add up what the threads have found."""
        n_nodes, n_edges = given[self._loops.sent[0]].shape[0], len(indices[0])
        n_threads = torch.get_num_threads() if threads_may_run() else 1
        arguments = self._arguments(n_nodes=n_nodes, n_edges=n_edges, n_threads=n_threads)
        kept = [tensor.contiguous() for tensor in (*indices, *given.values())]  # as long as the call takes
        for field, tensor in zip(("centers", "neighbors"), kept, strict=False):
            setattr(arguments, field, address(field, tensor, torch.int64, (n_edges,)))
        for array, tensor in zip(given, kept[2:], strict=True):
            shape = _shape(array, n_nodes if array.rows == "node" else n_edges)
            setattr(arguments, array.identifier, address(array.identifier, tensor, self._dtype, shape))
        results = [self._result(self._loops.loops[name], x, n_nodes, n_edges, n_threads) for x in wanted]
        for array, result in zip(wanted, results, strict=True):
            setattr(arguments, array.identifier, address(array.identifier, result, self._dtype, tuple(result.shape)))
        if getattr(self._library, name)(ctypes.byref(arguments)):
            raise ValueError(f"an edge joins nodes that are not among the {n_nodes} of the graph")
        return [
            result if array.rows == "edge" else result[0] if n_threads == 1 else result.sum(0)
            for array, result in zip(wanted, results, strict=True)
        ]

    def _result(self, loop: Loop, array: Array, n_nodes: int, n_edges: int, n_threads: int) -> Tensor:
        """Return memory for a result; zeros where a loop adds, or does not write everything."""
        if array.rows == "node":
            return torch.zeros(n_threads, *_shape(array, n_nodes), dtype=self._dtype, device="cpu")
        n_written = sum(store.leaf.array == array for store in loop.stores)
        make = torch.empty if n_written == len(array.leaves()) else torch.zeros
        return make(_shape(array, n_edges), dtype=self._dtype, device="cpu")


def _shape(array: Array, n: int) -> tuple[int, ...]:
    """Return the shape of a tensor with n rows of an array."""
    sizes = [size for size in (array.components, array.width) if size > 1 or array.rows == "node"]
    return (n, *sizes)


class _Sums(torch.autograd.Function):
    """Sums of messages, from indices, from what edges have and from what nodes send."""

    @staticmethod
    def forward(ctx: Any, loops: _Loops, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.loops = loops
        ctx.save_for_backward(*tensors)
        return tuple(loops.sums(tensors[:2], tensors[2:]))

    @staticmethod
    def backward(ctx: Any, *d_sums: Tensor) -> tuple[Tensor | None, ...]:
        tensors = (*d_sums, *ctx.saved_tensors)
        gradients = _Gradients.apply(ctx.loops, len(d_sums), *tensors)  # type: ignore[no-untyped-call]  # torch's
        return (None, None, None, *gradients)


class _Gradients(torch.autograd.Function):
    """The derivative of `_Sums`."""

    @staticmethod
    def forward(ctx: Any, loops: _Loops, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.loops, ctx.n = loops, n
        ctx.save_for_backward(*tensors)
        return tuple(loops.gradients(tensors[:n], tensors[n : n + 2], tensors[n + 2 :]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, n = ctx.saved_tensors, ctx.n
        results = ctx.loops.second_gradients(cotangents, tensors[:n], tensors[n : n + 2], tensors[n + 2 :])
        inputs, d_sums = results[:-n], results[-n:]
        return (None, None, *d_sums, None, None, *inputs)
