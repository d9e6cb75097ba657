"""Potentials as compiled C++ for training: predictions, and their gradients by all parameters, equal the plain ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from labeled import graphs_of, labeled_clusters, labeled_crystals, tiny_potential
from random_potentials import SHAPES, random_potential
from systems import systems
from torch import Tensor

from ase_segnn import Potential
from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines.build import NoCompilerError
from ase_segnn.engines.learning import LearningPotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import NetworkConfig
from ase_segnn.model.potential import Prediction
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.fit.step import PotentialLoss, gradients

pytestmark = needs_compiler

SYSTEMS = systems()
QUICK = ("products", "products of order 4", "mixed parity", "scalars alone", "attributes of nodes")
NETWORK = NetworkConfig(cutoff=4.0, irreps_hidden="8x0e+8x1o", n_radial=4, radial_hidden=(8,))


def graph_of(potential: Potential, *names: str) -> AtomicGraph:
    return AtomicGraph.batch([AtomicGraph.from_atoms(SYSTEMS[name], potential.cutoff) for name in names])


def objective(prediction: Prediction) -> Tensor:
    """Mix all results, each with numbers of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for k, value in enumerate((prediction.atom_energies, prediction.forces, prediction.stress)):
        if value is not None:
            numbers = torch.linspace(0.1, 1.1, value.numel(), dtype=torch.float64).reshape(value.shape)
            total = total + (k + 1) * (numbers * value).sum() + value.square().sum()
    return total


def assert_alike(found: list[Tensor | None], expected: list[Tensor | None], tolerance: float) -> None:
    """Compare tensors, each by its own scale."""
    for value, target in zip(found, expected, strict=True):
        assert (value is None) == (target is None)
        if value is not None and target is not None:
            scale = max(1.0, float(target.detach().norm()))
            torch.testing.assert_close(value, target, rtol=0, atol=tolerance * scale)


def results(prediction: Prediction) -> list[Tensor | None]:
    return [prediction.energy, prediction.atom_energies, prediction.forces, prediction.stress]


def assert_equal(potential: Potential, graph: AtomicGraph, *, stress: bool, tolerance: float) -> None:
    learning = LearningPotential(potential)
    parameters = list(potential.parameters())
    plain = potential.predict(graph, stress=stress, create_graph=True)
    expected = list(torch.autograd.grad(objective(plain), parameters, materialize_grads=True))
    for _ in range(2):  # again in the memory of the call before
        compiled = learning.predict(graph, stress=stress)
        assert_alike(results(compiled), results(plain), tolerance)
        found = list(torch.autograd.grad(objective(compiled), parameters, materialize_grads=True))
        assert_alike(found, expected, tolerance)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)  # each takes seconds to compile
        for name in SHAPES
    ],
)
def test_equals_the_plain_potential(name: str) -> None:
    potential = random_potential(SHAPES[name]).double()
    assert unsupported(potential) is None
    graph = graph_of(potential, "mixed species", "slab")
    assert_equal(potential, graph, stress=False, tolerance=1e-9)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
def test_stress_and_threads(n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the structures, and there may be more threads than structures."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    potential = random_potential(SHAPES["products"]).double()
    graph = graph_of(potential, "unwrapped", "skewed triclinic", "mixed species", "one-atom cell")
    assert_equal(potential, graph, stress=True, tolerance=1e-9)


def test_batches_of_any_size_follow_each_other() -> None:
    potential = random_potential(SHAPES["products"]).double()
    learning = LearningPotential(potential)
    for names in (("mixed species",), ("slab", "mixed species", "slab"), ("mixed species", "slab")):
        graph = graph_of(potential, *names)
        assert_alike(results(learning.predict(graph)), results(potential.predict(graph)), 1e-10)


def test_parameters_are_read_at_each_call() -> None:
    potential = random_potential(SHAPES["products"]).double()
    learning, graph = LearningPotential(potential), graph_of(potential, "mixed species")
    before = learning.predict(graph).atom_energies
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.1)
    after = learning.predict(graph).atom_energies
    assert (after - before).abs().max() > 1e-3
    assert_alike([after], [potential.predict(graph).atom_energies], 1e-10)


@pytest.mark.parametrize("kind", ["clusters", "crystals"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_loss(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of energies, forces and stresses of several structures, as training has them."""
    frames = labeled_clusters(4) if kind == "clusters" else labeled_crystals(3)
    batch = LabeledGraph.batch(graphs_of(frames, tmp_path))
    loss = PotentialLoss(tiny_potential(network=NETWORK).to(dtype), stress=kind == "crystals")
    coefficients = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    value, expected = gradients(loss, batch, coefficients)
    loss.learning = LearningPotential(loss.potential)
    found_value, found = gradients(loss, batch, coefficients)
    assert_alike([found_value, *found], [value, *expected], 1e-10 if dtype == torch.float64 else 1e-5)


def test_pairs_beyond_the_cutoff_are_left_out() -> None:
    potential = random_potential(SHAPES["products"]).double()
    atoms = SYSTEMS["mixed species"]
    near, far = (AtomicGraph.from_atoms(atoms, potential.cutoff + more) for more in (0.0, 1.0))
    assert far.n_edges > near.n_edges
    learning = LearningPotential(potential)
    assert_alike(results(learning.predict(far)), results(learning.predict(near)), 1e-12)


def test_without_edges() -> None:
    potential = random_potential(SHAPES["products"]).double()
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"][:1], potential.cutoff)
    assert graph.n_edges == 0
    assert_equal(potential, graph, stress=False, tolerance=1e-12)


def test_an_unknown_element_is_an_error() -> None:
    potential = random_potential(SHAPES["products"])
    atoms = SYSTEMS["mixed species"].copy()
    atoms.symbols[0] = "Xe"
    with pytest.raises(IndexError, match="an element is none of the potential's, H, C"):
        LearningPotential(potential).predict(AtomicGraph.from_atoms(atoms, potential.cutoff))


def test_results_of_an_earlier_call_cannot_be_differentiated() -> None:
    """Their arrays hold those of the last call."""
    potential = random_potential(SHAPES["products"])
    learning, graph = LearningPotential(potential), graph_of(potential, "mixed species")
    first = learning.predict(graph)
    learning.predict(graph)
    with pytest.raises(RuntimeError, match="before the next prediction"):
        torch.autograd.grad(first.energy.sum(), list(potential.parameters()), allow_unused=True)


def test_networks_without_such_a_form() -> None:
    config = SHAPES["natural parity"]
    network = config.network.model_copy(update={"gated_messages": True})
    with pytest.raises(ValueError, match=r"no compiled form for training: its messages have two gates"):
        LearningPotential(random_potential(config.model_copy(update={"network": network})))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompilerError, match="CXX names 'no-such-compiler', which is not there"):
        LearningPotential(random_potential(SHAPES["products"]))
