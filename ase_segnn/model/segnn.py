"""The steerable E(3)-equivariant graph network, as in the paper's equations 3 to 5; it knows no atoms and no units."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ase_segnn._e3nn import o3
from ase_segnn.model.steerable import (
    SILU_NORM,
    Features,
    Gate,
    SteerableLinear,
    Steering,
    flatten,
    split,
)

_RESIDUAL_GAIN = 0.2  # initial size of updates and outputs; with 1 the features triple from layer to layer


class SteerableMLP(nn.Module):
    """Two steerable layers with a gate between them: the last step of updates and of the readout."""

    def __init__(
        self, irreps_in: o3.Irreps, irreps_attributes: o3.Irreps, irreps_hidden: o3.Irreps, irreps_out: o3.Irreps
    ) -> None:
        super().__init__()
        self.gate = Gate(irreps_hidden)
        self.linear_1 = SteerableLinear(irreps_in, irreps_attributes, self.gate.irreps_in)
        self.linear_2 = SteerableLinear(irreps_hidden, irreps_attributes, irreps_out, gain=_RESIDUAL_GAIN)

    def forward(self, features: Features, steering: Steering) -> Features:
        """Map features of `irreps_in` to features of `irreps_out`, both layers steered by the same attribute."""
        outputs: Features = self.linear_2(self.gate(self.linear_1(features, steering)), steering)
        return outputs


class MessageNetwork(nn.Module):
    r"""Messages along edges, eq. 3 of the paper: two gated steerable layers, steered by the edge's attribute.

    .. math:: m_{ij} = \phi_m(f_i, f_j, b_{ij}; a_{ij})

    The additional scalars b enter twice: as inputs of the first layer, as in the paper, and through a small network as
    weights that multiply each channel between the two layers. The latter makes the second product's weights depend on
    b, which the paper allows for; see `SEGNN`.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_attributes: o3.Irreps,
        irreps_hidden: o3.Irreps,
        n_scalars: int,
        n_weights_hidden: int,
    ) -> None:
        super().__init__()
        scalars = o3.Irreps([(n_scalars, "0e")] if n_scalars else [])
        self.gate_1, self.gate_2 = Gate(irreps_hidden), Gate(irreps_hidden)
        self.linear_1 = SteerableLinear(irreps_in + irreps_in + scalars, irreps_attributes, self.gate_1.irreps_in)
        self.linear_2 = SteerableLinear(irreps_hidden, irreps_attributes, self.gate_2.irreps_in)
        self._channels = [mul for mul, _ in irreps_hidden]
        self._has_scalars = n_scalars > 0
        self.weights = (
            _invariant_mlp(n_scalars, n_weights_hidden, sum(self._channels)) if n_scalars and n_weights_hidden else None
        )

    def forward(
        self, features: Features, steering: Steering, scalars: Tensor | None, centers: Tensor, neighbors: Tensor
    ) -> Features:
        """Messages of the E edges from features of the N nodes."""
        inputs = (*features, *features)
        indices: list[Tensor | None] = [*[centers] * len(features), *[neighbors] * len(features)]
        if self._has_scalars:
            assert scalars is not None
            inputs, indices = (*inputs, scalars[:, None, :]), [*indices, None]
        hidden = self.gate_1(self.linear_1.forward_gathered(inputs, indices, steering))
        if self.weights is not None:
            weights = self.weights(scalars)[:, None, :].split(self._channels, dim=2)
            hidden = tuple(x * w for x, w in zip(hidden, weights, strict=True))
        messages: Features = self.gate_2(self.linear_2(hidden, steering))
        return messages


class SEGNNLayer(nn.Module):
    r"""One round of messages, aggregation and update, eqs. 3 to 5 of the paper.

    .. math:: m_i = \sum_j w_{ij} m_{ij}, \quad f_i' = f_i + \phi_f(f_i, m_i; a_i)
    """

    def __init__(self, irreps: o3.Irreps, message: MessageNetwork, irreps_node_attributes: o3.Irreps) -> None:
        super().__init__()
        self.message = message
        self.update = SteerableMLP(irreps + irreps, irreps_node_attributes, irreps, irreps)

    def forward(
        self,
        features: Features,
        node_steering: Steering,
        edge_steering: Steering,
        centers: Tensor,
        neighbors: Tensor,
        message_scalars: Tensor | None,
        edge_weights: Tensor | None,
    ) -> Features:
        """Features of the N nodes after this round."""
        messages = self.message(features, edge_steering, message_scalars, centers, neighbors)
        if edge_weights is not None:
            messages = tuple(x * edge_weights[:, None, None] for x in messages)
        aggregated = tuple(x.new_zeros(node_steering.n_rows, *x.shape[1:]).index_add(0, centers, x) for x in messages)
        updates = self.update((*features, *aggregated), node_steering)
        return tuple(x + update for x, update in zip(features, updates, strict=True))


class SEGNN(nn.Module):
    r"""Steerable E(3)-equivariant graph network for any irreps, node and graph tasks.

    A linear embedding, `n_layers` rounds of `SEGNNLayer`, and a readout; each steered by attributes. Inputs and outputs
    are in e3nn's flat layout.

    What differs from the paper's code, for the sake of potentials:

    - `message_scalars` may be any functions of the distance (a radial basis) instead of its square, and besides being
      inputs they multiply the hidden channels of the message by learned weights, without which potentials learn slower.
    - `edge_weights` scale each message before the sum. With an envelope that ends at the cutoff the result is smooth
      when a neighbor enters or leaves, and with it the normalization of the sum is a constant, not a count.
    - No batch, instance or other normalization ties nodes or graphs of a batch to one another.
    - Pooling follows the readout, so that a sum stays extensive.
    - Nothing happens in place.

    Parameters
    ----------
    irreps_in, irreps_hidden, irreps_out : of the node features at input, between the layers and at output
    irreps_node_attributes, irreps_edge_attributes : what steers; must hold scalars, or inputs would lose their own
        degree on the way
    n_layers : rounds of messages
    n_message_scalars : additional invariant inputs of each message
    n_message_weights_hidden : width of the network from message scalars to channel weights; 0 for no weights
    task : "node" gives one output per node, "graph" pools them
    pooling : "sum" or "mean" over the nodes of each graph, for the task "graph"
    unit_scalar_attributes : promise that even scalars of all attributes equal 1, which saves their products

    References
    ----------
    Brandstetter, Hesselink, van der Pol, Bekkers, Welling, ICLR 2022, arXiv:2110.02905.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_hidden: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
        irreps_node_attributes: o3.Irreps | str,
        irreps_edge_attributes: o3.Irreps | str,
        *,
        n_layers: int = 3,
        n_message_scalars: int = 0,
        n_message_weights_hidden: int = 0,
        task: Literal["node", "graph"] = "node",
        pooling: Literal["sum", "mean"] = "sum",
        unit_scalar_attributes: bool = False,
    ) -> None:
        super().__init__()
        if task not in ("node", "graph"):
            raise ValueError(f"task must be 'node' or 'graph', got {task!r}")
        if pooling not in ("sum", "mean"):
            raise ValueError(f"pooling must be 'sum' or 'mean', got {pooling!r}")
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.irreps_node_attributes = o3.Irreps(irreps_node_attributes)
        self.irreps_edge_attributes = o3.Irreps(irreps_edge_attributes)
        self.irreps_hidden = hidden = o3.Irreps(irreps_hidden).sort().irreps.simplify()
        self.n_message_scalars = n_message_scalars
        self.task, self.pooling = task, pooling
        self.unit_scalar_attributes = unit_scalar_attributes
        self.embedding = SteerableLinear(self.irreps_in, self.irreps_node_attributes, hidden)
        self.layers = nn.ModuleList(
            SEGNNLayer(
                hidden,
                MessageNetwork(
                    hidden, self.irreps_edge_attributes, hidden, n_message_scalars, n_message_weights_hidden
                ),
                self.irreps_node_attributes,
            )
            for _ in range(n_layers)
        )
        self.readout = SteerableMLP(hidden, self.irreps_node_attributes, hidden, self.irreps_out)

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
        message_scalars : (E, n_message_scalars), needed if that is not 0
        edge_weights : (E,) factor of each message in the sum; 1 if None
        graph_of_node : (N,) int64, for the task "graph" with more than one graph
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
        for layer in self.layers:
            features = layer(features, node_steering, edge_steering, centers, neighbors, message_scalars, edge_weights)
        outputs = flatten(self.readout(features, node_steering))
        if self.task == "node":
            return outputs
        if graph_of_node is None:
            graph_of_node = torch.zeros_like(outputs[:, 0], dtype=torch.int64)
        pooled = outputs.new_zeros(n_graphs, outputs.shape[1]).index_add(0, graph_of_node, outputs)
        if self.pooling == "sum":
            return pooled
        counts = outputs.new_zeros(n_graphs).index_add(0, graph_of_node, torch.ones_like(outputs[:, 0]))
        return pooled / counts.clamp(min=1)[:, None]


def _invariant_mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """SiLU network of invariants whose outputs start with about unit variance."""
    first, last = nn.Linear(n_in, n_hidden, dtype=torch.float32), nn.Linear(n_hidden, n_out, dtype=torch.float32)
    nn.init.normal_(first.weight, std=1 / math.sqrt(n_in))
    nn.init.normal_(last.weight, std=SILU_NORM / math.sqrt(n_hidden))
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.SiLU(), last)
