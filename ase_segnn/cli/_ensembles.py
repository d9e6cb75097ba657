"""What ``ase-segnn md`` integrates: velocities at the start, ensembles, and constraints, which all of them keep."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


class Ensemble(str, Enum):
    """What is held constant."""

    nve = "nve"
    langevin = "langevin"
    npt = "npt"


class Motion:
    """How a structure moves: its constraints, velocities and ensemble.

    A structure that nothing ties to a place stays at rest as a whole in the Langevin ensemble, though the thermostat
    would push it: one more constraint, `ase.constraints.FixCom`, takes three degrees of freedom out. That constraint is
    not one of the structure's, and files do not show it.

    Parameters
    ----------
    atoms : with its constraints; gets momenta
    name : of the structure, for messages
    ensemble : what is held constant
    temperature : K, of the start and of the thermostat

    Raises
    ------
    ValueError
        If the constraints leave nothing to move, contradict one another, or cannot be kept in the ensemble.
    """

    def __init__(self, atoms: Atoms, name: str, ensemble: Ensemble, temperature: float) -> None:
        from ase.constraints import FixCom

        from ase_segnn.constraints import check_for_dynamics, for_dynamics, is_free, names_of

        if ensemble is Ensemble.npt and atoms.constraints:
            raise ValueError(
                f"'{name}' has constraints ({names_of(atoms)}), and NPT moves all atoms with the cell; remove them, or "
                "take --ensemble langevin or nve"
            )
        check_for_dynamics(atoms, name)
        if ensemble is Ensemble.npt and not atoms.pbc.all():
            raise ValueError(
                f"NPT needs a structure that is periodic along all three vectors, pbc={atoms.pbc.tolist()}"
            )
        if ensemble is Ensemble.npt and not temperature > 0:
            raise ValueError("NPT needs a --temperature above 0 K; 'ase-segnn relax --cell' finds the cell at 0 K")
        self.atoms, self.name, self.ensemble, self.temperature = atoms, name, ensemble, temperature
        self._own_constraints = list(atoms.constraints)
        self._is_free = is_free(atoms)
        used = for_dynamics(atoms)
        if ensemble is Ensemble.langevin and self._is_free and len(atoms) > 1:
            used.append(FixCom())
        atoms.set_constraint(used)
        self.n_degrees_of_freedom = int(atoms.get_number_of_degrees_of_freedom())
        if self.n_degrees_of_freedom < 1:
            raise ValueError(f"the constraints of '{name}' ({names_of(atoms)}) leave nothing to move")

    def draw_velocities(self, rng: np.random.Generator) -> None:
        """Draw momenta from the Maxwell-Boltzmann distribution within the constraints.

        They have the temperature of the thermostat exactly. A structure that nothing ties to a place is at rest as a
        whole, and a molecule does not rotate either, unless that is all its constraints leave.
        """
        from ase import units

        atoms = self.atoms
        spread = np.sqrt(atoms.get_masses() * units.kB * self.temperature)  # of each component of the momentum
        atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
        if self._is_free and len(atoms) > 1:
            masses, momenta = atoms.get_masses()[:, None], atoms.get_momenta()
            atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())
            if not atoms.pbc.any() and len(atoms) > 2:
                moving = atoms.get_momenta()
                atoms.set_momenta(moving - masses * _rotation(atoms))
                if atoms.get_temperature() < 1e-6 * self.temperature:
                    atoms.set_momenta(moving)
        drawn = atoms.get_temperature()
        if drawn > 0:
            atoms.set_momenta(atoms.get_momenta() * np.sqrt(self.temperature / drawn))

    def keep_velocities(self) -> None:
        """Take the momenta of the structure, without what constraints do not allow.

        Raises
        ------
        ValueError
            If there are none, or they are not finite.
        """
        if not self.atoms.has("momenta"):
            raise ValueError(f"'{self.name}' has no momenta to keep; leave out --keep-velocities")
        momenta = self.atoms.get_momenta()
        if not np.isfinite(momenta).all():
            raise ValueError(f"'{self.name}' has momenta that are not finite; leave out --keep-velocities")
        self.atoms.set_momenta(momenta)

    def dynamics(self, timestep: float, friction: float, pressure_GPa: float, rng: np.random.Generator) -> Any:
        """Return the integrator; `timestep` in fs, `friction` in 1/fs."""
        from ase import units
        from ase.md.langevin import Langevin
        from ase.md.nose_hoover_chain import IsotropicMTKNPT
        from ase.md.verlet import VelocityVerlet

        step = timestep * units.fs
        if self.ensemble is Ensemble.nve:
            return VelocityVerlet(self.atoms, step)
        if self.ensemble is Ensemble.langevin:
            return Langevin(
                self.atoms,
                step,
                temperature_K=self.temperature,
                friction=friction / units.fs,
                fixcm=False,
                rng=rng,
            )
        return IsotropicMTKNPT(
            self.atoms,
            step,
            temperature_K=self.temperature,
            pressure_au=pressure_GPa * units.GPa,
            tdamp=100 * step,
            pdamp=1000 * step,
        )

    def own_constraints(self) -> AbstractContextManager[None]:
        """Let the structure have its own constraints only, for files."""
        from ase_segnn.constraints import constrained_by

        return constrained_by(self.atoms, self._own_constraints)


def _rotation(atoms: Atoms) -> Any:
    """Return the velocities (N, 3) of the rotation of a structure as a whole about its center of mass."""
    positions = atoms.positions - atoms.get_center_of_mass()
    squares = (positions**2).sum(axis=1)[:, None, None] * np.eye(3)
    inertia = (atoms.get_masses()[:, None, None] * (squares - positions[:, :, None] * positions[:, None, :])).sum(
        axis=0
    )
    momentum = np.cross(positions, atoms.get_momenta()).sum(axis=0)
    # The pseudoinverse leaves out the axis of a linear molecule, about which nothing can turn.
    return np.cross(np.linalg.pinv(inertia, rcond=1e-8, hermitian=True) @ momentum, positions)
