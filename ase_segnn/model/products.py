"""Products of sums of messages with themselves, node by node and channel by channel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.steerable import Features
from ase_segnn.model.wigner import wigner_3j

BOUND = 16.0  # q_0, of squares whose mean is 1 in training
_SMALLEST = 1e-3  # root mean square that is scaled to 1


class ProductPath(NamedTuple):
    """One coupling: an entry of the products so far, an entry of the sums, an entry of the next products."""

    entry: int
    entry_of_sums: int
    entry_out: int


class NodeProducts(ModuleWithConstants):
    r"""Sums of messages A and their Clebsch-Gordan products with themselves, up to an order.

    .. math:: B^1 = A / s^1, \quad
        B^{\nu + 1, l}_{m k} = \frac{1}{s^{\nu + 1, l}} \sum_{l_1 l_2} w^{l_1 l_2 l}_k
        \left(B^{\nu, l_1}_k \otimes B^{1, l_2}_k\right)^l_m

    A sum over neighbors knows pairs of atoms. A product of two sums knows pairs of neighbors, and so angles; a product
    of three sums knows triples. With `bounded`, :math:`B^1` has one more factor per atom and channel,

    .. math:: \frac{1}{\sqrt{1 + q_k / q_0}}, \quad q_k = \frac{\sum_{l m} (A^l_{m k} / s^{1, l})^2}{\sum_l (2 l + 1)},
        \quad q_0 = 16

    so that the root mean square of a channel grows with that of A, but never beyond 4, and is hardly changed where q is
    about 1 as in training. In a structure denser than all in training, sums would otherwise make products, and the
    energy, larger without bounds. The factor is this project's own.

    No loop over pairs or triples is needed. The weights w have one number per channel and
    path, and ⊗ has the factor √(2l + 1) of `ase_segnn.model.steerable.SteerableLinear`. The constants s, one per order
    and entry, give each B a mean square of 1. `ase_segnn.model.potential.Potential.calibrate` sets s before training.

    Parameters
    ----------
    irreps : of A, with the same number of channels in all entries
    correlation : highest order, at least 2
    l_max : highest degree of the products
    l_max_out : highest degree of what is returned
    bounded : see above

    Attributes
    ----------
    irreps_out : those of B of order 1, 2, ..., one after another
    paths : per order from 2 on, all couplings
    weights : per order from 2 on, (paths, C)
    scale : (orders, entries of A), 1 / s
    is_calibrating : set s from the next inputs

    References
    ----------
    Drautz, Phys. Rev. B 99, 014104 (2019), and Batatia et al., arXiv:2206.07697. Different from the latter: the weights
    of products are the same for all elements, and products are scaled.
    """

    scale: Tensor

    def __init__(self, irreps: Irreps, correlation: int, l_max: int, l_max_out: int, *, bounded: bool) -> None:
        super().__init__()
        assert correlation >= 2
        assert len({mul for mul, _ in irreps}) == 1
        self.irreps, self.bounded = irreps, bounded
        self._l_max_out = l_max_out
        self.paths: list[list[ProductPath]] = []
        entries = list(range(len(irreps)))
        for order in range(2, correlation + 1):
            highest = min(l_max, l_max_out) if order == correlation else l_max
            out = [entry for entry in range(len(irreps)) if irreps[entry].ir.l <= highest]
            paths = [
                ProductPath(a, b, c)
                for c in out
                for a in entries
                for b in range(a if order == 2 else 0, len(irreps))
                if irreps[a].ir.couples(irreps[b].ir, irreps[c].ir) and _is_even(irreps, a, b, c)
            ]
            self.paths.append(paths)
            entries = sorted({path.entry_out for path in paths})
        channels = irreps[0].mul
        self.weights = nn.ParameterList()
        for paths in self.paths:
            weights = nn.Parameter(torch.empty(len(paths), channels, dtype=torch.float32))
            for path, row in zip(paths, weights.detach(), strict=True):
                nn.init.normal_(row, std=sum(other.entry_out == path.entry_out for other in paths) ** -0.5)
            self.weights.append(weights)
        self.register_buffer("scale", torch.ones(correlation, len(irreps), dtype=torch.float32))
        self.is_calibrating = False
        self.irreps_out = Irreps([irreps[entry] for order in self.returned for entry in order])
        for a, b, c in {path for paths in self.paths for path in paths}:
            degrees = irreps[a].ir.l, irreps[b].ir.l, irreps[c].ir.l
            self.register_constant(_name(*degrees), math.sqrt(2 * degrees[2] + 1) * wigner_3j(*degrees))

    @property
    def per_bound(self) -> float:
        """1 / (q_0 times the sum of 2 l + 1), what the squares of a channel are multiplied with."""
        return 1 / (BOUND * sum(ir.dim for _, ir in self.irreps))

    @property
    def returned(self) -> list[list[int]]:
        """Entries of each order that are returned."""
        orders = [range(len(self.irreps)), *(sorted({path.entry_out for path in paths}) for paths in self.paths)]
        return [[entry for entry in order if self.irreps[entry].ir.l <= self._l_max_out] for order in orders]

    def forward(self, sums: Features) -> Features:
        """Map sums, one tensor (n, 2l+1, C) per entry of `irreps`, to one per entry of `irreps_out`."""
        first = self._scaled(0, dict(enumerate(sums)))
        if self.bounded:
            squares = torch.stack([x.square().sum(1) for x in first.values()]).sum(0)
            factor = (1 + squares * self.per_bound).rsqrt()[:, None]
            first = {entry: x * factor for entry, x in first.items()}
        orders = [first]
        for number, (paths, weights) in enumerate(zip(self.paths, self.weights, strict=True), 1):
            products: dict[int, Tensor] = {}
            for path, weight in zip(paths, weights, strict=True):
                x, y = orders[-1][path.entry], first[path.entry_of_sums]
                symbols = getattr(self, _name(*(self.irreps[entry].ir.l for entry in path)))
                product = weight * torch.einsum("nac,nbc,abo->noc", x, y, symbols)
                so_far = products.get(path.entry_out)
                products[path.entry_out] = product if so_far is None else so_far + product
            orders.append(self._scaled(number, products))
        return tuple(order[entry] for order, kept in zip(orders, self.returned, strict=True) for entry in kept)

    def _scaled(self, order: int, features: dict[int, Tensor]) -> dict[int, Tensor]:
        if self.is_calibrating:
            for entry, x in features.items():
                self.scale[order, entry] = 1 / x.detach().square().mean().sqrt().clamp(min=_SMALLEST)
        return {entry: x * self.scale[order, entry] for entry, x in features.items()}


def _is_even(irreps: Irreps, a: int, b: int, c: int) -> bool:
    """Whether a product is symmetric: others of a vector with itself are zero."""
    return (irreps[a].ir.l + irreps[b].ir.l + irreps[c].ir.l) % 2 == 0


def _name(l_1: int, l_2: int, l_out: int) -> str:
    return f"wigner_3j_{l_1}_{l_2}_{l_out}"
