"""Pairs of atoms: random structures, lists to compare with, and how to compare."""

from __future__ import annotations

import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from hypothesis import strategies as st
from numpy.typing import NDArray

from ase_segnn.graphs.neighbors import NeighborList, neighbor_list

PERIODIC = [True, True, True]
MOLECULE = [False, False, False]
Floats = NDArray[np.float64]


def as_rows(pairs: NeighborList) -> NDArray[np.int64]:
    """Sorted (i, j, S), after a look at the promises that every list makes."""
    assert pairs.centers.dtype == pairs.neighbors.dtype == pairs.cell_shifts.dtype == torch.int64
    assert pairs.cell_shifts.shape == (len(pairs.centers), 3)
    assert (pairs.centers.diff() >= 0).all()
    rows = torch.column_stack([pairs.centers, pairs.neighbors, pairs.cell_shifts]).numpy()
    return rows[np.lexsort(rows.T[::-1])]


def assert_same_pairs(found: NeighborList, expected: NeighborList) -> None:
    np.testing.assert_array_equal(as_rows(found), as_rows(expected))


def brute_force(positions: Floats, cell: Floats, pbc: list[bool], cutoff: float) -> NeighborList:
    return neighbor_list(positions, cell, pbc, cutoff, backend="brute-force")


def ase_rows(positions: Floats, cell: Floats, pbc: list[bool], cutoff: float) -> NDArray[np.int64]:
    """ASE's list; it wants cell vectors along all directions, so those that are not periodic become normals."""
    periodic = np.array(pbc)
    vectors = np.where(periodic[:, None], cell, 0)
    vectors[~periodic] = np.linalg.svd(vectors)[2][periodic.sum() :]
    rows = np.column_stack(primitive_neighbor_list("ijS", pbc, vectors, positions, cutoff))
    return rows[np.lexsort(rows.T[::-1])]


@st.composite
def structures(draw: st.DrawFn, max_atoms: int = 6) -> tuple[Floats, Floats, list[bool], float]:
    """Positions, cell, pbc and cutoff: tiny and skewed cells, atoms many cells away, any unused cell vectors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    n_atoms = draw(st.integers(0, max_atoms))
    lengths = np.exp(rng.uniform(np.log(0.9), np.log(8.0), 3))
    skew = draw(st.sampled_from([0.0, 0.5, 1.5]))
    cell = (np.eye(3) + np.triu(rng.uniform(-skew, skew, (3, 3)), 1)) * lengths[:, None]
    cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]  # any orientation and handedness
    spread = draw(st.sampled_from([0.0, 1.0, 30.0]))
    cells_away = rng.integers(-spread, spread, (n_atoms, 3), endpoint=True)
    positions = rng.uniform(0, 1, (n_atoms, 3)) @ cell + np.where(pbc, cells_away, 0) @ cell
    unused = draw(st.sampled_from(["kept", "zero", "parallel"]))
    for axis in np.flatnonzero(~np.array(pbc)):
        cell[axis] = {"kept": cell[axis], "zero": np.zeros(3), "parallel": 0.5 * cell[(axis + 1) % 3]}[unused]
    return positions, cell, list(pbc), draw(st.sampled_from([0.7, 2.0, 3.3, 4.6]))
