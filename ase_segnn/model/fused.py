"""A potential whose messages run in the compiled loops of `edge_kernels`: the same results, for inference on a CPU."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor

from ase_segnn._e3nn import o3
from ase_segnn.graph import AtomicGraph
from ase_segnn.model.edge_kernels import EdgeKernels, why_not
from ase_segnn.model.edge_source import Layout
from ase_segnn.model.potential import Potential
from ase_segnn.model.segnn import MessageNetwork, SEGNNLayer
from ase_segnn.model.spline import spline_coefficients
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Features, SteerableLinear, Steering, flatten, split

# Intervals of the splines of radial functions, for errors below those of rounding.
_INTERVALS = {torch.float32: 128, torch.float64: 1024}
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative; above rounding, below what wrong loops give
_SMALLEST = 1e-9  # Å, instead of the distance 0, where Bessel functions are 0 / 0
_KERNELS: dict[str, EdgeKernels] = {}  # by the hash of their source


class FusedPotential(Potential):
    """The same potential, evaluated without arrays of edges and channels.

    Results can be differentiated once, not twice, so this is not for training.

    Parameters
    ----------
    potential : on the CPU, float32 or float64; copied

    Raises
    ------
    ValueError
        If there are no kernels for its network, see `why_not`.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    RuntimeError
        If what was compiled gives other results for a small structure than the plain potential.
    """

    def __init__(self, potential: Potential) -> None:
        reason = why_not_fused(potential)
        if reason is not None:
            raise ValueError(f"this potential has no fused form: {reason}")
        with torch.random.fork_rng(devices=[]):
            super().__init__(potential.config)
        self.to(potential.dtype).load_state_dict(potential.state_dict())
        self.requires_grad_(False).eval()
        messages = [layer.message for layer in self.network.rounds]
        kernels = EdgeKernels(messages[0], self.dtype)
        self._layout = kernels.layout
        self._kernels = hashlib.sha256(kernels.source.encode()).hexdigest()
        _KERNELS[self._kernels] = kernels
        self._step = self.cutoff / _INTERVALS[self.dtype]
        self._tables = [self._table(message) for message in messages]
        self._projections = [_projections(Layout(message)) for message in messages]
        self._rounds = [_merged(layer) for layer in self.network.rounds]
        self._compare(potential)

    def _compare(self, plain: Potential) -> None:
        """Stop if energies or forces of a small crystal are not those of the plain potential.

        How much they may differ depends on how far the plain potential itself is from its values in float64: steep
        potentials magnify rounding.
        """
        rng = np.random.default_rng(0)
        spacing = 0.4 * self.cutoff
        numbers = np.resize([atomic_numbers[symbol] for symbol in self.elements], 12)
        sites = np.stack(np.meshgrid(range(3), range(2), range(2)), axis=-1).reshape(12, 3)
        positions = spacing * (sites + rng.uniform(-0.2, 0.2, (12, 3)))
        atoms = Atoms(numbers, positions, cell=spacing * np.array([3, 3, 3]), pbc=True)
        graph = AtomicGraph.from_atoms(atoms, self.cutoff)
        result, expected = self.predict(graph), plain.predict(graph)
        exact = copy.deepcopy(plain).double().predict(graph)
        for name in ("atom_energies", "forces"):
            value, rounded, target = (getattr(prediction, name) for prediction in (result, expected, exact))
            rounding = (rounded - target).abs().max()
            allowed = _TOLERANCES[self.dtype] * target.abs().max() + 10 * rounding
            error = (value - target).abs().max()
            if target.isfinite().all() and not error <= allowed:
                raise RuntimeError(
                    f"{name} of compiled loops are wrong by {error:.2e}, at most {allowed:.2e} is allowed; use "
                    "compile=False, and please report this with your versions of torch and of the C++ compiler"
                )

    def _table(self, message: MessageNetwork) -> Tensor:
        """Splines of the functions of the distance, (intervals + 5, functions * C); see `Layout`."""
        exact = copy.deepcopy(message).double()
        layout = Layout(exact)
        slots = [(o, layout.n_parts(o) * layout.channels) for o, _ in layout.first[layout.scalars]]
        bias = [exact.linear_1.biases["0"] if o == 0 else torch.zeros(n, dtype=torch.float64) for o, n in slots]
        entries = [path.entry_in for paths in layout.second for path in paths]
        norms = [SILU_NORM if entry == layout.scalars else SIGMOID_NORM for entry in entries]
        factors = torch.tensor(norms, dtype=torch.float64).repeat_interleave(layout.channels)

        def functions(distances: Tensor) -> Tensor:
            scalars, _ = self.radial_functions(distances.where(distances != 0, _SMALLEST))
            added = scalars @ layout.first_weights(2 * len(layout.hidden)) + torch.cat(bias)
            assert exact.weights is not None
            return torch.cat([added, exact.weights(scalars) * factors], dim=1)

        return spline_coefficients(functions, self.cutoff, _INTERVALS[self.dtype]).to(self.dtype).contiguous()

    def _run_network(
        self,
        graph: AtomicGraph,
        node_features: Tensor,
        node_attributes: Tensor,
        edge_attributes: Tensor,
        distances: Tensor,
    ) -> Tensor:
        network = self.network
        _, weights = self.radial_functions(distances)
        rows = torch.searchsorted(graph.centers, torch.arange(graph.n_atoms + 1))
        edges = [rows, graph.neighbors, edge_attributes.contiguous(), distances, weights]
        steering = Steering(node_attributes, network.irreps_node_attributes, unit_scalar=True)
        features: Features = network.embedding(split(node_features, network.irreps_in), steering)
        for layer, table, projections in zip(self._rounds, self._tables, self._projections, strict=True):
            projected = [x @ projection for x, projection in zip(features, projections, strict=True)]
            sums: Features = _SumMessages.apply(  # type: ignore[no-untyped-call]
                self._kernels, self._step, table, len(edges), *edges, *projected
            )
            features = layer(features, sums, steering)
        return flatten(network.readout(features, steering))


def why_not_fused(potential: Potential) -> str | None:
    """Say why a potential cannot be fused, or None if it can."""
    if potential.one_hot.device.type != "cpu":
        return f"it is on {potential.one_hot.device}, the loops are for a CPU"
    return why_not(potential.network.rounds[0].message, potential.dtype)


def _projections(layout: Layout) -> list[Tensor]:
    """Weights that make what centers and neighbors send, (C, 2 S C) per hidden entry."""
    n = len(layout.hidden)
    return [torch.cat([layout.first_weights(entry), layout.first_weights(entry + n)], dim=1) for entry in range(n)]


def _merged(layer: SEGNNLayer) -> SEGNNLayer:
    """Return the same layer, to update from the sums that the loops return.

    The second layer of the messages and the first of the update are both linear, so one matrix does what two did.
    """
    message, update = layer.message.linear_2, layer.update.linear_1
    n = len(message.irreps_out)
    merged = copy.deepcopy(layer)
    widths = [(weight.shape[0], ir) for weight, (_, ir) in zip(message.weights, message.irreps_out, strict=True)]
    with torch.random.fork_rng(devices=[]):
        first = SteerableLinear(message.irreps_out + o3.Irreps(widths), update.irreps_attributes, update.irreps_out)
    first.to(message.weights[0].dtype)
    for new, weight, paths, old in zip(first.weights, update.weights, first.paths, update.paths, strict=True):
        rows = {(path.entry_in, path.copy): weight[path.rows] for path in old}
        for path in paths:
            matrix = rows[path.entry_in, path.copy]
            new.data[path.rows] = matrix if path.entry_in < n else message.weights[path.entry_in - n] @ matrix
    first.biases = update.biases
    merged.update.linear_1 = first.requires_grad_(False)
    return merged


# The loops as operators, so that torch.compile knows what they take and give.
_library = torch.library.Library("ase_segnn", "DEF")
_COMMON = "Tensor[] edges, Tensor table, float step, Tensor[] projected"
_library.define(f"sum_messages({_COMMON}, str kernels) -> Tensor[]")
_library.define(f"sum_messages_backward({_COMMON}, Tensor[] gradients, str kernels) -> Tensor[]")
_Tensors = list[Tensor]


@torch.library.impl(_library, "sum_messages", "CPU")
def _forward(edges: _Tensors, table: Tensor, step: float, projected: _Tensors, kernels: str) -> _Tensors:
    return _KERNELS[kernels].forward(edges, table, step, projected)


@torch.library.impl(_library, "sum_messages_backward", "CPU")
def _backward(
    edges: _Tensors, table: Tensor, step: float, projected: _Tensors, gradients: _Tensors, kernels: str
) -> _Tensors:
    return _KERNELS[kernels].backward(edges, table, step, projected, gradients)


def _fake_forward(edges: _Tensors, table: Tensor, step: float, projected: _Tensors, kernels: str) -> _Tensors:
    del edges, table, step
    return _KERNELS[kernels].empty_sums(projected)


def _fake_backward(
    edges: _Tensors, table: Tensor, step: float, projected: _Tensors, gradients: _Tensors, kernels: str
) -> _Tensors:
    del table, step, gradients
    return _KERNELS[kernels].empty_gradients(edges, projected)


torch.library.register_fake("ase_segnn::sum_messages", _fake_forward, lib=_library)
torch.library.register_fake("ase_segnn::sum_messages_backward", _fake_backward, lib=_library)


class _SumMessages(torch.autograd.Function):
    """Sums of messages, to be differentiated once."""

    @staticmethod
    def forward(ctx: Any, kernels: str, step: float, table: Tensor, n_edge_tensors: int, *tensors: Tensor) -> Any:
        ctx.kernels, ctx.step, ctx.n_edge_tensors = kernels, step, n_edge_tensors
        ctx.save_for_backward(table, *tensors)
        edges, projected = tensors[:n_edge_tensors], tensors[n_edge_tensors:]
        return tuple(torch.ops.ase_segnn.sum_messages(edges, table, step, projected, kernels))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("a fused potential can be differentiated once only; use the plain one")
        table, *tensors = ctx.saved_tensors
        edges, projected = tensors[: ctx.n_edge_tensors], tensors[ctx.n_edge_tensors :]
        results = torch.ops.ase_segnn.sum_messages_backward(edges, table, ctx.step, projected, gradients, ctx.kernels)
        without = 4 + len(tensors) - len(results)  # arguments that have no gradient
        return *[None] * without, *results
