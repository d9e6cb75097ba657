"""Steerable layers: Clebsch-Gordan products steered by an attribute, and the gate.

Inside the network a steerable feature is a tuple of one tensor (n, 2l+1, C) per entry of its irreps. Channels are last
and contiguous, so that a product with weights is one large matrix product. e3nn's flat layout (n, irreps.dim) has the
components of one channel next to each other. `split` converts from the flat layout, `flatten` to it.

Example: 10 features of 64x0e+64x1o are the tensors (10, 1, 64) and (10, 3, 64), in the flat layout (10, 256).
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

# 1 / sqrt(E[f(z)^2]) for z ~ N(0, 1): activations keep the second moment of normal inputs. e3nn has the same convention
# and estimates the constants from samples; a test integrates these.
SILU_NORM = 1.676532470331091
SIGMOID_NORM = 1.8462285453386056


def split(flat: Tensor, irreps: Irreps) -> Features:
    """Convert e3nn's flat layout (n, irreps.dim) to one tensor (n, 2l+1, C) per entry of `irreps`."""
    return tuple(
        flat[:, entry].reshape(flat.shape[0], mul, ir.dim).transpose(1, 2).contiguous()
        for entry, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    )


def flatten(features: Features) -> Tensor:
    """Convert one tensor (n, 2l+1, C) per entry to e3nn's flat layout (n, irreps.dim)."""
    return torch.cat([x.transpose(1, 2).flatten(1) for x in features], dim=1)


def sum_to(n_rows: int, index: Tensor, values: Tensor) -> Tensor:
    """Sum the rows of `values` (n, ...) with the same `index` (n,), to (n_rows, ...)."""
    total: Tensor = values.new_zeros(n_rows, *values.shape[1:]).index_add(0, index, values)
    return total


class Steering:
    r"""An attribute as the small matrices with which layers steer features.

    Make one `Steering` for the nodes and one for the edges, and give both to all layers. Each matrix is computed once,
    at its first use. A feature of degree l1 and the attribute of degree l2 give a feature of degree l3 by the matrix

    .. math:: M_{m_1 m_3} = \sqrt{2 l_3 + 1} \sum_{m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} a_{m_2}

    Each copy of an attribute is a single channel. So a fully connected tensor product needs no more than M and one
    matrix of weights per path.

    Parameters
    ----------
    attributes : (n, irreps.dim) in e3nn's flat layout
    irreps : of the attributes
    unit_scalar : promise that each even scalar of the attributes equals 1; products with it are skipped
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
        """Couple features (n, 2*l1+1, C) with the attribute on one path, to (n, 2*l3+1, C).

        Parameters
        ----------
        x : (n, 2*l1+1, C)
        path : entry and degrees; its copy of the attribute is used
        symbols : (2*l1+1, 2*l2+1, 2*l3+1) Wigner 3j symbols of the path, unused if l2 is 0
        """
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
    """One coupling of the product: an entry of the input, a copy of the attribute, an entry of the output.

    Parameters
    ----------
    entry_in : index of the input's entry
    copy : index of the attribute's copy; an attribute 2x0e+1x1o has the copies 0, 1 and 2
    l_in, l_attribute, l_out : degrees
    rows : of the weights of the output's entry, one per channel of the input's entry
    """

    entry_in: int
    copy: int
    l_in: int
    l_attribute: int
    l_out: int
    rows: slice


class SteerableLinear(ModuleWithConstants):
    """Fully connected Clebsch-Gordan product of features with an attribute, with learned weights.

    `forward` is the plain form. `forward_gathered` and `forward_summed` give the same results with fewer operations:
    the first when features are gathered from nodes to edges, the second when results are summed from edges to nodes.

    Equals e3nn's ``FullyConnectedTensorProduct`` with ``irrep_normalization="component"`` and
    ``path_normalization="element"``: outputs start with unit variance for inputs of unit variance. Here the initial
    weights have the spread 1/sqrt(fan-in); e3nn multiplies by a factor instead.

    A path exists only if input and attribute reach its output. An output entry without any path is zero.

    Parameters
    ----------
    irreps_in, irreps_attributes, irreps_out : entries are kept in the order given
    gain : factor of the initial weights
    bias : add a learned constant to even scalars

    Attributes
    ----------
    paths : the `Path` list of each entry of `irreps_out`
    weights : one matrix per entry of `irreps_out`; rows are all channels of all its paths, columns its own channels
    biases : entry of `irreps_out`, as text, -> (C,)
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
        self.paths: list[list[Path]] = []
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
            found.sort(key=lambda path: path[2] < path[4])  # paths that are cheaper to steer before the weights first
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
        """Map features of `irreps_in` to features of `irreps_out`, one tensor (n, 2l+1, C) per entry."""
        outputs: list[Tensor | None] = []
        for paths, n_steered_first, weight in zip(self.paths, self._n_steered_first, self.weights, strict=True):
            out = None
            if n_steered_first:
                steered = [self._steer(features[path.entry_in], path, steering) for path in paths[:n_steered_first]]
                rows = slice(0, paths[n_steered_first - 1].rows.stop)
                out = (steered[0] if len(steered) == 1 else torch.cat(steered, dim=2)) @ weight[rows]
            for _, group in groupby(paths[n_steered_first:], lambda path: (path.l_in, path.copy)):
                alike = list(group)  # paths with one steering matrix: their weights act together
                x = [features[path.entry_in] for path in alike]
                rows = slice(alike[0].rows.start, alike[-1].rows.stop)
                term = self._steer((x[0] if len(x) == 1 else torch.cat(x, dim=2)) @ weight[rows], alike[0], steering)
                out = term if out is None else out + term
            outputs.append(out)
        return self._finish(outputs, features[0], steering.n_rows)

    def forward_gathered(self, features: Features, indices: Sequence[Tensor | None], steering: Steering) -> Features:
        """Weights at nodes, then gather and steer along edges: N instead of E products with weights (eq. 3).

        Equals `forward` of the gathered features, since the product is linear in each entry. Entries of one irrep are
        added before the steering.

        Parameters
        ----------
        features : one tensor (n_i, 2l+1, C) per entry of `irreps_in`
        indices : per entry the (n,) rows to gather, or None for an entry with the n rows of `steering`
        steering : with n rows

        Returns
        -------
        one tensor (n, 2l+1, C) per entry of `irreps_out`
        """
        outputs: list[Tensor | None] = [None] * len(self.irreps_out)
        for ir in dict.fromkeys(ir for _, ir in self.irreps_in):
            entries = [entry for entry, (_, ir_in) in enumerate(self.irreps_in) if ir_in == ir]
            uses = self._uses(entries[0])
            if not uses:
                continue
            projected: Tensor | None = None
            for entry in entries:
                index = indices[entry]
                weights = [self.weights[out][path.rows] for out, path in self._uses(entry)]
                x = features[entry] @ torch.cat(weights, dim=1)
                x = x if index is None else x.index_select(0, index)
                projected = x if projected is None else projected + x
            assert projected is not None
            parts = projected.split([self.irreps_out[out].mul for out, _ in uses], dim=2)
            for (out, path), part in zip(uses, parts, strict=True):
                term = self._steer(part, path, steering)
                current = outputs[out]
                outputs[out] = term if current is None else current + term
        return self._finish(outputs, features[0], steering.n_rows)

    def forward_summed(
        self, features: Features, steering: Steering, factors: Features | None, index: Tensor, n_rows: int
    ) -> Features:
        """Steer along edges, sum at nodes, then weights: N instead of E products with weights (eq. 4).

        Equals the sum of `forward` over the rows with the same `index`, since the weights are the same for all rows.

        Parameters
        ----------
        features : one tensor (n, 2l+1, C) per entry of `irreps_in`
        steering : with n rows
        factors : per entry of `irreps_out`, (n, 1, C') in the order of the weights' rows, or (n, 1, 1) for all
            channels; multiplies the steered channels; None for 1
        index : (n,) int64 row of the result for each row
        n_rows : number of rows of the result, N

        Returns
        -------
        one tensor (N, 2l+1, C) per entry of `irreps_out`
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

    def _uses(self, entry: int) -> list[tuple[int, Path]]:
        """Paths that an entry of the input takes, each with the index of its output entry."""
        return [(out, path) for out, paths in enumerate(self.paths) for path in paths if path.entry_in == entry]

    def _finish(self, outputs: list[Tensor | None], like: Tensor, n_rows: int) -> Features:
        """Add biases, and put zeros for outputs without a path."""
        finished = []
        for entry, (out, (mul, ir)) in enumerate(zip(outputs, self.irreps_out, strict=True)):
            reached = like.new_zeros(n_rows, ir.dim, mul) if out is None else out
            finished.append(reached + self.biases[str(entry)] if str(entry) in self.biases else reached)
        return tuple(finished)


def _name(l_in: int, l_attribute: int, l_out: int) -> str:
    return f"wigner_3j_{l_in}_{l_attribute}_{l_out}"


class Gate(nn.Module):
    """Equivariant non-linearity: SiLU on even scalars, any other channel times the sigmoid of a scalar of its own.

    Put a gate after a `SteerableLinear` with the outputs ``Gate(irreps).irreps_in``. Equals e3nn's ``Gate`` with these
    activations, but for normalization constants that e3nn estimates from samples.

    Parameters
    ----------
    irreps_out : with at most one entry of even scalars

    Attributes
    ----------
    irreps_in : one entry of even scalars (first those of the result, then one gate per gated channel), then the gated
        entries
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
