"""Sums of messages as compiled C++ that can be differentiated twice, for training on a CPU.

With the weights of both layers of a message taken to the nodes, see `MessageNetwork`, what happens along an edge works
on each channel alone. One loop does all of it in registers. Its first and its second derivative are loops of the same
kind, made from the same expressions (`edge_source`), which compute the message again instead of keeping arrays of edges
and channels. Products of matrices, and the network from message scalars to weights, stay with torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_segnn.engines.boundary import address
from ase_segnn.engines.build import load_library
from ase_segnn.engines.surroundings import threads_may_run
from ase_segnn.model.edge_layout import Layout, edge_functions, why_no_loops
from ase_segnn.model.message_source import BY_ENTRY, INPUTS, OF_EDGES, OUTPUTS, message_source
from ase_segnn.model.segnn import SEGNN, Edges, MessageNetwork
from ase_segnn.model.steerable import Features


def why_no_kernels(network: SEGNN) -> str | None:
    """Say why the messages of a network have no such form, or None if they have."""
    if not network.rounds:
        return "it has no messages"
    if network.irreps_messages != network.irreps_hidden:
        return "its messages have other irreps than its features"
    if not network.unit_scalar_attributes:
        return "scalars of its attributes may differ from 1"
    return why_no_loops(network.rounds[0].message)


@contextmanager
def message_kernels(network: SEGNN) -> Iterator[None]:
    """Within the context the messages of a network are summed by compiled C++.

    Raises
    ------
    ValueError
        If they have no such form, see `why_no_kernels`.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    """
    reason = why_no_kernels(network)
    if reason is not None:
        raise ValueError(f"this network has no compiled messages: {reason}")
    messages = [layer.message for layer in network.rounds]
    try:
        for message in messages:
            message.instead = MessageKernels(message, network)
        yield
    finally:
        for message in messages:
            message.instead = None


class MessageKernels:
    """Does what `MessageNetwork.forward` does.

    Parameters
    ----------
    message : whose weights are read at each call
    network : that it belongs to
    """

    def __init__(self, message: MessageNetwork, network: SEGNN) -> None:
        self._message = message
        self._layout = Layout(message, network.embedding)
        self._loops = _Loops(self._layout, message.linear_1.weights[0].dtype)

    def __call__(self, features: Features, edges: Edges) -> Features:
        """Sum the messages to each of the N nodes, made from the nodes' features."""
        layout, message = self._layout, self._message
        n_entries = len(layout.hidden)
        sent = [
            x @ torch.cat([layout.first_weights(entry), layout.first_weights(n_entries + entry)], dim=1)
            for entry, x in enumerate(features)
        ]
        assert edges.scalars is not None
        weights = torch.ones_like(edges.steering.attributes[:, 0]) if edges.weights is None else edges.weights
        of_edges = (edges.steering.attributes, weights, *edge_functions(layout, message, edges.scalars))
        indices = edges.centers, edges.neighbors
        sums = _Sums.apply(self._loops, *indices, *of_edges, *sent)  # type: ignore[no-untyped-call]  # torch's
        outputs = [x @ weight for x, weight in zip(sums, message.linear_2.weights, strict=True)]
        return tuple(outputs)


class _Loops:
    """The compiled loops: values, first derivatives, and the derivatives of these.

    Parameters
    ----------
    layout : of the arrays
    dtype : of all of them
    """

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._layout = layout
        self._sent_widths = [2 * dim * n * layout.channels for dim, n in zip(layout.dims, layout.n_slots, strict=True)]
        self._sums_widths = [dim * n * layout.channels for dim, n in zip(layout.dims, layout.n_products, strict=True)]
        self.dims = layout.dims
        self._arguments = _arguments(len(layout.dims))
        self._library = load_library(message_source(layout, dtype))

    def sums(self, *inputs: Tensor) -> list[Tensor]:
        """Sum the messages: per entry (N, 2l+1, products * C)."""
        arrays = self._inputs(inputs)
        sums = self._node_results(inputs, self._sums_widths)
        self._call("sum_messages", arrays, {"sums": sums})
        return self._added(sums)

    def gradients(self, d_sums: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        """Gradients of what edges have, and of what nodes send, from those of the sums."""
        arrays = {**self._inputs(inputs), "d_sums": _flat(d_sums)}
        results = self._edge_results(inputs) | {"g_sent": self._node_results(inputs, self._sent_widths)}
        self._call("first_derivatives", arrays, results)
        return [*(results[f"g_{name}"] for name in OF_EDGES), *self._added(results["g_sent"])]

    def second_gradients(self, cotangents: Sequence[Tensor], d_sums: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        """Gradients of what edges have, of what nodes send, and of `d_sums`, from those of `gradients`."""
        n = len(OF_EDGES)
        arrays = {**self._inputs(inputs), "d_sums": _flat(d_sums), "u_sent": _flat(cotangents[n:])}
        arrays |= {f"u_{name}": x.contiguous() for name, x in zip(OF_EDGES, cotangents[:n], strict=True)}
        results = self._edge_results(inputs)
        results["g_sent"] = self._node_results(inputs, self._sent_widths)
        results["g_d_sums"] = self._node_results(inputs, self._sums_widths)
        self._call("second_derivatives", arrays, results)
        nodes = [*self._added(results["g_sent"]), *self._added(results["g_d_sums"])]
        return [*(results[f"g_{name}"] for name in OF_EDGES), *nodes]

    def _inputs(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        names = ("centers", "neighbors", *OF_EDGES)
        found: dict[str, Any] = {name: x.contiguous() for name, x in zip(names, inputs, strict=False)}
        return {**found, "sent": _flat(inputs[len(names) :])}

    def _edge_results(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        attributes, *others = inputs[2 : 2 + len(OF_EDGES)]  # the scalar of an attribute has no gradient
        dense = torch.contiguous_format
        results = [
            torch.zeros_like(attributes, memory_format=dense),
            *(torch.empty_like(x, memory_format=dense) for x in others),
        ]
        return {f"g_{name}": x for name, x in zip(OF_EDGES, results, strict=True)}

    def _node_results(self, inputs: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        n_nodes, n_threads = inputs[-1].shape[0], torch.get_num_threads() if threads_may_run() else 1
        return [torch.zeros(n_threads, n_nodes, width, dtype=self._dtype, device="cpu") for width in widths]

    def _added(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Add what the threads have found: (N, 2l+1, n)."""
        totals = [x[0] if len(x) == 1 else x.sum(0) for x in results]
        return [x.unflatten(1, (dim, -1)) for x, dim in zip(totals, self.dims, strict=True)]

    def _call(self, name: str, arrays: dict[str, Any], results: dict[str, Any]) -> None:
        arguments = self._arguments()
        n_nodes, n_edges = arrays["sent"][0].shape[0], len(arrays["centers"])
        n_threads = min(len(x) for each in results.values() if isinstance(each, list) for x in each)
        arguments.n_nodes, arguments.n_edges, arguments.n_threads = n_nodes, n_edges, n_threads
        shapes = self._shapes(n_nodes, n_edges, n_threads)
        for key, value in {**arrays, **results}.items():
            dtype = torch.int64 if key in ("centers", "neighbors") else self._dtype
            if isinstance(value, Tensor):
                setattr(arguments, key, address(key, value, dtype, shapes[key]))
            else:
                for entry, (tensor, shape) in enumerate(zip(value, shapes[key], strict=True)):
                    getattr(arguments, key)[entry] = address(key, tensor, dtype, shape)
        if getattr(self._library, name)(ctypes.byref(arguments)):
            raise ValueError(f"an edge joins nodes that are not among the {n_nodes} of the graph")

    def _shapes(self, n_nodes: int, n_edges: int, n_threads: int) -> dict[str, Any]:
        """Shapes of all arrays; a list where there is one per entry."""
        layout = self._layout
        channels = layout.channels
        sent, sums = (
            [(n_nodes, dim, width // dim) for dim, width in zip(self.dims, widths, strict=True)]
            for widths in (self._sent_widths, self._sums_widths)
        )
        of_threads = {
            name: [(n_threads, n_nodes, width) for width in widths]
            for name, widths in (
                ("sums", self._sums_widths),
                ("g_sent", self._sent_widths),
                ("g_d_sums", self._sums_widths),
            )
        }
        of_edges = {
            "attributes": (n_edges, len(layout.degrees)),
            "weights": (n_edges,),
            "added": (n_edges, layout.n_slots[layout.scalars] * channels),
            "factors": (n_edges, sum(layout.n_products) * channels),
        }
        others = {f"{prefix}_{name}": shape for prefix in "ug" for name, shape in of_edges.items()}
        indices = {"centers": (n_edges,), "neighbors": (n_edges,)}
        return {**indices, **of_edges, **others, **of_threads, "sent": sent, "u_sent": sent, "d_sums": sums}


class _Sums(torch.autograd.Function):
    """Sums of messages, from what edges have and what nodes send."""

    @staticmethod
    def forward(ctx: Any, loops: _Loops, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.loops = loops
        ctx.save_for_backward(*inputs)
        return tuple(loops.sums(*inputs))

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
        return tuple(loops.gradients(tensors[:n], *tensors[n:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, n = ctx.saved_tensors, ctx.n
        results = ctx.loops.second_gradients(cotangents, tensors[:n], *tensors[n:])
        inputs, d_sums = results[:-n], results[-n:]
        return (None, None, *d_sums, None, None, *inputs)


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def _arguments(n_entries: int) -> type[ctypes.Structure]:
    """Return the type of `Arguments`."""
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in ("n_nodes", "n_edges", "n_threads")]
    fields += [(name, ctypes.c_void_p) for name in ("centers", "neighbors")]
    for name in (*INPUTS, *OUTPUTS):
        fields.append((name, ctypes.c_void_p * n_entries if name in BY_ENTRY else ctypes.c_void_p))
    return type("_Arguments", (ctypes.Structure,), {"_fields_": fields})
