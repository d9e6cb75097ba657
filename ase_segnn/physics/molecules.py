"""Molecules: harmonic vibrations, torsions and bond stretching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixInternals
from ase.optimize import BFGSLineSearch
from numpy.typing import NDArray
from scipy import constants

from ase_segnn.evaluation import predict
from ase_segnn.physics.bonds import bonded, bonds_of, side_of
from ase_segnn.physics.crystals import relax

_Floats = NDArray[np.float64]

_HBAR = constants.hbar * units.J * units.second  # eV times ASE's unit of time
_DISPLACEMENT = 0.005  # Å, of the differences of forces
_IMAGINARY = -20.0  # cm⁻¹; above it is rounding
_TORSION_STEP = 15  # degrees
_STRETCHES = np.round(np.arange(0.70, 2.01, 0.02), 2)  # of the length at the minimum
_NOISE = 0.05  # eV; shallower holes are no trouble
_FMAX, _TIGHT = 0.02, 1e-3  # eV/Å, of torsions and of the minimum
_MOST_SADDLES, _STEP_DOWN = 5, 0.1  # number, and Å of the atom that moves most
_MOST_STEPS = 300


def vibrations(calculator: Calculator, molecule: Atoms) -> _Floats:
    """Harmonic frequencies of a molecule in cm⁻¹, ascending; an imaginary one is negative.

    Translations and rotations are projected out, so that 3N - 6 frequencies remain, 3N - 5 of a linear molecule, and
    none of one atom.

    Parameters
    ----------
    calculator : of ASE; float64, since forces of small displacements are differences
    molecule : relaxed, without periodicity
    """
    return _modes(calculator, molecule)[0]


def _modes(calculator: Calculator, molecule: Atoms) -> tuple[_Floats, _Floats]:
    """Return frequencies (n,) in cm⁻¹ and directions (3N, n) in which the atoms move."""
    displaced = []
    for atom in range(len(molecule)):
        for axis in range(3):
            for sign in (1, -1):
                displaced.append(molecule.copy())
                displaced[-1].positions[atom, axis] += sign * _DISPLACEMENT
    forces = np.array([results["forces"].ravel() for results in predict(calculator, displaced, ["forces"])])
    hessian = -(forces[::2] - forces[1::2]) / (2 * _DISPLACEMENT)  # eV/Å²
    roots = np.sqrt(np.repeat(molecule.get_masses(), 3))
    dynamical = (hessian + hessian.T) / 2 / np.outer(roots, roots)
    internal = _internal_directions(molecule, roots)
    squares, modes = np.linalg.eigh(internal.T @ dynamical @ internal)
    energies = np.sign(squares) * np.sqrt(np.abs(squares)) * _HBAR
    return energies / units.invcm, internal @ modes / roots[:, None]


def n_imaginary(frequencies: _Floats) -> int:
    """Return the number of modes that are imaginary by more than 20 cm⁻¹."""
    return int((frequencies < _IMAGINARY).sum())


def minimum(calculator: Calculator, molecule: Atoms) -> tuple[Atoms, _Floats]:
    """Relax a molecule to a minimum; from a saddle point, follow its imaginary modes downhill, up to five times.

    Returns
    -------
    molecule with the calculator attached, and its frequencies in cm⁻¹ as of `vibrations`; imaginary ones are left only
    if the potential has no minimum there

    Raises
    ------
    RuntimeError
        If it does not relax.
    """
    relaxed = relax(calculator, molecule, fmax=_TIGHT)
    for _ in range(_MOST_SADDLES):
        frequencies, directions = _modes(calculator, relaxed)
        unstable = directions[:, frequencies < _IMAGINARY]
        if not unstable.size:
            break
        relaxed.positions += _STEP_DOWN * unstable.sum(axis=1).reshape(-1, 3) / np.abs(unstable.sum(axis=1)).max()
        relaxed = relax(calculator, relaxed, fmax=_TIGHT)
    return relaxed, vibrations(calculator, relaxed)


def _internal_directions(molecule: Atoms, roots: _Floats) -> _Floats:
    """Return orthonormal mass-weighted directions (3N, n) that neither shift nor turn the molecule."""
    positions = molecule.positions - molecule.get_center_of_mass()
    shifts = [np.tile(axis, len(molecule)) for axis in np.eye(3)]
    turns = [np.cross(axis, positions).ravel() for axis in np.eye(3)]
    rigid = roots[:, None] * np.array(shifts + turns).T
    left, sizes, _ = np.linalg.svd(rigid, full_matrices=True)
    directions: _Floats = left[:, int((sizes > 1e-4 * sizes[0]).sum()) :]
    return directions


@dataclass(frozen=True, eq=False)
class Scan:
    """Energy of a molecule along one internal coordinate, from its minimum.

    Parameters
    ----------
    name : such as "C2-O5" of a bond or "H6-C1-C2-O5" of a torsion
    values : (n,) degrees that were turned, or Å
    energies : (n,) eV above the minimum
    """

    name: str
    values: _Floats
    energies: _Floats

    @property
    def barrier(self) -> float:
        """Difference of the highest and the lowest energy, eV."""
        return float(self.energies.max() - self.energies.min())

    def hole(self) -> tuple[float, float] | None:
        """Return where the energy of a stretched or compressed bond falls again, and the energy before; or None.

        Å and eV. Falls of less than 0.05 eV do not count. A hole has no barrier if an energy is not finite.
        """
        if not np.isfinite(self.energies).all():
            return float(self.values[~np.isfinite(self.energies)][0]), 0.0
        lowest = int(np.abs(self.energies).argmin())
        for side in (range(lowest, len(self.energies)), range(lowest, -1, -1)):
            highest = -np.inf
            for index in side:
                highest = max(highest, self.energies[index])
                if self.energies[index] < highest - _NOISE:
                    return float(self.values[index]), float(highest)
        return None


def stretches(calculator: Calculator, molecule: Atoms) -> list[Scan]:
    """Stretch each bond outside of rings from 0.7 to 2 of its length; both sides stay as they are.

    Parameters
    ----------
    calculator : of ASE
    molecule : relaxed, without periodicity, not changed
    """
    scans = []
    for bond in bonds_of(molecule):
        side = side_of(molecule, bond)
        if side is None:
            continue
        i, j = bond
        vector = molecule.positions[j] - molecule.positions[i]
        structures = []
        for stretch in _STRETCHES:
            structures.append(molecule.copy())
            structures[-1].positions[side] += (stretch - 1) * vector
        scans.append(
            Scan(_named(molecule, bond), _STRETCHES * np.linalg.norm(vector), _energies(calculator, structures))
        )
        scans[-1] = _above(scans[-1], int(np.abs(_STRETCHES - 1).argmin()))
    return scans


def torsions(calculator: Calculator, molecule: Atoms) -> list[Scan]:
    """Turn the molecule about each bond that can turn, once around in steps of 15 degrees.

    Everything but the dihedral angle is relaxed at each step, starting from the step before. A bond can turn if both
    its atoms have other neighbors and it is in no ring.

    Parameters
    ----------
    calculator : of ASE; float64
    molecule : relaxed, without periodicity, not changed

    Raises
    ------
    RuntimeError
        If a step does not relax.
    """
    scans = []
    connected = bonded(molecule)
    for i, j in bonds_of(molecule):
        side = side_of(molecule, (i, j))
        ends = [np.setdiff1d(np.flatnonzero(connected[a]), [b]) for a, b in ((i, j), (j, i))]
        dihedral = _dihedral(molecule, ends[0], i, j, ends[1])
        if side is None or dihedral is None:
            continue
        scans.append(_torsion(calculator, molecule, dihedral, side))
    return scans


def _torsion(
    calculator: Calculator, molecule: Atoms, dihedral: tuple[int, int, int, int], side: NDArray[np.intp]
) -> Scan:
    angles = np.arange(0, 361, _TORSION_STEP)
    atoms, energies = molecule.copy(), []
    start = atoms.get_dihedral(*dihedral)
    for angle in angles:
        target = float((start + angle) % 360)
        atoms.set_dihedral(*dihedral, target, indices=side)
        atoms.calc = calculator
        atoms.set_constraint(FixInternals(dihedrals_deg=[[target, list(dihedral)]], epsilon=1e-5))
        with BFGSLineSearch(atoms, logfile=None) as optimizer:  # type: ignore[arg-type]  # as of all optimizers
            if not optimizer.run(fmax=_FMAX, steps=_MOST_STEPS):
                raise RuntimeError(
                    f"torsion {_named(molecule, dihedral)} did not relax to {_FMAX:g} eV/Å at {angle} degrees in "
                    f"{_MOST_STEPS} steps"
                )
        atoms.set_constraint()
        energies.append(float(atoms.get_potential_energy()))
    return _above(Scan(_named(molecule, dihedral), angles.astype(float), np.array(energies)), 0)


def _dihedral(
    molecule: Atoms, before: NDArray[np.intp], i: int, j: int, after: NDArray[np.intp]
) -> tuple[int, int, int, int] | None:
    """Return four atoms of a dihedral angle that is defined, the heaviest at its ends; None if there is none."""
    heavy_first = [sorted(ends.tolist(), key=lambda atom: (-molecule.numbers[atom], atom)) for ends in (before, after)]
    for first in heavy_first[0]:
        for last in heavy_first[1]:
            bent = (molecule.get_angle(first, i, j), molecule.get_angle(i, j, last))
            if all(10 < angle < 170 for angle in bent):
                return first, i, j, last
    return None


def _energies(calculator: Calculator, structures: list[Atoms]) -> _Floats:
    return np.array([float(results["energy"]) for results in predict(calculator, structures, ["energy"])])


def _above(scan: Scan, index: int) -> Scan:
    return Scan(scan.name, scan.values, scan.energies - scan.energies[index])


def _named(molecule: Atoms, atoms: tuple[int, ...]) -> str:
    return "-".join(f"{molecule.symbols[atom]}{atom}" for atom in atoms)
