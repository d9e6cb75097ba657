"""Engines: one protocol, the same numbers from each, and a choice that says what was chosen and why."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import TOLERANCES, systems

from ase_segnn import Committee, Potential, Prediction, SEGNNCalculator
from ase_segnn.engines.captured import CapturedPotential
from ase_segnn.engines.engine import Engine
from ase_segnn.engines.members import CommitteeEngine
from ase_segnn.engines.native import NativePotential
from ase_segnn.engines.plain import PlainPotential
from ase_segnn.graphs.atomic_graph import AtomicGraph

SYSTEMS = systems()
FIELDS = ("energy", "atom_energies", "forces", "stress")


def frozen(seed: int = 1) -> Potential:
    return random_potential(NATIVE_CONFIGS["natural parity"], seed=seed).double().requires_grad_(False).eval()


def recorded(potential: Potential) -> CapturedPotential:
    """Record without a GPU: what is run again writes into the tensors of the first results."""

    def record(function: Callable[[], Prediction], _: torch.device) -> tuple[Prediction, Callable[[], None]]:
        results = function()

        def replay() -> None:
            for name, tensor in vars(function()).items():
                getattr(results, name).copy_(tensor)

        return results, replay

    return CapturedPotential(potential, record=record)


ENGINES: dict[str, Callable[[Potential], Engine]] = {
    "plain torch": PlainPotential,
    "compiled C++": NativePotential,
    "CUDA graph": recorded,
}
ENGINE = [pytest.param(name, marks=needs_compiler if name == "compiled C++" else ()) for name in ENGINES]


def engine_of(name: str, *, n_members: int = 1) -> Engine:
    engines = [ENGINES[name](frozen(seed)) for seed in range(1, n_members + 1)]
    return engines[0] if n_members == 1 else CommitteeEngine(engines)


def plain_prediction(graph: AtomicGraph, n_members: int) -> Prediction:
    members = [frozen(seed) for seed in range(1, n_members + 1)]
    return (members[0] if n_members == 1 else Committee(members)).predict(graph, stress=True)


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("name", ENGINE)
def test_every_engine_gives_one_kind_of_prediction(name: str, n_members: int) -> None:
    engine = engine_of(name, n_members=n_members)
    assert engine.name == (name if n_members == 1 else f"3 x {name}")
    for system in ("mixed species", "skewed triclinic", "slab"):
        graph = AtomicGraph.from_atoms(SYSTEMS[system], 4.5)
        result, expected = engine.evaluate(graph, stress=True), plain_prediction(graph, n_members)
        assert type(result) is type(expected)
        for field in (*FIELDS, *[f"{field}_std" for field in FIELDS[:3] if n_members > 1]):
            value, target = getattr(result, field), getattr(expected, field)
            assert value.dtype is torch.float64
            assert not value.requires_grad
            scale = max(1.0, target.abs().max().item())
            torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCES[torch.float64] * scale, msg=field)
            np.testing.assert_array_equal(result.arrays()[field], value)
        assert expected.forces is not None
        assert expected.forces.abs().max() > 1e-2


@pytest.mark.parametrize("n_members", [1, 2])
@pytest.mark.parametrize("name", ENGINE)
@pytest.mark.parametrize(("forces", "stress"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_wanted_is_there(name: str, n_members: int, forces: bool, stress: bool) -> None:
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], 4.5)
    result = engine_of(name, n_members=n_members).evaluate(graph, forces=forces, stress=stress)
    given = {"energy", "atom_energies", *["forces"] * forces, *["stress"] * stress}
    assert given <= result.arrays().keys()
    assert all(getattr(result, field) is not None for field in given)
    if name != "CUDA graph":  # all of which is recorded
        assert result.arrays().keys() & set(FIELDS) == given
        assert all(getattr(result, field) is None for field in set(FIELDS) - given)


@pytest.mark.parametrize("name", ENGINE)
def test_engines_take_what_they_say(name: str) -> None:
    engine = engine_of(name)
    near, far = (AtomicGraph.from_atoms(SYSTEMS["mixed species"], cutoff) for cutoff in (4.5, 6.0))
    assert far.n_edges > near.n_edges
    if engine.takes_far_pairs:
        forces = [engine.evaluate(graph).forces for graph in (near, far)]
        torch.testing.assert_close(*forces, rtol=0, atol=1e-10)
    two = AtomicGraph.batch([near, near])
    if engine.takes_batches:
        assert engine.evaluate(two).energy.shape == (2,)
    else:
        with pytest.raises(ValueError, match="one structure at a time, got 2"):
            engine.evaluate(two)


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        pytest.param({}, "compiled C++", "compile='auto' on cpu", marks=needs_compiler),
        pytest.param({"compile": True}, "compiled C++", "compile=True on cpu", marks=needs_compiler),
        ({"compile": False}, "plain torch", "compile=False"),
        ({"compile": 0}, "plain torch", "compile=False"),
        ({"compile": np.False_}, "plain torch", "compile=False"),
    ],
)
def test_a_calculator_says_what_evaluates_it_and_why(
    options: dict[str, Any], name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    calculator = SEGNNCalculator(frozen(), device="cpu", dtype="float64", **options)
    with caplog.at_level(logging.INFO, "ase_segnn"):
        for _ in range(2):
            assert (calculator.engine.name, calculator.engine.reason) == (name, reason)
    assert caplog.messages == [f"engine of this potential: {name} ({reason})"]
    calculator.calculate(SYSTEMS["water"], ["forces"])
    assert len(caplog.messages) == 1, "evaluations choose no engine anew"


def test_the_reason_against_compiled_code_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    engine = SEGNNCalculator(frozen(), device="cpu").engine
    assert engine.name == "plain torch"
    assert engine.reason.startswith("not compiled: compiling needs a C++ compiler, and CXX names 'no-such-compiler'")
    committee = Committee([frozen(1), frozen(2)])
    assert SEGNNCalculator(committee, device="cpu").engine.name == "2 x plain torch"


# -- predictions from arrays --------------------------------------------------------------------------------------


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"energy": rng.normal(size=1), "atom_energies": rng.normal(size=4), "forces": rng.normal(size=(4, 3))}


def test_tensors_are_the_memory_of_the_arrays(arrays: dict[str, np.ndarray]) -> None:
    prediction = Prediction.from_arrays(arrays)
    assert prediction.stress is None
    forces = prediction.forces
    assert forces is not None
    assert forces is prediction.forces
    arrays["forces"][0, 0] = 7.0
    assert forces[0, 0] == 7.0
    assert prediction.arrays()["forces"] is arrays["forces"]
    assert repr(prediction) == "Prediction(energy (1,), atom_energies (4,), forces (4, 3), cpu)"


def test_a_prediction_from_arrays_is_like_any_other(arrays: dict[str, np.ndarray]) -> None:
    for read_first in (False, True):
        prediction = Prediction.from_arrays(arrays)
        if read_first:
            assert prediction.energy.shape == (1,)
        changed = replace(prediction, forces=None)
        assert changed.forces is None
        assert torch.equal(changed.energy, prediction.energy)
        assert changed.arrays().keys() == {"energy", "atom_energies"}
        for twin in (copy.copy(prediction), copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction))):
            assert torch.equal(twin.atom_energies, prediction.atom_energies)
            assert twin.stress is None
        with pytest.raises(AttributeError, match="'Prediction' object has no attribute 'force'"):
            getattr(prediction, "force")  # noqa: B009  # a wrong name
