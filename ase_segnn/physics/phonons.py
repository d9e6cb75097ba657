"""Phonons of a crystal by finite displacements, with phonopy (extra ``physics``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.cell import Cell
from numpy.typing import NDArray

from ase_segnn.evaluation import predict
from ase_segnn.physics.defects import supercell

_DISPLACEMENT = 0.01  # Å
_LEAST_LENGTH = 10.0  # Å, of the supercell
_IMAGINARY = -0.1  # THz; rounding of acoustic modes near Gamma stays above it
_DENSITY = 20  # points per 1/Å along the path


@dataclass(frozen=True, eq=False)
class Phonons:
    """Frequencies of a crystal, in THz; an imaginary one is negative.

    Parameters
    ----------
    at : special point of the Brillouin zone, named as by `ase.cell.Cell.bandpath` -> (3n,) frequencies, ascending;
        points whose waves fit into the supercell, where nothing is interpolated
    lowest : THz, along the path through all special points
    """

    at: dict[str, NDArray[np.float64]]
    lowest: float

    @property
    def has_imaginary(self) -> bool:
        """Whether a mode is unstable: a frequency is imaginary by more than 0.1 THz."""
        return self.lowest < _IMAGINARY


def check_phonopy() -> None:
    """Refuse to go on without phonopy.

    Raises
    ------
    ImportError
    """
    try:
        import phonopy  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'phonons need the extra packages of: pip install "ase-segnn[physics]", or leave them out: skip phonons'
        ) from error


def phonons(calculator: Calculator, crystal: Atoms, *, least_length: float = _LEAST_LENGTH) -> Phonons:
    """Compute phonons by displacements of 0.01 Å in a supercell.

    Parameters
    ----------
    calculator : of ASE; float64, since forces of small displacements are differences
    crystal : relaxed, periodic along all three vectors
    least_length : Å, of the supercell; forces that reach farther are folded back

    Raises
    ------
    ImportError
        If phonopy is not installed.
    """
    check_phonopy()
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from phonopy.structure.cells import guess_primitive_matrix

    cell = PhonopyAtoms(
        symbols=crystal.get_chemical_symbols(), cell=crystal.cell.array, scaled_positions=crystal.get_scaled_positions()
    )
    repeats = np.rint(supercell(crystal, least_length).cell.lengths() / crystal.cell.lengths()).astype(int)
    repeats += repeats % 2  # for the waves of the zone's boundary
    work: Any = Phonopy(cell, supercell_matrix=np.diag(repeats), primitive_matrix=guess_primitive_matrix(cell))
    work.generate_displacements(distance=_DISPLACEMENT)
    displaced = [
        Atoms(each.symbols, cell=each.cell, scaled_positions=each.scaled_positions, pbc=True)
        for each in work.supercells_with_displacements
    ]
    work.forces = [results["forces"] for results in predict(calculator, displaced, ["forces"])]
    work.produce_force_constants()
    primitive = Cell(work.primitive.cell)
    path = primitive.bandpath(density=_DENSITY)
    to_supercell = work.supercell.cell @ primitive.reciprocal().array.T
    fitting = {
        name: point
        for name, point in path.special_points.items()
        if np.allclose(to_supercell @ point, np.rint(to_supercell @ point), atol=1e-4)
    }
    points = [*fitting.values(), *path.kpts]
    work.run_qpoints(points)
    frequencies = np.sort(work.qpoints.frequencies, axis=1)
    return Phonons(dict(zip(fitting, frequencies, strict=False)), float(frequencies.min()))
