"""The example of the documentation: a layer that is added in one file runs plain, compiled and in training."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines.learning import CompiledLearning
from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

EXAMPLE = Path(__file__).parents[1] / "docs" / "channelwise_product.py"
SYSTEMS = systems()


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("channelwise_product", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["channelwise_product"] = module
    specification.loader.exec_module(module)
    return module


def with_products(example: ModuleType, irreps: str) -> Potential:
    config = NATIVE_CONFIGS["natural parity"]
    network = config.network.model_copy(update={"irreps_hidden": irreps})
    potential = random_potential(config.model_copy(update={"network": network}))
    segnn = potential.network
    torch.manual_seed(0)
    for k, layer in enumerate(segnn.rounds):
        segnn.layers[k] = example.ProductLayer(segnn.shapes[k], layer.message, segnn.irreps_node_attributes)
    return potential.double()


def test_it_is_one_short_file() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


@needs_compiler
@pytest.mark.parametrize("irreps", ["8x0e+8x1o", "8x0e+4x1o"])
def test_compiled_equals_plain(example: ModuleType, irreps: str) -> None:
    plain = with_products(example, irreps).requires_grad_(False).eval()
    assert unsupported(plain) is None
    native = NativePotential(plain)
    for system in ("mixed species", "bulk"):
        graph = AtomicGraph.from_atoms(SYSTEMS[system], plain.cutoff)
        result, expected = native.evaluate(graph), plain.predict(graph)
        assert expected.forces is not None
        torch.testing.assert_close(result.atom_energies, expected.atom_energies, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.forces, expected.forces, rtol=0, atol=1e-10)
    plain.network.layers[0].product.symbols.zero_()  # a control: products matter
    assert (plain.predict(graph).atom_energies - expected.atom_energies).abs().max() > 1e-6


@needs_compiler
def test_training_has_the_same_gradients(example: ModuleType) -> None:
    potential = with_products(example, "8x0e+8x1o")
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], potential.cutoff)

    def gradients(prediction: Prediction) -> list[torch.Tensor]:
        assert prediction.forces is not None
        loss = prediction.energy.sum() + prediction.forces.square().sum()
        return list(torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True))

    expected = gradients(potential.predict(graph, create_graph=True))
    found = gradients(CompiledLearning(potential).predict(graph))
    for value, target in zip(found, expected, strict=True):
        torch.testing.assert_close(value, target, rtol=1e-9, atol=1e-9)
