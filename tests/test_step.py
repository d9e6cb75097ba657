"""Batches, the loss and its gradients, plain and compiled, and the optimizers' steps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from labeled import NETWORK, graphs_of, labeled_clusters, labeled_crystals, tiny_potential
from recorders import RunEachTime

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.model.steerable import SteerableLinear
from ase_segnn.training.data.batches import BatchLimits, LabeledGraph, divide, padded_batch
from ase_segnn.training.fit import optimizers as optimizers_module
from ase_segnn.training.fit.optimizers import Muon, make_optimizers
from ase_segnn.training.fit.step import CompiledStep, PotentialLoss, RecordedStep, gradients
from ase_segnn.training.recipe import OptimizationSection

COEFFICIENTS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


@pytest.fixture
def clusters(tmp_path: Path) -> list[LabeledGraph]:
    return graphs_of(labeled_clusters(), tmp_path)


@pytest.fixture
def crystals(tmp_path: Path) -> list[LabeledGraph]:
    return graphs_of(labeled_crystals(), tmp_path)


# ---- batches


def test_batches_keep_to_their_limits() -> None:
    random = np.random.default_rng(0)
    n_atoms = random.integers(1, 40, 200)
    n_edges = n_atoms * random.integers(0, 30, 200)
    order = random.permutation(150)
    for limits in (
        BatchLimits.of(n_atoms, n_edges, 1),
        BatchLimits.of(n_atoms, n_edges, 800),
        BatchLimits.of(n_atoms, n_edges, 5),  # less than many frames have
    ):
        batches = divide(order, n_atoms, n_edges, limits)
        assert np.concatenate(batches).tolist() == order.tolist()
        for batch in batches:
            assert len(batch) <= limits.structures
            assert n_atoms[batch].sum() <= limits.atoms
            assert n_edges[batch].sum() <= limits.edges
    assert all(len(batch) == 4 for batch in divide(order[:100], n_atoms, n_edges, BatchLimits(4, 10**6, 10**6)))
    large = divide(order, n_atoms, n_edges, BatchLimits.of(n_atoms, n_edges, 2000))
    assert 150 * n_edges.mean() / 2000 < len(large) < 1.5 * 150 * n_edges.mean() / 2000


def test_one_edge_per_step_is_one_frame_per_step() -> None:
    n_atoms = np.array([12, 16, 63, 64, 96, 20, 24])
    n_edges = 19 * n_atoms
    limits = BatchLimits.of(n_atoms, n_edges, 1)
    assert limits == BatchLimits(structures=1, atoms=96, edges=19 * 96)
    assert divide(range(7), n_atoms, n_edges, limits) == [[index] for index in range(7)]


def test_edges_of_five_molecules_are_five_molecules_per_step() -> None:
    """`acac-pbe` was trained on five frames per step; its frames have 174 to 192 edges."""
    n_edges = np.random.default_rng(0).integers(174, 193, 450)
    n_atoms = np.full(450, 15)
    limits = BatchLimits.of(n_atoms, n_edges, 1000)
    assert limits == BatchLimits(structures=5, atoms=5 * 15, edges=5 * 192)
    assert {len(batch) for batch in divide(range(450), n_atoms, n_edges, limits)} == {5}


@pytest.mark.parametrize("batch_edges", [1, 30, 200, 1000, 100000])
@pytest.mark.parametrize("seed", range(4))
def test_limits_are_no_larger_than_batches_can_be(batch_edges: int, seed: int) -> None:
    """Padded batches waste nothing that could be known, and the batches stay those of the plain rule."""
    random = np.random.default_rng(seed)
    n_atoms = random.integers(1, 2 + 20 * seed, 60)
    n_edges = n_atoms * random.integers(0, 30, 60)
    limits = BatchLimits.of(n_atoms, n_edges, batch_edges)
    typical = batch_edges / n_edges.mean()
    plain = BatchLimits(
        structures=int(np.ceil(2 * typical)),
        atoms=max(n_atoms.max(), int(np.ceil(1.5 * typical * n_atoms.mean()))),
        edges=max(n_edges.max(), batch_edges),
    )
    assert limits.structures <= min(plain.structures, 60)
    assert limits.atoms <= min(plain.atoms, n_atoms.sum())
    assert limits.edges <= min(plain.edges, n_edges.sum())
    for _ in range(5):
        order = random.permutation(60)
        assert divide(order, n_atoms, n_edges, limits) == divide(order, n_atoms, n_edges, plain)


@pytest.mark.parametrize("n_parts", [0, 2, 3])
@pytest.mark.parametrize("kind", ["clusters", "crystals"])
def test_padding_changes_nothing(kind: str, n_parts: int, request: pytest.FixtureRequest) -> None:
    graphs: list[LabeledGraph] = request.getfixturevalue(kind)
    sizes = np.array([[graph.graph.n_atoms, graph.graph.n_edges] for graph in graphs])
    limits = BatchLimits(3, *(3 * sizes.max(0)).tolist())
    loss = PotentialLoss(tiny_potential(), stress=kind == "crystals")
    padded = padded_batch(limits, NETWORK.cutoff, 10)(graphs[:n_parts])
    full = padded_batch(limits, NETWORK.cutoff, 10)(graphs[-3:])
    assert (padded.graph.n_atoms, padded.graph.n_edges) == (full.graph.n_atoms, full.graph.n_edges)
    assert len(padded.energy) == len(full.energy)
    if n_parts == 0:
        assert loss(padded, COEFFICIENTS).item() == 0
        assert padded.n_labels().tolist() == [0, 0, 0]
        return
    plain = LabeledGraph.batch(graphs[:n_parts])
    assert torch.equal(plain.n_labels(), padded.n_labels())
    results = [gradients(loss, batch, COEFFICIENTS) for batch in (plain, padded)]
    assert max(float(gradient.abs().max()) for gradient in results[0][1]) > 1e-3
    for a, b in zip(*[(value, *derivatives) for value, derivatives in results], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# ---- recorded steps


def test_a_recorded_step_follows_batches_and_weights(clusters: list[LabeledGraph]) -> None:
    loss, record = PotentialLoss(tiny_potential().requires_grad_(True)), RunEachTime()
    step = RecordedStep(loss, record=record)
    sizes = np.array([[graph.graph.n_atoms, graph.graph.n_edges] for graph in clusters])
    collate = padded_batch(BatchLimits(2, *(2 * sizes.max(0)).tolist()), NETWORK.cutoff, 10)
    for number, batch in enumerate([collate(clusters[:2]), collate(clusters[2:4]), collate(clusters[4:5])]):
        coefficients = (1 + number) * COEFFICIENTS
        value, derivatives = step(batch, coefficients)
        expected, expected_derivatives = gradients(loss, batch, coefficients)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        for a, b in zip(derivatives, expected_derivatives, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.mul_(1.01)
    assert record.recorded == 1
    other = LabeledGraph.batch(clusters[:1])
    assert torch.equal(step(other, COEFFICIENTS)[0], gradients(loss, other, COEFFICIENTS)[0])


# ---- loss


def errors_by_hand(frames: list[Atoms]) -> list[tuple[float, np.ndarray, np.ndarray, int]]:
    """Errors of energy, forces and virial of `tiny_potential`, by the calculator, and numbers of atoms."""
    errors = []
    for atoms in frames:
        predicted = atoms.copy()
        predicted.calc = SEGNNCalculator(tiny_potential(), device="cpu", dtype="float64")
        stress = np.zeros((3, 3))
        if atoms.pbc.all():
            stress = predicted.get_stress(voigt=False) - atoms.get_stress(voigt=False)
        errors.append(
            (
                predicted.get_potential_energy() - atoms.get_potential_energy(),
                predicted.get_forces() - atoms.get_forces(),
                stress * atoms.cell.volume,
                len(atoms),
            )
        )
    return errors


@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
def test_loss_by_hand(kind: str, tmp_path: Path) -> None:
    frames = labeled_crystals(3)
    delta = 0.3

    def penalty(square: float) -> float:
        return {"mse": square, "l1": square**0.5, "huber": 2 * delta**2 * ((1 + square / delta**2) ** 0.5 - 1)}[kind]

    sums = np.zeros(3)
    for energy, forces, virial, n_atoms in errors_by_hand(frames):
        sums[0] += penalty(energy**2 / n_atoms)
        sums[1] += sum(3 * penalty(np.mean(force**2)) for force in forces)
        sums[2] += penalty(np.mean(virial**2) / n_atoms)
    assert sums.min() > 1e-3
    batch = LabeledGraph.batch(graphs_of(frames, tmp_path))
    value = PotentialLoss(tiny_potential(), kind, delta, stress=True)(batch, COEFFICIENTS).item()
    assert value == pytest.approx(COEFFICIENTS.numpy() @ sums, rel=1e-5)
    without = PotentialLoss(tiny_potential(), kind, delta)(batch, COEFFICIENTS).item()
    assert without == pytest.approx(COEFFICIENTS.numpy()[:2] @ sums[:2], rel=1e-5)


def test_weights_and_missing_labels(tmp_path: Path) -> None:
    frames = labeled_crystals(3)
    frames[0].calc.results.pop("stress")
    frames[1].info["config_weight"] = 0.25
    frames[2].info["config_forces_weight"] = 0.0
    batch = LabeledGraph.batch(graphs_of(frames, tmp_path))
    assert batch.n_labels().tolist() == [3, 3 * (len(frames[0]) + len(frames[1])), 2]
    (e0, f0, _, n0), (e1, f1, v1, n1), (e2, _, v2, n2) = errors_by_hand(labeled_crystals(3))
    expected = [
        e0**2 / n0 + 0.25 * e1**2 / n1 + e2**2 / n2,
        (f0**2).sum() + 0.25 * (f1**2).sum(),
        0.25 * np.mean(v1**2) / n1 + np.mean(v2**2) / n2,
    ]
    value = PotentialLoss(tiny_potential(), stress=True)(batch, COEFFICIENTS).item()
    assert value == pytest.approx(COEFFICIENTS.numpy() @ np.array(expected), rel=1e-9)
    assert full_3x3_to_voigt_6_stress(batch.stress[0].numpy()).tolist() == [0.0] * 6


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_step_has_the_same_gradients(backend: str, clusters: list[LabeledGraph]) -> None:
    loss = PotentialLoss(tiny_potential())
    next(loss.parameters()).requires_grad_(False)  # a frozen one has no gradient
    step = CompiledStep(loss, backend=backend)
    collate = padded_batch(BatchLimits(3, 15, 60), NETWORK.cutoff, 10)
    for parts in (clusters[:3], clusters[3:6], clusters[6:8]):  # the second and third reuse what was traced
        batch = collate(parts)
        value, expected = gradients(loss, batch, COEFFICIENTS)
        compiled_value, compiled = step(batch, COEFFICIENTS)
        torch.testing.assert_close(compiled_value, value, rtol=1e-12, atol=1e-12)
        assert len(compiled) == len(list(loss.parameters())) - 1
        for a, b in zip(compiled, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.01)  # new weights must count in the next step
    other, _ = step(batch, 2 * COEFFICIENTS)
    torch.testing.assert_close(other, 2 * loss(batch, COEFFICIENTS).detach())


# ---- optimizers


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_weight_has_one_optimizer(optimizer: Literal["muon", "adamw"]) -> None:
    potential = tiny_potential()
    optimizers = make_optimizers(potential, OptimizationSection(optimizer=optimizer))
    assert [type(o).__name__ for o in optimizers] == {"muon": ["Muon", "AdamW"], "adamw": ["AdamW"]}[optimizer]
    optimized = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in potential.parameters())
    frozen = potential.network.embedding.requires_grad_(False)
    left = {
        id(p) for o in make_optimizers(potential, OptimizationSection()) for g in o.param_groups for p in g["params"]
    }
    assert left == {id(p) for p in potential.parameters()} - {id(p) for p in frozen.parameters()}


def test_a_step_of_muon_has_the_size_that_is_promised() -> None:
    potential = tiny_potential()
    muon, _ = make_optimizers(potential, OptimizationSection(muon_learning_rate=0.1, weight_decay=0.0))
    inputs_and_outputs = {
        id(w): tuple(w.shape) for m in potential.modules() if isinstance(m, SteerableLinear) for w in m.weights
    }
    matrices = [group["params"][0] for group in muon.param_groups]
    shapes = [inputs_and_outputs.get(id(w), tuple(reversed(w.shape))) for w in matrices]
    assert {n_in > n_out for n_in, n_out in shapes} == {True, False}
    assert any(id(w) not in inputs_and_outputs for w in matrices)  # of the radial networks
    before = [w.detach().clone() for w in matrices]
    generator = torch.Generator().manual_seed(0)
    for w in matrices:
        w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    muon.step()
    for w, old, (n_in, n_out) in zip(matrices, before, shapes, strict=True):
        singular_values = torch.linalg.svdvals(w.detach() - old) / (0.1 * (n_out / n_in) ** 0.5)
        assert ((singular_values > 0.5) & (singular_values < 1.3)).all()  # Muon makes them 1 only roughly


def orthogonal_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Iterate X <- a X + (b G + c G²) X with G = X X^T on the whole matrix, as Muon is defined."""
    a, b, c = optimizers_module._COEFFICIENTS
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_directions_of_muon_are_those_of_the_plain_iteration() -> None:
    """The iteration in the smaller side gives the same for tall, wide and square matrices, in any order."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 5), (5, 12), (8, 8), (64, 3), (3, 7), (1, 5), (5, 1), (8, 20), (12, 5), (20, 8)]
    matrices = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    matrices.append(matrices[0][:, :1] @ matrices[1][:1])  # of rank 1
    matrices.append(torch.diag(torch.logspace(0, -6, 6, dtype=torch.float64)))  # badly conditioned
    found = optimizers_module._orthogonal_factors(matrices)
    for matrix, factor in zip(matrices, found, strict=True):
        expected = orthogonal_factor(matrix)
        assert factor.shape == matrix.shape
        assert expected.norm() > 0.5
        torch.testing.assert_close(factor, expected, rtol=0, atol=1e-12)
    [zero] = optimizers_module._orthogonal_factors([torch.zeros(3, 4)])
    assert torch.equal(zero, torch.zeros(3, 4))


def test_muon_steps_like_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 5), (5, 12), (8, 8), (12, 5)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    steps = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4)]
    ends = []
    for own in (True, False):
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        groups = [{"params": [weight], "lr": 0.02 * (index + 1)} for index, weight in enumerate(weights)]
        optimizer = (
            Muon(groups, weight_decay=0.3)
            if own
            else torch.optim.Muon(groups, weight_decay=0.3, adjust_lr_fn="original")
        )
        for step in steps:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    for start, ours, theirs in zip(starts, *ends, strict=True):
        assert (theirs - start).norm() > 0.1
        # torch works in bfloat16, of two to three digits
        assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()
