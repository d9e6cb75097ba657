"""Potentials as compiled C++ for training: predictions, and their gradients by all parameters, equal the plain ones."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from ase_segnn.engines.learning import CompiledLearning
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import NetworkConfig
from ase_segnn.model.potential import Prediction
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.fit.step import PotentialLoss, gradients

pytestmark = needs_compiler

SYSTEMS = systems()
QUICK = ("products", "products of order 4", "scalars alone", "attributes of nodes")
NETWORK = NetworkConfig(cutoff=4.0, irreps_hidden="8x0e+8x1o", correlation=1, n_radial=4, radial_hidden=(8,))


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
    learning = CompiledLearning(potential)
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
        if name not in ("all parities", "mixed parity")  # larger than "both parities", each takes minutes
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
    learning = CompiledLearning(potential)
    for names in (("mixed species",), ("slab", "mixed species", "slab"), ("mixed species", "slab")):
        graph = graph_of(potential, *names)
        assert_alike(results(learning.predict(graph)), results(potential.predict(graph)), 1e-10)


def test_parameters_are_read_at_each_call() -> None:
    potential = random_potential(SHAPES["products"]).double()
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species")
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
    loss.learning = CompiledLearning(loss.potential)
    found_value, found = gradients(loss, batch, coefficients)
    assert_alike([found_value, *found], [value, *expected], 1e-10 if dtype == torch.float64 else 1e-5)


def test_pairs_beyond_the_cutoff_are_left_out() -> None:
    potential = random_potential(SHAPES["products"]).double()
    atoms = SYSTEMS["mixed species"]
    near, far = (AtomicGraph.from_atoms(atoms, potential.cutoff + more) for more in (0.0, 1.0))
    assert far.n_edges > near.n_edges
    learning = CompiledLearning(potential)
    assert_alike(results(learning.predict(far)), results(learning.predict(near)), 1e-12)


def test_without_edges() -> None:
    potential = random_potential(SHAPES["products"]).double()
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"][:1], potential.cutoff)
    assert graph.n_edges == 0
    assert_equal(potential, graph, stress=False, tolerance=1e-12)


def test_without_atoms() -> None:
    potential = random_potential(SHAPES["products"]).double()
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"][:0], potential.cutoff)
    learning = CompiledLearning(potential)
    prediction = learning.predict(graph)
    assert prediction.energy.tolist() == [0]
    assert prediction.forces is not None
    assert prediction.forces.shape == (0, 3)
    found = torch.autograd.grad(prediction.energy.sum(), list(potential.parameters()), materialize_grads=True)
    assert all(bool((gradient == 0).all()) for gradient in found)


def test_a_batch_of_padding_has_no_gradient() -> None:
    """A process gets such a batch where there are more processes than batches."""
    loss = PotentialLoss(tiny_potential(network=NETWORK))
    loss.learning = CompiledLearning(loss.potential)
    batch = LabeledGraph.padding(1, 0, NETWORK.cutoff, 10)
    value, found = gradients(loss, batch, torch.ones(3, dtype=torch.float64))
    assert value.item() == 0
    assert len(found) == len(list(loss.parameters()))
    assert all(bool((gradient == 0).all()) for gradient in found)


def test_edges_of_padding_are_too_long_to_matter() -> None:
    loss = PotentialLoss(tiny_potential(network=NETWORK))
    batch = LabeledGraph.padding(3, 40, NETWORK.cutoff, 10)
    expected = gradients(loss, batch, torch.ones(3, dtype=torch.float64))[1]
    loss.learning = CompiledLearning(loss.potential)
    assert_alike(gradients(loss, batch, torch.ones(3, dtype=torch.float64))[1], expected, 1e-12)


@pytest.mark.parametrize("number", [54, 2, 1000, -1])
def test_an_unknown_element_is_an_error(number: int) -> None:
    potential = random_potential(SHAPES["products"])
    graph = graph_of(potential, "mixed species")
    graph.atomic_numbers[0] = number
    with pytest.raises(IndexError, match="an element is none of the potential's, H, C"):
        CompiledLearning(potential).predict(graph)


def test_results_of_an_earlier_call_cannot_be_differentiated() -> None:
    """Their arrays hold those of the last call."""
    potential = random_potential(SHAPES["products"])
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species")
    first = learning.predict(graph)
    learning.predict(graph)
    with pytest.raises(RuntimeError, match="before the next prediction"):
        torch.autograd.grad(first.energy.sum(), list(potential.parameters()), allow_unused=True)


def without_order(graph: AtomicGraph) -> dict[str, tuple[AtomicGraph, str]]:
    """Return graphs that compiled code must not see, with what is said about them."""
    n, backwards = graph.n_atoms, torch.arange(graph.n_edges).flip(0)
    unsorted = replace(
        graph,
        centers=graph.centers[backwards],
        neighbors=graph.neighbors[backwards],
        cell_shifts=graph.cell_shifts[backwards],
    )
    across = graph.neighbors.clone()
    across[0] = n - 1
    return {
        "edges": (unsorted, "the edges of the graph are not sorted by their centers"),
        "neighbors": (
            replace(graph, neighbors=graph.neighbors + n),
            "an edge of the graph joins atoms that are not there",
        ),
        "negative": (
            replace(graph, neighbors=graph.neighbors - n),
            "an edge of the graph joins atoms that are not there",
        ),
        "centers": (replace(graph, centers=graph.centers + n), "an edge of the graph joins atoms that are not there"),
        "structures": (
            replace(graph, structure=graph.structure.flip(0)),
            "the atoms of each structure of the graph do not follow each other",
        ),
        "beyond": (
            replace(graph, structure=graph.structure + 1),
            "an atom of the graph is of a structure that is not there",
        ),
        "across": (replace(graph, neighbors=across), "an edge of the graph joins atoms of different structures"),
    }


@pytest.mark.parametrize("kind", ["edges", "neighbors", "negative", "centers", "structures", "beyond", "across"])
def test_graphs_in_another_order_are_refused(kind: str) -> None:
    potential = random_potential(SHAPES["products"]).double()
    good = graph_of(potential, "slab", "mixed species")
    graph, message = without_order(good)[kind]
    learning = CompiledLearning(potential)
    with pytest.raises(ValueError, match=message):
        learning.predict(graph)
    assert_alike(results(learning.predict(good)), results(potential.predict(good)), 1e-10)


def test_tensors_of_a_graph_need_not_be_contiguous() -> None:
    potential = random_potential(SHAPES["products"]).double()
    graph = graph_of(potential, "mixed species")
    pairs = torch.stack([graph.centers, graph.neighbors], dim=1)
    strided = replace(graph, centers=pairs[:, 0], neighbors=pairs[:, 1], positions=graph.positions.t().clone().t())
    assert not strided.neighbors.is_contiguous()
    found = CompiledLearning(potential).predict(strided)
    assert_alike(results(found), results(potential.predict(graph)), 1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """Weights and positions that are not finite show in the results, as in those of the plain potential."""
    potential = random_potential(SHAPES["products"]).double()
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species", "slab")
    positions = graph.positions.clone()
    positions[0] = value
    energy = learning.predict(replace(graph, positions=positions)).energy
    assert energy.isfinite().tolist() == [False, True]
    good = learning.predict(graph)
    assert_alike(results(good), results(potential.predict(graph)), 1e-10)
    with torch.no_grad():
        next(potential.network.rounds[0].message.parameters()).view(-1)[0] = value
    bad = learning.predict(graph)
    assert not bad.energy.isfinite().any()
    found = torch.autograd.grad(bad.energy.sum(), list(potential.parameters()), materialize_grads=True)
    assert not all(bool(gradient.isfinite().all()) for gradient in found)


def test_another_dtype_is_refused() -> None:
    potential = random_potential(SHAPES["products"])
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species")
    potential.double()
    message = r"compiled for training in torch.float32 on cpu and is in torch.float64 on cpu now; make another"
    with pytest.raises(ValueError, match=message):
        learning.predict(graph)
    potential.float()
    assert learning.predict(graph).energy.isfinite().all()


FROZEN = ("embedding", "layers.0.message", "layers.1.products", "readout.linear_2.weights")


def partly_frozen() -> Potential:
    potential = random_potential(SHAPES["products"]).double()
    for name, parameter in potential.network.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    return potential


def test_frozen_parts() -> None:
    """The rest has the right gradients, and frozen weights have none."""
    potential = partly_frozen()
    learned = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    assert 0 < len(learned) < len(list(potential.parameters()))
    graph = graph_of(potential, "mixed species", "slab")
    learning = CompiledLearning(potential)
    plain = potential.predict(graph, create_graph=True)
    expected = torch.autograd.grad(objective(plain), learned, materialize_grads=True)
    found = torch.autograd.grad(objective(learning.predict(graph)), learned, materialize_grads=True)
    assert_alike(list(found), list(expected), 1e-9)
    with torch.no_grad():  # they are read at each call like the others
        potential.network.embedding.weights[0].mul_(1.5)
    assert_alike(results(learning.predict(graph)), results(potential.predict(graph)), 1e-10)


def test_what_was_frozen_cannot_be_learned_later() -> None:
    potential = partly_frozen()
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species")
    potential.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"network.embedding.\S+ was frozen when .* learned now; make another Learning"
    ):
        learning.predict(graph)
    with torch.no_grad():
        assert_alike(results(learning.predict(graph)), results(potential.predict(graph)), 1e-10)


def test_what_is_frozen_later_has_no_gradient() -> None:
    potential = random_potential(SHAPES["products"]).double()
    learning, graph = CompiledLearning(potential), graph_of(potential, "mixed species")
    potential.network.embedding.requires_grad_(False)
    learned = [parameter for parameter in potential.parameters() if parameter.requires_grad]
    plain = potential.predict(graph, create_graph=True)
    expected = torch.autograd.grad(objective(plain), learned, materialize_grads=True)
    found = torch.autograd.grad(objective(learning.predict(graph)), learned, materialize_grads=True)
    assert_alike(list(found), list(expected), 1e-9)


def test_threads_with_a_potential_each() -> None:
    """And threads that share one get results as if they took turns."""
    potential = random_potential(SHAPES["products"]).double()
    shared = CompiledLearning(potential)
    of_torch = torch.nn.Module.__call__, torch.nn.Module.__getattr__
    names = ["mixed species", "slab", "unwrapped", "water"]
    graphs = [graph_of(potential, name) for name in names]
    expected = []
    for graph in graphs:
        plain = potential.predict(graph, create_graph=True)
        expected.append(torch.autograd.grad(objective(plain), list(potential.parameters()), materialize_grads=True))

    def work(number: int) -> list[Tensor | None]:
        own, found = CompiledLearning(potential), []
        for _ in range(5):
            shared.predict(graphs[number])
            gradients_of_own = torch.autograd.grad(
                objective(own.predict(graphs[number])), list(potential.parameters()), materialize_grads=True
            )
            found = list(gradients_of_own)
        return found

    with ThreadPoolExecutor(len(graphs)) as pool:
        for found, gradient in zip(pool.map(work, range(len(graphs))), expected, strict=True):
            assert_alike(list(found), list(gradient), 1e-9)
    assert (torch.nn.Module.__call__, torch.nn.Module.__getattr__) == of_torch
    for graph in graphs:
        assert_alike(results(shared.predict(graph)), results(potential.predict(graph)), 1e-10)


def test_the_number_of_threads_may_change_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between a prediction and its gradients."""
    potential = random_potential(SHAPES["products"]).double()
    learning, parameters = CompiledLearning(potential), list(potential.parameters())
    graph = graph_of(potential, "unwrapped", "skewed triclinic", "mixed species")
    plain = potential.predict(graph, create_graph=True)
    expected = list(torch.autograd.grad(objective(plain), parameters, materialize_grads=True))
    for first, second in ((1, 3), (3, 1), (2, 5), (8, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=first: n)
        prediction = learning.predict(graph)
        assert_alike(results(prediction), results(plain), 1e-10)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=second: n)
        found = list(torch.autograd.grad(objective(prediction), parameters, materialize_grads=True))
        assert_alike(found, expected, 1e-9)


FEWER_THREADS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from random_potentials import SHAPES, random_potential
from test_learning import assert_equal, graph_of
torch.get_num_threads = lambda: 4
potential = random_potential(SHAPES["products"]).double()
graph = graph_of(potential, "unwrapped", "skewed triclinic", "mixed species")
assert_equal(potential, graph, stress=True, tolerance=1e-9)
"""


def test_fewer_threads_than_asked_for_do_all_the_work() -> None:
    """As where the system allows no more."""
    result = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS, str(Path(__file__).parent)],
        env={**os.environ, "OMP_THREAD_LIMIT": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_networks_without_such_a_form() -> None:
    config = SHAPES["natural parity"]
    network = config.network.model_copy(update={"gated_messages": True})
    with pytest.raises(ValueError, match=r"this potential has no compiled form: its messages have two gates"):
        CompiledLearning(random_potential(config.model_copy(update={"network": network})))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompilerError, match="CXX names 'no-such-compiler', which is not there"):
        CompiledLearning(random_potential(SHAPES["products"]))
