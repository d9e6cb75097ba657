"""OpenMM: a potential as a force of a system.

Examples
--------
>>> import openmm  # doctest: +SKIP
>>> from ase_segnn.integrations.openmm import segnn_force  # doctest: +SKIP
>>> system.addForce(segnn_force("acac-pbe", atoms))  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
from ase import Atoms
from openmm import unit

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential

_KJ_PER_MOL = 96.48533212331  # of 1 eV, by constants of CODATA 2018
_NM = 0.1  # of 1 Å


class _Computation:
    """Energy in kJ/mol and forces in kJ/mol/nm of a state of OpenMM."""

    def __init__(self, calculator: SEGNNCalculator, atoms: Atoms) -> None:
        self._calculator, self._atoms = calculator, atoms

    def __call__(self, state: Any) -> tuple[float, Any]:
        self._atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        if self._atoms.pbc.any():
            self._atoms.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
        self._calculator.calculate(self._atoms, ["energy", "forces"])
        results = self._calculator.results
        return results["energy"] * _KJ_PER_MOL, np.asarray(results["forces"]) * _KJ_PER_MOL / _NM


def segnn_force(potential: str | Path | Potential | Committee, atoms: Atoms, **options: Any) -> openmm.PythonForce:
    """Return a force of OpenMM for a system that has these atoms, or begins with them.

    Particles of the system are the atoms in their order. For a part of a larger system call `setParticles` of the force
    with the indices of the atoms. OpenMM runs Python at each step, so that its GPU platforms gain nothing by it.

    Parameters
    ----------
    potential, options : as of `SEGNNCalculator`
    atoms : the elements, and whether the system is periodic: along all three vectors or none. Not changed

    Raises
    ------
    ValueError
        As of `SEGNNCalculator`, or if the atoms are periodic along some vectors only.
    """
    if atoms.pbc.any() != atoms.pbc.all():
        raise ValueError(f"systems of OpenMM are periodic along all vectors or none, got pbc={atoms.pbc.tolist()}")
    own = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    calculator = SEGNNCalculator(potential, **options)
    calculator.calculate(own, ["energy"])  # errors show here, not within OpenMM
    force = openmm.PythonForce(_Computation(calculator, own))
    force.setUsesPeriodicBoundaryConditions(bool(own.pbc.all()))
    return force
