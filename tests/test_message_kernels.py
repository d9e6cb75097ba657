"""Messages as compiled C++ that can be differentiated twice: equal to the plain ones, and gone after use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler import needs_compiler
from labeled import graphs_of, labeled_clusters, labeled_crystals, tiny_potential
from torch import Tensor

from ase_segnn._e3nn import o3
from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines.build import NoCompilerError
from ase_segnn.engines.message_kernels import message_kernels
from ase_segnn.model.config import NetworkConfig
from ase_segnn.model.segnn import SEGNN
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.fit.step import PotentialLoss, gradients

pytestmark = needs_compiler

N_NODES, N_EDGES = 7, 20
NETWORK = NetworkConfig(cutoff=4.0, irreps_hidden="8x0e+8x1o", n_radial=4, radial_hidden=(8,))
NETWORKS = {
    "degree 1": ("8x0e+8x1o", 1),
    "attributes of degree 2": ("4x0e+4x1o", 2),
    "features of degree 2": ("8x0e+8x1o+8x2e", 2),
    "both parities": ("4x0e+4x0o+4x1o+4x1e+4x2e", 3),
    "odd first": ("4x1o+4x0o+4x0e", 2),
    "fewer vectors": ("8x0e+4x1o", 1),
    "fewer scalars": ("3x0e+9x1o", 2),
    "no multiple of 4": ("6x0e+6x1o", 1),
    "other numbers of each": ("5x0e+2x0o+4x1o+1x1e+3x2e", 2),
    "scalars alone": ("6x0e", 1),
}


def network_of(irreps: str = "8x0e+8x1o", l_max: int = 2, **options: Any) -> SEGNN:
    attributes = o3.Irreps.spherical_harmonics(l_max)
    options = {"message_weights_hidden": (6,), "unit_scalar_attributes": True, **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SEGNN(
            "3x0e", irreps, "1x0e+1x1o", attributes, attributes, n_layers=2, n_message_scalars=4, **options
        ).double()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "bias" in name:
                    parameter.normal_()
    return network


def inputs_of(network: SEGNN) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    attributes = {
        "node_attributes": randn(N_NODES, network.irreps_node_attributes.dim),
        "edge_attributes": randn(N_EDGES, network.irreps_edge_attributes.dim),
    }
    for values in attributes.values():
        values[:, 0] = 1
    rest = {
        "node_features": randn(N_NODES, 3),
        "message_scalars": randn(N_EDGES, 4),
        "edge_weights": randn(N_EDGES),
    }
    return {name: values.requires_grad_() for name, values in {**attributes, **rest}.items()}


def outputs_and_derivatives(network: SEGNN, *, edge_weights: bool = True) -> list[Tensor]:
    """Return outputs, first derivatives of a function of them, and those of a function of the first derivatives."""
    random = torch.Generator().manual_seed(2)
    centers, neighbors = torch.randint(0, N_NODES - 1, (2, N_EDGES), generator=random)  # the last node has no edges
    inputs = inputs_of(network)
    if not edge_weights:
        del inputs["edge_weights"]
    outputs = network(centers=centers, neighbors=neighbors, **inputs)
    first = torch.autograd.grad(
        outputs.square().sum(), list(inputs.values()), create_graph=True, materialize_grads=True
    )
    objective = sum((x.square().sum() for x in first), start=outputs.sum())
    second = torch.autograd.grad(objective, [*inputs.values(), *network.parameters()], materialize_grads=True)
    return [outputs, *first, *second]


def assert_alike(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Compare tensors, each by its own scale."""
    for value, target in zip(found, expected, strict=True):
        scale = max(1.0, float(target.detach().norm()))
        torch.testing.assert_close(value, target, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("irreps", NETWORKS.values(), ids=NETWORKS)
def test_equal_to_plain_messages(irreps: tuple[str, int], n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(*irreps)
    expected = outputs_and_derivatives(network)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    with message_kernels(network):
        assert_alike(outputs_and_derivatives(network), expected)


def test_weights_of_messages_may_be_left_out() -> None:
    network = network_of()
    expected = outputs_and_derivatives(network, edge_weights=False)
    with message_kernels(network):
        assert_alike(outputs_and_derivatives(network, edge_weights=False), expected)


@pytest.mark.parametrize("kind", ["clusters", "crystals"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_loss(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of energies, forces and stresses of several structures, as training has them."""
    frames = labeled_clusters(4) if kind == "clusters" else labeled_crystals(3)
    batch = LabeledGraph.batch(graphs_of(frames, tmp_path))
    loss = PotentialLoss(tiny_potential(network=NETWORK).to(dtype), stress=kind == "crystals")
    coefficients = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    value, expected = gradients(loss, batch, coefficients)
    with message_kernels(loss.potential.network):
        found_value, found = gradients(loss, batch, coefficients)
    assert_alike([found_value, *found], [value, *expected], 1e-10 if dtype == torch.float64 else 1e-5)


def test_without_edges() -> None:
    network = network_of()
    inputs = {name: x[: 0 if len(x) == N_EDGES else None] for name, x in inputs_of(network).items()}
    none = torch.zeros(0, dtype=torch.int64)
    expected = network(centers=none, neighbors=none, **inputs)
    with message_kernels(network):
        torch.testing.assert_close(network(centers=none, neighbors=none, **inputs), expected)


def test_nothing_is_left_behind() -> None:
    network = network_of()
    context = message_kernels(network)
    with context:
        assert all(layer.message.instead is not None for layer in network.rounds)
    assert all(layer.message.instead is None for layer in network.rounds)


@pytest.mark.parametrize(
    ("irreps", "options", "reason"),
    [
        ("8x0e+8x1o", {"message_gates": 2}, "its messages have two gates"),
        ("8x0e+8x1o", {"message_gates": 0}, "its messages have no gate"),
        ("8x0e+8x1o", {"irreps_messages": "8x0e"}, "other irreps than its features"),
        ("8x0e+8x1o", {"unit_scalar_attributes": False}, "may differ from 1"),
    ],
)
def test_networks_without_such_messages(irreps: str, options: dict[str, Any], reason: str) -> None:
    network = network_of(irreps, **options)
    assert reason in (unsupported(network) or "")
    with pytest.raises(ValueError, match="no compiled messages"), message_kernels(network):
        pass


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    network = network_of()
    with (
        pytest.raises(NoCompilerError, match="CXX names 'no-such-compiler', which is not there"),
        message_kernels(network),
    ):
        pass
    assert all(layer.message.instead is None for layer in network.rounds)
