"""Steerable layers: Clebsch-Gordan products steered by an attribute, and the gate.

Inside the network a steerable feature is a tuple with one tensor (n, 2l+1, C) per entry of its irreps: channels last
and contiguous, so that every product with weights is one large matrix product. `split` and `flatten` convert from and
to e3nn's flat layout (n, irreps.dim), where the components of one channel are adjacent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.irreps import Irrep, Irreps
from ase_segnn.model.wigner import wigner_3j

Features = tuple[Tensor, ...]

# 1 / sqrt(E[f(z)^2]) for z ~ N(0, 1), so that activations keep the second moment of their input (e3nn's convention,
# there estimated from samples); a test integrates them again.
SILU_NORM = 1.676532470331091
SIGMOID_NORM = 1.8462285453386056


def split(flat: Tensor, irreps: Irreps) -> Features:
    """Turn e3nn's flat layout (n, irreps.dim) into one tensor (n, 2l+1, C) per entry of `irreps`."""
    return tuple(
        flat[:, entry].reshape(flat.shape[0], mul, ir.dim).transpose(1, 2).contiguous()
        for entry, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    )


def flatten(features: Features) -> Tensor:
    """Turn one tensor (n, 2l+1, C) per entry into e3nn's flat layout (n, irreps.dim)."""
    return torch.cat([x.transpose(1, 2).flatten(1) for x in features], dim=1)


def sum_to(n_rows: int, index: Tensor, values: Tensor) -> Tensor:
    """Sum the rows of `values` (n, ...) that have the same `index` (n,): (n_rows, ...)."""
    total: Tensor = values.new_zeros(n_rows, *values.shape[1:]).index_add(0, index, values)
    return total


class Steering:
    r"""An attribute, and the small matrices by which it steers features; made once, used by every layer.

    A feature of degree l1 meets the attribute of degree l2 and becomes one of degree l3 by the matrix

    .. math:: M_{m_1 m_3} = \sqrt{2 l_3 + 1} \sum_{m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} a_{m_2}

    Because each copy of an attribute is a single channel, this matrix and one matrix of weights per path are all that
    a fully connected tensor product needs.

    Parameters
    ----------
    attributes : (n, irreps.dim) in e3nn's flat layout
    irreps : of the attribute
    unit_scalar : promise that every even scalar of the attribute equals 1; its products are then skipped
    """

    def __init__(self, attributes: Tensor, irreps: Irreps, *, unit_scalar: bool = False) -> None:
        self.n_rows = attributes.shape[0]
        self.attributes = attributes
        self._unit_scalar = unit_scalar
        self._copies: list[tuple[Irrep, Tensor]] = []
        start = 0
        for mul, ir in irreps:
            for _ in range(mul):
                self._copies.append((ir, attributes[:, start : start + ir.dim]))
                start += ir.dim
        self._matrices: dict[tuple[int, int, int], Tensor] = {}

    def steer(self, x: Tensor, path: Path, symbols: Tensor) -> Tensor:
        """Couple features (n, 2*l1+1, C) to the attribute: (n, 2*l3+1, C)."""
        ir, attribute = self._copies[path.copy]
        if ir.l == 0:
            return x if self._unit_scalar and ir.p == 1 else x * attribute[:, :, None]
        key = (path.l_in, path.copy, path.l_out)
        matrix = self._matrices.get(key)
        if matrix is None:
            scaled = symbols * math.sqrt(2 * path.l_out + 1)
            matrix = torch.einsum("nb,abc->nac", attribute, scaled)  # (n, 2*l1+1, 2*l3+1)
            self._matrices[key] = matrix
        if path.l_in == 0:
            return x * matrix.transpose(1, 2)
        if path.l_out == 0:
            return (x * matrix).sum(1, keepdim=True)
        return torch.bmm(matrix.transpose(1, 2), x)


class Path(NamedTuple):
    """One way from an entry of the input over a copy of the attribute to an entry of the output."""

    entry_in: int
    copy: int
    l_in: int
    l_attribute: int
    l_out: int
    rows: slice  # of the weights of the output's entry


class SteerableLinear(ModuleWithConstants):
    """Fully connected Clebsch-Gordan product of features with an attribute; learned weights, bias on even scalars.

    Equals e3nn's ``FullyConnectedTensorProduct`` with ``irrep_normalization="component"`` and
    ``path_normalization="element"``: with unit-variance inputs the outputs start with unit variance. The weights hold
    that normalisation in their initial spread, 1/sqrt(fan-in), instead of as a factor.

    Paths that no combination of input and attribute reaches do not exist; an output entry without any path is zero.

    Parameters
    ----------
    irreps_in, irreps_attributes, irreps_out : entries are kept in the order given
    gain : factor of the initial weights
    bias : add one to even scalars
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_attributes: Irreps,
        irreps_out: Irreps,
        *,
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_attributes = Irreps(irreps_attributes)
        self.irreps_out = Irreps(irreps_out)
        copies = [ir for mul, ir in self.irreps_attributes for _ in range(mul)]
        self.paths: list[list[Path]] = []  # per entry of the output
        self._n_steered_first: list[int] = []
        weights = []
        biases: dict[str, nn.Parameter] = {}
        for entry_out, (mul_out, ir_out) in enumerate(self.irreps_out):
            found = [
                (entry, copy, ir_in.l, ir.l, ir_out.l, mul_in)
                for entry, (mul_in, ir_in) in enumerate(self.irreps_in)
                for copy, ir in enumerate(copies)
                if ir_in.couples(ir, ir_out)
            ]
            found.sort(key=lambda path: path[2] < path[4])  # those cheaper to steer before the weights come first
            self._n_steered_first.append(sum(path[2] >= path[4] for path in found))
            paths, row = [], 0
            for entry, copy, l_in, l_attribute, l_out, mul_in in found:
                paths.append(Path(entry, copy, l_in, l_attribute, l_out, slice(row, row + mul_in)))
                row += mul_in
                self._register_wigner_3j(l_in, l_attribute, l_out)
            self.paths.append(paths)
            spread = gain / math.sqrt(max(row, 1))
            weights.append(nn.Parameter(torch.empty(row, mul_out, dtype=torch.float32)))
            nn.init.normal_(weights[-1], std=spread)
            if bias and ir_out.l == 0 and ir_out.p == 1:
                biases[str(entry_out)] = nn.Parameter(torch.empty(mul_out, dtype=torch.float32))
                nn.init.zeros_(biases[str(entry_out)])
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterDict(biases)

    def _register_wigner_3j(self, l_in: int, l_attribute: int, l_out: int) -> None:
        name = _name(l_in, l_attribute, l_out)
        if l_attribute > 0 and name not in self._constants:
            self.register_constant(name, wigner_3j(l_in, l_attribute, l_out))

    def _steer(self, x: Tensor, path: Path, steering: Steering) -> Tensor:
        symbols = getattr(self, _name(path.l_in, path.l_attribute, path.l_out), x)
        return steering.steer(x, path, symbols)

    def forward(self, features: Features, steering: Steering) -> Features:
        """Map features, one tensor (n, 2l+1, C) per entry of `irreps_in`, to those of `irreps_out`."""
        outputs: list[Tensor | None] = []
        for paths, n_steered_first, weight in zip(self.paths, self._n_steered_first, self.weights, strict=True):
            out = None
            if n_steered_first:
                steered = [self._steer(features[path.entry_in], path, steering) for path in paths[:n_steered_first]]
                rows = slice(0, paths[n_steered_first - 1].rows.stop)
                out = (steered[0] if len(steered) == 1 else torch.cat(steered, dim=2)) @ weight[rows]
            for _, group in groupby(paths[n_steered_first:], lambda path: (path.l_in, path.copy)):
                alike = list(group)  # steered alike, so that their weights act together
                x = [features[path.entry_in] for path in alike]
                rows = slice(alike[0].rows.start, alike[-1].rows.stop)
                term = self._steer((x[0] if len(x) == 1 else torch.cat(x, dim=2)) @ weight[rows], alike[0], steering)
                out = term if out is None else out + term
            outputs.append(out)
        return self._finish(outputs, features[0], steering.n_rows)

    def forward_gathered(self, features: Features, indices: Sequence[Tensor | None], steering: Steering) -> Features:
        """Do the same for features that are gathered to the rows of `steering`, with the weights applied before.

        The product is linear in each entry, so its weights can act on the N rows of nodes instead of the E rows of
        edges; entries of one irrep are added before they are steered.

        Parameters
        ----------
        features : one tensor (n_i, 2l+1, C) per entry of `irreps_in`
        indices : per entry the (n,) rows to gather, or None where the entry has the rows of `steering` already
        steering : with n rows
        """
        outputs: list[Tensor | None] = [None] * len(self.irreps_out)
        for ir in dict.fromkeys(ir for _, ir in self.irreps_in):
            entries = [entry for entry, (_, ir_in) in enumerate(self.irreps_in) if ir_in == ir]
            ways = [(o, path) for o, paths in enumerate(self.paths) for path in paths if path.entry_in == entries[0]]
            if not ways:
                continue
            projected: Tensor | None = None
            for entry in entries:
                used = [(o, path) for o, paths in enumerate(self.paths) for path in paths if path.entry_in == entry]
                index = indices[entry]
                x = features[entry] @ torch.cat([self.weights[o][path.rows] for o, path in used], dim=1)
                x = x if index is None else x.index_select(0, index)
                projected = x if projected is None else projected + x
            assert projected is not None
            parts = projected.split([self.irreps_out[o].mul for o, _ in ways], dim=2)
            for (o, path), part in zip(ways, parts, strict=True):
                term = self._steer(part, path, steering)
                current = outputs[o]
                outputs[o] = term if current is None else current + term
        return self._finish(outputs, features[0], steering.n_rows)

    def forward_summed(
        self, features: Features, steering: Steering, factors: Features | None, index: Tensor, n_rows: int
    ) -> Features:
        """Do the same and sum the rows of the result that have the same `index`, with the weights applied afterwards.

        The product is linear and its weights are the same for all rows, so they can act on the sums.

        Parameters
        ----------
        features : one tensor (n, 2l+1, C) per entry of `irreps_in`
        steering : with n rows
        factors : per entry of `irreps_out`, (n, 1, C') that multiplies the steered channels in the order of the
            weights' rows, or (n, 1, 1) for all of them; None for 1
        index : (n,) int64, which row of the result each row goes to
        n_rows : of the result
        """
        sums: list[Tensor | None] = []
        for entry, (paths, weight) in enumerate(zip(self.paths, self.weights, strict=True)):
            steered = [self._steer(features[path.entry_in], path, steering) for path in paths]
            if not steered:
                sums.append(None)
                continue
            x = torch.cat(steered, dim=2)
            x = x if factors is None else x * factors[entry]
            sums.append(sum_to(n_rows, index, x) @ weight)
        return self._finish(sums, features[0], n_rows)

    def _finish(self, outputs: list[Tensor | None], like: Tensor, n_rows: int) -> Features:
        """Add biases, and zeros for outputs that nothing reaches."""
        finished = []
        for entry, (out, (mul, ir)) in enumerate(zip(outputs, self.irreps_out, strict=True)):
            reached = like.new_zeros(n_rows, ir.dim, mul) if out is None else out
            finished.append(reached + self.biases[str(entry)] if str(entry) in self.biases else reached)
        return tuple(finished)


def _name(l_in: int, l_attribute: int, l_out: int) -> str:
    return f"wigner_3j_{l_in}_{l_attribute}_{l_out}"


class Gate(nn.Module):
    """Equivariant non-linearity: SiLU on even scalars; every other channel times the sigmoid of a scalar of its own.

    Equals e3nn's ``Gate`` with these activations up to its normalization constants, which are estimated from samples.

    Parameters
    ----------
    irreps_out : of the result; at most one entry of even scalars

    Attributes
    ----------
    irreps_in : what the layer before must deliver: one entry with scalars and gates, then the gated entries
    """

    def __init__(self, irreps_out: Irreps) -> None:
        super().__init__()
        self.irreps_out = Irreps(irreps_out)
        gated = [(mul, ir) for mul, ir in self.irreps_out if not (ir.l == 0 and ir.p == 1)]
        scalars = [mul for mul, ir in self.irreps_out if ir.l == 0 and ir.p == 1]
        assert len(scalars) <= 1
        self._splits = [sum(scalars), *(mul for mul, _ in gated)]
        self._scalar_entry = next((k for k, (_, ir) in enumerate(self.irreps_out) if ir.l == 0 and ir.p == 1), None)
        self.irreps_in = Irreps([(sum(self._splits), "0e"), *gated])

    def forward(self, features: Features) -> Features:
        """Map features of `irreps_in` to features of `irreps_out`."""
        scalars, *gates = features[0].split(self._splits, dim=2)
        out = [x * (torch.sigmoid(g) * SIGMOID_NORM) for x, g in zip(features[1:], gates, strict=True)]
        if self._scalar_entry is not None:
            out.insert(self._scalar_entry, nn.functional.silu(scalars) * SILU_NORM)
        return tuple(out)
