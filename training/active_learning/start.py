"""Start frames: structures of the user rattled, strained, and moved along the forces of the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

# Å²/eV; the longest step that stays stable for bonds of 100 eV/Å², such as that of carbon monoxide
_MOBILITY = 0.01
_LONGEST_STEP = 0.2  # Å, of an atom
_STRAIN = 0.03  # largest component


def first_frames(structures: Sequence[Atoms], number: int, temperature: float, seed: int) -> list[Atoms]:
    """Return each structure as it is, and copies of them that are rattled, and strained if they are crystals.

    Parameters
    ----------
    structures : with their constraints, not changed
    number : of frames, at least one per structure is made
    temperature : K, see `next_frames`
    seed : of the random numbers
    """
    frames: list[Atoms] = [atoms.copy() for atoms in structures]
    for index in range(len(structures), number):
        random = np.random.default_rng([seed, index])
        atoms: Atoms = structures[index % len(structures)].copy()
        if atoms.pbc.all() and not atoms.constraints:
            strain = random.uniform(-_STRAIN, _STRAIN, (3, 3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        frames.append(_moved(atoms, np.zeros((len(atoms), 3)), temperature, random))
    return frames


def next_frames(labeled: Sequence[Atoms], number: int, temperature: float, seed: int) -> list[Atoms]:
    r"""Return frames a step of Brownian dynamics away from labeled ones.

    .. math:: x' = x + \mu F + \sqrt{2 \mu k_B T}\, \xi

    with the mobility µ = 0.01 Å²/eV and normal random numbers ξ. So each label of the reference pulls the next frame
    towards lower energies, and an unrelaxed structure relaxes on the way; stiff bonds are soon those of the
    temperature T, soft motions are left to exploration.

    Parameters
    ----------
    labeled : with forces, the newest last
    number : of frames; the newest labeled frames are moved, some of them several times if there are too few
    temperature : K
    seed : of the random numbers
    """
    newest = list(labeled)[-number:]
    frames = []
    for index in range(number):
        before = newest[index % len(newest)]
        random = np.random.default_rng([seed, len(labeled), index])
        frames.append(_moved(before.copy(), before.get_forces(), temperature, random))
    return frames


def isolated_atoms(structures: Sequence[Atoms]) -> list[Atoms]:
    """Return an atom of each element alone, whose energy becomes the reference energy of the element."""
    numbers = sorted({int(number) for atoms in structures for number in atoms.numbers})
    return [Atoms([number], positions=[[0.0, 0.0, 0.0]]) for number in numbers]


def _moved(atoms: Atoms, forces: NDArray[np.float64], temperature: float, random: np.random.Generator) -> Atoms:
    noise = np.sqrt(2 * _MOBILITY * units.kB * temperature) * random.standard_normal((len(atoms), 3))
    steps = _MOBILITY * forces
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    steps *= np.minimum(1.0, _LONGEST_STEP / np.maximum(lengths, 1e-12))
    atoms.set_positions(atoms.positions + steps + noise)  # as far as constraints allow
    return atoms
