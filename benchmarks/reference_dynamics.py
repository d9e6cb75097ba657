"""Labeled frames of a reference's own dynamics, to learn from or to test with."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution


def labeled_dynamics(
    atoms: Atoms,
    temperature: float,
    number: int,
    *,
    timestep: float,
    equilibration: int,
    interval: int,
    seed: int,
    friction: float = 0.01,
) -> list[Atoms]:
    """Return frames of Langevin dynamics with energy, forces and, in a cell, stress.

    Parameters
    ----------
    atoms : with their calculator; they are moved
    temperature : K
    number, interval : of frames, and steps from one to the next
    timestep, friction : fs, 1/fs
    equilibration : steps before the first interval
    seed : of velocities and thermostat
    """
    random = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=random)
    dynamics = Langevin(
        atoms, timestep * units.fs, temperature_K=temperature, friction=friction / units.fs, fixcm=False, rng=random
    )
    dynamics.run(equilibration)
    frames = []
    for _ in range(number):
        dynamics.run(interval)
        frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.cell.rank == 3:
            results["stress"] = atoms.get_stress()
        frame.calc = SinglePointCalculator(frame, **results)
        frames.append(frame)
    return frames
