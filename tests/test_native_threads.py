"""Threads of a native potential: how many there are changes no result, in whatever order calls come."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn.engines import native as native_module
from ase_segnn.engines.native import NativeFunction, NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

pytestmark = needs_compiler
SYSTEMS = systems()
TOLERANCE = 1e-12


class Threads:
    """How many threads calls ask for."""

    number = 1

    def of_call(self, *_: int) -> int:
        return self.number


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr(NativeFunction, "_n_threads", threads.of_call)
    return threads


@pytest.fixture(scope="module", params=NATIVE_CONFIGS)
def plain(request: pytest.FixtureRequest) -> Potential:
    return random_potential(NATIVE_CONFIGS[request.param]).double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def natural() -> Potential:
    return random_potential(NATIVE_CONFIGS["natural parity"]).double().requires_grad_(False).eval()


def graph_of(name: str, plain: Potential) -> AtomicGraph:
    """Return a system, or several as a batch."""
    graphs = [AtomicGraph.from_atoms(SYSTEMS[part], plain.cutoff) for part in name.split(" and ")]
    return AtomicGraph.batch(graphs)


def predict(native: NativePotential, graph: AtomicGraph) -> Prediction:
    return native.evaluate(graph, stress=True)


def assert_same(result: Prediction, expected: Prediction) -> None:
    for field in ("energy", "atom_energies", "forces", "stress"):
        value, target = getattr(result, field), getattr(expected, field)
        scale = max(1.0, float(target.nan_to_num().abs().max()))
        torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCE * scale, equal_nan=True, msg=field)


@pytest.mark.parametrize("n_threads", [2, 3, 5, 16])
@pytest.mark.parametrize("system", ["lone atom", "far dimer", "water", "wire", "slab", "mixed species", "bulk"])
def test_the_number_of_threads_changes_nothing(plain: Potential, system: str, n_threads: int, threads: Threads) -> None:
    """Among them are more threads than atoms, and atoms without edges."""
    native, graph = NativePotential(plain), graph_of(system, plain)
    expected = predict(native, graph)
    threads.number = n_threads
    for _ in range(3):  # the first call lays out the workspace, and finds out how large the halo is
        assert_same(predict(native, graph), expected)
    assert (native.function.halo_capacity > 0) == (graph.n_edges > 0)
    energies = native.evaluate(graph, forces=False).atom_energies
    torch.testing.assert_close(energies, expected.atom_energies, rtol=0, atol=TOLERANCE * 100)


def test_structures_that_threads_share(plain: Potential, threads: Threads) -> None:
    graph = graph_of("water and lone atom and slab and wire and bulk", plain)
    native = NativePotential(plain)
    expected = predict(native, graph)
    for threads.number in (2, 3, 5):
        assert_same(predict(native, graph), expected)


def test_any_order_of_calls_gives_the_same(natural: Potential, threads: Threads) -> None:
    """The workspace and the room for halos are kept from call to call."""
    graphs = {name: graph_of(name, natural) for name in ("water", "slab", "bulk", "lone atom", "water and slab")}
    expected = {name: predict(NativePotential(natural), graph) for name, graph in graphs.items()}
    native = NativePotential(natural)
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        name = list(graphs)[int(torch.randint(len(graphs), (), generator=random))]
        threads.number = (1, 2, 3, 5)[int(torch.randint(4, (), generator=random))]
        if torch.rand((), generator=random) < 0.2:
            native.evaluate(graphs[name], forces=False)
        assert_same(predict(native, graphs[name]), expected[name])


def test_room_for_halos_grows_and_is_kept(natural: Potential, threads: Threads) -> None:
    native = NativePotential(natural)
    capacities = []
    for system in ("water", "wire", "slab", "bulk", "water", "bulk"):
        graph = graph_of(system, natural)
        threads.number = 1
        expected = predict(native, graph)
        threads.number = 3
        assert_same(predict(native, graph), expected)
        capacities.append(native.function.halo_capacity)
    assert capacities == sorted(capacities)
    assert 0 < capacities[0] < capacities[2] < capacities[3] == capacities[5]


def test_threads_that_are_not_given_are_done_without() -> None:
    """The runtime gives two threads, however many are asked for; all are compared with one thread alone."""
    code = """
from test_native_threads import *
threads = Threads()
NativeFunction._n_threads = threads.of_call
plain = random_potential(NATIVE_CONFIGS["natural parity"]).double().requires_grad_(False).eval()
native = NativePotential(plain)
for system in ("bulk", "slab", "bulk", "water"):
    graph = graph_of(system, plain)
    threads.number = 1
    expected = predict(native, graph)
    for threads.number in (5, 2, 7, 7):
        assert_same(predict(native, graph), expected)
print(native.function.halo_capacity > 0)
"""
    environment = {**os.environ, "OMP_THREAD_LIMIT": "2", "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("True\n", 0), run.stderr


def changed(graph: AtomicGraph, **fields: Sequence[int]) -> AtomicGraph:
    """Return a graph with some numbers of index arrays changed: name -> (place, value)."""
    arrays = {}
    for name, (place, value) in fields.items():
        arrays[name] = getattr(graph, name).clone()
        arrays[name][place] = value
    return replace(graph, **arrays)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"centers": (100, 3)}, ValueError, "not sorted by their centers"),
        ({"centers": (-1, 216)}, ValueError, "joins atoms that are not there"),
        ({"neighbors": (0, -1)}, ValueError, "joins atoms that are not there"),
        ({"neighbors": (-1, 216)}, ValueError, "joins atoms that are not there"),
        ({"structure": (100, 1)}, ValueError, "do not follow each other"),
        ({"structure": (0, -1)}, ValueError, "is of a structure that is not there"),
        ({"structure": (-1, 1)}, ValueError, "is of a structure that is not there"),
        ({"atomic_numbers": (215, 2)}, IndexError, "none of the potential's, H, C, O, Si, Cu"),
        ({"atomic_numbers": (0, 1000)}, IndexError, "none of the potential's, H, C, O, Si, Cu"),
    ],
)
def test_wrong_indices_are_refused_and_nothing_is_left_behind(
    natural: Potential,
    fields: dict[str, tuple[int, int]],
    error: type[Exception],
    message: str,
    n_threads: int,
    threads: Threads,
) -> None:
    native, graph = NativePotential(natural), graph_of("bulk", natural)
    expected = predict(native, graph)
    threads.number = n_threads
    for _ in range(2):
        with pytest.raises(error, match=message):
            native.evaluate(changed(graph, **fields))
        assert_same(predict(native, graph), expected)


def test_few_atoms_have_one_thread(natural: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(native_module, "threads_may_run", lambda: True)
    function = NativePotential(natural).function
    numbers = {n: function._n_threads(n) for n in (0, 1, 63, 64, 100, 128, 1000)}
    assert numbers == {0: 1, 1: 1, 63: 1, 64: 2, 100: 3, 128: 4, 1000: 4}
    monkeypatch.setattr(native_module, "threads_may_run", lambda: False)
    assert function._n_threads(1000) == 1
