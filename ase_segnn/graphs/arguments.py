"""Arguments of the neighbor search: what is refused of them, and the form in which the search takes them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ase_segnn.checks import SMALLEST_VOLUME, all_finite
from ase_segnn.graphs.backends import BACKENDS
from ase_segnn.graphs.cells import Bools, Floats


def checked_structure(positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> tuple[Floats, Floats, Bools]:
    """Return positions (N, 3), the cell (3, 3) with zeros for vectors that are not periodic, and pbc (3,).

    Raises
    ------
    ValueError
        If a shape is wrong or a number is not finite.
    """
    x = np.asarray(positions, dtype=np.float64)
    h = np.asarray(cell, dtype=np.float64)
    periodic = np.array(pbc, dtype=bool)
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"positions have the shape (atoms, 3), got {x.shape}")
    if h.shape != (3, 3):
        raise ValueError(f"the cell has the shape (3, 3), its rows are the cell vectors, got {h.shape}")
    if periodic.shape != (3,):
        raise ValueError(f"pbc has the shape (3,), one bool for each cell vector, got {periodic.shape}")
    if not all_finite(x):
        atoms = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise ValueError(
            f"positions of {len(atoms)} atoms are not finite, the first is {x[atoms[0]].tolist()} of atom {atoms[0]}; "
            "was the time step too long?"
        )
    h = np.where(periodic[:, None], h, 0.0)
    if not all_finite(h):
        raise ValueError(f"the cell vectors along periodic directions are not finite, got {h.tolist()}")
    return x, h, periodic


def check_volume(h: Floats, periodic: Bools) -> None:
    """Refuse periodic cell vectors that span no volume (area, length).

    Raises
    ------
    ValueError
    """
    vectors = h[periodic]
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths > 0).all():
        singular_values = np.linalg.svd(vectors / lengths[:, None], compute_uv=False)
        if singular_values.prod() > SMALLEST_VOLUME:
            return
    raise ValueError(
        f"the cell vectors along periodic directions span no volume, got {vectors.tolist()} with pbc="
        f"{periodic.tolist()}; give them lengths and different directions, or set pbc to False where nothing repeats"
    )


def checked_length(name: str, value: float, *, positive: bool) -> float:
    """Return a length in Å.

    Raises
    ------
    ValueError
        If the length is negative or not finite, or zero and has to be positive.
    """
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(
            f"the {name} is a length in Å, finite and {'positive' if positive else 'not negative'}, got {value}"
        )
    return float(value)


def checked_backend(name: str) -> str:
    """Return the name of a backend, or "auto".

    Raises
    ------
    ValueError
        If there is no such backend.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"a neighbor list backend is 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return name
