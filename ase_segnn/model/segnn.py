"""The steerable E(3)-equivariant graph network of the paper, eqs. 3 to 5, without atoms and units.

Besides the paper, sums of messages may be multiplied with themselves before the update, see `SEGNNLayer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ase_segnn.model.irreps import Irreps
from ase_segnn.model.products import NodeProducts
from ase_segnn.model.steerable import (
    SILU_NORM,
    Features,
    Gate,
    SteerableLinear,
    Steering,
    flatten,
    split,
    sum_to,
)

_L_MAX_PRODUCTS = 2  # of products on the way to the highest order; more where features have more
_RESIDUAL_GAIN = 0.2  # initial size of updates and outputs; with 1 the features triple from layer to layer


class SteerableMLP(nn.Module):
    r"""Two steerable layers with a gate between them, used for updates and for the readout.

    .. math:: y = L_2(\mathrm{gate}(L_1(f; a)); a)

    Both layers are steered by the same node attribute.
    """

    def __init__(self, irreps_in: Irreps, irreps_attributes: Irreps, irreps_hidden: Irreps, irreps_out: Irreps) -> None:
        super().__init__()
        self.gate = Gate(irreps_hidden)
        self.linear_1 = SteerableLinear(irreps_in, irreps_attributes, self.gate.irreps_in)
        self.linear_2 = SteerableLinear(irreps_hidden, irreps_attributes, irreps_out, gain=_RESIDUAL_GAIN)

    def forward(self, features: Features, steering: Steering) -> Features:
        """Map features of `irreps_in` to features of `irreps_out`."""
        outputs: Features = self.linear_2(self.gate(self.linear_1(features, steering)), steering)
        return outputs


class Edges(NamedTuple):
    """Ends, attributes and invariants of E edges, as the message layers take them.

    Parameters
    ----------
    centers, neighbors : (E,) int64; a message goes from neighbor to center
    steering : matrices of the edge attributes
    scalars : (E, n_message_scalars) invariant inputs of the messages, or None
    weights : (E,) factor of each message in the sum, or None for 1
    """

    centers: Tensor
    neighbors: Tensor
    steering: Steering
    scalars: Tensor | None
    weights: Tensor | None


class MessageNetwork(nn.Module):
    r"""Messages along edges and their sum at each node, eqs. 3 and 4 of the paper.

    .. math:: m_i = \sum_j w_{ij}\, \phi_m(f_i, f_j, b_{ij}; a_{ij})

    φ_m has two steerable layers, both steered by the edge attribute. The message scalars b enter twice: as
    inputs of the first layer, as in the paper, and through a small network as weights of the second layer's products;
    see `SEGNN`.

    With fewer than two gates the second layer is linear. The weights of the second layer are the same for all edges,
    and so act once on the sum over neighbors instead of on each message. The weights of the first layer act on nodes.
    Along an edge only channelwise operations are left.

    Parameters
    ----------
    irreps, irreps_attributes, irreps_messages : of node features, edge attributes and messages
    n_scalars, weights_hidden, gates : `n_message_scalars`, `message_weights_hidden` and `message_gates` of `SEGNN`
    irreps_hidden : between both layers; default: `irreps_messages`
    """

    def __init__(
        self,
        irreps: Irreps,
        irreps_attributes: Irreps,
        irreps_messages: Irreps,
        n_scalars: int,
        weights_hidden: Sequence[int],
        *,
        gates: int = 1,
        irreps_hidden: Irreps | None = None,
    ) -> None:
        super().__init__()
        scalars = Irreps([(n_scalars, "0e")] if n_scalars else [])
        hidden = irreps_messages if irreps_hidden is None else irreps_hidden
        self.gate_1 = Gate(hidden) if gates >= 1 else None
        self.gate_2 = Gate(irreps_messages) if gates == 2 else None
        before_1 = hidden if self.gate_1 is None else self.gate_1.irreps_in
        before_2 = irreps_messages if self.gate_2 is None else self.gate_2.irreps_in
        self.linear_1 = SteerableLinear(irreps + irreps + scalars, irreps_attributes, before_1)
        self.linear_2 = SteerableLinear(hidden, irreps_attributes, before_2, bias=self.gate_2 is not None)
        self._has_scalars = n_scalars > 0
        # weights per edge: one for each channel and path of the second product, or with a second gate for each channel
        per_path = [weight.shape[0] for weight in self.linear_2.weights]
        self._n_weights = per_path if self.gate_2 is None else [mul for mul, _ in hidden]
        self.weights = (
            _invariant_mlp(n_scalars, *weights_hidden, sum(self._n_weights)) if n_scalars and weights_hidden else None
        )

    def forward(self, features: Features, edges: Edges) -> Features:
        """Return the sum of the messages to each of N nodes, from the features of all nodes."""
        inputs = (*features, *features)
        indices: list[Tensor | None] = [*[edges.centers] * len(features), *[edges.neighbors] * len(features)]
        if self._has_scalars:
            assert edges.scalars is not None
            inputs, indices = (*inputs, edges.scalars[:, None, :]), [*indices, None]
        hidden = self.linear_1.forward_gathered(inputs, indices, edges.steering)
        if self.gate_1 is not None:
            hidden = self.gate_1(hidden)
        weights = self._weights(edges.scalars, None if self.gate_2 is not None else edges.weights)
        if self.gate_2 is None:
            return self.linear_2.forward_summed(hidden, edges.steering, weights, edges.centers, features[0].shape[0])
        if weights is not None:
            hidden = tuple(x * w for x, w in zip(hidden, weights, strict=True))
        messages = self.gate_2(self.linear_2(hidden, edges.steering))
        if edges.weights is not None:
            messages = tuple(x * edges.weights[:, None, None] for x in messages)
        return tuple(sum_to(features[0].shape[0], edges.centers, x) for x in messages)

    def _weights(self, scalars: Tensor | None, factor: Tensor | None) -> Features | None:
        """Weights (E, 1, n) of the second layer's products, times the factor (E,) of each message."""
        if self.weights is None:
            return None if factor is None else (factor[:, None, None],) * len(self._n_weights)
        weights = self.weights(scalars)
        weights = weights if factor is None else weights * factor[:, None]
        return tuple(weights[:, None, :].split(self._n_weights, dim=2))


class Round(NamedTuple):
    """Irreps of one round of messages.

    Parameters
    ----------
    features_in, features_out : of the nodes, before and after
    hidden : between both layers of a message
    messages : of the messages and their sums
    correlation : highest order of the products of the sums, see `ase_segnn.model.products.NodeProducts`; 1 for none
    bounded_products : see there
    """

    features_in: Irreps
    hidden: Irreps
    messages: Irreps
    features_out: Irreps
    correlation: int = 1
    bounded_products: bool = True


class SEGNNLayer(nn.Module):
    r"""One round of the network: messages, their sum and the update, eqs. 3 to 5 of the paper.

    .. math:: f_i' = S f_i + \phi_f(f_i, B_i; a_i)

    B are the sums m of messages. If the `correlation` of `irreps` is more than 1, B are all orders of channelwise
    products of m, which is not in the paper. S is 1, or a linear map if the features change their irreps. The caller
    gets m from `message`, then calls `forward` with m.

    Parameters
    ----------
    irreps : of features, messages and products
    message : for these irreps
    irreps_node_attributes : of the attributes that steer the update

    Attributes
    ----------
    products : from m to B, None without products
    skip : S, None for 1
    """

    def __init__(self, irreps: Round, message: MessageNetwork, irreps_node_attributes: Irreps) -> None:
        super().__init__()
        self.message = message
        inputs, outputs, gathered = irreps.features_in, irreps.features_out, irreps.messages
        self.products: NodeProducts | None = None
        if irreps.correlation > 1:
            l_out = max(ir.l for _, ir in outputs)
            self.products = NodeProducts(
                gathered, irreps.correlation, max(l_out, _L_MAX_PRODUCTS), l_out, bounded=irreps.bounded_products
            )
            gathered = self.products.irreps_out
        self.update = SteerableMLP(inputs + gathered, irreps_node_attributes, outputs, outputs)
        scalar = Irreps.spherical_harmonics(0)
        self.skip = None if inputs == outputs else SteerableLinear(inputs, scalar, outputs, bias=False)

    def forward(self, features: Features, aggregated: Features, node_steering: Steering) -> Features:
        """Return the updated features of N nodes, from the old features and the sums of messages."""
        if self.products is not None:
            aggregated = self.products(aggregated)
        updates = self.update((*features, *aggregated), node_steering)
        old = features if self.skip is None else self.skip(features, node_steering)
        return tuple(x + update for x, update in zip(old, updates, strict=True))


class SEGNN(nn.Module):
    r"""Steerable E(3)-equivariant graph network for any irreps, node and graph tasks.

    Use `SEGNN` for your own steerable features; `Potential` builds one for atoms. A linear embedding, `n_layers` rounds
    of `SEGNNLayer` and a readout follow one another, each steered by attributes. Inputs and outputs are in e3nn's flat
    layout.

    Differences from the paper's code, for the sake of potentials:

    - Sums of messages may be multiplied with themselves before the update, and irreps may change from round to round,
      see `rounds`. By default neither happens. `benchmarks/REJECTED.md`, "Products of sums", has what both gain.
    - The second message layer has no gate, unless `message_gates` is 2. Without a gate its weights act on sums of
      messages instead of on each message. `benchmarks/REJECTED.md`, "Network", compares both.
    - `message_scalars` may be any functions of the distance, such as a radial basis, instead of the squared distance.
      Message scalars also make learned weights of the second layer's products, without which potentials learn slower.
    - `edge_weights` scale each message before the sum. With an envelope that ends at the cutoff, outputs stay smooth
      when a neighbor enters or leaves, and sums are normalized by a constant instead of a count.
    - No batch, instance or other normalization ties nodes or graphs of a batch to one another.
    - Pooling follows the readout, so that a sum stays extensive.
    - Nothing happens in place.

    Parameters
    ----------
    irreps_in, irreps_hidden, irreps_out : of the node features at input, between the layers and at output
    irreps_node_attributes, irreps_edge_attributes : of the attributes that steer; each needs a scalar, or features lose
        the paths that keep their own degree
    n_layers : rounds of messages
    n_message_scalars : invariant inputs of each message, besides the features
    message_weights_hidden : widths of the hidden layers between message scalars and weights of products; () for no
        weights
    irreps_messages : of the messages; default: `irreps_hidden`; with scalars alone messages are invariant
    rounds : irreps and products of each round, instead of `irreps_hidden`, `n_layers` and `irreps_messages`; the first
        round begins with what the embedding makes, the last one ends with what the readout takes
    message_gates : 2: a gate after both message layers, as in the paper; 1: after the first; 0: none, so messages are
        linear in the node features
    task : "node" for one output per node, "graph" for one per graph
    pooling : "sum" or "mean" over the nodes of each graph, for the task "graph"
    unit_scalar_attributes : promise that the even scalars of all attributes equal 1; their products are skipped

    Raises
    ------
    ValueError
        If `task`, `pooling` or `message_gates` has another value.

    References
    ----------
    Brandstetter, Hesselink, van der Pol, Bekkers, Welling, ICLR 2022, arXiv:2110.02905.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_hidden: Irreps | str,
        irreps_out: Irreps | str,
        irreps_node_attributes: Irreps | str,
        irreps_edge_attributes: Irreps | str,
        *,
        n_layers: int = 3,
        n_message_scalars: int = 0,
        message_weights_hidden: Sequence[int] = (),
        irreps_messages: Irreps | str | None = None,
        rounds: Sequence[Round] | None = None,
        message_gates: Literal[0, 1, 2] = 1,
        task: Literal["node", "graph"] = "node",
        pooling: Literal["sum", "mean"] = "sum",
        unit_scalar_attributes: bool = False,
    ) -> None:
        super().__init__()
        if task not in ("node", "graph"):
            raise ValueError(f"task must be 'node' or 'graph', got {task!r}")
        if pooling not in ("sum", "mean"):
            raise ValueError(f"pooling must be 'sum' or 'mean', got {pooling!r}")
        if message_gates not in (0, 1, 2):
            raise ValueError(f"message_gates must be 0, 1 or 2, got {message_gates!r}")
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.irreps_node_attributes = Irreps(irreps_node_attributes)
        self.irreps_edge_attributes = Irreps(irreps_edge_attributes)
        hidden = _sorted(irreps_hidden)
        messages = hidden if irreps_messages is None else _sorted(irreps_messages)
        self.irreps_hidden = hidden
        self.shapes = [Round(hidden, messages, messages, hidden)] * n_layers if rounds is None else list(rounds)
        first, last = (self.shapes[0].features_in, self.shapes[-1].features_out) if self.shapes else (hidden, hidden)
        self.n_message_scalars = n_message_scalars
        self.task, self.pooling = task, pooling
        self.unit_scalar_attributes = unit_scalar_attributes
        self.embedding = SteerableLinear(self.irreps_in, self.irreps_node_attributes, first)
        self.layers = nn.ModuleList(
            SEGNNLayer(
                shape,
                MessageNetwork(
                    shape.features_in,
                    self.irreps_edge_attributes,
                    shape.messages,
                    n_message_scalars,
                    message_weights_hidden,
                    gates=message_gates,
                    irreps_hidden=shape.hidden,
                ),
                self.irreps_node_attributes,
            )
            for shape in self.shapes
        )
        self.readout = SteerableMLP(last, self.irreps_node_attributes, last, self.irreps_out)

    @property
    def rounds(self) -> list[SEGNNLayer]:
        """Rounds of messages in order: `layers` with their type."""
        return [layer for layer in self.layers if isinstance(layer, SEGNNLayer)]

    def forward(
        self,
        node_features: Tensor,
        node_attributes: Tensor,
        edge_attributes: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        *,
        message_scalars: Tensor | None = None,
        edge_weights: Tensor | None = None,
        graph_of_node: Tensor | None = None,
        n_graphs: int = 1,
    ) -> Tensor:
        """Run the network on N nodes and E directed edges.

        Parameters
        ----------
        node_features : (N, irreps_in.dim)
        node_attributes : (N, irreps_node_attributes.dim)
        edge_attributes : (E, irreps_edge_attributes.dim)
        centers, neighbors : (E,) int64; a message goes from neighbor to center
        message_scalars : (E, n_message_scalars), needed if `n_message_scalars` is not 0
        edge_weights : (E,) factor of each message in the sum; default: 1
        graph_of_node : (N,) int64 index of the graph, for the task "graph" with more than one graph
        n_graphs : number of graphs B

        Returns
        -------
        (N, irreps_out.dim) for the task "node", (B, irreps_out.dim) for "graph"

        Raises
        ------
        ValueError
            If `message_scalars` does not have `n_message_scalars` columns.
        """
        given = 0 if message_scalars is None else message_scalars.shape[1]
        if given != self.n_message_scalars:
            raise ValueError(f"this network takes {self.n_message_scalars} message scalars per edge, got {given}")
        unit = self.unit_scalar_attributes
        node_steering = Steering(node_attributes, self.irreps_node_attributes, unit_scalar=unit)
        edge_steering = Steering(edge_attributes, self.irreps_edge_attributes, unit_scalar=unit)
        features = self.embedding(split(node_features, self.irreps_in), node_steering)
        edges = Edges(centers, neighbors, edge_steering, message_scalars, edge_weights)
        for layer in self.rounds:
            features = layer(features, layer.message(features, edges), node_steering)
        outputs = flatten(self.readout(features, node_steering))
        if self.task == "node":
            return outputs
        if graph_of_node is None:
            graph_of_node = torch.zeros_like(outputs[:, 0], dtype=torch.int64)
        pooled = sum_to(n_graphs, graph_of_node, outputs)
        if self.pooling == "sum":
            return pooled
        counts = sum_to(n_graphs, graph_of_node, torch.ones_like(outputs[:, 0]))
        return pooled / counts.clamp(min=1)[:, None]


def _sorted(irreps: Irreps | str) -> Irreps:
    """Irreps sorted, with equal ones joined, so that a gate finds its scalars in one entry."""
    return Irreps(irreps).merged()


def _invariant_mlp(*widths: int) -> nn.Sequential:
    """SiLU network of invariants; outputs start with about unit variance; `widths` of input, layers and output."""
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        linear = nn.Linear(n_in, n_out, dtype=torch.float32)
        nn.init.normal_(linear.weight, std=(SILU_NORM if modules else 1.0) / math.sqrt(n_in))
        nn.init.zeros_(linear.bias)
        modules += [nn.SiLU(), linear] if modules else [linear]
    return nn.Sequential(*modules)
