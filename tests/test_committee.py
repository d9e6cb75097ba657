"""Committees: means and deviations against numpy, on the same structures as single potentials."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from compiler import needs_compiler
from random_potentials import CONFIGS, NATIVE_CONFIGS, random_potential
from systems import TOLERANCES, systems

from ase_segnn import Committee, SEGNNCalculator, UncertaintyError, load_potential, save_potential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance

SYSTEMS = systems()
CONFIG = CONFIGS["with ZBL"]
DEVIATIONS = ("energy_std", "energies_std", "forces_std")


def members(config: PotentialConfig = CONFIG, n: int = 3) -> list[Potential]:
    return [random_potential(config, seed=seed).double() for seed in range(n)]


@pytest.fixture
def calculator() -> SEGNNCalculator:
    return SEGNNCalculator(Committee(members()), device="cpu", dtype="float64", compile=False)


# -- what it predicts ---------------------------------------------------------------------------------------------


def test_means_and_deviations_are_those_of_the_members() -> None:
    committee = Committee(members())
    atoms = [SYSTEMS["mixed species"], SYSTEMS["unwrapped"], SYSTEMS["one-atom cell"]]
    graph = AtomicGraph.batch([AtomicGraph.from_atoms(one, committee.cutoff) for one in atoms])
    result = committee.predict(graph, stress=True)
    single = [member.predict(graph, stress=True) for member in committee.members]
    for name in ("energy", "atom_energies", "forces", "stress"):
        values = np.array([getattr(prediction, name).numpy() for prediction in single])
        np.testing.assert_allclose(getattr(result, name), values.mean(axis=0), rtol=1e-12, atol=1e-12)
        if name in {"energy", "atom_energies"}:
            np.testing.assert_allclose(getattr(result, f"{name}_std"), values.std(axis=0, ddof=1), rtol=1e-10)
        elif name == "forces":
            expected = np.sqrt(values.var(axis=0, ddof=1).sum(axis=1))
            np.testing.assert_allclose(result.forces_std, expected, rtol=1e-10, atol=1e-12)
            assert expected.max() > 1e-3, "the members agree, so that nothing was compared"


def test_only_what_is_asked_for_is_computed() -> None:
    committee = Committee(members(n=2))
    result = committee.predict(AtomicGraph.from_atoms(SYSTEMS["water"], committee.cutoff), forces=False)
    assert result.forces is result.forces_std is result.stress is None
    assert result.energy_std.shape == (1,)


def test_it_stands_for_its_members() -> None:
    committee = Committee(members())
    assert committee.config == CONFIG
    assert committee.cutoff == CONFIG.network.cutoff
    assert committee.elements == CONFIG.elements
    assert committee.dtype == torch.float64
    assert committee.float().dtype == committee.members[2].dtype == torch.float32


@pytest.mark.parametrize("name", ["water", "slab", "skewed triclinic"])
def test_mean_forces_and_stress_are_derivatives_of_the_mean_energy(calculator: SEGNNCalculator, name: str) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.calc = calculator
    some = range(3)
    forces = atoms.get_forces()
    np.testing.assert_allclose(calculate_numerical_forces(atoms, 1e-4, iatoms=some), forces[some], atol=2e-6)
    assert np.abs(forces[some]).max() > 1e-3
    if atoms.pbc.all():
        np.testing.assert_allclose(calculate_numerical_stress(atoms, 1e-5), atoms.get_stress(), atol=1e-6)


def test_deviations_stay_as_a_structure_turns_and_atoms_swap(calculator: SEGNNCalculator) -> None:
    atoms = SYSTEMS["molecule in a box"]
    turned = atoms.copy()
    turned.rotate(73, (1, 2, 3))
    turned.positions *= [1, 1, -1]
    order = np.random.default_rng(0).permutation(len(atoms))
    one, other = calculator.evaluate_many([atoms, turned[order]])
    np.testing.assert_allclose(other["forces_std"], one["forces_std"][order], rtol=TOLERANCES[torch.float64], atol=1e-9)
    np.testing.assert_allclose(other["energies_std"], one["energies_std"][order], rtol=1e-9, atol=1e-9)
    assert other["energy_std"] == pytest.approx(one["energy_std"], rel=1e-9)
    assert np.ptp(one["forces_std"]) > 1e-3
    assert np.abs(other["forces"] - one["forces"][order]).max() > 1e-3


# -- what is no committee -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy_scale": 3.0}, "energy_scale is 2.0 in member 0 and 3.0 in member 1"),
        ({"energy_shifts": {"H": -0.3}}, "energy_shifts.C is 0.7 in member 0 and None in member 1"),
        ({"network": CONFIG.network.model_copy(update={"cutoff": 4.0})}, "network.cutoff is 4.5 in .* and 4.0 in"),
    ],
)
def test_members_of_different_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    other = random_potential(CONFIG.model_copy(update=changes))
    with pytest.raises(ValueError, match=f"differ in their weights only, but {message}"):
        Committee([random_potential(CONFIG, seed=1), other])


def test_too_few_equal_or_mixed_members_are_refused() -> None:
    one, other = members(n=2)
    with pytest.raises(ValueError, match="two members or more, got 1; a single potential"):
        Committee([one])
    with pytest.raises(ValueError, match="members 0 and 2 of the committee have the same weights"):
        Committee([one, other, copy.deepcopy(one)])
    with pytest.raises(ValueError, match=r"have one dtype, member 0 has torch\.float64, 1 torch\.float32"):
        Committee([one, other.float()])


# -- the calculator -----------------------------------------------------------------------------------------------


def test_results_of_the_calculator_hold_the_deviations(calculator: SEGNNCalculator) -> None:
    atoms = SYSTEMS["water"].copy()
    atoms.calc = calculator
    atoms.get_potential_energy()
    assert "forces_std" not in calculator.results
    single = [SEGNNCalculator(member, device="cpu", dtype="float64", compile=False) for member in members()]
    energies, forces = (np.array([c.get_property(name, atoms) for c in single]) for name in ("energies", "forces"))
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=1e-12)
    expected = np.sqrt(forces.var(axis=0, ddof=1).sum(axis=1))
    np.testing.assert_allclose(calculator.results["forces_std"], expected, rtol=1e-10)
    np.testing.assert_allclose(calculator.results["energies_std"], energies.std(axis=0, ddof=1), rtol=1e-10)
    assert calculator.results["energy_std"] == pytest.approx(energies.sum(axis=1).std(ddof=1), rel=1e-10)
    atoms.positions[1, 0] += 0.1
    changed = calculator.get_property("forces_std", atoms)
    assert np.abs(changed - expected).max() > 1e-4, "the results of other positions"
    assert atoms.get_properties(["energy", "forces"])["energy"] == atoms.get_potential_energy()


def test_a_single_potential_has_no_deviations() -> None:
    calculator = SEGNNCalculator(members()[0], device="cpu")
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property("forces_std", SYSTEMS["water"])
    calculator.calculate(SYSTEMS["water"], ["forces"])
    assert not set(DEVIATIONS) & calculator.results.keys()


def test_many_structures_equal_single_ones(calculator: SEGNNCalculator) -> None:
    structures = [SYSTEMS[name] for name in ("water", "lone atom", "mixed species", "slab")]
    for atoms, results in zip(structures, calculator.evaluate_many(structures, ["forces_std"]), strict=True):
        calculator.calculate(atoms, ["forces"])
        assert set(DEVIATIONS) < results.keys() == calculator.results.keys()
        for name, value in calculator.results.items():
            np.testing.assert_allclose(results[name], value, rtol=1e-9, atol=1e-9)


@needs_compiler
def test_compiled_members_give_the_same() -> None:
    results = {}
    for mode in ("auto", False):
        committee = Committee(members(NATIVE_CONFIGS["natural parity"]))
        calculator = SEGNNCalculator(committee, device="cpu", dtype="float64", compile=mode)
        calculator.calculate(SYSTEMS["mixed species"], ["forces", "stress"])
        assert calculator.engine.name == {"auto": "3 x compiled C++", False: "3 x plain torch"}[mode]
        results[mode] = calculator.results
    for key, value in results[False].items():
        np.testing.assert_allclose(results["auto"][key], value, rtol=1e-9, atol=1e-9)


def test_a_committee_comes_from_a_file_or_an_object(tmp_path: Path) -> None:
    committee, path = Committee(members()), tmp_path / "c.safetensors"
    save_potential(committee, path, provenance=Provenance())
    loaded = load_potential(path)
    assert isinstance(loaded, Committee)
    atoms = SYSTEMS["water"]
    results = []
    for source in (committee, path, loaded):
        calculator = SEGNNCalculator(source, device="cpu", dtype="float64", max_deviation=0.5, on_deviation="stop")
        results.append(calculator.get_property("energy_std", atoms))
    assert results[0] == results[1] == results[2] > 0
    again = SEGNNCalculator(path, device="cpu", dtype="float64", max_deviation=0.5).todict()
    assert SEGNNCalculator(**again).todict() == again
    assert SEGNNCalculator(committee).todict()["potential"] == "Committee"


# -- the limit ----------------------------------------------------------------------------------------------------


def limited(limit: float, **options: Any) -> SEGNNCalculator:
    return SEGNNCalculator(Committee(members()), dtype="float64", compile=False, max_deviation=limit, **options)


def test_the_run_stops_where_members_disagree(calculator: SEGNNCalculator) -> None:
    atoms = SYSTEMS["water"].copy()
    deviations = calculator.get_property("forces_std", atoms)
    worst = int(deviations.argmax())
    limit = float(np.sort(deviations)[-2:].mean())
    strict = limited(limit, on_deviation="stop")
    atoms.calc = strict
    atoms.get_potential_energy()
    message = rf"disagrees about the forces on atom {worst} \({atoms.symbols[worst]}\) by up to .* eV/Å, more than max"
    with pytest.raises(UncertaintyError, match=message):
        atoms.get_forces()
    np.testing.assert_allclose(strict.results["forces_std"], deviations)
    assert issubclass(UncertaintyError, RuntimeError)
    with pytest.raises(UncertaintyError, match=f"structure 1: the committee disagrees.*atom {worst} "):
        list(strict.evaluate_many([SYSTEMS["lone atom"], atoms]))
    atoms.calc = limited(1.01 * float(deviations.max()), on_deviation="stop")
    np.testing.assert_array_equal(atoms.get_forces(), calculator.get_property("forces", atoms))


def test_a_long_run_logs_some_warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    calm, wild = SYSTEMS["lone atom"], SYSTEMS["water"]
    calculator = limited(1e-3)
    twin = pickle.loads(pickle.dumps(calculator))
    with caplog.at_level(logging.WARNING):
        calculator.calculate(calm, ["forces"])
        assert not caplog.records
        for _ in range(25):
            calculator.calculate(wild, ["forces"])
    assert len(caplog.records) == 2
    first, second = caplog.messages
    assert "more than max_deviation=0.001; 1 of 2 evaluations so far" in first
    assert "10 of 11 evaluations so far" in second
    assert "next warning at 100; label such structures with the reference method" in second
    with caplog.at_level(logging.WARNING):
        twin.calculate(wild, ["forces"])
    assert "1 of 1 evaluations so far" in caplog.messages[-1], "a copy counts for itself"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_deviation": 0.0}, "max_deviation is the largest deviation of a force in eV/Å, positive, got 0.0"),
        ({"max_deviation": float("nan")}, "got nan"),
        ({"max_deviation": 1.0, "on_deviation": "raise"}, "on_deviation is 'warn' or 'stop', got 'raise'"),
        ({"on_deviation": "stop"}, "on_deviation='stop' needs max_deviation"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEGNNCalculator(Committee(members(n=2)), **options)


def test_a_limit_needs_a_committee() -> None:
    with pytest.raises(ValueError, match=r"max_deviation is for committees, .* this potential is a single potential"):
        SEGNNCalculator(members()[0], max_deviation=1.0)


def test_atoms_and_committee_stay_as_they_are() -> None:
    committee = Committee(members())
    before = copy.deepcopy(committee.state_dict())
    atoms: Atoms = SYSTEMS["water"].copy()
    SEGNNCalculator(committee, dtype="float32", compile=False).get_property("forces", atoms)
    assert atoms == SYSTEMS["water"]
    assert all(torch.equal(weight, before[name]) for name, weight in committee.state_dict().items())
    assert all(parameter.requires_grad for parameter in committee.parameters())
