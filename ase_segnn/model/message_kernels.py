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
from string import Template
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ase_segnn.model.cpp import load_cpp
from ase_segnn.model.edge_source import EdgeExpressions, Layout, why_no_loops
from ase_segnn.model.expressions import Tape
from ase_segnn.model.native_templates import prelude
from ase_segnn.model.segnn import SEGNN, Edges, MessageNetwork
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Features

# Arrays of nodes have a row per node and, where they are results, one set of rows per thread; `sent` and `sums` are
# pointers to one array per entry of the hidden irreps.
_OF_EDGES = ("attributes", "weights", "added", "factors")
_INPUTS = (*_OF_EDGES, "sent", "d_sums", *(f"u_{name}" for name in _OF_EDGES), "u_sent")
_OUTPUTS = ("sums", *(f"g_{name}" for name in _OF_EDGES), "g_sent", "g_d_sums")
_BY_ENTRY = {"sent", "d_sums", "u_sent", "sums", "g_sent", "g_d_sums"}

_SOURCE = Template(r"""
struct Arguments {
  int64_t n_nodes, n_edges, n_threads;
  const int64_t *centers, *neighbors;
$pointers
};
// functions of an edge: those that are added in the first layer, then the factors of the second
#define function(added, factors, f) ((f) < $n_added ? added + (f) * $channels : factors + ((f) - $n_added) * $channels)
#define radial(f) load(function(added, factors, f) + c)
""")

_LOOP = Template(r"""
extern "C" void $name(const Arguments* p) {
  const Arguments& g = *p;
  #pragma omp parallel num_threads(g.n_threads)
  {
    const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
    const int64_t last = g.n_edges * (thread + 1) / n_threads, n0 = g.n_nodes * thread;
    (void)n0;
    for (int64_t e = g.n_edges * thread / n_threads; e < last; ++e) {
      const int64_t i = g.centers[e], j = g.neighbors[e];
      const T* a = g.attributes + e * $n_attributes;
      const T* added = g.added + e * $n_added * $channels;
      const T* factors = g.factors + e * $n_factors * $channels;
      const T weight = g.weights[e];
      $rows
      $scalars
      for (int c = 0; c < $channels; c += LANES) {
        $vectors
      }
      $finish
    }
  }
}
""")


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
        weights = torch.ones_like(edges.steering.attributes[:, 0]) if edges.weights is None else edges.weights
        of_edges = (edges.steering.attributes, weights, *self._functions(edges))
        indices = edges.centers, edges.neighbors
        sums = _Sums.apply(self._loops, *indices, *of_edges, *sent)  # type: ignore[no-untyped-call]
        outputs = [x @ weight for x, weight in zip(sums, message.linear_2.weights, strict=True)]
        return tuple(outputs)

    def _functions(self, edges: Edges) -> tuple[Tensor, Tensor]:
        """Functions of the message scalars: those that are added in the first layer, and the factors of the second."""
        layout, message = self._layout, self._message
        scalars = edges.scalars
        assert scalars is not None
        assert message.weights is not None
        bias = message.linear_1.biases["0"]
        slots = [(o, layout.n_parts(o) * layout.channels) for o, _ in layout.first[layout.scalars]]
        biases = torch.cat([bias if o == 0 else bias.new_zeros(n) for o, n in slots])
        added = torch.addmm(biases, scalars, layout.first_weights(2 * len(layout.hidden)))
        entries = [path.entry_in for paths in layout.second for path in paths]
        norms = [SILU_NORM if entry == layout.scalars else SIGMOID_NORM for entry in entries]
        factors = bias.new_tensor(norms).repeat_interleave(layout.channels)
        *hidden, last = message.weights
        assert isinstance(last, nn.Linear)
        x = scalars
        for module in hidden:
            x = module(x)
        return added, torch.addmm(factors * last.bias, x, (factors[:, None] * last.weight).T)


class _Loops:
    """The compiled loops: values, first derivatives, and the derivatives of these.

    Parameters
    ----------
    layout : of the arrays
    dtype : of all of them
    """

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._sent_widths = [2 * dim * n * layout.channels for dim, n in zip(layout.dims, layout.n_slots, strict=True)]
        self._sums_widths = [dim * n * layout.channels for dim, n in zip(layout.dims, layout.n_products, strict=True)]
        self.dims = layout.dims
        self._arguments = _arguments(len(layout.dims))
        self._library = load_cpp(prelude(dtype, layout.channels) + _source(layout))

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
        return [*(results[f"g_{name}"] for name in _OF_EDGES), *self._added(results["g_sent"])]

    def second_gradients(self, cotangents: Sequence[Tensor], d_sums: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        """Gradients of what edges have, of what nodes send, and of `d_sums`, from those of `gradients`."""
        n = len(_OF_EDGES)
        arrays = {**self._inputs(inputs), "d_sums": _flat(d_sums), "u_sent": _flat(cotangents[n:])}
        arrays |= {f"u_{name}": x.contiguous() for name, x in zip(_OF_EDGES, cotangents[:n], strict=True)}
        results = self._edge_results(inputs)
        results["g_sent"] = self._node_results(inputs, self._sent_widths)
        results["g_d_sums"] = self._node_results(inputs, self._sums_widths)
        self._call("second_derivatives", arrays, results)
        nodes = [*self._added(results["g_sent"]), *self._added(results["g_d_sums"])]
        return [*(results[f"g_{name}"] for name in _OF_EDGES), *nodes]

    def _inputs(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        names = ("centers", "neighbors", *_OF_EDGES)
        found: dict[str, Any] = {name: x.contiguous() for name, x in zip(names, inputs, strict=False)}
        return {**found, "sent": _flat(inputs[len(names) :])}

    def _edge_results(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        attributes, *others = inputs[2 : 2 + len(_OF_EDGES)]  # the scalar of an attribute has no gradient
        results = [torch.zeros_like(attributes), *(torch.empty_like(x) for x in others)]
        return {f"g_{name}": x for name, x in zip(_OF_EDGES, results, strict=True)}

    def _node_results(self, inputs: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        n_nodes = inputs[-1].shape[0]
        return [torch.zeros(torch.get_num_threads(), n_nodes, width, dtype=self._dtype) for width in widths]

    def _added(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Add what the threads have found: (N, 2l+1, n)."""
        totals = [x[0] if len(x) == 1 else x.sum(0) for x in results]
        return [x.unflatten(1, (dim, -1)) for x, dim in zip(totals, self.dims, strict=True)]

    def _call(self, name: str, arrays: dict[str, Any], results: dict[str, Any]) -> None:
        arguments = self._arguments()
        arguments.n_edges, arguments.n_threads = len(arrays["centers"]), torch.get_num_threads()
        arguments.n_nodes = arrays["sent"][0].shape[0]
        for key, value in {**arrays, **results}.items():
            if isinstance(value, Tensor):
                setattr(arguments, key, value.data_ptr())
            else:
                for entry, tensor in enumerate(value):
                    getattr(arguments, key)[entry] = tensor.data_ptr()
        getattr(self._library, name)(ctypes.byref(arguments))


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
        gradients = _Gradients.apply(ctx.loops, len(d_sums), *tensors)  # type: ignore[no-untyped-call]
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
    for name in (*_INPUTS, *_OUTPUTS):
        fields.append((name, ctypes.c_void_p * n_entries if name in _BY_ENTRY else ctypes.c_void_p))
    return type("_Arguments", (ctypes.Structure,), {"_fields_": fields})


def _source(layout: Layout) -> str:
    n = len(layout.dims)
    pointers = [
        f"  {'const ' * (name in _INPUTS)}T* {name}{f'[{n}]' * (name in _BY_ENTRY)};" for name in (*_INPUTS, *_OUTPUTS)
    ]
    common: dict[str, Any] = {
        "channels": layout.channels,
        "n_attributes": len(layout.degrees),
        "n_added": layout.n_slots[layout.scalars],
        "n_factors": sum(layout.n_products),
    }
    loops = {
        "sum_messages": _values(layout),
        "first_derivatives": _first_derivatives(layout),
        "second_derivatives": _second_derivatives(layout),
    }
    return _SOURCE.substitute(common, pointers="\n".join(pointers)) + "".join(
        _LOOP.substitute(common | parts, name=name) for name, parts in loops.items()
    )


def _values(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    scalars, vectors = tape.statements(list(edge.sums.values()))
    vectors += [f"add_to({_sum(layout, 's', key)}, V{{}} + {tape.name(x)});" for key, x in edge.sums.items()]
    return _parts(_sent_rows(layout) + _sum_rows(layout, "s", "sums"), scalars, vectors, [])


def _first_derivatives(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    d_sums = _d_sums(layout, tape, edge)
    results = _gradients(layout, tape, edge, list(edge.sums.values()), d_sums)
    rows = _sent_rows(layout) + _sum_rows(layout, "ds", "d_sums")
    return _derivatives(layout, tape, edge, rows, *results)


def _second_derivatives(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    d_sums = _d_sums(layout, tape, edge)
    inputs = _inputs(layout, edge)
    first = tape.backward(list(edge.sums.values()), d_sums, inputs)
    # cotangents in the order of `_inputs`; what center and neighbor send is added, so both have the same gradient
    cotangents = []
    for entry, m, slot in edge.centers:
        offset = _slot_offset(layout, (entry, m, slot))
        at_center, at_neighbor = (
            tape.load(f"load(u{x}{entry} + {offset[side]} + c)", vector=True) for side, x in enumerate("pq")
        )
        cotangents.append(tape.add(at_center, at_neighbor))
    cotangents += [tape.load(f"ua[{k}]", vector=False) for k in _varying(layout)]
    cotangents += [tape.load("g.u_weights[e]", vector=False)]
    cotangents += [
        tape.load(f"load(function(u_added, u_factors, {f}) + c)", vector=True) for f in range(len(edge.radial))
    ]
    both = tape.backward(first, cotangents, [*inputs, *d_sums])
    scalars, vectors = tape.statements(both)
    rows = _sent_rows(layout) + _sum_rows(layout, "ds", "d_sums")
    for name, node in (("up", "i"), ("uq", "j")):
        rows += _rows(layout, f"const T* {name}", "u_sent", node, layout.n_slots, 2)
    rows += [f"const T* ua = g.u_attributes + e * {len(layout.degrees)};"]
    rows += _function_rows(layout, "const T* u_")
    rows += _sum_rows(layout, "gs", "g_d_sums")
    names = [tape.name(x) for x in both[len(inputs) :]]
    vectors += [
        f"add_to({_sum(layout, 'gs', key)}, V{{}} + {name});" for key, name in zip(edge.sums, names, strict=True)
    ]
    return _derivatives(layout, tape, edge, rows, both[: len(inputs)], scalars, vectors)


def _gradients(
    layout: Layout, tape: Tape, edge: EdgeExpressions, outputs: list[int], cotangents: list[int]
) -> tuple[list[int], list[str], list[str]]:
    """Differentiate by `_inputs`; also return the statements that compute the derivatives."""
    found = tape.backward(outputs, cotangents, _inputs(layout, edge))
    return found, *tape.statements(found)


def _derivatives(
    layout: Layout,
    tape: Tape,
    edge: EdgeExpressions,
    rows: list[str],
    gradients: list[int],
    scalars: list[str],
    vectors: list[str],
) -> dict[str, str]:
    """Parts of a loop that stores gradients of `_inputs`."""
    names = iter([tape.name(x) for x in gradients])
    rows, vectors, finish = list(rows), list(vectors), []
    for name, node in (("gp", "i"), ("gq", "j")):
        rows += _rows(layout, f"T* {name}", "g_sent", f"(n0 + {node})", layout.n_slots, 2)
    rows += [f"T* ga = g.g_attributes + e * {len(layout.degrees)};"]
    rows += _function_rows(layout, "T* g_")
    for key in edge.centers:
        gradient = next(names)
        offset = _slot_offset(layout, key)
        for side, x in enumerate("pq"):
            vectors.append(f"add_to(g{x}{key[0]} + {offset[side]} + c, V{{}} + {gradient});")
    for k in _varying(layout):
        rows.append(f"V va{k} = {{}};")
        vectors.append(f"va{k} += {next(names)};")
        finish.append(f"ga[{k}] = sum(va{k});")
    rows.append("V vw = {};")
    vectors.append(f"vw += {next(names)};")
    finish.append("g.g_weights[e] = sum(vw);")
    for f in range(len(edge.radial)):
        vectors.append(f"store(function(g_added, g_factors, {f}) + c, V{{}} + {next(names)});")
    return _parts(rows, scalars, vectors, finish)


def _inputs(layout: Layout, edge: EdgeExpressions) -> list[int]:
    """List what is differentiated by: what is sent, attributes but for the scalar, weight, functions."""
    return [*edge.centers.values(), *(edge.attributes[k] for k in _varying(layout)), edge.weight, *edge.radial]


def _varying(layout: Layout) -> list[int]:
    return [k for k, degree in enumerate(layout.degrees) if degree > 0]


def _d_sums(layout: Layout, tape: Tape, edge: EdgeExpressions) -> list[int]:
    return [tape.load(f"load({_sum(layout, 'ds', key)})", vector=True) for key in edge.sums]


def _sent_rows(layout: Layout) -> list[str]:
    return [
        line
        for name, node in (("p", "i"), ("q", "j"))
        for line in _rows(layout, f"const T* {name}", "sent", node, layout.n_slots, 2)
    ]


def _sum_rows(layout: Layout, name: str, array: str) -> list[str]:
    is_input = array in _INPUTS
    node = "i" if is_input else "(n0 + i)"
    return _rows(layout, f"{'const ' * is_input}T* {name}", array, node, layout.n_products, 1)


def _rows(layout: Layout, name: str, array: str, node: str, sizes: list[int], factor: int) -> list[str]:
    """Pointers to the row of a node in each of the arrays of hidden entries."""
    return [
        f"{name}{entry} = g.{array}[{entry}] + {node} * {dim * factor * size * layout.channels};"
        for entry, (dim, size) in enumerate(zip(layout.dims, sizes, strict=True))
    ]


def _function_rows(layout: Layout, name: str) -> list[str]:
    """Pointers to the rows of an edge in the two arrays of functions."""
    sizes = {"added": layout.n_slots[layout.scalars], "factors": sum(layout.n_products)}
    prefix = name.rsplit(maxsplit=1)[-1]
    return [f"{name}{x} = g.{prefix}{x} + e * {n * layout.channels};" for x, n in sizes.items()]


def _slot_offset(layout: Layout, key: tuple[int, int, int]) -> tuple[int, int]:
    """Where in a row is what a center, and what a neighbor sends."""
    entry, m, slot = key
    at_center, at_neighbor = (((2 * m + side) * layout.n_slots[entry] + slot) * layout.channels for side in range(2))
    return at_center, at_neighbor


def _sum(layout: Layout, name: str, key: tuple[int, int, int]) -> str:
    entry, m, product = key
    return f"{name}{entry} + {(m * layout.n_products[entry] + product) * layout.channels} + c"


def _parts(rows: list[str], scalars: list[str], vectors: list[str], finish: list[str]) -> dict[str, str]:
    indents = {"rows": 6, "scalars": 6, "vectors": 8, "finish": 6}
    lines = {"rows": rows, "scalars": scalars, "vectors": vectors, "finish": finish}
    return {name: ("\n" + " " * indents[name]).join(lines[name]) for name in indents}
