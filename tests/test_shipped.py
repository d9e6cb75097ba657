"""The shipped potentials: card and recipe belong to the weights, and they do what README promises."""

from __future__ import annotations

import re
from itertools import chain, combinations_with_replacement
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ase_segnn import SEGNNCalculator
from ase_segnn.potential_file import read_header
from ase_segnn.potentials import path_of, shipped_potentials, stated_cost
from ase_segnn.training import Recipe, load_recipe
from ase_segnn.training.data.frames import read_frames
from ase_segnn.training.data.sources import locate_all
from ase_segnn.training.report import predict_frames

NAMES = sorted(shipped_potentials())
DATA = Path(__file__).parent / "data"
# Structures that the potentials are made for, near their minimum.
STRUCTURES = {
    "3bpa-wb97x": lambda: ase.io.read(DATA / "3bpa.xyz"),
    "acac-pbe": lambda: ase.io.read(DATA / "acetylacetone.xyz"),
    "acac-pbe-fast": lambda: ase.io.read(DATA / "acetylacetone.xyz"),
    "cu-pbe": lambda: bulk("Cu", a=3.634, cubic=True),
    "si-pbe": lambda: bulk("Si", a=5.468, cubic=True),
}


def structure(name: str, **options: str | float) -> Atoms:
    atoms = STRUCTURES[name]()
    atoms.calc = SEGNNCalculator(name, device="cpu", **options)
    return atoms


def test_what_is_shipped() -> None:
    assert set(NAMES) == set(STRUCTURES)


@pytest.mark.parametrize("name", NAMES)
def test_card_and_recipe_belong_to_the_potential(name: str) -> None:
    path = path_of(name)
    header = read_header(path)
    recipe = load_recipe(path.with_suffix(".yaml"))
    assert recipe.name == name
    assert Recipe.model_validate(header.provenance.recipe) == recipe
    assert header.provenance.seed == recipe.seed
    assert set(header.provenance.data) >= {*recipe.data.train, *chain(*recipe.data.test.values())}
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert set(header.provenance.errors) == {"validation", *recipe.data.test}
    for data, errors in header.provenance.errors.items():
        row = f"| {data} | **{name}** | {errors['energy_RMSE_meV']:.2f} | {errors['forces_RMSE_meV_per_A']:.2f} |"
        assert row in card
    assert recipe.card.level_of_theory in card
    assert re.fullmatch(r"\d+ µs per atom and step, in dynamics of .*", stated_cost(path))
    assert path.stat().st_size < 5e6


@pytest.mark.parametrize("name", NAMES)
def test_the_file_names_no_folder_of_the_machine_it_was_made_on(name: str) -> None:
    provenance = read_header(path_of(name)).provenance
    assert provenance.data
    assert re.findall(r'"(?:/|~|\.\./|[A-Za-z]:[/\\])[^"]*"', provenance.model_dump_json()) == []
    assert {provenance.recipe["data"].get(key) for key in ("folder", "cache")} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_nuclei_repel_each_other(name: str) -> None:
    calculator = SEGNNCalculator(name, device="cpu")
    for pair in combinations_with_replacement(calculator.potential.elements, 2):
        for distance in (0.1, 0.2, 0.3, 0.4):
            atoms = Atoms(pair, [[0, 0, 0], [0, 0, distance]], calculator=calculator)
            assert atoms.get_forces()[1, 2] > 0, f"{'-'.join(pair)} at {distance} Å"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_errors_on_the_test_sets_are_those_on_the_card(name: str) -> None:
    header = read_header(path_of(name))
    recipe = load_recipe(path_of(name).with_suffix(".yaml"))
    calculator = SEGNNCalculator(name, device="cpu")
    for data, names in recipe.data.test.items():
        try:
            files = locate_all(names)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        frames = (frame for file in files.values() for frame in read_frames(file.path))
        errors = predict_frames(calculator, frames).errors()
        for measure in ("energy_RMSE_meV", "forces_RMSE_meV_per_A"):
            # float32: the order of sums shows in energies
            assert errors[measure] == pytest.approx(header.provenance.errors[data][measure], rel=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_relaxation_leads_back_to_the_minimum(name: str) -> None:
    atoms = structure(name, dtype="float64")
    assert np.abs(atoms.get_forces()).max() < 0.1
    start = atoms.get_all_distances(mic=True)
    atoms.rattle(0.05, seed=1)
    assert np.abs(atoms.get_forces()).max() > 0.5
    with BFGS(atoms, logfile=None) as optimizer:
        assert optimizer.run(fmax=0.005, steps=300)
    assert np.abs(atoms.get_all_distances(mic=True) - start)[:7, :7].max() < 0.05  # methyl groups may turn


@pytest.mark.parametrize("name", NAMES)
def test_forces_and_stress_equal_those_of_ase_by_finite_differences(name: str) -> None:
    atoms = structure(name, dtype="float64")
    atoms.rattle(0.05, seed=1)
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.5
    np.testing.assert_allclose(calculate_numerical_forces(atoms, eps=3e-5), forces, rtol=0, atol=1e-6)
    if atoms.cell.rank < 3:
        atoms.set_cell([7.5, 5.5, 4.0])
        atoms.pbc = True
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(calculate_numerical_stress(atoms, eps=1e-5), stress, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_dynamics_conserves_energy(name: str) -> None:
    """2 ps at 300 K: no drift, and no jump where the neighbor list is rebuilt."""
    rng = np.random.default_rng(0)
    atoms = structure(name, skin=0.3)
    spread = np.sqrt(atoms.get_masses() * units.kB * 600)  # half of it goes into the potential energy
    atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
    total, potential = [], []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)

    def record() -> None:
        potential.append(atoms.get_potential_energy())
        total.append(atoms.get_total_energy())

    dynamics.attach(record, interval=1)
    dynamics.run(4000)
    energy = 1000 * np.array(total) / len(atoms)  # meV per atom
    time_ps = 0.0005 * np.arange(len(energy))
    drift = np.polyfit(time_ps[200:], energy[200:], 1)[0]
    assert np.std(potential) > 0.03  # the energy went to and fro
    assert abs(drift) < 0.5
    assert np.abs(np.diff(energy)).max() < 0.05 * np.abs(np.diff(potential)).max() * 1000
