"""Rules of the steerable layers at atoms: linear layers, gates, and what they make up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.builder import Builder, Feature, Features, filled
from ase_segnn.codegen.rules import build, builds
from ase_segnn.model.irreps import Irrep
from ase_segnn.model.products import NodeProducts
from ase_segnn.model.segnn import SEGNNLayer, SteerableMLP
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Gate, Path, SteerableLinear

Attribute = list[list[int]]  # components of each copy; those of a scalar, which is 1, are not used


@builds(SteerableLinear)
def steerable_linear(
    b: Builder, linear: SteerableLinear, inputs: Features, attribute: Attribute, numbers: Sequence[Sequence[int]]
) -> Features:
    """Products with weights on whichever side of the steering has fewer components.

    Parameters
    ----------
    b, linear : see `ase_segnn.codegen.rules.build`
    inputs : one feature per entry of the input
    attribute : that steers
    numbers : per entry of the output, the channels of each of its parts
    """
    outputs = [b.vectors(f"out_{o}", "node", ir.dim, len(numbers[o])) for o, (_, ir) in enumerate(linear.irreps_out)]
    _steer_inputs(b, linear, inputs, attribute, numbers, outputs)
    late = _project_inputs(b, linear, inputs, numbers)
    features = []
    for o, array in enumerate(outputs):
        nothing = [[b.tape.constant(0)] * array.components] * len(numbers[o])
        is_written = any(_is_early(path) for path in linear.paths[o])
        parts = [b.read(array, slot) for slot in range(len(numbers[o]))] if is_written else nothing
        if str(o) in linear.biases:
            rows = filled(linear.biases[str(o)], numbers[o], b.channels)
            bias = b.constant(b.vectors(f"bias_{o}", "once", 1, len(numbers[o])), rows)
            parts = [b.add(part, b.read(bias, slot)) for slot, part in enumerate(parts)]
        features.append(Feature(parts, numbers[o]))
    for ways, array in late:
        slot = 0
        for o, path in ways:
            for part, components in enumerate(features[o].parts):
                steered = b.steer(b.read(array, slot), attribute, path)
                features[o].parts[part] = b.add(components, steered)
                slot += 1
    return features


def _steer_inputs(
    b: Builder,
    linear: SteerableLinear,
    inputs: Features,
    attribute: Attribute,
    numbers: Sequence[Sequence[int]],
    outputs: Sequence[Array],
) -> None:
    """Write products of inputs that are steered before, or not at all."""
    sources = {
        path.entry_in: b.stored(f"in_{path.entry_in}", inputs[path.entry_in])
        for paths in linear.paths
        for path in paths
        if path.l_attribute == 0 or not _is_early(path)
    }
    steered: dict[int, tuple[Array, Tensor]] = {}
    for o, paths in enumerate(linear.paths):
        early = [path for path in paths if _is_early(path) and path.l_attribute > 0]
        parts = [b.steer(part, attribute, path) for path in early for part in inputs[path.entry_in].parts]
        if parts:
            array = b.vectors(f"steered_{o}", "node", outputs[o].components, len(parts))
            for slot, part in enumerate(parts):
                b.write(array, slot, part)
            rows = [b.rows(inputs[path.entry_in], linear.weights[o][path.rows]) for path in early]
            steered[o] = array, torch.cat(rows)
    for o, (paths, weight, target) in enumerate(zip(linear.paths, linear.weights, outputs, strict=True)):
        for path in paths:
            if path.l_attribute == 0:
                matrix = filled(b.rows(inputs[path.entry_in], weight[path.rows]), numbers[o], b.channels)
                b.product(sources[path.entry_in], f"{path.entry_in}_to_{o}", matrix, target)
        if o in steered:
            array, matrix = steered[o]
            b.product(array, f"steered_to_{o}", filled(matrix, numbers[o], b.channels), target)


def _project_inputs(
    b: Builder, linear: SteerableLinear, inputs: Features, numbers: Sequence[Sequence[int]]
) -> list[tuple[list[tuple[int, Path]], Array]]:
    """Write products of inputs that are steered afterwards; entries of one irrep are added before that."""
    groups: dict[Irrep, list[int]] = {}
    for entry, (_, ir) in enumerate(linear.irreps_in):
        groups.setdefault(ir, []).append(entry)
    late = []
    for ir, entries in groups.items():
        ways = [_late_ways(linear, entry) for entry in entries]
        if not ways[0]:
            continue
        array = b.vectors(f"projected_{ir}", "node", ir.dim, sum(len(numbers[o]) for o, _ in ways[0]))
        for entry, of_entry in zip(entries, ways, strict=True):
            columns = [filled(linear.weights[o][path.rows], numbers[o], b.channels) for o, path in of_entry]
            matrix = b.rows(inputs[entry], torch.cat(columns, dim=1))
            b.product(b.stored(f"in_{entry}", inputs[entry]), f"{entry}_projected", matrix, array)
        late.append((ways[0], array))
    return late


def _is_early(path: Path) -> bool:
    """Whether inputs are steered before the weights act, since there are fewer components afterwards."""
    return path.l_in >= path.l_out


def _late_ways(linear: SteerableLinear, entry: int) -> list[tuple[int, Path]]:
    paths = [(o, path) for o, to_one in enumerate(linear.paths) for path in to_one]
    return [(o, path) for o, path in paths if path.entry_in == entry and not _is_early(path)]


def _no_gate(module: Gate) -> str | None:
    has_scalars = any(ir == Irrep(0, 1) for _, ir in module.irreps_out)
    return None if has_scalars else f"its irreps, {module.irreps_out}, have no scalars"


@builds(Gate, unless=_no_gate)
def gate(b: Builder, module: Gate, inputs: Features) -> Features:
    """SiLU of scalars; everything else times the sigmoid of a scalar."""
    return gated(b, module, inputs, SILU_NORM, SIGMOID_NORM)


def gated(b: Builder, module: Gate, inputs: Features, silu_norm: float, sigmoid_norm: float) -> Features:
    """Return what a gate makes, with other constants."""
    tape, outputs, n_gated = b.tape, [], 0
    for mul, ir in module.irreps_out:
        if ir == Irrep(0, 1):
            [x] = inputs[0].parts[0]
            outputs.append(Feature([[tape.scale(silu_norm, tape.multiply(x, tape.sigmoid(x)))]], [mul]))
        else:
            n_gated += 1
            [x] = inputs[0].parts[n_gated]
            factor = tape.scale(sigmoid_norm, tape.sigmoid(x))
            outputs.append(Feature([[tape.multiply(y, factor) for y in inputs[n_gated].parts[0]]], [mul]))
    return outputs


def numbers_before(module: Gate) -> list[list[int]]:
    """Return the channels of each part of what a gate takes: scalars and one gate per other entry, then the latter."""
    gated = [mul for mul, ir in module.irreps_out if ir != Irrep(0, 1)]
    scalars = [mul for mul, ir in module.irreps_out if ir == Irrep(0, 1)]
    return [[*scalars, *gated], *([mul] for mul in gated)]


@builds(SteerableMLP)
def steerable_mlp(b: Builder, mlp: SteerableMLP, inputs: Features, attribute: Attribute) -> Features:
    """Two layers with a gate between them."""
    numbers = [[mul] for mul, _ in mlp.linear_2.irreps_out]
    inputs = hidden(b, mlp, inputs, attribute)
    with b.scope("second"):
        outputs: Features = build(b, mlp.linear_2, inputs, attribute, numbers)
    return outputs


def hidden(b: Builder, mlp: SteerableMLP, inputs: Features, attribute: Attribute) -> Features:
    """Return what the second layer takes."""
    with b.scope("first"):
        before: Features = build(b, mlp.linear_1, inputs, attribute, numbers_before(mlp.gate))
        after: Features = build(b, mlp.gate, before)
    return after


def one_scalar(b: Builder, linear: SteerableLinear, inputs: Features, attribute: Attribute) -> int:
    """Return the only output of a layer, to be summed over channels; its bias is not in it."""
    [paths], [weight] = linear.paths, linear.weights
    steered = [b.steer(inputs[path.entry_in].parts[0], attribute, path)[0] for path in paths]
    rows = torch.cat([b.rows(inputs[path.entry_in], weight[path.rows]) for path in paths])
    last = b.constant(b.vectors("last", "once", 1, len(paths)), rows.flatten())
    return b.tape.total([b.tape.multiply(x, b.read(last, slot)[0]) for slot, x in enumerate(steered)])


@builds(SEGNNLayer)
def segnn_layer(
    b: Builder, layer: SEGNNLayer, features: Features, messages: Features, attribute: Attribute
) -> Features:
    """Update, eq. 5 of the paper."""
    if layer.products is not None:
        messages = build(b, layer.products, messages)
    updates = build(b, layer.update, [*features, *messages], attribute)
    if layer.skip is None:
        return residual(b, features, updates)
    with b.scope("skip"):
        old = build(b, layer.skip, features, attribute, [[mul] for mul, _ in layer.skip.irreps_out])
    return residual(b, old, updates)


@builds(NodeProducts)
def node_products(b: Builder, products: NodeProducts, sums: Features) -> Features:
    """All orders, in one loop over atoms after the matrices of the sums."""
    scale, tape = products.scale, b.tape
    first = {}
    for entry, (feature, (_, ir)) in enumerate(zip(sums, products.irreps, strict=True)):
        assert feature.mix is not None
        first[entry] = b.mixed(f"gathered_{ir}", feature._replace(mix=feature.mix * scale[0, entry]))
    numbers, sums_of = first[0].numbers, {entry: x.parts[0] for entry, x in first.items()}
    if products.bounded:
        squares = tape.total([tape.multiply(x, x) for components in sums_of.values() for x in components])
        under = tape.add(tape.constant(1), tape.scale(products.per_bound, squares))
        factor = tape.divide(tape.constant(1), tape.sqrt(under))
        sums_of = {entry: [tape.multiply(x, factor) for x in components] for entry, components in sums_of.items()}
    orders = [sums_of]
    for order, (paths, weights) in enumerate(zip(products.paths, products.weights, strict=True), 1):
        scales = scale[order, [path.entry_out for path in paths]]
        rows = filled(weights * scales[:, None], numbers, b.channels)
        table = b.constant(b.vectors(f"path_weights_{order + 1}", "once", 1, len(paths)), rows.flatten())
        made: dict[int, list[int]] = {}
        for slot, path in enumerate(paths):
            coupled = b.couple(
                orders[-1][path.entry], orders[0][path.entry_of_sums], products.irreps[path.entry_out].ir.l
            )
            [weight] = b.read(table, slot)
            weighted = [tape.multiply(weight, x) for x in coupled]
            so_far = made.get(path.entry_out)
            made[path.entry_out] = weighted if so_far is None else b.add(so_far, weighted)
        orders.append(made)
    return [
        Feature([order[entry]], numbers)
        for order, kept in zip(orders, products.returned, strict=True)
        for entry in kept
    ]


def residual(b: Builder, old: Features, updates: Features) -> Features:
    """Return the sums of features and their updates."""
    return [
        Feature([b.add(x, y) for x, y in zip(before.parts, update.parts, strict=True)], before.numbers)
        for before, update in zip(old, updates, strict=True)
    ]
