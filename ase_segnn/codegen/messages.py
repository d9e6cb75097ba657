"""The rule of messages: what happens along edges works channel by channel, with all weights at atoms.

What an atom sends is projected by the weights of the first layer (`ase_segnn.model.segnn.MessageNetwork`), once as a
center and once as a neighbor. Along an edge both are added, steered, gated, multiplied by functions of the distance and
steered again; the weights of the second layer act on the sums. The functions of the distance are, C channels each: what
the message scalars add to what even scalars send, then one factor per product of the second layer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

from ase_segnn.codegen.builder import Builder, Feature, channels_of, filled
from ase_segnn.codegen.layers import Attribute, gated, numbers_before
from ase_segnn.model.irreps import Irrep, Irreps
from ase_segnn.model.segnn import MessageNetwork
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Path

Sent = Callable[[int, int], list[int]]  # (entry, slot) -> components of what center and neighbor send together


class MessageShape:
    """Sizes of what goes along edges.

    In a network of 64x0e+64x1o with attributes l <= 1, scalars go three ways in the first layer: to the 2 x 64 scalars
    and gates, and to the vectors. What they send then has 3 slots of C = 64 channels, and vectors likewise.

    Parameters
    ----------
    message : with one gate

    Attributes
    ----------
    channels : C
    irreps, hidden, irreps_out : of the features, between both layers, and of the messages
    ways : per entry of the features, the products of the first layer that start from it
    n_slots : per entry, the slots of what is sent
    n_added, n_factors : functions of the distance
    """

    def __init__(self, message: MessageNetwork) -> None:
        assert message.gate_1 is not None
        self._linear = message.linear_1
        self.hidden, self.irreps_out = message.linear_2.irreps_in, message.linear_2.irreps_out
        self.irreps = Irreps(message.linear_1.irreps_in[: (len(message.linear_1.irreps_in) - 1) // 2])
        self.numbers = [mul for mul, _ in self.hidden]
        self.channels = channels_of(self.numbers)
        self.before_gate = numbers_before(message.gate_1)
        n = len(self.irreps)
        self.ways = [self._ways(entry) for entry in range(n)]
        self.n_slots = [sum(len(self.before_gate[o]) for o, _ in ways) for ways in self.ways]
        self.scalars = [ir for _, ir in self.irreps].index(Irrep(0, 1))
        self.products = message.linear_2.paths
        self.n_added = self.n_slots[self.scalars]
        self.n_factors = sum(map(len, self.products))

    def first_weights(self, entry: int) -> Tensor:
        """Return the weights of all products that start from an entry of the first layer's input, (mul, slots * C).

        Entries are those of the centers, those of the neighbors, and the message scalars.
        """
        weights = self._linear.weights
        columns = [filled(weights[o][path.rows], self.before_gate[o], self.channels) for o, path in self._ways(entry)]
        return torch.cat(columns, dim=1)

    def both_first_weights(self, entry: int) -> Tensor:
        """Return the weights of an entry of the features, as a center and then as a neighbor: (mul, 2 * slots * C)."""
        return torch.cat([self.first_weights(entry), self.first_weights(len(self.irreps) + entry)], dim=1)

    def second_weights(self, message: MessageNetwork, entry: int) -> Tensor:
        """Return the weights that act on the sums of an entry, (products * C, mul)."""
        numbers = [self.numbers[path.entry_in] for path in self.products[entry]]
        return filled(message.linear_2.weights[entry].T, numbers, self.channels).T

    def inner_functions(self, message: MessageNetwork, scalars: Tensor) -> Tensor:
        """Return what all functions of the distance are linear in, (E, n), from the message scalars (E, n_scalars)."""
        if message.weights is None:
            return scalars
        hidden = scalars
        for layer in list(message.weights)[:-1]:
            hidden = layer(hidden)
        return torch.cat([scalars, hidden], dim=1)

    def functions(self, message: MessageNetwork, inner: Tensor) -> Tensor:
        """Return the functions of the distance from the inner ones: what is added, then the factors, (E, ... * C).

        The factors have the constants of the gate in them.
        """
        bias = filled(message.linear_1.biases["0"], self.before_gate[0], self.channels)
        slots = [(o, len(self.before_gate[o]) * self.channels) for o, _ in self.ways[self.scalars]]
        biases = torch.cat([bias if o == 0 else bias.new_zeros(n) for o, n in slots])
        weights = self.first_weights(2 * len(self.irreps))
        added = torch.addmm(biases, inner[:, : len(weights)], weights)
        entries = [path.entry_in for paths in self.products for path in paths]
        norms = [SILU_NORM if self.hidden[entry].ir == Irrep(0, 1) else SIGMOID_NORM for entry in entries]
        constants = bias.new_tensor(norms).repeat_interleave(self.channels)
        if message.weights is None:
            return torch.cat([added, constants.expand(len(inner), -1)], dim=1)
        last = message.weights[-1]
        assert isinstance(last, nn.Linear)
        numbers = [self.numbers[entry] for entry in entries]
        weight, last_bias = (filled(x, numbers, self.channels) for x in (last.weight.T, last.bias))
        factors = torch.addmm(constants * last_bias, inner[:, len(weights) :], constants * weight)
        return torch.cat([added, factors], dim=1)

    def _ways(self, entry_in: int) -> list[tuple[int, Path]]:
        paths = [(o, path) for o, to_one in enumerate(self._linear.paths) for path in to_one]
        return [(o, path) for o, path in paths if path.entry_in == entry_in]


def messages_of_edge(
    b: Builder, message: MessageNetwork, sent: Sent, function: Callable[[int], int], attribute: Attribute, weight: int
) -> list[list[list[int]]]:
    """Return what an edge adds to the sums: per entry and product, the components.

    Parameters
    ----------
    b, message : see `ase_segnn.codegen.rules.build`
    sent : what center and neighbor send
    function : of the distance, by its number
    attribute, weight : of the edge
    """
    shape = MessageShape(message)
    outputs = [
        Feature([[b.tape.constant(0)] * ir.dim for _ in parts], parts)
        for (_, ir), parts in zip(message.linear_1.irreps_out, shape.before_gate, strict=True)
    ]
    numbers = count()
    for entry, ways in enumerate(shape.ways):
        slot = 0
        for o, path in ways:
            for part, components in enumerate(outputs[o].parts):
                inputs = sent(entry, slot)
                if entry == shape.scalars:
                    inputs = [b.tape.add(inputs[0], function(next(numbers)))]
                outputs[o].parts[part] = b.add(components, b.steer(inputs, attribute, path))
                slot += 1
    assert message.gate_1 is not None
    hidden = gated(b, message.gate_1, outputs, 1, 1)  # its constants are in the factors
    sums: list[list[list[int]]] = []
    for paths in shape.products:
        sums.append([])
        for path in paths:
            factor = b.tape.multiply(weight, function(next(numbers)))
            inputs = [b.tape.multiply(factor, x) for x in hidden[path.entry_in].parts[0]]
            sums[-1].append(b.steer(inputs, attribute, path))
    return sums
