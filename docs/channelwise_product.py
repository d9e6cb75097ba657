"""A layer whose updates know products of messages: one file for plain, compiled and trained networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ase_segnn.codegen.builder import Builder, Feature, Features
from ase_segnn.codegen.layers import Attribute, residual
from ase_segnn.codegen.rules import build, builds
from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.segnn import MessageNetwork, Round, SEGNNLayer
from ase_segnn.model.steerable import Features as Tensors
from ase_segnn.model.steerable import Steering
from ase_segnn.model.wigner import wigner_3j


class ChannelwiseProduct(ModuleWithConstants):
    """Clebsch-Gordan product of features of degrees l_1 and l_2, channel by channel."""

    def __init__(self, l_1: int, l_2: int, l_out: int) -> None:
        super().__init__()
        self.l_out = l_out
        self.register_constant("symbols", math.sqrt(2 * l_out + 1) * wigner_3j(l_1, l_2, l_out))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map (n, 2 l_1 + 1, C) and (n, 2 l_2 + 1, C) to (n, 2 l_out + 1, C)."""
        return torch.einsum("nac,nbc,abo->noc", x, y, self.symbols)


@builds(ChannelwiseProduct)
def channelwise_product(b: Builder, product: ChannelwiseProduct, x: Feature, y: Feature) -> Feature:
    """Write the product down for compiled code."""
    return Feature([b.couple(x.parts[0], y.parts[0], product.l_out)], x.numbers)


class ProductLayer(SEGNNLayer):
    """Update from features, messages, and the products of the vectors among the messages with themselves."""

    def __init__(self, irreps: Round, message: MessageNetwork, irreps_node_attributes: Irreps) -> None:
        gathered = irreps.messages + Irreps([(irreps.messages[1].mul, "0e")])
        super().__init__(irreps._replace(messages=gathered), message, irreps_node_attributes)
        self.product = ChannelwiseProduct(1, 1, 0)

    def forward(self, features: Tensors, aggregated: Tensors, node_steering: Steering) -> Tensors:
        """Do what `SEGNNLayer.forward` does."""
        return super().forward(features, (*aggregated, self.product(aggregated[1], aggregated[1])), node_steering)


@builds(ProductLayer)
def product_layer(
    b: Builder, layer: ProductLayer, features: Features, sums: Features, attribute: Attribute
) -> Features:
    """Write the layer down for compiled code."""
    vectors = b.mixed("vectors", sums[1])
    products = build(b, layer.product, vectors, vectors)
    return residual(b, features, build(b, layer.update, [*features, sums[0], vectors, products], attribute))
