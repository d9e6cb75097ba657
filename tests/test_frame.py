"""What compiled code does around the passes of a program: checks, shares of threads, pairs, sums over threads."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from compiler import WARNINGS, compile_cpp, needs_compiler
from numpy.typing import NDArray

from ase_segnn.codegen.cpp import preamble
from ase_segnn.codegen.interface import INPUT, NUMBERS, ctypes_struct, struct
from ase_segnn.engines.build import _FLAGS

pytestmark = needs_compiler
Input, Constants = ctypes_struct("Input", INPUT), ctypes_struct("Constants", NUMBERS)
COST_OF_ATOM = 20  # in edges
# One atom, fewer atoms than threads, atoms without edges, an atom with most of the edges, and many of everything.
GRAPHS = {
    "one atom": (1, 0, 1),
    "no edges": (7, 0, 1),
    "few atoms": (3, 9, 1),
    "one atom has most edges": (9, 120, 8),
    "many": (101, 1500, 1),
}
N_THREADS = [1, 2, 3, 5, 60]


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    structs = '#include "exchange.hpp"\n' + struct("Input", INPUT) + struct("Constants", NUMBERS)
    source = f'{preamble(torch.float64, 8)}{structs}static const double SMALLEST_VOLUME = 1e-6;\n#include "frame.cpp"\n'
    flags = (*_FLAGS, "-march=native", "-fopenmp", *WARNINGS, "-Wno-unused-function")
    library: Any = ctypes.CDLL(str(compile_cpp(source, tmp_path_factory.mktemp("frame"), flags)))
    for name in ("lay_out", "size_of_frame", "check"):
        getattr(library, name).restype = ctypes.c_int64
    return library


class Call:
    """A call of compiled code by some threads: its arguments, and the frame that it lays out.

    Parameters
    ----------
    library : of tests/cpp/frame.cpp
    graph : of `GRAPHS`
    n_threads, capacity : of the halo of each thread
    """

    def __init__(self, library: Any, graph: str, n_threads: int, capacity: int = 200) -> None:
        self.n, n_edges, power = GRAPHS[graph]
        rng = np.random.default_rng(0)
        self.centers = np.sort((self.n * rng.random(n_edges) ** power).astype(np.int64))
        self.neighbors = rng.integers(0, self.n, n_edges)
        self.n_structures = min(self.n, 3)
        self.structures = np.sort(np.arange(self.n) % self.n_structures)
        self.numbers = rng.integers(1, 4, self.n)
        self.positions, self.cells = rng.normal(size=(self.n, 3)), rng.normal(size=(self.n_structures, 3, 3))
        self.shifts = rng.integers(-1, 2, (n_edges, 3)).astype(np.float64)
        self.species = np.array([-1, 2, 0, 1])
        self.n_threads, self.capacity = n_threads, capacity
        self._library = library
        self._frame = ctypes.create_string_buffer(library.size_of_frame())
        self._memory = np.zeros(library.lay_out(ctypes.byref(self.input), None, self._frame), np.uint8)
        library.lay_out(ctypes.byref(self.input), ctypes.c_void_p(address(self._memory)), self._frame)

    @property
    def input(self) -> Any:
        pointers = {
            "positions": self.positions,
            "cells": self.cells,
            "cell_shifts": self.shifts,
            "centers": self.centers,
            "neighbors": self.neighbors,
            "structures": self.structures,
            "atomic_numbers": self.numbers,
        }
        return Input(
            n_atoms=self.n,
            n_edges=len(self.centers),
            n_structures=self.n_structures,
            n_threads=self.n_threads,
            forces_wanted=1,
            halo_capacity=self.capacity,
            **{name: address(array) for name, array in pointers.items()},
        )

    def check(self) -> int:
        constants = Constants(n_species=3, n_numbers=len(self.species), species_of_number=address(self.species))
        return int(self._library.check(ctypes.byref(self.input), ctypes.byref(constants), self._frame))

    def run(self, name: str, *arguments: Any) -> None:
        """Call a function with the input, the frame and arrays or numbers."""
        found = [ctypes.c_void_p(address(x)) if isinstance(x, np.ndarray) else ctypes.c_int64(x) for x in arguments]
        getattr(self._library, name)(ctypes.byref(self.input), self._frame, *found)

    def shares(self) -> NDArray[np.int64]:
        """Return the first atom of each thread, and the number of atoms."""
        assert self.check() == 0
        first = np.full(self.n_threads + 1, -1)
        self.run("share", first)
        return first

    def halos(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many atoms each thread has in its halo, and which."""
        n_halo, atoms = np.full(self.n_threads, -1), np.full((self.n_threads, self.capacity), -1)
        self.run("halos", n_halo, atoms)
        return n_halo, atoms

    def needed(self, first: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the neighbors of each thread's atoms that belong to others."""
        halos = []
        for start, end in pairwise(first):
            near = np.unique(self.neighbors[(self.centers >= start) & (self.centers < end)])
            halos.append(near[(near < start) | (near >= end)])
        return halos


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=N_THREADS)
def call(request: pytest.FixtureRequest, library: Any, graph: str) -> Call:
    return Call(library, graph, request.param)


def test_edges_of_each_atom_are_found(call: Call, library: Any) -> None:
    assert call.check() == 0
    rows = np.full(call.n + 1, -1)
    library.rows_of(call._frame, ctypes.c_int64(call.n + 1), ctypes.c_void_p(address(rows)))
    assert rows.tolist() == np.searchsorted(call.centers, np.arange(call.n + 1)).tolist()


def test_shares_cover_all_atoms_once(call: Call) -> None:
    first = call.shares()
    assert (first[0], first[-1]) == (0, call.n)
    assert (np.diff(first) >= 0).all()


def test_shares_are_about_the_same_work(call: Call) -> None:
    first = call.shares()
    work = COST_OF_ATOM + np.bincount(call.centers, minlength=call.n)
    of_threads = [work[start:end].sum() for start, end in pairwise(first)]
    assert max(of_threads) <= work.sum() / call.n_threads + work.max()


def test_halos_are_the_neighbors_of_other_threads(call: Call) -> None:
    needed = call.needed(call.shares())
    n_halo, atoms = call.halos()
    assert n_halo.tolist() == [len(halo) for halo in needed]
    for thread, halo in enumerate(needed):
        assert atoms[thread, : len(halo)].tolist() == halo.tolist()
        assert (atoms[thread, len(halo) :] <= 0).all()
    if call.n_threads > 1 and len(call.centers) > 10:
        assert n_halo.max() > 0


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_a_halo_without_room_is_counted_and_not_written(library: Any, capacity: int) -> None:
    call = Call(library, "many", 3, capacity)
    needed = call.needed(call.shares())
    n_halo, atoms = call.halos()
    assert n_halo.tolist() == [len(halo) for halo in needed]
    assert min(n_halo) > capacity
    assert atoms.tolist() == [halo[:capacity].tolist() for halo in needed]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_sums_of_all_threads_are_gathered_once(call: Call, step: int) -> None:
    needed = call.needed(call.shares())
    call.halos()
    stride, n_rows = 5, call.n + call.n_threads * call.capacity
    array = np.zeros((n_rows, stride))
    array[: call.n] = np.random.default_rng(1).normal(size=(call.n, stride))
    expected = array[: call.n].copy()
    for thread, halo in enumerate(needed):
        rows = call.n + thread * call.capacity + np.arange(len(halo))
        array[rows] = np.random.default_rng(2 + thread).normal(size=(len(halo), stride))
        expected[halo] += array[rows]
    call.run("gather_all", step, array, stride)
    np.testing.assert_allclose(array[: call.n], expected, atol=1e-14)
    assert not array[call.n :].any()  # nothing is left for the next call
    call.run("gather_all", step, array, stride)
    np.testing.assert_allclose(array[: call.n], expected, atol=1e-14)


@pytest.mark.parametrize("cutoff", [0.5, 2.0, 100.0])
def test_pairs_within_the_cutoff(call: Call, library: Any, cutoff: float) -> None:
    first = call.shares()
    call.halos()
    n_edges = len(call.centers)
    vectors, (neighbors, targets) = np.full((n_edges, 3), np.nan), np.full((2, n_edges), -1)
    ends = np.full(call.n, -1)
    pointers = [ctypes.c_void_p(address(x)) for x in (vectors, neighbors, targets, ends)]
    library.pairs(ctypes.byref(call.input), ctypes.c_double(cutoff), call._frame, *pointers)
    moved = np.einsum("ek,ekx->ex", call.shifts, call.cells[call.structures[call.centers]])
    expected = call.positions[call.neighbors] - call.positions[call.centers] + moved
    is_near = np.linalg.norm(expected, axis=1) < cutoff
    owner = np.searchsorted(first, np.arange(call.n), side="right") - 1
    needed = call.needed(first)
    for i, start in enumerate(np.searchsorted(call.centers, np.arange(call.n))):
        edges = np.flatnonzero((call.centers == i) & is_near)
        kept = slice(start, start + len(edges))
        assert ends[i] == kept.stop
        np.testing.assert_allclose(vectors[kept], expected[edges], atol=1e-14)
        assert neighbors[kept].tolist() == call.neighbors[edges].tolist()
        thread = owner[i]
        for j, target in zip(call.neighbors[edges], targets[kept], strict=True):
            row = call.n + thread * call.capacity + np.searchsorted(needed[thread], j)
            assert target == (j if owner[j] == thread else row)
    if cutoff > 1:
        assert is_near.any() == (n_edges > 0)


@pytest.mark.parametrize("n_threads", N_THREADS)
@pytest.mark.parametrize(
    ("name", "values", "wrong"),
    [
        ("centers", (-1, 101), {1, 2}),
        ("neighbors", (-1, 101), {2}),
        ("structures", (-1, 3), {3}),
        ("numbers", (-1, 0, 4), {4}),
    ],
)
def test_what_is_wrong_is_found_by_whichever_thread_has_it(
    library: Any, name: str, values: tuple[int, ...], wrong: set[int], n_threads: int
) -> None:
    call = Call(library, "many", n_threads)
    array = getattr(call, name)
    for place in (0, 1, len(array) // 3, len(array) // 2, len(array) // 2 + 1, len(array) - 1):
        for value in values:
            before, array[place] = array[place], value
            assert call.check() in wrong
            array[place] = before
    assert call.check() == 0


@pytest.mark.parametrize("n_threads", N_THREADS)
def test_edges_that_are_not_sorted_are_found_between_threads_too(library: Any, n_threads: int) -> None:
    call = Call(library, "many", n_threads)
    for place in range(1, len(call.centers)):
        if call.centers[place] != call.centers[place - 1]:
            both = [place - 1, place]
            call.centers[both] = call.centers[both[::-1]]
            assert call.check() == 1
            call.centers[both] = call.centers[both[::-1]]
    assert call.check() == 0


@pytest.mark.parametrize("structures", [[0, 2, 2], [0, 1, 1], [1, 1, 2], [0, 2, 1]])
def test_structures_without_atoms_are_found(library: Any, structures: list[int]) -> None:
    call = Call(library, "few atoms", 2)
    assert call.n_structures == 3
    call.structures[:] = structures
    assert call.check() == 3
