"""The C++ of sums of messages for training: the loop along edges, its derivative, and the derivative of that.

All three come from the expressions that inference has (`ase_segnn.codegen.messages`), with functions of the distance as
arrays, since their weights are learned. Edges are in any order. Each thread has a share of them and sums of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.builder import Builder
from ase_segnn.codegen.cpp import c_type, preamble, statements, unique_names
from ase_segnn.codegen.derivative import gradient_array, gradients_of
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.geometry import starts_of_copies
from ase_segnn.codegen.interface import struct
from ase_segnn.codegen.messages import MessageShape, messages_of_edge
from ase_segnn.codegen.program import Loop, Store, loop_of
from ase_segnn.model.segnn import MessageNetwork

_SIZES = {"n_nodes": "int64_t", "n_edges": "int64_t", "n_threads": "int64_t"}
_INDICES = {"centers": "const int64_t*", "neighbors": "const int64_t*"}


class TrainingLoops(NamedTuple):
    """Three loops, and the arrays that they take.

    Parameters
    ----------
    of_edges : attributes, weights, what is added in the first layer, and the factors of the second
    sent, sums : per entry of the features
    values, first, second : the loops. The prefix d_ marks given gradients of sums, g_ gradients that a loop writes, and
        u_ given gradients of the latter
    tape : of the loops
    """

    of_edges: list[Array]
    sent: list[Array]
    sums: list[Array]
    values: Loop
    first: Loop
    second: Loop
    tape: Tape

    @property
    def loops(self) -> dict[str, Loop]:
        """The loops by the names of their functions."""
        return {"sum_messages": self.values, "first_derivatives": self.first, "second_derivatives": self.second}

    @property
    def arrays(self) -> list[Array]:
        """All arrays."""
        accesses = [access for loop in self.loops.values() for access in (*loop.reads, *loop.writes)]
        return list(dict.fromkeys(array for array, _ in accesses))

    @property
    def fields(self) -> dict[str, str]:
        """Fields of the struct that all loops take."""
        return _SIZES | _INDICES | {array.identifier: f"{c_type(array)}*" for array in self.arrays}


def training_loops(message: MessageNetwork) -> TrainingLoops:
    """Return the loops of messages of one shape.

    Parameters
    ----------
    message : its network has no `unsupported` part
    """
    shape = MessageShape(message)
    b = Builder(shape.channels)
    attributes = b.numbers("attributes", "edge", message.linear_1.irreps_attributes.dim)
    weights = b.numbers("weights", "edge")
    added = b.vectors("added", "edge", 1, shape.n_added)
    factors = b.vectors("factors", "edge", 1, shape.n_factors)
    sizes = list(zip(shape.irreps, shape.n_slots, shape.products, strict=True))
    sent = [b.vectors(f"sent_{ir}", "node", ir.dim, 2 * n) for (_, ir), n, _ in sizes]
    sums = [b.vectors(f"sums_{ir}", "node", ir.dim, len(paths)) for (_, ir), _, paths in sizes]
    components = b.read(attributes, at="edge")
    starts = starts_of_copies(message.linear_1.irreps_attributes)
    attribute = [components[start:end] for start, end in zip(starts, [*starts[1:], len(components)], strict=True)]

    def both(entry: int, slot: int) -> list[int]:
        n = shape.n_slots[entry]
        return b.add(b.read(sent[entry], slot, "center"), b.read(sent[entry], n + slot, "neighbor"))

    def function(k: int) -> int:
        array, slot = (added, k) if k < shape.n_added else (factors, k - shape.n_added)
        return b.read(array, slot, "edge")[0]

    messages = messages_of_edge(b, message, both, function, attribute, b.read(weights, at="edge")[0])
    values = [
        Store(array.leaf(m, k), x)
        for array, products in zip(sums, messages, strict=True)
        for k, product in enumerate(products)
        for m, x in enumerate(product)
    ]
    loop = loop_of(b.tape, "messages", "edges", values)
    first = _derivative(b.tape, loop, {array: gradient_array(array) for array in sums})
    inputs = [attributes, weights, added, factors, *sent]
    second = _derivative(b.tape, first, {gradient_array(x, "g_"): gradient_array(x, "u_") for x in inputs})
    return TrainingLoops([attributes, weights, added, factors], sent, sums, loop, first, second, b.tape)


def _derivative(tape: Tape, loop: Loop, cotangents: dict[Array, Array]) -> Loop:
    """Return the loop that stores the gradients of all that a loop reads, but for the gradients that it was given."""
    gradients = gradients_of(
        tape,
        loop,
        lambda leaf: tape.leaf(leaf._replace(array=cotangents[leaf.array])),
        lambda _: True,
    )
    stores = [Store(leaf._replace(array=gradient_array(leaf.array, "g_")), x) for leaf, x in gradients.items()]
    return loop_of(tape, f"{loop.name}_derivative", "edges", stores)


def training_source(loops: TrainingLoops, dtype: torch.dtype) -> str:
    """Return C++ of the three functions, whose argument is a struct with the `fields`."""
    parts = [preamble(dtype, loops.values.channels), struct("Arguments", loops.fields), '#include "edges.hpp"\n']
    return "\n".join([*parts, *(_function(loops.tape, name, loop) for name, loop in loops.loops.items())])


def _function(tape: Tape, name: str, loop: Loop) -> str:
    accesses = list(dict.fromkeys([*loop.reads, *loop.writes]))
    names, written = unique_names(accesses), set(loop.writes)
    rows = []
    for access in accesses:
        array, at = access
        row = "e" if at == "edge" else {"center": "i", "neighbor": "j"}[at]
        row = f"(n0 + {row})" if access in written and at != "edge" else row
        rows.append(f"{c_type(array)}* const {names[access]} = in.{array.identifier} + {row} * {array.stride};")
    inner = statements(tape, loop, names)
    channels = ["for (int c = 0; c < CHANNELS; c += LANES) {", *(f"  {line}" for line in inner.vectors), "}"]
    turn = [*rows, *inner.scalars, *channels, *inner.finish]
    lines = [
        f'extern "C" int64_t {name}(const Arguments* arguments) {{',
        "  return along_edges(*arguments, [](const Arguments& in, int64_t e, int64_t i, int64_t j, int64_t n0) {",
        *(f"    {line}" for line in turn),
        "  });",
        "}\n",
    ]
    return "\n".join(lines)
