"""Lattice constant, elastic constants and vacancy energy of silicon with a potential; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/silicon.py si-pbe

Elastic constants are slopes of the stress between strains of ±0.5 %, atoms relaxed; the vacancy is one of 64 sites,
relaxed in the cell of the perfect crystal.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_segnn import SEGNNCalculator

STRAIN = 0.005


def main() -> None:
    """Relax, strain and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential", help="name or file of a potential that knows silicon")
    arguments = parser.parse_args()
    crystal = bulk("Si", a=5.47, cubic=True)
    crystal.calc = SEGNNCalculator(arguments.potential, dtype="float64")
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-4, steps=300)
    along, across = slopes(crystal, (0, 0), [0, 1])
    [shear] = slopes(crystal, (1, 2), [3])
    print("| a, Å | C11, GPa | C12, GPa | C44, GPa | vacancy, eV |\n|---|---|---|---|---|")
    print(f"| {crystal.cell[0, 0]:.3f} | {along:.0f} | {across:.0f} | {shear:.0f} | {vacancy_energy(crystal):.2f} |")


def slopes(crystal: Atoms, component: tuple[int, int], voigt: list[int]) -> list[float]:
    """Change of components of the stress with a component of the (engineering) strain, GPa."""
    strain = np.zeros((3, 3))
    strain[component] += STRAIN / 2
    strain.T[component] += STRAIN / 2
    difference = stress(crystal, strain) - stress(crystal, -strain)
    return list(difference[voigt] / (2 * STRAIN))


def stress(crystal: Atoms, strain: np.ndarray) -> np.ndarray:
    """Return the stress (6,) of the strained crystal, GPa."""
    strained = crystal.copy()
    strained.calc = crystal.calc
    strained.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    BFGS(strained, logfile=None).run(fmax=1e-4, steps=300)
    return strained.get_stress() / units.GPa


def vacancy_energy(crystal: Atoms) -> float:
    """Energy of a vacancy, eV."""
    defective = crystal.repeat(2)
    del defective[0]
    defective.calc = crystal.calc
    BFGS(defective, logfile=None).run(fmax=0.01, steps=300)
    return float(defective.get_potential_energy() - len(defective) * crystal.get_potential_energy() / len(crystal))


if __name__ == "__main__":
    main()
