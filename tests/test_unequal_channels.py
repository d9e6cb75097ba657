"""Networks whose degrees have other numbers of channels: compiled code fills them up, and gives the same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiler import needs_compiler
from random_potentials import CONFIGS, NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn.codegen.builder import channels_of, filled
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.program import Product
from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

SYSTEMS = systems()
NETWORKS: dict[str, dict[str, Any]] = {
    "more scalars": {"irreps_hidden": "16x0e+6x1o"},
    "fewer scalars": {"irreps_hidden": "3x0e+8x1o"},
    "all parities": {"irreps_hidden": "5x0e+2x0o+4x1o+1x1e+2x2e+3x2o", "l_max_attributes": 2},
    "no multiple of 4": {"irreps_hidden": "6x0e+6x1o"},
    "scalars alone": {"irreps_hidden": "10x0e"},
    "one channel": {"irreps_hidden": "1x0e+1x1o"},
    "one channel of many": {"irreps_hidden": "1x0e+17x1o"},
    "scalars last": {"irreps_hidden": "6x1o+3x0o+5x0e"},
    "three layers": {"irreps_hidden": "8x0e+4x1o", "n_layers": 3},
    "one layer": {"irreps_hidden": "8x0e+4x1o", "n_layers": 1},
    "no network of the distance": {"irreps_hidden": "8x0e+4x1o", "radial_hidden": ()},
    "attributes of nodes": {"irreps_hidden": "8x0e+4x1o", "l_max_attributes": 2, "l_max_node_attributes": 1},
}


def potential_with(**network: Any) -> Potential:
    config = NATIVE_CONFIGS["natural parity"]
    config = config.model_copy(update={"network": config.network.model_copy(update=network)})
    return random_potential(config).double().requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([64, 64], 64),
        ([20, 20, 20], 20),
        ([4], 4),
        ([8, 4], 8),
        ([4, 20], 24),
        ([6, 6], 8),
        ([1], 8),
        ([3, 17], 24),
        ([12, 16], 16),
    ],
)
def test_channels_of_all_parts(numbers: list[int], expected: int) -> None:
    """Equal numbers stay as they are if vectors fit; otherwise there is room for the most of them."""
    assert channels_of(numbers) == expected


def test_columns_that_are_added_are_zero() -> None:
    matrix = torch.arange(10.0).reshape(2, 5)
    result = filled(matrix, [2, 3], 4)
    assert result.shape == (2, 8)
    assert torch.equal(result[:, [0, 1, 4, 5, 6]], matrix)
    assert not result[:, [2, 3, 7]].any()
    assert filled(matrix, [5], 5) is matrix


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_added_makes_no_random_numbers_and_changes_no_weights(name: str) -> None:
    potential = potential_with(**NETWORKS[name])
    before = torch.random.get_rng_state(), {key: x.clone() for key, x in potential.state_dict().items()}
    program = program_of(potential)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(torch.equal(x, before[1][key]) for key, x in potential.state_dict().items())
    channels = channels_of([mul for mul, _ in potential.network.irreps_hidden])
    for step in program.steps:
        if isinstance(step, Product):
            assert program.weights[step.weight].shape == (step.source.width, step.target.width)
            assert (step.source.width % channels, step.target.width % channels) == (0, 0)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in (*NETWORKS, "with ZBL", "products", "radial")),
        *((name, torch.float32) for name in ("fewer scalars", "with ZBL", "radial")),
    ],
)
def test_every_network_with_one_gate_is_compiled(name: str, dtype: torch.dtype) -> None:
    if name in CONFIGS:
        plain = random_potential(CONFIGS[name]).to(dtype).requires_grad_(False).eval()
    elif name == "radial":
        plain = potential_with(radial_hidden=()).to(dtype)  # as many channels, and no network of the distance
    else:
        plain = potential_with(**NETWORKS[name]).to(dtype)
    native = NativePotential(plain)
    for system in ("mixed species", "bulk", "wire", "lone atom"):
        graph = AtomicGraph.from_atoms(SYSTEMS[system], plain.cutoff)
        result, expected = native.evaluate(graph), plain.predict(graph)
        scale = max(1.0, float(expected.forces.abs().max()))
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(result.forces, expected.forces, rtol=0, atol=tolerance * scale)
        torch.testing.assert_close(result.atom_energies, expected.atom_energies, rtol=tolerance, atol=tolerance * scale)
        if system != "lone atom":
            assert expected.forces.abs().max() > 1e-3
