"""Defects of a crystal of one element: vacancies and surfaces."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from ase import Atoms, units
from ase.build import surface
from ase.calculators.calculator import Calculator

from ase_segnn.physics.crystals import relax

Indices = tuple[int, int, int]

_LEAST_LENGTH = 10.0  # Å, between a defect and its images
_THICKNESS, _VACUUM = 12.0, 6.0  # Å; the vacuum is on either side
_FMAX = 0.01  # eV/Å
_SAME_ENERGY = 1e-4  # eV/Å²
_SAME_PLANE = 0.1  # Å
_J_PER_M2 = units.m**2 / units.J


def supercell(crystal: Atoms, least_length: float = _LEAST_LENGTH) -> Atoms:
    """Repeat a crystal until all its planes are at least `least_length` (Å) from their images."""
    heights = 1 / np.linalg.norm(crystal.cell.reciprocal().array, axis=1)
    repeated: Atoms = crystal.repeat(np.maximum(1, np.ceil(least_length / heights - 1e-6).astype(int)))
    return repeated


def vacancy_energy(calculator: Calculator, crystal: Atoms, *, least_length: float = _LEAST_LENGTH) -> float:
    r"""Energy of a vacancy, eV, atoms relaxed in the cell of the perfect crystal.

    .. math:: E_\mathrm{vac} = E(N - 1) - \frac{N - 1}{N} E(N)

    Parameters
    ----------
    calculator : of ASE
    crystal : of one element, relaxed; its first atom is taken out
    least_length : Å, between the vacancy and its images

    Raises
    ------
    ValueError
        If there are several elements, whose chemical potentials would be needed.
    RuntimeError
        If the crystal does not relax.
    """
    _check_element(crystal, "a vacancy")
    perfect = supercell(crystal, least_length)
    perfect.calc = calculator
    defective = perfect.copy()
    del defective[0]
    defective = relax(calculator, defective, fmax=_FMAX)
    per_atom = perfect.get_potential_energy() / len(perfect)
    return float(defective.get_potential_energy() - len(defective) * per_atom)


def surface_energy(calculator: Calculator, crystal: Atoms, indices: Indices) -> float:
    r"""Energy of a surface, J/m², atoms relaxed from the ideal cut with the lowest energy; the mean of both sides.

    .. math:: \gamma = (E_\mathrm{slab} - N e_\mathrm{crystal}) / 2A

    A reconstruction that needs a larger cell is not found.

    Parameters
    ----------
    calculator : of ASE
    crystal : of one element, relaxed, in its conventional cell
    indices : Miller indices in this cell

    Raises
    ------
    ValueError
        If there are several elements, whose chemical potentials would be needed.
    RuntimeError
        If a slab does not relax.
    """
    _check_element(crystal, "a surface")
    bulk = crystal.copy()
    bulk.calc = calculator
    per_atom = bulk.get_potential_energy() / len(bulk)
    cuts: list[tuple[float, Atoms]] = []
    for slab in _cuts(crystal, indices):
        slab.calc = calculator
        energy = slab_energy(slab, slab.get_potential_energy(), per_atom)
        if all(abs(energy - other) > _SAME_ENERGY * _J_PER_M2 for other, _ in cuts):
            cuts.append((energy, slab))
    relaxed = (relax(calculator, slab, fmax=_FMAX) for _, slab in cuts)
    return min(slab_energy(slab, slab.get_potential_energy(), per_atom) for slab in relaxed)


def slab_energy(slab: Atoms, energy: float, per_atom: float) -> float:
    """Return the surface energy (J/m²) of a slab across the third cell vector, given energies in eV."""
    area = np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
    return float((energy - len(slab) * per_atom) / (2 * area) * _J_PER_M2)


def is_slab(atoms: Atoms) -> bool:
    """Whether at least 6 Å of vacuum lie across the third cell vector of a periodic structure."""
    heights = np.sort(atoms.get_scaled_positions()[:, 2])
    gap = np.diff([*heights, heights[0] + 1]).max()
    height = 1 / np.linalg.norm(atoms.cell.reciprocal().array[2])
    return bool(gap * height >= _VACUUM)


def _cuts(crystal: Atoms, indices: Indices) -> Iterator[Atoms]:
    """Yield slabs that are cut between different planes of atoms."""
    period = surface(crystal, indices, layers=1, periodic=True).cell[2, 2]  # ASE puts the normal along z
    n_layers = int(np.ceil(_THICKNESS / period))
    thick = surface(crystal, indices, layers=n_layers + 1, periodic=True)
    heights = np.sort(thick.positions[:, 2] - thick.positions[:, 2].min())
    planes = heights[np.diff(heights, prepend=-np.inf) > _SAME_PLANE]
    for below, above in pairwise([-np.inf, *planes[planes < period - _SAME_PLANE]]):
        middle = above - _SAME_PLANE if np.isinf(below) else (below + above) / 2
        inside = thick.positions[:, 2] - thick.positions[:, 2].min() - middle
        slab = thick[(inside >= 0) & (inside < n_layers * period - 1e-6)]
        slab.center(vacuum=_VACUUM, axis=2)
        slab.pbc = True
        yield slab


def _check_element(crystal: Atoms, what: str) -> None:
    if len(set(crystal.numbers)) > 1:
        raise ValueError(
            f"{what} of {crystal.get_chemical_formula()} has an energy only with chemical potentials of its elements; "
            "give a crystal of one element"
        )
