"""Batches of structures in torch-sim: its own checks, dynamics and relaxation, and results of the calculator."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from random_potentials import SHAPES, random_potential
from systems import systems

from ase_segnn import Committee, SEGNNCalculator
from ase_segnn.graphs.verlet import VerletGraphs
from ase_segnn.model.potential import Potential

ts = pytest.importorskip("torch_sim", reason="needs torch-sim: pip install -e '.[torch-sim]'")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from ase_segnn.integrations.torch_sim import SEGNNModel  # noqa: E402

CPU = torch.device("cpu")
SYSTEMS = systems()
PERIODIC = ["unwrapped", "mixed species", "skewed triclinic"]


def potential_for(elements: tuple[str, ...], seed: int = 0) -> Potential:
    config = SHAPES["products"]
    energies = dict.fromkeys(elements, -1.0)
    changes = {"elements": elements, "reference_energies": energies, "energy_shifts": {}}
    return random_potential(config.model_copy(update=changes), seed=seed)


@pytest.mark.parametrize("kind", ["auto", False])
def test_torch_sim_finds_nothing_wrong(kind: bool | str) -> None:
    model = SEGNNModel(potential_for(("Si", "Fe")), "cpu", torch.float64, compile=kind)
    validate_model_outputs(model, CPU, torch.float64)


def assert_results_are_the_calculators(model: SEGNNModel, calculator: SEGNNCalculator, names: list[str]) -> None:
    structures = [SYSTEMS[name] for name in names]
    state = ts.io.atoms_to_state(structures, CPU, torch.float64)
    results = model(state)
    start = 0
    for number, atoms in enumerate(structures):
        calculator.calculate(atoms, ["stress"])
        expected, end = calculator.results, start + len(atoms)
        assert results["energy"][number].item() == pytest.approx(expected["energy"], rel=1e-10)
        np.testing.assert_allclose(results["forces"][start:end], expected["forces"], rtol=0, atol=1e-9)
        stress = expected["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        np.testing.assert_allclose(results["stress"][number], stress, rtol=0, atol=1e-9)
        if "forces_std" in results:
            np.testing.assert_allclose(results["forces_std"][start:end], expected["forces_std"], rtol=0, atol=1e-9)
        start = end


def test_results_are_the_calculators_whatever_is_in_the_batch() -> None:
    potential = random_potential(SHAPES["products"]).double()
    model = SEGNNModel(potential, "cpu", torch.float64)
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64", compile=False)
    for names in (PERIODIC, PERIODIC[::-1], PERIODIC[:1], PERIODIC):
        assert_results_are_the_calculators(model, calculator, names)


def test_a_committee_has_deviations() -> None:
    committee = Committee([random_potential(SHAPES["products"], seed=seed).double() for seed in (1, 2)])
    model = SEGNNModel(committee, "cpu", torch.float64)
    calculator = SEGNNCalculator(committee, device="cpu", dtype="float64", compile=False)
    assert_results_are_the_calculators(model, calculator, PERIODIC)


def test_dynamics_conserves_energy_and_keeps_lists_of_pairs() -> None:
    model = SEGNNModel("si-pbe", "cpu", torch.float64)
    crystals = [bulk("Si", cubic=True).repeat((2, 1, 1)), bulk("Si", cubic=True)]
    state = ts.io.atoms_to_state(crystals, CPU, torch.float64)
    kt = torch.tensor(1000 * ts.units.MetalUnits.temperature, dtype=torch.float64)
    dt = torch.tensor(1e-3 * ts.units.MetalUnits.time, dtype=torch.float64)
    start, step = ts.nve(model, dt=dt, kT=kt, seed=1)
    state = start(state)
    energies = []
    for _ in range(100):
        state = step(state)
        kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        energies.append(state.energy + kinetic)
    drift = torch.stack(energies) - energies[0]
    assert drift.abs().max() < 1e-2
    assert all(verlet.builds < 10 for verlet in model._lists)


def test_kept_pairs_are_used_only_while_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves, changes or is not a number, results are those of a model that keeps nothing."""
    potential = random_potential(SHAPES["products"]).double()
    model, looked = SEGNNModel(potential, "cpu", torch.float64), []
    original = VerletGraphs.graph
    monkeypatch.setattr(VerletGraphs, "graph", lambda *a, **kw: looked.append(a[0]) or original(*a, **kw))
    structures = [SYSTEMS[name] for name in PERIODIC]
    state = ts.io.atoms_to_state(structures, CPU, torch.float64)
    random = torch.Generator().manual_seed(0)

    def is_looked_up() -> bool:
        looked.clear()
        results = model(state)
        was_looked_up = len(looked) > 0
        fresh = SEGNNModel(potential, "cpu", torch.float64)(state)
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(results[name], fresh[name], rtol=1e-9, atol=1e-9)
        return was_looked_up

    assert is_looked_up()
    assert not is_looked_up()
    state.positions = state.positions + 0.05 * torch.randn(state.positions.shape, generator=random, dtype=torch.float64)
    assert not is_looked_up()
    state.positions = state.positions + 0.8 * torch.randn(state.positions.shape, generator=random, dtype=torch.float64)
    assert is_looked_up()
    state.cell = 1.02 * state.cell
    assert is_looked_up()
    assert not is_looked_up()
    state.atomic_numbers = state.atomic_numbers.flip(0)
    assert is_looked_up()
    state.positions = state.positions.clone()
    state.positions[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        model(state)


def test_many_molecules_relax_together() -> None:
    model = SEGNNModel("acac-pbe-fast", "cpu", torch.float64)
    molecule = ase.io.read(Path(__file__).parent / "data" / "acetylacetone.xyz")
    molecule.center(vacuum=8.0)
    molecule.pbc = True
    molecules = []
    for seed in range(100):
        molecules.append(molecule.copy())
        molecules[-1].rattle(0.03, seed=seed)
    final = ts.optimize(
        system=molecules,
        model=model,
        optimizer=ts.optimizers.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=0.05, include_cell_forces=False),
        max_steps=400,
    )
    results = model(final)
    assert results["forces"].norm(dim=1).max() < 0.06
    assert np.ptp(results["energy"].numpy()) < 0.5


def test_energies_of_a_network_in_float32_keep_their_digits() -> None:
    molecule = ase.io.read(Path(__file__).parent / "data" / "acetylacetone.xyz")
    model, calculator = SEGNNModel("acac-pbe", "cpu"), SEGNNCalculator("acac-pbe", device="cpu")
    state = ts.initialize_state([molecule], model.device, model.dtype)
    energy = model(state)["energy"]
    assert energy.dtype == torch.float64
    assert energy.item() == pytest.approx(calculator.get_property("energy", molecule), abs=1e-5)  # of 9,392 eV


def test_unknown_elements_are_an_error() -> None:
    model = SEGNNModel("si-pbe", "cpu")
    for _ in range(2):
        with pytest.raises(ValueError, match="this structure also has Cu"):
            model(ts.io.atoms_to_state([bulk("Cu")], CPU, torch.float64))
