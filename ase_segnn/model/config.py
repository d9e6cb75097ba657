"""Configuration of a potential: its physics and the shape of its network, everything but the weights."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Annotated

from ase.data import atomic_numbers
from pydantic import Field, field_validator, model_validator

from ase_segnn.configuration import Configuration
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.segnn import Round

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]

_MOST_PAIRS = 10  # of elements, in a listing
_MOST_ELEMENTS = 10  # in a listing


class NetworkConfig(Configuration):
    """Shape of the network of a potential, a choice of accuracy against cost.

    Parameters
    ----------
    cutoff : Å, at most 50; atoms further apart exchange no messages
    irreps_hidden : channels of the features per degree and parity. With products, messages have as many channels of
        each degree as the widest entry
    l_max_attributes : highest degree of the edge attributes, which steer messages
    l_max_node_attributes : highest degree of the node attributes, which steer updates and readout; default:
        `l_max_attributes`, with products 0
    n_layers : rounds of messages
    correlation : highest order of the products of sums of messages, see `ase_segnn.model.products.NodeProducts`. Order
        2 knows pairs of neighbors, order 3 triples. 1: no products, and the same irreps in every round. With products,
        features are scalars of the element before the first round and scalars after the last one, node attributes are
        of degree 0, and parities are the natural ones, 0e, 1o, 2e and so on
    bounded_products : keep products bounded in structures denser than those of the training, see
        `ase_segnn.model.products.NodeProducts`
    l_max_messages : highest degree of the messages and their sums, with products; at most and by default
        `l_max_attributes`
    l_max_hidden : highest degree between both layers of a message, with products and from the second round on; default:
        1. The first round has scalars there, so that a network of one layer has no such degree
    n_radial : number of radial basis functions
    radial_hidden : widths of the hidden layers between radial basis and weights of the messages' products
    gated_messages : a gate after both message layers, not only after the first; see `ase_segnn.model.segnn.SEGNN`
    envelope_power : `p` of `ase_segnn.model.radial.polynomial_envelope`
    """

    cutoff: Annotated[PositiveFloat, Field(le=50)] = 5.0  # 10,000 neighbors and more are a slip of the pen
    irreps_hidden: str = "64x0e+64x1o"
    l_max_attributes: Annotated[int, Field(ge=1, le=6)] = 2
    l_max_node_attributes: Annotated[int, Field(ge=0)] | None = None
    n_layers: PositiveInt = 2
    correlation: Annotated[int, Field(ge=1, le=4)] = 3
    bounded_products: bool = True
    l_max_messages: Annotated[int, Field(ge=0)] | None = None
    l_max_hidden: Annotated[int, Field(ge=0)] | None = None
    n_radial: PositiveInt = 8
    radial_hidden: tuple[PositiveInt, ...] = (64, 64)
    gated_messages: bool = False
    envelope_power: Annotated[int, Field(ge=3)] = 6

    @field_validator("irreps_hidden")
    @classmethod
    def _check_irreps(cls, value: str) -> str:
        irreps = Irreps(value)
        if not any(mul and ir == (0, 1) for mul, ir in irreps):
            raise ValueError(f"{value!r} has no even scalars '0e', and an energy is one")
        if len({ir for _, ir in irreps}) != len(irreps):
            raise ValueError(f"{value!r} names an irrep twice")
        return value

    @model_validator(mode="after")
    def _check_degrees(self) -> NetworkConfig:
        if self.correlation == 1:
            self._check_without_products()
        else:
            self._check_with_products()
        if self.degree_of_nodes > self.l_max_attributes:
            raise ValueError(
                f"l_max_node_attributes is {self.l_max_node_attributes}, but attributes of nodes are made from those "
                f"of edges, whose highest degree l_max_attributes is {self.l_max_attributes}"
            )
        return self

    def _check_without_products(self) -> None:
        for name in ("l_max_messages", "l_max_hidden"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for networks with products, and correlation is 1; set correlation to 2 or more, or "
                    f"leave {name} out"
                )

    def _check_with_products(self) -> None:
        reason = f"for networks without products, and correlation is {self.correlation}; set correlation to 1, or leave"
        if self.gated_messages:
            raise ValueError(f"gated_messages is {reason} gated_messages out")
        if self.l_max_node_attributes:
            raise ValueError(
                f"l_max_node_attributes above 0 is {reason} l_max_node_attributes out; with products, node attributes "
                "are of degree 0"
            )
        if self._degree_of_messages > self.l_max_attributes:
            raise ValueError(
                f"l_max_messages is {self.l_max_messages}, but the first messages are as the attributes of edges, "
                f"whose highest degree l_max_attributes is {self.l_max_attributes}; lower the first or raise the second"
            )
        irreps = Irreps(self.irreps_hidden).merged()
        unnatural = [ir for _, ir in irreps if ir.p != (-1) ** ir.l]
        if unnatural:
            raise ValueError(
                f"irreps_hidden {self.irreps_hidden!r} has {unnatural[0]}, which products of messages do not reach; "
                "take 0e, 1o, 2e, 3o and so on only, or set correlation to 1"
            )
        highest = max(ir.l for _, ir in irreps)
        if highest > self._degree_of_messages:
            raise ValueError(
                f"irreps_hidden {self.irreps_hidden!r} has the degree {highest}, but with products features are made "
                f"from messages, whose highest degree is {self._degree_of_messages}; leave higher degrees out, or "
                "raise l_max_messages"
            )
        if self.l_max_hidden is not None and self.n_layers == 1:
            raise ValueError(
                "l_max_hidden is for the second and later layers, and n_layers is 1; set n_layers to 2 or more, or "
                "leave l_max_hidden out"
            )
        if self._degree_of_hidden > highest + self.l_max_attributes:
            raise ValueError(
                f"l_max_hidden is {self.l_max_hidden}, but features up to degree {highest} times attributes up to "
                f"degree {self.l_max_attributes} reach {highest + self.l_max_attributes}; lower l_max_hidden"
            )

    @property
    def shape(self) -> str:
        """Layers, irreps, degrees and products in words, for cards and listings."""
        nodes = "" if self.l_max_node_attributes is None else f" at edges and {self.l_max_node_attributes} at nodes"
        layers = f"{self.n_layers} layer{'s' * (self.n_layers != 1)}"
        products = "" if self.correlation == 1 else f", products up to order {self.correlation}"
        return f"{layers}, {self.irreps_hidden}, attributes up to l = {self.l_max_attributes}{nodes}{products}"

    @property
    def _degree_of_messages(self) -> int:
        return self.l_max_attributes if self.l_max_messages is None else self.l_max_messages

    @property
    def _degree_of_hidden(self) -> int:
        return 1 if self.l_max_hidden is None else self.l_max_hidden

    @property
    def degree_of_nodes(self) -> int:
        """Highest degree of the node attributes."""
        if self.l_max_node_attributes is None:
            return self.l_max_attributes if self.correlation == 1 else 0
        return self.l_max_node_attributes

    def rounds(self) -> list[Round]:
        """Return the irreps of each round of messages; `docs/segnn.md` has the table of those with products."""
        features = Irreps(self.irreps_hidden).merged()
        if self.correlation == 1:
            return [Round(features, features, features, features)] * self.n_layers
        channels = max(mul for mul, _ in features)
        scalars, hidden, messages = (
            Irreps([(channels, ir) for _, ir in Irreps.spherical_harmonics(degree)])
            for degree in (0, self._degree_of_hidden, self._degree_of_messages)
        )
        before = [scalars, *[features] * (self.n_layers - 1)]
        after = [*before[1:], scalars]
        return [
            Round(x, scalars if k == 0 else hidden, messages, y, self.correlation, self.bounded_products)
            for k, (x, y) in enumerate(zip(before, after, strict=True))
        ]


class PotentialConfig(Configuration):
    """Configuration of a `Potential`: build one from it, then train or load the weights.

    Parameters
    ----------
    elements : chemical symbols, in the order of the network's inputs
    reference_energies : eV, energy of the isolated atom of each element
    energy_shifts : eV per atom of each element, added to atoms with neighbors; default: 0
    energy_scale : eV, unit of the network's output
    average_neighbors : number n of neighbors within the cutoff of a typical atom; sums of messages, which partly
        cancel, are divided by sqrt(n), node attributes by n
    zbl : add the Ziegler-Biersack-Littmark repulsion of the nuclei at short range
    zbl_ends : Å, end of the repulsion per pair of elements, named "H-C" with the lighter one first; default: the sum of
        the covalent radii
    shortest_distances : Å, per pair of elements, the shortest distance in training; what the network sees of closer
        atoms is `ase_segnn.model.radial.seen_distances`. Pairs that are not named have the sum of the covalent radii.
        None: the network sees all distances as they are
    network : shape of the network
    """

    elements: tuple[str, ...] = Field(min_length=1)
    reference_energies: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    energy_shifts: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    energy_scale: PositiveFloat = 1.0
    average_neighbors: PositiveFloat = 16.0
    zbl: bool = False
    zbl_ends: dict[str, PositiveFloat] = {}
    shortest_distances: dict[str, PositiveFloat] | None = None
    network: NetworkConfig = NetworkConfig()

    @model_validator(mode="after")
    def _check_elements(self) -> PotentialConfig:
        for symbol in self.elements:
            if atomic_numbers.get(symbol, 0) == 0:
                raise ValueError(f"{symbol!r} is no chemical element; elements are symbols such as 'H', 'C', 'O'")
        if len(set(self.elements)) != len(self.elements):
            raise ValueError(f"elements are named twice: {', '.join(self.elements)}")
        if set(self.reference_energies) != set(self.elements):
            raise ValueError(
                f"reference energies are needed for exactly the elements {', '.join(self.elements)}, "
                f"got them for {', '.join(self.reference_energies) or 'none'}"
            )
        unknown = set(self.energy_shifts) - set(self.elements)
        if unknown:
            raise ValueError(f"energy shifts name {', '.join(sorted(unknown))}, which is none of the elements")
        lightest_first = sorted(self.elements, key=atomic_numbers.__getitem__)
        pairs = set(map("-".join, combinations_with_replacement(lightest_first, 2)))
        for key, named in (("zbl_ends", self.zbl_ends), ("shortest_distances", self.shortest_distances or {})):
            if not named.keys() <= pairs:
                raise ValueError(
                    f"{key} name {', '.join(sorted(named.keys() - pairs))}; pairs are named as '{lightest_first[0]}-"
                    f"{lightest_first[-1]}', of the elements {', '.join(self.elements)} and the lighter one first"
                )
        return self

    @property
    def summary(self) -> str:
        """Elements, cutoff and shape of the network, in one line."""
        more = len(self.elements) - _MOST_ELEMENTS
        elements = " ".join(self.elements[:_MOST_ELEMENTS]) + f" and {more} more" * (more > 0)
        return f"{elements}, cutoff {self.network.cutoff:g} Å, {self.network.shape}{', ZBL' * self.zbl}"

    @property
    def repulsion(self) -> str:
        """Repulsion of the nuclei in words, for cards and listings."""
        if not self.zbl:
            return "none"
        pairs = list(self.zbl_ends.items())
        sooner = ", ".join(f"{pair} {end:.2f} Å" for pair, end in pairs[:_MOST_PAIRS])
        more = f" and {len(pairs) - _MOST_PAIRS} more pairs" * (len(pairs) > _MOST_PAIRS)
        return "ZBL, up to the sum of covalent radii" + f", but {sooner}{more}" * bool(pairs)
