"""Walks of a committee: dynamics at a ladder of temperatures that finds frames on which its members disagree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.constraints import check_for_dynamics, for_dynamics, is_free
from ase_segnn.electrons import keep_electrons
from ase_segnn.model.committee import Committee
from ase_segnn.physics.bonds import n_pieces

from .rounds import Rung

# Averages over positions do not depend on masses, so that heavy hydrogen allows for long steps.
_LEAST_MASS, _TIMESTEP = 12.0, 2.0  # u, fs
_FRICTION = 0.01  # 1/fs
_INTERVAL = 5  # steps from one look at the committee to the next
_LONGEST_WALK = 1000  # steps
_HOTTEST = 5.0  # of the temperature of the thermostat, beyond which a walk has broken
_BROKEN_BOND = 2.0  # of the sum of the covalent radii


@dataclass(frozen=True)
class Band:
    """Bounds of the largest deviation in a frame, eV/Å: below `lower` nothing is new, above `upper` nothing is sane."""

    lower: float
    upper: float


@dataclass
class _Course:
    """What happened at one temperature."""

    n_steps: int = 0
    n_walks: int = 0
    n_broken: int = 0
    deviations: list[float] = field(default_factory=list)
    found: list[Atoms] = field(default_factory=list)


def explore(
    committee: Committee,
    starts: Sequence[Atoms],
    temperatures: Sequence[float],
    band: Band,
    *,
    seconds: float,
    pressures: tuple[float, float] | None = None,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[list[Rung], list[Atoms]]:
    """Walk from trusted frames until time is up, and keep the frames below the upper bound.

    A walk is Langevin dynamics of one member of the committee, or dynamics at a random pressure of a range. Every 10 fs
    the whole committee looks at the frame. The walk ends beyond the upper bound, where the structure breaks, after 2
    ps, and after an equal share of the time for each temperature. The next one begins at another start, with another
    member, at the temperature that had the fewest steps. Frames from the lower bound on are new, and so is the last one
    before a walk breaks whatever its deviation, because what follows is unknown.

    All masses are at least 12 u, which allows for steps of 2 fs and changes nothing in which positions are likely.

    Parameters
    ----------
    committee : of potentials
    starts : with their constraints, not changed
    temperatures : K, of the rungs
    band : bounds of the deviation
    seconds : of the exploration
    pressures : GPa, the lowest and the highest; None for fixed cells
    seed : of starts, velocities and thermostats
    steps : most steps of all walks together, for tests

    Returns
    -------
    facts about each rung, and all frames, with "temperature" (K), "pressure_GPa", "deviation" (eV/Å) and "new" in
    ``info``

    Raises
    ------
    ValueError
        If the constraints of a start cannot be kept, or it has no periodic cell for a pressure.
    """
    if not starts:
        raise ValueError("there is no structure to start from")
    for index, atoms in enumerate(starts):
        check_walk(atoms, f"start {index}", pressures)
    looking = SEGNNCalculator(committee)
    driving = [SEGNNCalculator(member) for member in committee.members]
    for calculator in (looking, *driving):  # may be compiled now, which takes longer than many steps
        calculator.get_property("forces", starts[0])
    courses = [_Course() for _ in temperatures]
    random = np.random.default_rng(seed)
    until, left = time.monotonic() + seconds, float("inf") if steps is None else steps
    while time.monotonic() < until and left > 0:
        rung = int(np.argmin([course.n_steps + course.n_walks for course in courses]))
        atoms = starts[int(random.integers(len(starts)))].copy()
        atoms.calc = driving[int(random.integers(len(driving)))]
        pressure = None if pressures is None else float(random.uniform(*pressures))
        most = int(min(_LONGEST_WALK, left))
        end = min(until, time.monotonic() + seconds / len(temperatures))  # so that there is time for all temperatures
        left -= _walk(atoms, courses[rung], looking, temperatures[rung], pressure, band, random, end, most)
    rungs = [
        Rung(
            temperature=temperature,
            picoseconds=course.n_steps * _TIMESTEP / 1000,
            n_walks=course.n_walks,
            n_broken=course.n_broken,
            n_seen=len(course.deviations),
            n_new=sum(deviation >= band.lower for deviation in course.deviations),
            median_deviation=float(np.median(course.deviations)) if course.deviations else 0.0,
        )
        for temperature, course in zip(temperatures, courses, strict=True)
    ]
    return rungs, [atoms for course in courses for atoms in course.found]


def check_walk(atoms: Atoms, name: str, pressures: tuple[float, float] | None) -> None:
    """Refuse a structure that cannot walk.

    Raises
    ------
    ValueError
        See `explore`.
    """
    check_for_dynamics(atoms, name)
    if pressures is not None and (atoms.constraints or not atoms.pbc.all()):
        raise ValueError(
            f"a pressure moves the cell and all atoms with it, and {name} has "
            + ("constraints" if atoms.constraints else f"pbc {atoms.pbc.tolist()}")
            + "; leave out the pressure"
        )


def _walk(
    atoms: Atoms,
    course: _Course,
    looking: SEGNNCalculator,
    temperature: float,
    pressure: float | None,
    band: Band,
    random: np.random.Generator,
    until: float,
    most: int,
) -> int:
    """Walk once, for so many steps at most; return the number of steps."""
    own_constraints = list(atoms.constraints)
    atoms.set_masses(np.maximum(atoms.get_masses(), _LEAST_MASS))
    masses = atoms.get_masses()[:, None]
    atoms.set_constraint(for_dynamics(atoms))
    free = is_free(atoms) and len(atoms) > 1
    momenta = np.sqrt(masses * units.kB * temperature) * random.standard_normal((len(atoms), 3))
    if free:
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
    atoms.set_momenta(momenta)
    if pressure is None:
        if free:
            atoms.set_constraint([*atoms.constraints, FixCom()])
        dynamics: MolecularDynamics = Langevin(
            atoms,
            _TIMESTEP * units.fs,
            temperature_K=temperature,
            friction=_FRICTION / units.fs,
            fixcm=False,
            rng=random,
        )
    else:
        dynamics = IsotropicMTKNPT(
            atoms,
            _TIMESTEP * units.fs,
            temperature_K=temperature,
            pressure_au=pressure * units.GPa,
            tdamp=50 * units.fs,
            pdamp=500 * units.fs,
        )
    pieces = 0 if atoms.pbc.any() else n_pieces(atoms)
    hottest = _HOTTEST * temperature * (1 + 3 * np.sqrt(2 / (3 * len(atoms))))
    course.n_walks += 1
    n_steps = 0
    last: Atoms | None = None
    with np.errstate(all="ignore"):
        while n_steps < most and time.monotonic() < until:
            try:
                dynamics.run(_INTERVAL)
                n_steps += _INTERVAL
                deviation = float(np.max(looking.get_property("forces_std", atoms)))
                broken = (
                    not deviation <= band.upper
                    or not atoms.get_temperature() <= hottest
                    or (pieces and n_pieces(atoms, _BROKEN_BOND) > pieces)
                )
            except (ArithmeticError, MemoryError, RuntimeError, ValueError):
                broken = True
            if broken:
                course.n_broken += 1
                if last is not None:
                    last.info["new"] = True
                break
            course.deviations.append(deviation)
            last = _frame(atoms, own_constraints, temperature, pressure, deviation)
            last.info["new"] = deviation >= band.lower
            course.found.append(last)
    course.n_steps += n_steps
    return max(n_steps, 1)


def _frame(
    atoms: Atoms, constraints: list[object], temperature: float, pressure: float | None, deviation: float
) -> Atoms:
    frame = keep_electrons(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc), atoms)
    frame.set_constraint(constraints)
    frame.info |= {"temperature": round(temperature, 3), "deviation": round(deviation, 6)}
    if pressure is not None:
        frame.info["pressure_GPa"] = round(pressure, 4)
    return frame
