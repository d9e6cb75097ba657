"""What the loops along edges work on: which networks have them, and where their arrays have what."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ase_segnn.model.irreps import Irreps
from ase_segnn.model.segnn import MessageNetwork
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Path, SteerableLinear

_FEWEST_LANES = 4  # of vectors; shorter ones are no gain


def why_not_along_edges(messages: MessageNetwork) -> str | None:
    """Say why these messages are no loops along edges that work channel by channel, or None if they are."""
    device = messages.linear_1.weights[0].device
    if device.type != "cpu":
        return f"it is on {device}, compiled C++ is for a CPU"
    if messages.gate_1 is None or messages.gate_2 is not None:
        return f"its messages have {'no gate' if messages.gate_1 is None else 'two gates'}, and loops need one"
    return None


def has_equal_channels(irreps: Irreps) -> bool:
    """Whether all irreps have the same number of channels, a multiple of 4."""
    return len({mul for mul, _ in irreps}) == 1 and irreps[0].mul % _FEWEST_LANES == 0


def why_no_loops(messages: MessageNetwork) -> str | None:
    """Say why there are no loops along edges for a network with these messages as they are, or None if there are."""
    irreps = messages.linear_2.irreps_in
    if not has_equal_channels(irreps):
        return f"the channels of its irreps, {irreps}, are not equal in number and a multiple of {_FEWEST_LANES}"
    return why_not_along_edges(messages)


class Layout:
    """Where everything is: the products of both layers, their slots and their functions of the distance.

    The functions of the distance are, C channels each: what the message scalars add to the slots of the even scalars,
    then one factor per product of the second layer.
    """

    def __init__(self, messages: MessageNetwork, embedding: SteerableLinear) -> None:
        self._linear_1 = messages.linear_1
        self.irreps_first = messages.linear_1.irreps_out
        self.hidden = messages.linear_2.irreps_in
        self.channels: int = self.hidden[0].mul
        self.dims = [ir.dim for _, ir in self.hidden]
        self.scalars = [str(ir) for _, ir in self.hidden].index("0e")
        self.first = [self.ways(entry) for entry in range(len(self.hidden))]
        self.n_slots = [sum(self.n_parts(o) for o, _ in ways) for ways in self.first]
        self.second = messages.linear_2.paths
        self.n_products = [len(paths) for paths in self.second]
        self.n_functions = self.n_slots[self.scalars] + sum(self.n_products)
        copies = [ir for mul, ir in self._linear_1.irreps_attributes for _ in range(mul)]
        self.starts = [sum(ir.dim for ir in copies[:k]) for k in range(len(copies))]
        self.degrees = [ir.l for ir in copies for _ in range(ir.dim)]  # of each component of the attribute
        # first component of the attribute that is in the features of the first layer, per entry; None where those are 0
        ways = [paths[0] if paths else None for paths in embedding.paths]
        self.embedded = [None if path is None else self.starts[path.copy] for path in ways]

    def ways(self, entry_in: int) -> list[tuple[int, Path]]:
        """Products of the first layer that start from an entry of its input, with the entries that they lead to."""
        paths = enumerate(self._linear_1.paths)
        return [(o, path) for o, to_one in paths for path in to_one if path.entry_in == entry_in]

    def n_parts(self, entry_out: int) -> int:
        """Slots of a product that leads to an entry of the first layer's output."""
        n_channels: int = self._linear_1.irreps_out[entry_out].mul
        return n_channels // self.channels

    @property
    def species_offsets(self) -> tuple[list[list[int]], int]:
        """Where a row of the table of species has what centers, then neighbors send, per entry; and its length."""
        offsets: list[list[int]] = []
        n = 0
        for _ in range(2):
            offsets.append([])
            for start, n_slots in zip(self.embedded, self.n_slots, strict=True):
                offsets[-1].append(n)
                n += 0 if start is None else n_slots * self.channels
        return offsets, n

    def first_weights(self, entry_in: int) -> Tensor:
        """Weights of all products that start from an entry of the first layer's input, side by side."""
        return torch.cat([self._linear_1.weights[o][path.rows] for o, path in self.ways(entry_in)], dim=1)


def slot_offset(layout: Layout, key: tuple[int, int, int], side: int) -> int:
    """Where the row of a node has what it sends as a center (0) or as a neighbor (1); the key is that of `centers`."""
    entry, m, slot = key
    return ((2 * m + side) * layout.n_slots[entry] + slot) * layout.channels


def product_offset(layout: Layout, key: tuple[int, int, int]) -> int:
    """Where the row of a node has a sum of messages; the key is that of `sums`."""
    entry, m, product = key
    return (m * layout.n_products[entry] + product) * layout.channels


def row_pointers(layout: Layout, name: str, array: str, row: str, sizes: list[int], factor: int) -> list[str]:
    """C++ statements for pointers to the row of an atom in each of the arrays of hidden entries."""
    return [
        f"{name}{entry} = {array}[{entry}] + {row} * {dim * factor * size * layout.channels};"
        for entry, (dim, size) in enumerate(zip(layout.dims, sizes, strict=True))
    ]


def edge_functions(layout: Layout, messages: MessageNetwork, scalars: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the message scalars (E, n) add in the first layer, and the factors of the second, (E, ... * C) each.

    In the order of `Layout`; the factors have the constants of the gate in them.
    """
    bias = messages.linear_1.biases["0"]
    slots = [(o, layout.n_parts(o) * layout.channels) for o, _ in layout.first[layout.scalars]]
    biases = torch.cat([bias if o == 0 else bias.new_zeros(n) for o, n in slots])
    added = torch.addmm(biases, scalars, layout.first_weights(2 * len(layout.hidden)))
    entries = [path.entry_in for paths in layout.second for path in paths]
    norms = [SILU_NORM if entry == layout.scalars else SIGMOID_NORM for entry in entries]
    constants = bias.new_tensor(norms).repeat_interleave(layout.channels)
    if messages.weights is None:
        return added, constants.expand(len(scalars), -1)
    *hidden, last = messages.weights
    assert isinstance(last, nn.Linear)
    for module in hidden:
        scalars = module(scalars)
    return added, torch.addmm(constants * last.bias, scalars, (constants[:, None] * last.weight).T)
