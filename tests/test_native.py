"""A native potential gives what the plain potential gives: energies, forces, stress, for every system and batch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn import SEGNNCalculator
from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines import native as native_module
from ase_segnn.engines.build import NoCompilerError, load_library
from ase_segnn.engines.native import NativeFunction, NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

pytestmark = needs_compiler
SYSTEMS = systems()
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}


def frozen(name: str, dtype: torch.dtype = torch.float64, **network: Any) -> Potential:
    config = NATIVE_CONFIGS[name]
    config = config.model_copy(update={"network": config.network.model_copy(update=network)})
    return random_potential(config).to(dtype).requires_grad_(False).eval()


@pytest.fixture(scope="module", params=NATIVE_CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def pair(request: pytest.FixtureRequest, name: str) -> tuple[Potential, NativePotential]:
    potential = frozen(name, request.param)
    return potential, NativePotential(potential)


@pytest.mark.parametrize("system", SYSTEMS)
def test_results_are_those_of_the_plain_potential(pair: tuple[Potential, NativePotential], system: str) -> None:
    plain, _ = pair
    stress = bool(SYSTEMS[system].cell.rank == 3)
    graph = AtomicGraph.from_atoms(SYSTEMS[system], plain.cutoff)
    _, native = pair
    result, expected = native.evaluate(graph, stress=stress), plain.predict(graph, stress=stress)
    for field in ("energy", "atom_energies", "forces", *["stress"] * stress):
        value, target = getattr(result, field), getattr(expected, field)
        scale = max(1.0, target.abs().max().item())
        torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCES[plain.dtype] * scale, msg=field)


def test_every_weight_has_its_effect() -> None:
    """What the test above compares depends on all weights, and on each as in the plain potential."""
    plain = frozen("natural parity")  # symmetry leaves no weight without an effect
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], plain.cutoff)
    before = plain.predict(graph).forces
    effects = {}
    for key, weight in plain.named_parameters():
        if weight.numel() > 0:
            kept = weight.clone()
            weight.mul_(1.01)
            expected = plain.predict(graph).forces
            effects[key] = (expected - before).abs().max().item()
            torch.testing.assert_close(NativePotential(plain).evaluate(graph).forces, expected, rtol=0, atol=1e-11)
            weight.copy_(kept)
    assert len(effects) > 20
    assert min(effects.values()) > 1e-7, effects


def test_energies_alone_are_the_same(pair: tuple[Potential, NativePotential]) -> None:
    plain, native = pair
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], plain.cutoff)
    alone = native.evaluate(graph, forces=False)
    assert alone.forces is None
    assert alone.stress is None
    assert torch.equal(alone.atom_energies, native.evaluate(graph).atom_energies)


def test_stress_alone_is_the_same(pair: tuple[Potential, NativePotential]) -> None:
    plain, native = pair
    graph = AtomicGraph.from_atoms(SYSTEMS["bulk"], plain.cutoff)
    alone = native.evaluate(graph, forces=False, stress=True)
    assert alone.forces is None
    assert alone.stress is not None
    assert torch.equal(alone.stress, native.evaluate(graph, stress=True).stress)


def test_calls_leave_nothing_behind(pair: tuple[Potential, NativePotential]) -> None:
    """The working memory is kept between calls of different sizes and kinds, the results do not depend on that."""
    plain, native = pair
    graphs = [AtomicGraph.from_atoms(SYSTEMS[name], plain.cutoff) for name in ("bulk", "water", "lone atom", "slab")]
    fresh = [NativePotential(plain).evaluate(graph) for graph in graphs]
    for index in (0, 0, 1, 3, 1, 2, 0, 3, 3):
        if index == 3:
            native.evaluate(graphs[1], forces=False)
        again = native.evaluate(graphs[index])
        assert torch.equal(again.energy, fresh[index].energy)
        assert torch.equal(again.forces, fresh[index].forces)


def test_edges_have_to_be_sorted() -> None:
    plain = frozen("natural parity")
    native, graph = NativePotential(plain), AtomicGraph.from_atoms(SYSTEMS["water"], plain.cutoff)
    mixed = replace(graph, **{name: getattr(graph, name).flip(0) for name in ("centers", "neighbors", "cell_shifts")})
    with pytest.raises(ValueError, match="not sorted by their centers"):
        native.evaluate(mixed)


def test_structures_have_atoms() -> None:
    plain = frozen("natural parity")
    native, graph = NativePotential(plain), AtomicGraph.from_atoms(SYSTEMS["water"], plain.cutoff)
    two = {"cell": graph.cell.repeat(2, 1, 1), "pbc": graph.pbc.repeat(2, 1)}
    for structure in (graph.structure, graph.structure + 1):
        with pytest.raises(ValueError, match="a structure of the graph has no atoms"):
            native.evaluate(replace(graph, structure=structure, **two))


def test_unknown_elements_are_refused() -> None:
    plain = frozen("natural parity")
    native, graph = NativePotential(plain), AtomicGraph.from_atoms(SYSTEMS["water"], plain.cutoff)
    for number in (2, 118):
        with pytest.raises(IndexError):
            native.evaluate(replace(graph, atomic_numbers=torch.full_like(graph.atomic_numbers, number)))


def test_batches_equal_single_structures(pair: tuple[Potential, NativePotential]) -> None:
    plain, native = pair
    graphs = [AtomicGraph.from_atoms(SYSTEMS[key], plain.cutoff) for key in ("water", "lone atom", "slab", "bulk")]
    batch = native.evaluate(AtomicGraph.batch(graphs))
    singles = [native.evaluate(graph) for graph in graphs]
    tolerance = TOLERANCES[plain.dtype]
    torch.testing.assert_close(batch.energy, torch.cat([x.energy for x in singles]), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(batch.forces, torch.cat([x.forces for x in singles]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "network",
    [
        {"n_layers": 1},
        {"n_layers": 3},
        {"l_max_attributes": 2, "l_max_node_attributes": 0},
        {"l_max_attributes": 2, "l_max_node_attributes": 1},
    ],
)
def test_any_shape_of_network(network: dict[str, int]) -> None:
    plain = frozen("natural parity", **network)
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], plain.cutoff)
    expected = plain.predict(graph).forces
    torch.testing.assert_close(NativePotential(plain).evaluate(graph).forces, expected, rtol=0, atol=1e-10)


def test_pairs_beyond_the_cutoff_contribute_nothing(pair: tuple[Potential, NativePotential]) -> None:
    plain, native = pair
    atoms = SYSTEMS["mixed species"]
    near, far = (AtomicGraph.from_atoms(atoms, plain.cutoff + skin) for skin in (0.0, 2.0))
    assert far.n_edges > near.n_edges
    tolerance = TOLERANCES[plain.dtype]
    torch.testing.assert_close(native.evaluate(far).forces, native.evaluate(near).forces, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"gated_messages": True}, "its messages have two gates, and loops need one"),
    ],
)
def test_networks_without_a_native_form(network: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    potential = frozen("natural parity", **network)
    assert unsupported(potential) == reason
    with pytest.raises(ValueError, match=f"this potential has no compiled form: {reason}; plain torch evaluates"):
        NativePotential(potential)
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64")
    with caplog.at_level(logging.WARNING):
        calculator.calculate(SYSTEMS["water"], ["forces"])
    assert f"is not compiled, and so many times slower: {reason}" in caplog.text
    with pytest.raises(ValueError, match=f"cannot be compiled: {reason}; compile='auto' or False does without"):
        SEGNNCalculator(potential, device="cpu", compile=True).calculate(SYSTEMS["water"], ["forces"])
    expected = potential.predict(AtomicGraph.from_atoms(SYSTEMS["water"], potential.cutoff)).forces
    np.testing.assert_allclose(calculator.results["forces"], expected, atol=1e-12)


def test_the_calculator_uses_it_unless_told_otherwise() -> None:
    results = {}
    for mode in ("auto", False):
        calculator = SEGNNCalculator(frozen("natural parity"), device="cpu", dtype="float64", compile=mode)
        calculator.calculate(SYSTEMS["mixed species"], ["forces", "stress"])
        assert calculator.engine.name == {"auto": "compiled C++", False: "plain torch"}[mode]
        results[mode] = calculator.results
    for key, value in results[False].items():
        np.testing.assert_allclose(results["auto"][key], value, atol=1e-10)


def test_without_a_compiler_the_calculator_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    potential = frozen("natural parity")
    calculator = SEGNNCalculator(potential, device="cpu")
    calculator.calculate(SYSTEMS["water"], ["forces"])
    assert "this potential is not compiled, and so many times slower: " in caplog.text
    assert "CXX names 'no-such-compiler', which is not there" in caplog.text
    with pytest.raises(NoCompilerError, match="which is not there; compile=False does without"):
        SEGNNCalculator(potential, device="cpu", compile=True).calculate(SYSTEMS["water"])


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NativeFunction.__call__

    def wrong(self: NativeFunction, graph: AtomicGraph, *, derivatives: bool) -> tuple[int, dict[str, Any]]:
        outcome, results = right(self, graph, derivatives=derivatives)
        results["forces"] *= 1.01
        return outcome, results

    monkeypatch.setattr(NativeFunction, "__call__", wrong)
    with pytest.raises(RuntimeError, match="forces of the compiled potential are wrong by"):
        NativePotential(frozen("natural parity"))


def test_making_it_changes_no_random_numbers() -> None:
    potential = frozen("natural parity")
    before = torch.random.get_rng_state()
    NativePotential(potential)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_networks_of_one_shape_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []

    def spy(source: str, headers: Path) -> Any:
        sources.append(source)
        return load_library(source, headers)

    monkeypatch.setattr(native_module, "load_library", spy)
    one, other = (random_potential(NATIVE_CONFIGS["natural parity"], seed=seed) for seed in (1, 2))
    graph = AtomicGraph.from_atoms(SYSTEMS["water"], one.cutoff)
    energies = [NativePotential(potential).evaluate(graph).energy for potential in (one, other)]
    assert abs(energies[0] - energies[1]) > 1e-3
    assert len(sources) == 2
    assert sources[0] == sources[1]
