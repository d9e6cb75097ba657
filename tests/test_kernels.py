"""Kernels give what the plain potential gives, run by Triton's interpreter, and are translated for GPUs."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from interpreter import System, run
from random_potentials import SHAPES, random_potential
from recorders import RunEachTime
from sketches import SKETCHES, Sketch, program_from
from systems import CUTOFF, systems
from torch._subclasses import FakeTensorMode

from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.potentials import ATOM_ENERGIES, FORCES, program_of
from ase_segnn.engines import kernels, native
from ase_segnn.engines.choice import choose_engine
from ase_segnn.engines.kernel_learning import KernelLearning
from ase_segnn.engines.kernels import TritonPotential, class_of
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

pytest.importorskip("triton", reason="Triton has no wheels for this system")
# lanes beyond the last edge compute with zeros
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning:triton")
SYSTEMS = systems()
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}
QUICK = ("one layer", "products of order 4")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@pytest.fixture(autouse=True)
def no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the comparison at first use, which takes the interpreter a minute."""
    monkeypatch.setattr(kernels, "compare", lambda *_: None)


def frozen(shape: str, dtype: torch.dtype = torch.float64) -> Potential:
    return random_potential(SHAPES[shape]).to(dtype).requires_grad_(False).eval()


def assert_equal(result: Prediction, expected: Prediction, dtype: torch.dtype) -> None:
    for name, target in vars(expected).items():
        value = getattr(result, name)
        assert (value is None) == (target is None), name
        if target is not None:
            scale = max(1.0, target.abs().max().item())
            torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCES[dtype] * scale, msg=name)


def evaluated(potential: Potential, graph: AtomicGraph, *, stress: bool) -> Prediction:
    return TritonPotential(potential, record=RunEachTime()).evaluate(graph, stress=stress)


def check(potential: Potential, atoms: Atoms, cutoff: float | None = None) -> None:
    stress = bool(atoms.cell.rank == 3)
    near, graph = (AtomicGraph.from_atoms(atoms, r) for r in (potential.cutoff, cutoff or potential.cutoff))
    assert_equal(evaluated(potential, graph, stress=stress), potential.predict(near, stress=stress), potential.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", QUICK)
def test_results_are_those_of_the_plain_potential(shape: str, dtype: str) -> None:
    check(frozen(shape, DTYPES[dtype]), SYSTEMS["water"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", sorted(set(SHAPES) - {"one layer", "products of order 4", "all parities", "mixed parity"})
)
def test_every_kind_of_network_has_the_plain_results(shape: str) -> None:
    check(frozen(shape), SYSTEMS["water"])


@pytest.mark.parametrize(
    "system", ["lone atom", "far dimer", "short dimer", "one-atom cell", "skewed triclinic", "wire"]
)
def test_every_system_has_the_plain_results(system: str) -> None:
    check(frozen("scalars alone"), SYSTEMS[system])


def test_pairs_beyond_the_cutoff_are_passed_over() -> None:
    check(frozen("scalars alone"), SYSTEMS["water"], cutoff=9.0)
    far = AtomicGraph.from_atoms(SYSTEMS["skewed triclinic"], CUTOFF + 0.4)
    near = AtomicGraph.from_atoms(SYSTEMS["skewed triclinic"], CUTOFF)
    assert far.n_edges > near.n_edges
    potential = frozen("scalars alone")
    result, expected = evaluated(potential, far, stress=True), potential.predict(near, stress=True)
    assert_equal(result, expected, torch.float64)


@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda sketch: sketch.__name__)
def test_kernels_do_what_interpreted_programs_do(
    sketch: Callable[[Sketch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, potential = program_from(sketch), frozen("natural parity")
    monkeypatch.setattr(kernels, "program_of", lambda _: program)
    graph = AtomicGraph.from_atoms(SYSTEMS["water"], CUTOFF)
    weights = {name: x.numpy() for name, x in program.weights.items()}
    atoms = System.of(potential, graph)
    memory = run(program.tape, program.steps, atoms, weights, {VECTORS: graph.edge_vectors().numpy()})
    result = evaluated(potential, graph, stress=False)
    scale = max(1.0, float(np.abs(memory[FORCES]).max()))
    for found, array in ((result.atom_energies[:, None], ATOM_ENERGIES), (result.forces, FORCES)):
        np.testing.assert_allclose(found, memory[array], rtol=0, atol=1e-11 * scale)


def test_structures_of_all_sizes_one_after_another() -> None:
    """What a call leaves in memory changes nothing, and one recording serves structures of one class of sizes."""
    potential, record = frozen("scalars alone"), RunEachTime()
    engine = TritonPotential(potential, record=record)
    water, dimer = (AtomicGraph.from_atoms(SYSTEMS[name], CUTOFF) for name in ("water", "dimer"))
    lone = AtomicGraph.from_atoms(SYSTEMS["lone atom"], CUTOFF)
    batch = AtomicGraph.batch([water, dimer, lone])
    for graph, n_recordings in ((water, 1), (dimer, 2), (water, 3), (batch, 4), (batch, 4), (lone, 5)):
        assert_equal(engine.evaluate(graph), potential.predict(graph), torch.float64)
        assert record.recorded == n_recordings
    alone = engine.evaluate(lone, forces=False)
    assert alone.forces is None
    assert alone.stress is None
    assert_equal(alone, potential.predict(lone, forces=False), torch.float64)


def test_moved_atoms_are_taken_where_they_are() -> None:
    potential, record = frozen("scalars alone"), RunEachTime()
    engine = TritonPotential(potential, record=record)
    graph = AtomicGraph.from_atoms(SYSTEMS["skewed triclinic"], CUTOFF + 0.5)
    kept = []
    for shift in (0.0, 0.1, 0.0):
        positions = graph.positions + shift * torch.sin(torch.arange(3 * graph.n_atoms)).view(-1, 3)
        moved = graph.moved(positions, (1 + shift / 10) * graph.cell)
        kept.append((engine.evaluate(moved, stress=True), moved))
    assert record.recorded == 1
    for result, moved in kept:  # earlier results are not those of the last call
        distances = moved.edge_vectors().norm(dim=1)
        near = {name: getattr(moved, name)[distances < CUTOFF] for name in ("centers", "neighbors", "cell_shifts")}
        assert_equal(result, potential.predict(replace(moved, **near), stress=True), torch.float64)


def test_wrong_indices_are_errors_and_not_memory() -> None:
    engine = TritonPotential(frozen("scalars alone"), record=RunEachTime())
    graph = AtomicGraph.from_atoms(SYSTEMS["water"], CUTOFF)
    with pytest.raises(ValueError, match="not sorted by their centers"):
        engine.evaluate(replace(graph, centers=graph.centers.flip(0)))
    with pytest.raises(ValueError, match="atoms that are not there"):
        engine.evaluate(replace(graph, neighbors=graph.neighbors + 1))
    with pytest.raises(IndexError, match="none of the potential's"):
        engine.evaluate(replace(graph, atomic_numbers=graph.atomic_numbers + 90))


def test_classes_of_sizes_are_no_larger_than_an_eighth_more() -> None:
    sizes = [class_of(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    for n, size in enumerate(sizes, start=1):
        assert n <= size <= max(n + 3, 1.125 * n + 1)
        assert size % 4 == 0
        assert class_of(size) == size
    assert len(set(sizes)) < 80


def test_everything_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Launcher:
        def __getitem__(self, _: Any) -> Callable[..., None]:
            return check_devices

    def check_devices(*arguments: Any, **_: Any) -> None:
        assert {x.device.type for x in arguments if isinstance(x, torch.Tensor)} == {"meta"}

    potential = frozen("one layer")
    program = program_of(copy.deepcopy(potential))
    monkeypatch.setattr(kernels, "load_kernels", lambda _: defaultdict(Launcher))
    monkeypatch.setattr(kernels, "checked_species", lambda graph, _: graph.atomic_numbers)
    monkeypatch.setattr(kernels, "_program", lambda _: program)
    graph = AtomicGraph.from_atoms(SYSTEMS["one-atom cell"], CUTOFF)
    with FakeTensorMode(allow_non_fake_inputs=True):
        engine = TritonPotential(potential.to("meta"), record=RunEachTime())
        for tensor in vars(engine.evaluate(graph.to("meta"), stress=True)).values():
            assert tensor.device.type == "meta"


def test_without_triton_plain_torch_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    monkeypatch.setattr(Potential, "device", torch.device("cuda"))
    with caplog.at_level(logging.WARNING):
        assert choose_engine(frozen("scalars alone"), "auto", "this potential").name == "plain torch"
    assert "this potential runs without kernels, and so many times slower: Triton is not installed" in caplog.text
    assert choose_engine(frozen("scalars alone"), True, "this potential").name == "CUDA graph"


def test_wrong_results_are_found_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compare", native.compare)
    monkeypatch.setattr(kernels.KernelProgram, "run", lambda self, *_, **__: self.memory[FORCES].fill_(1.0))
    with pytest.raises(RuntimeError, match="of the compiled potential are wrong by"):
        TritonPotential(frozen("scalars alone"), record=RunEachTime())


def check_gradients(potential: Potential) -> None:
    graph = AtomicGraph.batch([AtomicGraph.from_atoms(SYSTEMS[name], CUTOFF) for name in ("water", "lone atom")])

    def value(prediction: Prediction) -> torch.Tensor:
        given = [getattr(prediction, name) for name in ("energy", "atom_energies", "forces")]
        numbers = torch.cat([x.flatten() for x in given])
        return (numbers * torch.sin(torch.arange(len(numbers)))).sum()

    parameters = list(potential.parameters())
    found = torch.autograd.grad(value(KernelLearning(potential).predict(graph)), parameters, materialize_grads=True)
    plain = potential.predict(graph, create_graph=True)
    expected = torch.autograd.grad(value(plain), parameters, materialize_grads=True)
    largest = max(x.abs().max().item() for x in expected if x.numel() > 0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=100 * TOLERANCES[potential.dtype] * largest)


def test_gradients_of_weights_are_those_of_the_plain_potential() -> None:
    check_gradients(random_potential(SHAPES["products of order 4"]).double())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["natural parity", "products"])
def test_gradients_of_every_kind_of_network_are_the_plain_ones(shape: str) -> None:
    check_gradients(random_potential(SHAPES[shape]))


def test_stresses_are_learned() -> None:
    potential = random_potential(SHAPES["scalars alone"]).double()
    graph = AtomicGraph.from_atoms(SYSTEMS["one-atom cell"], CUTOFF)
    parameters = list(potential.parameters())
    found, expected = (
        torch.autograd.grad(prediction.stress.square().sum(), parameters, materialize_grads=True)
        for prediction in (
            KernelLearning(potential).predict(graph, stress=True),
            potential.predict(graph, stress=True, create_graph=True),
        )
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    """Triton and ptxas translate all kernels of an evaluation for a card that need not be there."""
    script = Path(__file__).parent / "compile_kernels.py"
    command = [sys.executable, str(script), "products", "float32"]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    names = run.stdout.split()
    assert {"geometry", "messages", "messages_backward", "forces", "select_pairs"} <= set(names)
