"""Networks whose channels were filled up give the same results, in plain torch and as compiled C++."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiler import needs_compiler
from random_potentials import CONFIGS, NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.edge_layout import has_equal_channels
from ase_segnn.model.padding import with_equal_channels
from ase_segnn.model.potential import Potential

SYSTEMS = systems()
NETWORKS: dict[str, dict[str, Any]] = {
    "more scalars": {"irreps_hidden": "16x0e+6x1o"},
    "fewer scalars": {"irreps_hidden": "3x0e+8x1o"},
    "all parities": {"irreps_hidden": "5x0e+2x0o+4x1o+1x1e+2x2e+3x2o", "l_max_attributes": 2},
    "no multiple of 4": {"irreps_hidden": "6x0e+6x1o"},
    "scalars alone": {"irreps_hidden": "10x0e"},
    "one channel": {"irreps_hidden": "1x0e+1x1o"},
    "three layers": {"irreps_hidden": "8x0e+4x1o", "n_layers": 3},
    "one layer": {"irreps_hidden": "8x0e+4x1o", "n_layers": 1},
    "no network of the distance": {"irreps_hidden": "8x0e+4x1o", "radial_hidden": ()},
    "attributes of nodes": {"irreps_hidden": "8x0e+4x1o", "l_max_attributes": 2, "l_max_node_attributes": 1},
}


def potential_with(**network: Any) -> Potential:
    config = NATIVE_CONFIGS["natural parity"]
    config = config.model_copy(update={"network": config.network.model_copy(update=network)})
    return random_potential(config).double().requires_grad_(False).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_are_added_change_nothing(name: str) -> None:
    narrow = potential_with(**NETWORKS[name])
    before = torch.random.get_rng_state()
    wide = with_equal_channels(narrow)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not has_equal_channels(narrow.network.irreps_hidden)
    assert has_equal_channels(wide.network.irreps_hidden)
    for system in ("mixed species", "slab", "lone atom"):
        graph = AtomicGraph.from_atoms(SYSTEMS[system], narrow.cutoff)
        result, expected = wide.predict(graph), narrow.predict(graph)
        torch.testing.assert_close(result.atom_energies, expected.atom_energies, rtol=0, atol=1e-12)
        torch.testing.assert_close(result.forces, expected.forces, rtol=0, atol=1e-11)
    assert expected.atom_energies.abs().max() > 0


@pytest.mark.parametrize("config", NATIVE_CONFIGS.values())
def test_equal_channels_stay_as_they_are(config: Any) -> None:
    potential = random_potential(config)
    assert with_equal_channels(potential) is potential


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*NETWORKS, *CONFIGS, "radial"])
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
