"""Cells and what repeats: inverse, whole cell vectors, and a box around all atoms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Places in the cell are exact to a millionth of its vectors there.
_MAX_CELLS_AWAY = 1e9


def cell_inverse(h: Floats, periodic: Bools) -> Floats:
    """Pseudo-inverse of the cell, (3, 3) 1/Å; its columns are the reciprocal vectors, zero where nothing repeats."""
    inverse = np.zeros((3, 3))
    if periodic.all():
        inverse[:] = np.linalg.inv(h)
    elif periodic.any():
        inverse[:, periodic] = np.linalg.pinv(h[periodic])
    return inverse


def round_shifts(rounding: Callable[[Floats], Floats], vectors: Floats, h: Floats, periodic: Bools) -> Integers:
    """Round (..., 3) Å to whole cell vectors, (..., 3); zero along directions that are not periodic.

    Raises
    ------
    ValueError
        If there is a vector so long that its place in the cell is lost in rounding errors.
    """
    shifts = rounding(vectors @ cell_inverse(h, periodic))
    farthest = np.abs(shifts).max(initial=0)
    if farthest > _MAX_CELLS_AWAY:
        raise ValueError(
            f"an atom is {farthest:.1e} cells away, at most {_MAX_CELLS_AWAY:.0e} are allowed, since positions lose "
            "their digits there; was the time step too long? Otherwise wrap the atoms into the cell"
        )
    return shifts.astype(np.int64)


def in_box(x: Floats, h: Floats, periodic: Bools) -> tuple[Floats, Floats, Integers]:
    """Wrap atoms into a box at the origin, the cell where the structure is periodic and around all atoms elsewhere.

    Returns
    -------
    positions in the box (N, 3), the box (3, 3), and by how many cells atoms had been outside (N, 3)
    """
    outside = round_shifts(np.floor, x, h, periodic)
    wrapped = x - outside @ h
    normals = np.linalg.svd(h)[2][np.count_nonzero(periodic) :]  # rows, orthonormal, across the periodic vectors
    heights = wrapped @ normals.T
    box = h.copy()
    box[~periodic] = (np.ptp(heights, axis=0) + 1.0)[:, None] * normals
    return wrapped - (heights.min(axis=0) - 0.5) @ normals, box, outside
