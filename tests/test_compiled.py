"""A compiled potential gives what the plain one gives, for every structure, without compiling anew."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from random_potentials import CONFIGS, NATIVE_CONFIGS, random_potential
from systems import TOLERANCES, systems

from ase_segnn import SEGNNCalculator
from ase_segnn.graph import AtomicGraph
from ase_segnn.model.compiled import CompiledPotential
from ase_segnn.model.native import NativePotential
from ase_segnn.model.potential import Potential, Prediction

SYSTEMS = systems()
FEW_EDGES = {"lone atom", "far dimer"}


def frozen(name: str, dtype: torch.dtype = torch.float64) -> Potential:
    return random_potential((CONFIGS | NATIVE_CONFIGS)[name]).to(dtype).requires_grad_(False).eval()


def graph_of(name: str, potential: Potential) -> AtomicGraph:
    return AtomicGraph.from_atoms(SYSTEMS[name], potential.cutoff)


def assert_equal(result: Prediction, expected: Prediction, dtype: torch.dtype) -> None:
    for field in ("energy", "atom_energies", "forces", "stress"):
        value, target = getattr(result, field), getattr(expected, field)
        assert (value is None) == (target is None), field
        if target is not None:
            scale = max(target.abs().max().item(), 1.0)
            torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCES[dtype] * scale, msg=field)


def check_every_system(potential: Potential, backend: Literal["inductor", "eager"]) -> None:
    compiled = CompiledPotential(potential, backend=backend)
    compiled.predict(graph_of("water", potential))
    compiled.predict(graph_of("mixed species", potential), stress=True)
    for name, atoms in SYSTEMS.items():
        graph = graph_of(name, potential)
        expected = potential.predict(graph, stress=False)
        assert (expected.forces is not None and expected.forces.abs().max() > 1e-3) or name in {
            *FEW_EDGES,
            "one-atom cell",
        }
        assert_equal(compiled.predict(graph), expected, potential.dtype)
        if atoms.cell.rank == 3:
            result = compiled.predict(graph, stress=True)
            assert_equal(result, potential.predict(graph, stress=True), potential.dtype)


def test_one_function_serves_every_system() -> None:
    check_every_system(frozen("with ZBL"), "eager")


@pytest.mark.slow
def test_inductor_serves_every_system() -> None:
    check_every_system(frozen("with ZBL"), "inductor")


@pytest.mark.slow
def test_calculator_with_compile() -> None:
    plain = SEGNNCalculator("acac-pbe", device="cpu")
    calculator = SEGNNCalculator("acac-pbe", device="cpu", compile=True)
    atoms = SYSTEMS["molecule in a box"].copy()
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        calculator.calculate(atoms, ["forces"])
        plain.calculate(atoms, ["forces"])
        scale = np.abs(plain.results["forces"]).max()
        np.testing.assert_allclose(calculator.results["forces"], plain.results["forces"], atol=1e-4 * scale)
        assert calculator.results["energy"] == pytest.approx(plain.results["energy"], abs=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [
        ("natural parity", True, NativePotential),
        ("natural parity", "auto", NativePotential),
        ("natural parity", False, Potential),
        ("with ZBL", True, CompiledPotential),
        ("with ZBL", "auto", Potential),
    ],
)
def test_copies_of_a_calculator_compile_alike(
    name: str, mode: bool | str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompiledPotential, "predict", lambda self, graph, **_: self._potential.predict(graph))
    calculator = SEGNNCalculator(frozen(name), device="cpu", compile=mode)
    assert calculator.todict()["compile"] == mode
    calculator.calculate(SYSTEMS["water"])
    for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert twin._evaluator is None
        twin.calculate(SYSTEMS["water"])
        assert twin._evaluator.form is calculator._evaluator.form is kind


def test_compiling_changes_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    potential = frozen("with ZBL")
    CompiledPotential(potential, backend="eager").predict(graph_of("water", potential))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_are_refused() -> None:
    potential = frozen("with ZBL")
    two = AtomicGraph.batch([graph_of("water", potential)] * 2)
    with pytest.raises(ValueError, match="one structure at a time, got 2"):
        CompiledPotential(potential, backend="eager").predict(two)


@pytest.mark.parametrize("wrong", ["atom_energies", "forces", "stress"])
def test_wrong_results_are_found_at_first_use(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    potential = frozen("with ZBL", torch.float32)
    graph = graph_of("mixed species", potential)
    right = potential.predict(graph, stress=True)
    bad = replace(right, **{wrong: getattr(right, wrong) * 1.01})

    def function(*_: object) -> list[torch.Tensor | None]:
        return [bad.energy, bad.atom_energies, bad.forces, bad.stress]

    monkeypatch.setattr(CompiledPotential, "_compile", lambda *_: function)
    compiled = CompiledPotential(potential)
    for _ in range(2):  # and at every other
        with pytest.raises(RuntimeError, match=r"compiled (energies|forces|stress) differ from the plain ones"):
            compiled.predict(graph, stress=True)


def test_failure_to_compile_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_it(*_: object) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr("ase_segnn.model.compiled.inductor_compile", compile_it)
    potential = frozen("with ZBL")
    with pytest.raises(RuntimeError, match=r"(?s)could not be compiled: no compiler found.*compile=False does without"):
        CompiledPotential(potential).predict(graph_of("water", potential))
