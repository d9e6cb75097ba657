"""Crystals: relaxation of the cell, and elastic constants of a calculator or of labeled frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_strain
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

_STRAIN = 0.005
_TIGHT = 1e-4  # eV/Å
_MOST_STEPS = 500
_LARGEST_STRAIN = 0.06  # of frames that elastic constants are fitted to; beyond it third powers matter
_CUBIC = 0.02  # share by which cubic constants may differ


@dataclass(frozen=True, eq=False)
class ElasticConstants:
    r"""Second derivatives of the energy with respect to strain, over the volume.

    Parameters
    ----------
    matrix_GPa : (6, 6), symmetric, components xx, yy, zz, yz, xz, xy and engineering shear strains
    """

    matrix_GPa: _Floats

    @property
    def is_cubic(self) -> bool:
        """Whether the constants are those of a cubic crystal along its axes, to 2 % of the largest."""
        allowed = _CUBIC * np.abs(self.matrix_GPa).max()
        return bool(np.abs(self.matrix_GPa - self._cubic_matrix()).max() < allowed)

    @property
    def cubic(self) -> dict[str, float]:
        """C11, C12 and C44 in GPa, each the mean of its three entries."""
        c = self.matrix_GPa
        return {
            "C11": float(np.mean([c[0, 0], c[1, 1], c[2, 2]])),
            "C12": float(np.mean([c[0, 1], c[0, 2], c[1, 2]])),
            "C44": float(np.mean([c[3, 3], c[4, 4], c[5, 5]])),
        }

    @property
    def entries(self) -> dict[str, float]:
        """Entries in GPa by name, such as C13: those of a cubic crystal, or all that are not small."""
        if self.is_cubic:
            return self.cubic
        c, least = self.matrix_GPa, _CUBIC * np.abs(self.matrix_GPa).max()
        return {
            f"C{i + 1}{j + 1}": float(c[i, j]) for i in range(6) for j in range(i, 6) if i == j or abs(c[i, j]) > least
        }

    @property
    def bulk_modulus(self) -> float:
        """Bulk modulus in GPa, after Reuss: response of the volume to a pressure, exact for every single crystal."""
        return float(1 / np.linalg.inv(self.matrix_GPa)[:3, :3].sum())

    @property
    def is_stable(self) -> bool:
        """Whether every small strain costs energy (Born)."""
        return bool(np.linalg.eigvalsh(self.matrix_GPa).min() > 0)

    def _cubic_matrix(self) -> _Floats:
        c11, c12, c44 = self.cubic.values()
        matrix = np.diag([c11] * 3 + [c44] * 3)
        matrix[:3, :3] += c12 * (1 - np.eye(3))
        return matrix


def relax(calculator: Calculator, atoms: Atoms, *, cell: bool = False, fmax: float = _TIGHT) -> Atoms:
    """Return a relaxed copy of a structure, with the calculator attached.

    Parameters
    ----------
    calculator : of ASE, with stress if the cell is relaxed
    atoms : not changed; constraints hold
    cell : relax the cell as well
    fmax : eV/Å, largest force at the end

    Raises
    ------
    RuntimeError
        If forces do not fall below `fmax` in 500 steps.
    """
    relaxed: Atoms = atoms.copy()
    relaxed.calc = calculator
    target: Any = FrechetCellFilter(relaxed) if cell else relaxed
    with BFGS(target, logfile=None) as optimizer:
        if not optimizer.run(fmax=fmax, steps=_MOST_STEPS):
            raise RuntimeError(
                f"{relaxed.get_chemical_formula()} did not relax to {fmax:g} eV/Å in {_MOST_STEPS} steps; start "
                "nearer to a minimum, and take float64"
            )
    return relaxed


def elastic_constants(calculator: Calculator, crystal: Atoms, *, relax_atoms: bool = True) -> ElasticConstants:
    """Elastic constants by central differences of the stress between strains of ±0.5 %.

    Parameters
    ----------
    calculator : of ASE, with stress
    crystal : with its cell at zero stress, not changed
    relax_atoms : let the atoms find their places in the strained cell, as in an experiment

    Raises
    ------
    RuntimeError
        If a strained crystal does not relax.
    """
    matrix = np.empty((6, 6))
    for component in range(6):
        stresses = []
        for sign in (1, -1):
            strained = crystal.copy()
            deformation = voigt_6_to_full_3x3_strain(sign * _STRAIN * np.eye(6)[component])  # with the identity
            strained.set_cell(crystal.cell.array @ deformation, scale_atoms=True)
            strained.calc = calculator
            if relax_atoms:
                strained = relax(calculator, strained)
            stresses.append(strained.get_stress())
        matrix[component] = (stresses[0] - stresses[1]) / (2 * _STRAIN * units.GPa)
    return ElasticConstants((matrix + matrix.T) / 2)


@dataclass(frozen=True, eq=False)
class CubicFit:
    """Lattice constant and elastic constants of a cubic crystal, fitted to stresses of strained frames.

    Parameters
    ----------
    length : Å, edge of the frames' cell at zero stress
    elastic : constants for atoms at the places of the frames
    n_frames : number of frames of the fit
    """

    length: float
    elastic: ElasticConstants
    n_frames: int


def fit_cubic(cells: Sequence[_Floats], stresses: Sequence[_Floats]) -> CubicFit:
    r"""Fit elastic constants to stresses of a cubic crystal that is strained along and across its axes.

    .. math:: S_i = S^0_i + \sum_j (C_{ij} E_j + D_{ij} E_j^2)

    with the second Piola-Kirchhoff stress S and the Lagrangian strain E from the cube whose edge is the median of all.
    The same function on labels and on predictions of the same frames compares a potential with its reference.

    Parameters
    ----------
    cells : (3, 3) each, Å; rows are about along x, y and z
    stresses : (3, 3) each, eV/Å³

    Raises
    ------
    ValueError
        If strains up to 6 % do not determine the constants.
    """
    edge = float(np.median([np.diag(cell) for cell in cells]))
    strains, piola = [], []
    for cell, stress in zip(cells, stresses, strict=True):
        deformation = cell / edge  # positions x = X F, as rows
        strain = (deformation @ deformation.T - np.eye(3)) / 2
        inverse = np.linalg.inv(deformation)
        second = np.linalg.det(deformation) * inverse.T @ stress @ inverse / units.GPa
        if np.abs(strain).max() <= _LARGEST_STRAIN:
            strains.append(full_3x3_to_voigt_6_stress(strain) * [1, 1, 1, 2, 2, 2])
            piola.append(full_3x3_to_voigt_6_stress(second))
    columns = np.array([[1.0, *strain, *strain**2] for strain in strains]).reshape(-1, 13)
    if np.linalg.matrix_rank(columns, tol=1e-6) < 13:
        raise ValueError(
            f"{len(strains)} frames with strains up to {_LARGEST_STRAIN:g} do not determine elastic constants; give "
            "frames of a cubic crystal strained in all six components, by two amounts or more each"
        )
    coefficients = np.linalg.lstsq(columns, np.array(piola), rcond=None)[0]
    matrix = coefficients[1:7]
    elastic = ElasticConstants((matrix + matrix.T) / 2)
    c11, c12, _ = elastic.cubic.values()
    strain_at_zero = -coefficients[0, :3].mean() / (c11 + 2 * c12)
    return CubicFit(edge * float(np.sqrt(1 + 2 * strain_at_zero)), elastic, len(strains))
