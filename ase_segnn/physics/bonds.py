"""Bonds of a molecule by covalent radii: pieces, and the two sides of a bond."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

_REACH = 1.3  # of the sum of the covalent radii


def bonded(atoms: Atoms, reach: float = _REACH) -> NDArray[np.bool_]:
    """Whether pairs of atoms are nearer than `reach` times the sum of their covalent radii.

    Parameters
    ----------
    atoms : N, without periodicity
    reach : larger than 1

    Returns
    -------
    (N, N), False on the diagonal
    """
    radii = covalent_radii[atoms.numbers]
    near: NDArray[np.bool_] = atoms.get_all_distances() < reach * (radii[:, None] + radii[None])
    np.fill_diagonal(near, val=False)
    return near


def bonds_of(atoms: Atoms) -> list[tuple[int, int]]:
    """Return the bonds of a molecule as pairs of indices, the smaller first."""
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(bonded(atoms))), strict=True)]


def n_pieces(atoms: Atoms, reach: float = _REACH) -> int:
    """Return the number of molecules that are not bonded to one another."""
    return int(connected_components(bonded(atoms, reach), directed=False, return_labels=False))


def side_of(atoms: Atoms, bond: tuple[int, int]) -> NDArray[np.intp] | None:
    """Return the atoms on the side of the second atom of a bond; None for a bond in a ring, which has no sides."""
    i, j = bond
    connected = bonded(atoms)
    connected[i, j] = connected[j, i] = False
    _, pieces = connected_components(connected, directed=False)
    return None if pieces[i] == pieces[j] else np.flatnonzero(pieces == pieces[j])
