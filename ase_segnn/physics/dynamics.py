"""Runs of molecular dynamics that show whether a potential holds a structure together and conserves energy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixCom
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.physics.bonds import n_pieces
from ase_segnn.physics.verdicts import Verdict

_FRICTION = 0.01  # 1/fs
INTERVAL = 10  # steps between two looks at the structure
_LEAST_STEPS = 100  # that say anything
_TOO_CLOSE = 0.5  # of the sum of the covalent radii
_TOO_FAR = 2.0  # of the largest distance to the nearest neighbor at the start
_BOND, _BROKEN_BOND = 1.3, 2.0  # of the sum of the covalent radii: connected at the start, apart later
_LARGEST_DRIFT = 1.0  # meV/atom/ps
_LARGEST_FLUCTUATION = 0.2  # of the total energy, as a share of that of the kinetic energy


Watch = Callable[[int, Atoms], object]


@dataclass(frozen=True, eq=False)
class Run:
    """A run of molecular dynamics, recorded n times, and its verdict.

    Parameters
    ----------
    time_ps, temperature_K : (n,)
    energy : (n,) total energy, meV per atom, less the first
    seconds_per_step : median, of dynamics and potential together; NaN if there was no step
    verdict : of the check
    """

    time_ps: NDArray[np.float64]
    temperature_K: NDArray[np.float64]
    energy: NDArray[np.float64]
    seconds_per_step: float
    verdict: Verdict


def timestep_for(atoms: Atoms) -> float:
    """Time step in fs for the lightest element: 0.5 with hydrogen, 1 up to fluorine, 2 for heavier ones."""
    lightest = int(atoms.numbers.min())
    return 0.5 if lightest <= 1 else 1.0 if lightest <= 9 else 2.0


def langevin_run(
    calculator: Calculator,
    atoms: Atoms,
    temperature: float,
    *,
    steps: int,
    seconds: float = np.inf,
    seed: int = 0,
    watch: Watch | None = None,
) -> Run:
    """Run dynamics at `temperature` (K) and see whether the structure lasts.

    The run fails if the calculator does, an energy is not finite, the temperature exceeds five times its target by more
    than its fluctuation, two atoms come nearer than half the sum of their covalent radii, an atom leaves all others, or
    a molecule without periodicity falls apart: bonds of the start are then twice as long as the sum of covalent radii.

    Parameters
    ----------
    calculator : anything that ASE takes as one; keeps the results of the last structure
    atoms : two or more, not changed
    steps, seconds : the run ends with the first that is reached
    seed : of velocities and of the thermostat
    watch : called with step and atoms, which are not to be changed or kept, at the start and every `INTERVAL` steps
    """
    atoms, rng = _prepared(calculator, atoms, temperature, seed)
    atoms.set_constraint(FixCom())
    timestep = timestep_for(atoms) * units.fs
    dynamics = Langevin(atoms, timestep, temperature_K=temperature, friction=_FRICTION / units.fs, fixcm=False, rng=rng)
    record = _Record(atoms, temperature, watch)
    defect = record.perform(dynamics, steps, seconds)
    name = f"Dynamics at {temperature:.0f} K"
    done = record.extent(timestep_for(atoms), steps)
    if defect is not None:
        verdict = Verdict(name, "failed", f"After {record.duration_ps * 1000:.1f} fs {defect}.")
    elif record.steps < min(steps, _LEAST_STEPS):
        verdict = Verdict(name, "not applicable", f"Too slow to say: {record.steps} steps in {seconds:g} s.")
    else:
        mean = np.mean(record.columns["temperature_K"][len(record.columns["temperature_K"]) // 2 :])
        statement = f"The structure held together for {done}; mean temperature of the second half {mean:.0f} K."
        verdict = Verdict(name, "passed", statement)
    return record.finish(verdict)


def constant_energy_run(
    calculator: Calculator,
    atoms: Atoms,
    temperature: float,
    *,
    steps: int,
    seconds: float = np.inf,
    seed: int = 1,
    watch: Watch | None = None,
) -> Run:
    """Run dynamics without a thermostat and see whether the total energy stays; arguments as for `langevin_run`.

    The check fails if the run does, if the energy drifts by more than 1 meV/atom/ps beyond what its fluctuation can
    explain, or if the energy fluctuates by more than a fifth of the fluctuation of the kinetic energy.
    """
    atoms, _ = _prepared(calculator, atoms, temperature, seed)
    record = _Record(atoms, temperature, watch)
    defect = record.perform(VelocityVerlet(atoms, timestep_for(atoms) * units.fs), steps, seconds)
    name = "Conservation of energy"
    if defect is not None:
        return record.finish(Verdict(name, "failed", f"After {record.duration_ps * 1000:.1f} fs {defect}."))
    if record.steps < min(steps, _LEAST_STEPS):
        statement = f"Too slow to say: {record.steps} steps in {seconds:g} s."
        return record.finish(Verdict(name, "not applicable", statement))
    times, energies = np.array(record.columns["time_ps"]), np.array(record.columns["energy"])
    slope, intercept = np.polyfit(times, energies, 1)
    fluctuation = float((energies - slope * times - intercept).std())
    kinetic = 1000 * 1.5 * units.kB * float(np.std(record.columns["temperature_K"]))  # meV/atom
    drifts = abs(slope) > _LARGEST_DRIFT and abs(slope) * record.duration_ps > 2 * fluctuation
    statement = (
        f"Without a thermostat the total energy drifts by {slope:+.3f} meV/atom/ps and fluctuates by "
        f"{fluctuation:.3f} meV/atom, over {record.extent(timestep_for(atoms), steps)}."
    )
    if drifts or fluctuation > _LARGEST_FLUCTUATION * kinetic:
        statement += " That is too much: the forces are not smooth, or not the derivative of the energy."
        return record.finish(Verdict(name, "failed", statement))
    return record.finish(Verdict(name, "passed", statement))


def _prepared(calculator: Calculator, atoms: Atoms, temperature: float, seed: int) -> tuple[Atoms, np.random.Generator]:
    """Copy the atoms, with the calculator and with random velocities of exactly this temperature."""
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.calc = calculator
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)  # of each component of the momentum
    atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
    Stationary(atoms, preserve_temperature=False)
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / atoms.get_temperature()))
    return atoms, rng


class _Record:
    """Performs a run, records its course, and finds what goes wrong."""

    def __init__(self, atoms: Atoms, temperature: float, watch: Watch | None) -> None:
        self.columns: dict[str, list[float]] = {"time_ps": [], "temperature_K": [], "energy": []}
        self.steps, self.duration_ps = 0, 0.0
        self._atoms, self._first_energy = atoms, 0.0
        self._seconds: list[float] = []
        fluctuation = temperature * np.sqrt(2 / (3 * len(atoms)))
        self._hottest = 5 * (temperature + 3 * fluctuation)
        self._farthest = _TOO_FAR * float(_nearest(atoms).max())
        self._watch = watch
        self._n_pieces = n_pieces(atoms, _BOND)

    def perform(self, dynamics: Any, steps: int, seconds: float) -> str | None:
        """Run until steps or time are used up; return in words what went wrong, if anything did."""
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            try:
                self._first_energy = self._atoms.get_total_energy()
                defect = self._look()
                while defect is None and self.steps < steps and time.perf_counter() - started < seconds:
                    before = time.perf_counter()
                    dynamics.step()
                    self._seconds.append(time.perf_counter() - before)
                    self.steps += 1
                    self.duration_ps = self.steps * dynamics.dt / (1000 * units.fs)
                    if self.steps % INTERVAL == 0 or self.steps == steps:
                        defect = self._look()
            except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
                return f"the calculator failed: {error}"
        return defect

    def extent(self, timestep: float, steps: int) -> str:
        """Say how long the run was, and whether it should have been longer."""
        short = ", all that the time limit allowed" if self.steps < steps else ""
        return f"{self.duration_ps:.2f} ps in steps of {timestep:g} fs{short}"

    def finish(self, verdict: Verdict) -> Run:
        """Return the run and its verdict."""
        median = float(np.median(self._seconds)) if self._seconds else np.nan
        time_ps, temperature, energy = (np.array(self.columns[name]) for name in ("time_ps", "temperature_K", "energy"))
        return Run(time_ps, temperature, energy, median, verdict)

    def _look(self) -> str | None:
        """Record temperature and energy; return what is wrong with the structure, if anything is."""
        atoms = self._atoms
        temperature, energy = float(atoms.get_temperature()), float(atoms.get_total_energy())
        if not (np.isfinite(atoms.positions).all() and np.isfinite(energy)):
            return "positions or energy were no numbers any more"
        self.columns["time_ps"].append(self.duration_ps)
        self.columns["temperature_K"].append(temperature)
        self.columns["energy"].append(1000 * (energy - self._first_energy) / len(atoms))
        if temperature > self._hottest:
            return f"the temperature had run away, to {temperature:.0f} K"
        graph = AtomicGraph.from_atoms(atoms, self._farthest)
        distances = graph.edge_vectors().norm(dim=1).numpy()
        centers, neighbors = graph.centers.numpy(), graph.neighbors.numpy()
        closeness = distances / (covalent_radii[atoms.numbers[centers]] + covalent_radii[atoms.numbers[neighbors]])
        if len(closeness) and closeness.min() < _TOO_CLOSE:
            edge = int(closeness.argmin())
            a, b = int(centers[edge]), int(neighbors[edge])
            return f"atoms {a} ({atoms.symbols[a]}) and {b} ({atoms.symbols[b]}) were {distances[edge]:.2f} Å apart"
        alone = np.setdiff1d(np.arange(len(atoms)), centers)
        if len(alone):
            first = int(alone[0])
            return f"atom {first} ({atoms.symbols[first]}) had left the others by more than {self._farthest:.1f} Å"
        if not atoms.pbc.any() and n_pieces(atoms, _BROKEN_BOND) > self._n_pieces:
            return "the molecule had fallen apart"
        if self._watch is not None:
            self._watch(self.steps, atoms)
        return None


def _nearest(atoms: Atoms) -> NDArray[np.float64]:
    """Distance of each atom to its nearest neighbor, Å."""
    cutoff = 3.0
    while True:
        graph = AtomicGraph.from_atoms(atoms, cutoff)
        nearest = np.full(len(atoms), np.inf)
        np.minimum.at(nearest, graph.centers.numpy(), graph.edge_vectors().norm(dim=1).numpy())
        if np.isfinite(nearest).all():
            return nearest
        cutoff *= 2
