"""Rules of the network: its features of elements, messages and layers, and the tables of functions of the distance."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ase_segnn.codegen.arrays import Array, At
from ase_segnn.codegen.builder import Builder, Feature, Features, filled
from ase_segnn.codegen.geometry import Geometry, starts_of_copies
from ase_segnn.codegen.layers import hidden, one_scalar
from ase_segnn.codegen.messages import MessageShape, Sent, messages_of_edge
from ase_segnn.codegen.program import Store
from ase_segnn.codegen.rules import build, builds
from ase_segnn.codegen.spline import spline_coefficients
from ase_segnn.model.potential import Potential
from ase_segnn.model.segnn import SEGNN, MessageNetwork
from ase_segnn.model.steerable import SteerableLinear

# Intervals of the splines of radial functions, for errors below those of rounding.
INTERVALS = {torch.float32: 128, torch.float64: 1024}
_SMALLEST = 1e-9  # Å, instead of the distance 0, where Bessel functions are 0 / 0


class Embedding(NamedTuple):
    """Features of the first layer: numbers of the atom's element times its attribute.

    Parameters
    ----------
    rows : per entry of the features (S, channels), None where they are zero
    starts : per entry, the first component of the attribute
    """

    rows: list[Tensor | None]
    starts: list[int]


def _needs(network: SEGNN) -> str | None:
    if not network.rounds:
        return "it has no messages"
    if not network.unit_scalar_attributes:
        return "scalars of its attributes may differ from 1"
    return None


@builds(SEGNN, unless=_needs)
def segnn(b: Builder, network: SEGNN, potential: Potential, geometry: Geometry) -> tuple[Array, Array]:
    """Return the array of the output, a number per atom, and that of the bias to be added."""
    embedding = _embedding(network.embedding, potential.one_hot)
    attribute = geometry.attribute(b, geometry.node_attributes)
    features: Features = []
    for (mul, ir), rows, start in zip(network.shapes[0].features_in, embedding.rows, embedding.starts, strict=True):
        components = [b.tape.constant(0)] * ir.dim
        if rows is not None:
            table = b.vectors(f"embedding_{ir}", "species", 1, 1)
            [row] = b.read(b.constant(table, filled(rows, [mul], b.channels)))
            components = _times_attribute(b, row, geometry.node_attributes, start, ir.dim, "center")
        features.append(Feature([components], [mul]))
    for t, layer in enumerate(network.rounds):
        with b.scope(f"layer_{t}"):
            for entry, (feature, (_, ir)) in enumerate(zip(features, network.shapes[t].features_in, strict=True)):
                array = b.stored(f"features_{ir}", feature)
                features[entry] = feature._replace(parts=[b.read(array)])
            summed = build(b, layer.message, features, potential, geometry, embedding if t == 0 else None)
            features = build(b, layer, features, summed, attribute)
    output = Array("", "output", "node", 1)
    with b.scope("readout"):
        inputs = hidden(b, network.readout, features, attribute)
        total = one_scalar(b, network.readout.linear_2, inputs, attribute)
        b.write(output, 0, [total])
        b.flush()
        bias = b.constant(b.numbers("bias", "once"), network.readout.linear_2.biases["0"])
    return output, bias


def _embedding(linear: SteerableLinear, one_hot: Tensor) -> Embedding:
    """Return the features that a layer makes of elements, before they are steered."""
    rows: list[Tensor | None] = []
    starts = []
    of_copy = starts_of_copies(linear.irreps_attributes)
    for o, (paths, weight) in enumerate(zip(linear.paths, linear.weights, strict=True)):
        assert len(paths) <= 1
        row = one_hot @ weight if paths else None
        rows.append(row + linear.biases[str(o)] if row is not None and str(o) in linear.biases else row)
        starts.append(of_copy[paths[0].copy] if paths else 0)
    return Embedding(rows, starts)


def _times_attribute(b: Builder, row: int, attributes: Array, start: int, n: int, at: At) -> list[int]:
    """Return numbers of an element times the components of an atom's attribute; the first component of all is 1."""
    if start == 0:
        return [row]
    return [b.tape.multiply(row, b.tape.leaf(attributes.leaf(start + m, at=at))) for m in range(n)]


def _needs_one_gate(message: MessageNetwork) -> str | None:
    if message.gate_1 is None or message.gate_2 is not None:
        return f"its messages have {'no gate' if message.gate_1 is None else 'two gates'}, and loops need one"
    return None


@builds(MessageNetwork, unless=_needs_one_gate)
def message_network(
    b: Builder,
    message: MessageNetwork,
    features: Features,
    potential: Potential,
    geometry: Geometry,
    embedding: Embedding | None,
) -> Features:
    """Sum messages, eqs. 3 and 4 of the paper; the weights of the second layer are still to be applied.

    In the first layer, what an atom sends are numbers of its element times its attribute.
    """
    shape = MessageShape(message)
    if embedding is None:
        sent = _projected(b, shape, features)
    else:
        sent = _of_elements(b, shape, embedding, geometry.node_attributes)
    n_functions = shape.n_added + shape.n_factors
    table = b.vectors("radial", "knot", 1, n_functions)
    b.constant(table, _splines(potential, message))
    [distance] = b.read(geometry.distances, at="edge")
    attribute = geometry.attribute(b, geometry.attributes, "edge")
    [weight] = b.read(geometry.weights, at="edge")
    sums = messages_of_edge(
        b, message, sent, lambda k: b.tape.spline(table.leaf(slot=k, at="edge"), distance), attribute, weight
    )
    stores, summed = [], []
    for entry, (products, (_, ir)) in enumerate(zip(sums, shape.irreps_out, strict=True)):
        array = b.vectors(f"sums_{ir}", "node", ir.dim, len(products))
        stores += [Store(array.leaf(m, k), x) for k, product in enumerate(products) for m, x in enumerate(product)]
        parts = [b.read(array, k) for k in range(len(products))]
        summed.append(Feature(parts, [shape.channels] * len(parts), shape.second_weights(message, entry)))
    b.edges("messages", stores)
    return summed


def _projected(b: Builder, shape: MessageShape, features: Features) -> Sent:
    """Project features to what atoms send as neighbors and as centers; no other atom needs the latter."""
    neighbors: list[Array] = []
    centers: list[Array] = []
    for name, arrays in (("neighbor", neighbors), ("center", centers)):
        for entry, (feature, (_, ir)) in enumerate(zip(features, shape.irreps, strict=True)):
            weights = shape.first_weights(entry + (len(features) if name == "neighbor" else 0))
            arrays.append(b.vectors(f"sent_by_{name}_{ir}", "node", ir.dim, shape.n_slots[entry]))
            source = b.stored(f"features_{ir}", feature)
            b.product(source, f"to_{name}_{ir}", b.rows(feature, weights), arrays[-1])
    return lambda entry, slot: b.add(b.read(centers[entry], slot), b.read(neighbors[entry], slot, "neighbor"))


def _of_elements(b: Builder, shape: MessageShape, embedding: Embedding, attributes: Array) -> Sent:
    """Make tables of what elements send, to be multiplied by attributes."""
    tables: list[Array | None] = []
    for entry, (rows, (_, ir)) in enumerate(zip(embedding.rows, shape.irreps, strict=True)):
        if rows is None:
            tables.append(None)
        else:
            table = b.vectors(f"sent_{ir}", "species", 1, 2 * shape.n_slots[entry])
            tables.append(b.constant(table, rows @ shape.both_first_weights(entry)))

    def sent(entry: int, slot: int) -> list[int]:
        table, n, start = tables[entry], shape.irreps[entry].ir.dim, embedding.starts[entry]
        if table is None:
            return [b.tape.constant(0)] * n
        [center], [neighbor] = b.read(table, slot, "center"), b.read(table, shape.n_slots[entry] + slot, "neighbor")
        return b.add(
            _times_attribute(b, center, attributes, start, n, "center"),
            _times_attribute(b, neighbor, attributes, start, n, "neighbor"),
        )

    return sent


def _splines(potential: Potential, message: MessageNetwork) -> Tensor:
    """Return coefficients of the functions of the distance, (intervals + 5, functions * C).

    The coefficients are linear in the functions, and so are those of the inner functions made into them. They are
    computed in float64, but for a program that learns: in the network's precision then, to be differentiated.
    """
    exact = message if torch.is_grad_enabled() else copy.deepcopy(message).double()
    shape, dtype = MessageShape(exact), exact.linear_1.weights[0].dtype

    def inner(distances: Tensor) -> Tensor:
        scalars, _ = potential.radial_functions(distances.where(distances != 0, _SMALLEST))
        return shape.inner_functions(exact, scalars.to(dtype))

    table = spline_coefficients(inner, potential.cutoff, INTERVALS[potential.dtype], potential.device)
    return shape.functions(exact, table).to(potential.dtype)
