"""Checks of a structure before an evaluation and of its results; errors name the atoms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.typing import NDArray

SMALLEST_VOLUME = 1e-6  # of a box with the same edge lengths; with less, cell vectors count as dependent
_MOST_FOR_BLAS = 4096  # numbers


def check_numbers(atoms: Atoms) -> None:
    """Refuse a structure without atoms, or with positions or a cell that are not finite.

    Raises
    ------
    ValueError
    """
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms; a potential needs at least one")
    if not all_finite(atoms.positions):
        finite = np.isfinite(atoms.positions).all(axis=1)
        first = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"the positions of {named(atoms, ~finite)} are not finite, the first is "
            f"{atoms.positions[first].tolist()}; was the time step too long?"
        )
    if not all_finite(atoms.cell.array):
        raise ValueError(f"the cell is not finite: {atoms.cell.array.tolist()}; was the step of the cell too long?")


def has_volume(cell: NDArray[np.float64]) -> bool:
    """Whether three cell vectors (3, 3) span a volume above rounding."""
    a, b, c = cell.tolist()
    volume = sum(a[i] * (b[i - 2] * c[i - 1] - b[i - 1] * c[i - 2]) for i in range(3))
    return bool(abs(volume) > SMALLEST_VOLUME * math.hypot(*a) * math.hypot(*b) * math.hypot(*c))


def check_stress_exists(atoms: Atoms) -> None:
    """Refuse the stress of a structure without a volume.

    Raises
    ------
    PropertyNotImplementedError
    """
    if not has_volume(atoms.cell.array):
        raise PropertyNotImplementedError(
            "stress is energy per volume and needs a cell of three vectors that span one, this structure has "
            f"cell={atoms.cell.array.tolist()}; atoms.center(vacuum=10) gives a slab, a wire or a molecule a cell"
        )


def check_results(atoms: Atoms, results: dict[str, Any], potential_name: str) -> None:
    """Refuse energies, forces and stress that are not finite.

    Parameters
    ----------
    atoms : the structure, for messages
    results : as of `ase_segnn.SEGNNCalculator`
    potential_name : starts the message

    Raises
    ------
    RuntimeError
    """
    arrays = [results[name] for name in ("forces", "stress") if name in results]
    if math.isfinite(results["energy"]) and all(map(all_finite, arrays)):
        return
    per_atom = np.isfinite(results["energies"])
    if "forces" in results:
        per_atom &= np.isfinite(results["forces"]).all(axis=1)
    if not per_atom.all():
        raise RuntimeError(
            f"{potential_name} gives no finite energy or force for {named(atoms, ~per_atom)}; are atoms too "
            "close to each other, or was the time step too long?"
        )
    raise RuntimeError(f"{potential_name} gives no finite energy or stress for this structure")


def all_finite(array: NDArray[np.float64]) -> bool:
    """Whether all numbers are finite.

    A finite sum of squares, which is fast to get, proves that all are. An infinite sum may be an overflow: then each
    number is checked.
    """
    return math.isfinite(sum_of_squares(array)) or bool(np.isfinite(array).all())


def sum_of_squares(array: NDArray[np.float64]) -> float:
    """Return the sum of the squares of all numbers.

    BLAS is the fastest for few numbers. More of them it shares among threads, which takes longer than the sum, and much
    longer where a processor is busy.
    """
    return float(np.vdot(array, array) if array.size <= _MOST_FOR_BLAS else np.square(array).sum())


def named(atoms: Atoms, which: NDArray[np.bool_]) -> str:
    """Return the names of the atoms marked in `which` (N,), at most five: ``atoms 0 (C), 3 (H)``."""
    indices = np.flatnonzero(which)
    shown = ", ".join(f"{i} ({atoms.symbols[i]})" for i in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"atom{'s' if len(indices) > 1 else ''} {shown}{more}"
