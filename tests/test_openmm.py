"""OpenMM: forces of the calculator, and dynamics that conserves energy."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from random_potentials import SHAPES, random_potential
from systems import systems

from ase_segnn import SEGNNCalculator

openmm = pytest.importorskip("openmm", reason="needs OpenMM: pip install -e '.[openmm]'")

from openmm import unit  # noqa: E402

from ase_segnn.integrations.openmm import segnn_force  # noqa: E402

SYSTEMS = systems()


def context_of(atoms: Atoms, force: openmm.PythonForce, timestep: float = 0.001) -> openmm.Context:
    """Return a context on the reference platform; the time step is in ps."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(np.array(atoms.cell) / 10))
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(timestep), platform)
    context.setPositions(atoms.positions / 10)
    return context


@pytest.mark.parametrize("name", ["water", "unwrapped"])
def test_forces_are_the_calculators(name: str) -> None:
    atoms, potential = SYSTEMS[name], random_potential(SHAPES["products"]).double()
    options = {"device": "cpu", "dtype": "float64", "compile": False}
    atoms.calc = SEGNNCalculator(potential, **options)
    before = atoms.copy()
    context = context_of(atoms, segnn_force(potential, atoms, **options))
    state = context.getState(getForces=True, getEnergy=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / 96.48533212331
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer) / 964.8533212331
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-8)
    np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-6)
    assert atoms == before


def test_dynamics_conserves_energy() -> None:
    atoms = bulk("Si", cubic=True)
    context = context_of(atoms, segnn_force("si-pbe", atoms, device="cpu"))
    context.setVelocitiesToTemperature(600, 1)
    totals = []
    for _ in range(10):
        context.getIntegrator().step(10)
        state = context.getState(getEnergy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        totals.append(total.value_in_unit(unit.kilojoule_per_mole) / 96.48533212331)
    assert np.ptp(totals) < 0.02


def test_systems_are_periodic_or_not() -> None:
    with pytest.raises(ValueError, match="along all vectors or none"):
        segnn_force("si-pbe", Atoms("Si", cell=[5, 5, 5], pbc=[True, True, False]))


def test_unknown_elements_are_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="this structure also has Cu"):
        segnn_force("si-pbe", bulk("Cu"))
