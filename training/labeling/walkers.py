"""Structures around known ones: short dynamics with a reference from each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin

from ase_segnn.electrons import noted_electrons

from .labeling import NoLabelError, label, reason_of
from .references import Reference

# Averages over positions do not depend on masses, so that heavy hydrogen allows for long steps.
_LEAST_MASS = 12.0  # u
_TIMESTEP, _N_STEPS = 2.0, 5  # fs, and steps from one labeled structure to the next
_FRICTION = 0.01  # 1/fs


class Walkers:
    """Dynamics at a temperature from each of several structures, in turn, all labeled by a reference.

    Attempt n belongs to walker n modulo their number: after any number of attempts the labels lie around all
    structures alike. The first attempt of each walker labels its structure as it is. Each further attempt runs 10 fs of
    dynamics from the structure that the walker labeled last, or from the first one if the last attempt failed.
    Velocities and thermostat depend on seed and number of an attempt alone. So the labeled structures are all that
    interrupted walkers need to go on as if nothing had happened.

    All masses are at least 12 u here, which allows for steps of 2 fs and changes nothing in which positions are likely.

    Parameters
    ----------
    starts : structures of two or more atoms; they stay unchanged
    reference : labels the structures, and drives the dynamics
    temperature : K
    seed : of velocities and thermostats
    """

    def __init__(
        self,
        starts: Sequence[Atoms],
        reference: Reference,
        temperature: float,
        seed: int,
    ) -> None:
        self._starts, self.reference, self._temperature, self._seed = starts, reference, temperature, seed
        self._last: dict[int, Atoms] = {}  # walker -> its structure, with momenta
        self.n_attempts = 0

    def n_evaluations(self, n_attempts: int) -> int:
        """Return the number of evaluations of the reference that so many attempts take."""
        return n_attempts + _N_STEPS * max(0, n_attempts - len(self._starts))

    def keep(self, atoms: Atoms) -> None:
        """Have a walker go on from a structure that it labeled, as read back from where it is kept."""
        attempt = int(atoms.info["attempt"])
        self._last[attempt % len(self._starts)] = atoms
        self.n_attempts = attempt + 1

    def attempt(self) -> Atoms:
        """Move the next walker and label the structure.

        Returns
        -------
        the structure with its labels and momenta; in ``info`` "attempt" is its number and "seconds" its cost

        Raises
        ------
        NoLabelError
            If the reference fails on the way, or for the structure at its end.
        """
        number, began = self.n_attempts, time.monotonic()
        self.n_attempts += 1
        random = np.random.default_rng([self._seed, number])
        atoms = self._where_it_is(number % len(self._starts), random)
        atoms.calc = self.reference.calculator(atoms)
        try:
            if number >= len(self._starts):
                self._dynamics(atoms, random).run(_N_STEPS)
        except Exception as error:  # calculators raise whatever they stumble over
            raise NoLabelError(reason_of(error)) from error
        atoms.set_constraint()
        labeled = label(atoms, atoms.calc)
        labeled.arrays.pop("masses")
        labeled.info = {**noted_electrons(labeled), "attempt": number, "seconds": round(time.monotonic() - began, 6)}
        return labeled

    def _where_it_is(self, walker: int, random: np.random.Generator) -> Atoms:
        """Structure, masses and momenta that a walker goes on from."""
        last = self._last.pop(walker, None)
        atoms: Atoms = (self._starts[walker] if last is None else last).copy()
        atoms.set_masses(np.maximum(atoms.get_masses(), _LEAST_MASS))
        if last is None:
            masses = atoms.get_masses()[:, None]
            momenta = np.sqrt(masses * units.kB * self._temperature) * random.standard_normal((len(atoms), 3))
            atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())
        return atoms

    def _dynamics(self, atoms: Atoms, random: np.random.Generator) -> Langevin:
        atoms.set_constraint(FixCom())
        return Langevin(
            atoms,
            _TIMESTEP * units.fs,
            temperature_K=self._temperature,
            friction=_FRICTION / units.fs,
            fixcm=False,
            rng=random,
        )
