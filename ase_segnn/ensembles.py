"""Motion in molecular dynamics: initial velocities, ensembles, and the constraints that all ensembles keep."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


class Ensemble(str, Enum):
    """Ensemble of a run: constant energy, temperature (Langevin), or temperature and pressure."""

    nve = "nve"
    langevin = "langevin"
    npt = "npt"


class Motion:
    """Constraints, velocities and ensemble of a structure in a run.

    Call `draw_velocities` or `keep_velocities`, then `dynamics`.

    A Langevin thermostat would push a free structure as a whole. So a structure that nothing ties to a place gets one
    more constraint, `ase.constraints.FixCom`, which removes three degrees of freedom. Files do not show this
    constraint, see `own_constraints`.

    Parameters
    ----------
    atoms : with constraints; gets momenta and corrected constraints
    name : of the structure, for messages
    ensemble : of the run
    temperature : K, of the start and of the thermostat

    Raises
    ------
    ValueError
        If constraints leave nothing to move, contradict one another, or cannot be kept in the ensemble; if NPT lacks a
        periodic cell or a temperature.
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

        The temperature is exactly that of the thermostat. A structure that nothing ties to a place does not move as a
        whole. A free molecule does not rotate either, unless constraints leave rotation only.
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
        """Keep the structure's own momenta, as far as constraints allow.

        Raises
        ------
        ValueError
            If the structure has no momenta, or momenta that are not finite.
        """
        if not self.atoms.has("momenta"):
            raise ValueError(f"'{self.name}' has no momenta to keep; leave out --keep-velocities")
        momenta = self.atoms.get_momenta()
        if not np.isfinite(momenta).all():
            raise ValueError(f"'{self.name}' has momenta that are not finite; leave out --keep-velocities")
        self.atoms.set_momenta(momenta)

    def dynamics(self, timestep: float, friction: float, pressure_GPa: float, rng: np.random.Generator) -> Any:
        """Return ASE's integrator for the ensemble.

        Parameters
        ----------
        timestep : fs
        friction : 1/fs, of the Langevin thermostat
        pressure_GPa : of the NPT ensemble
        rng : for the noise of the Langevin thermostat
        """
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
        """Give the structure its own constraints inside the block, for writing files."""
        from ase_segnn.constraints import constrained_by

        return constrained_by(self.atoms, self._own_constraints)


def _rotation(atoms: Atoms) -> Any:
    """Return the velocities (N, 3) of a structure's rotation as a whole about its center of mass."""
    positions = atoms.positions - atoms.get_center_of_mass()
    squares = (positions**2).sum(axis=1)[:, None, None] * np.eye(3)
    inertia = (atoms.get_masses()[:, None, None] * (squares - positions[:, :, None] * positions[:, None, :])).sum(
        axis=0
    )
    momentum = np.cross(positions, atoms.get_momenta()).sum(axis=0)
    # The pseudoinverse leaves out the axis of a linear molecule, about which nothing can turn.
    return np.cross(np.linalg.pinv(inertia, rcond=1e-8, hermitian=True) @ momentum, positions)
