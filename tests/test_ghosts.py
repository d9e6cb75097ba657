"""Structures shared by several processes: each has some atoms, and ghosts of others, whose rows are exchanged."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from compiler import needs_compiler
from numpy.typing import NDArray
from random_potentials import SHAPES, random_potential
from systems import systems

from ase_segnn import SEGNNCalculator
from ase_segnn.codegen.messages import MessageShape
from ase_segnn.engines.export import export_library
from ase_segnn.engines.exported import _Call
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

pytestmark = needs_compiler
SYSTEMS = systems()
OK, NEEDS_ROOM, EXCHANGE_FAILED = 0, 1, 8
ATOMS = {name: SYSTEMS[name] for name in ("water", "skewed triclinic", "slab", "mixed species")}
Exchange = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


class Rows(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_void_p), ("width", ctypes.c_int64), ("size", ctypes.c_int64))


class Process:
    """The call of one process: its atoms, in their order, then its ghosts with the positions of their images."""

    def __init__(self, atoms: Atoms, cutoff: float, own: NDArray[np.bool_], n_threads: int) -> None:
        graph = AtomicGraph.from_atoms(atoms, cutoff + 0.5)
        centers, neighbors = graph.centers.numpy(), graph.neighbors.numpy()
        shifts = graph.cell_shifts.numpy().astype(int)
        self.own = np.flatnonzero(own)
        rows = {(int(i), 0, 0, 0): row for row, i in enumerate(self.own)}
        mine = [e for e in range(len(centers)) if own[centers[e]]]
        pairs = []
        for e in mine:
            image = (int(neighbors[e]), *map(int, shifts[e]))
            pairs.append((rows[int(centers[e]), 0, 0, 0], rows.setdefault(image, len(rows))))
        self.images = np.array(list(rows), dtype=int).reshape(-1, 4)  # rows -> owner, and shift of the cell
        self.ghosts = self.images[len(self.own) :, 0]
        n, n_pairs = len(self.images), len(pairs)
        positions = atoms.positions[self.images[:, 0]] + self.images[:, 1:] @ np.asarray(atoms.cell)
        self.inputs = {
            "positions": positions,
            "cell": np.array(atoms.cell),
            "atomic_numbers": atoms.numbers[self.images[:, 0]].astype(np.int64),
            "centers": np.array([i for i, _ in pairs], dtype=np.int64),
            "neighbors": np.array([j for _, j in pairs], dtype=np.int64),
            "cell_shifts": np.zeros((n_pairs, 3)),
        }
        n_own = len(self.own)
        shapes = {"energy": (1,), "atom_energies": (n_own,), "forces": (n, 3), "stress": (3, 3)}
        shapes["atom_virials"] = (n_own, 3, 3)
        self.results = {name: np.full(shape, 7.0) for name, shape in shapes.items()}
        places = {name: array.ctypes.data for name, array in (self.inputs | self.results).items()}
        sizes = {"n_atoms": n_own, "n_ghosts": n - n_own, "n_pairs": n_pairs, "n_threads": n_threads}
        self.struct = _Call(version=3, **sizes, **places)

    def evaluate(self, library: Any) -> int:
        while (code := library.segnn_evaluate(ctypes.byref(self.struct))) == NEEDS_ROOM:
            self.workspace = np.full(self.struct.workspace_size, 0xFF, np.uint8)
            self.struct.workspace = self.workspace.ctypes.data
        return int(code)


class Processes:
    """Several processes, as threads that wait for each other at each exchange."""

    def __init__(self, library: Any, parts: list[Process]) -> None:
        self.library, self.parts = library, parts
        self.exchanges: list[tuple[bool, int]] = []  # to the owners, and bytes per atom
        self._barrier = Barrier(len(parts))
        self._arrays: list[list[NDArray[Any]]] = [[] for _ in parts]
        places = {int(i): (part, row) for part in range(len(parts)) for row, i in enumerate(parts[part].own)}
        self._owners = [[places[int(i)] for i in part.ghosts] for part in parts]
        self._functions = [Exchange(self._function(number)) for number in range(len(parts))]
        for part, function in zip(parts, self._functions, strict=True):
            part.struct.exchange = ctypes.cast(function, ctypes.c_void_p).value

    def evaluate(self) -> list[int]:
        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(lambda part: part.evaluate(self.library), self.parts))

    def _function(self, number: int) -> Callable[[Any, int, int, Any], int]:
        def exchange(_context: Any, to_owners: int, n_arrays: int, arrays: Any) -> int:
            rows = ctypes.cast(arrays, ctypes.POINTER(Rows))
            n = len(self.parts[number].images)
            self._arrays[number] = []
            for k in range(n_arrays):
                kind = {4: ctypes.c_float, 8: ctypes.c_double}[rows[k].size]
                memory = (kind * (n * rows[k].width)).from_address(rows[k].numbers or 0) if n else (kind * 0)()
                self._arrays[number].append(np.frombuffer(memory, dtype=kind).reshape(n, rows[k].width))
            self._barrier.wait()
            if number == 0:
                self.exchanges.append((bool(to_owners), sum(x[0].nbytes for x in self._arrays[0])))
                self._exchange(bool(to_owners))
            self._barrier.wait()
            return 0

        return exchange

    def _exchange(self, to_owners: bool) -> None:
        """Exchange all rows; what was not sent, and what was given away, is no number."""
        for part, owners, arrays in zip(self.parts, self._owners, self._arrays, strict=True):
            for k, array in enumerate(arrays):
                ghosts = array[len(part.own) :]
                if not to_owners:
                    ghosts[...] = np.nan
                for row, (owner, place) in enumerate(owners):
                    if to_owners:
                        self._arrays[owner][k][place] += ghosts[row]
                    else:
                        ghosts[row] = self._arrays[owner][k][place]
                if to_owners:
                    ghosts[...] = np.nan


@pytest.fixture(scope="module", params=["natural parity", "three layers", "products", "one layer", "scalars alone"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Potential]:
    potential = random_potential(SHAPES[request.param]).double().requires_grad_(False).eval()
    path = tmp_path_factory.mktemp("ghosts") / "model.so"
    export_library(potential, path, name=request.param)
    return ctypes.CDLL(str(path)), potential


def share_of(atoms: Atoms, n: int) -> list[NDArray[np.bool_]]:
    """Divide atoms among processes by a random number; the last of three has none."""
    owner = np.random.default_rng(1).integers(0, min(n, 2), len(atoms))
    return [owner == number for number in range(n)]


@pytest.mark.parametrize(("n_processes", "n_threads"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("name", ATOMS)
def test_results_are_those_of_one_process(
    exported: tuple[Any, Potential], name: str, n_processes: int, n_threads: int
) -> None:
    library, potential = exported
    atoms = ATOMS[name]
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64", compile=False)
    calculator.calculate(atoms, ["forces"])
    parts = [Process(atoms, potential.cutoff, own, n_threads) for own in share_of(atoms, n_processes)]
    processes = Processes(library, parts)
    for _ in range(2):
        assert processes.evaluate() == [OK] * n_processes
        energies, forces = np.zeros(len(atoms)), np.zeros((len(atoms), 3))
        for part in parts:
            energies[part.own] += part.results["atom_energies"]
            np.add.at(forces, part.images[:, 0], part.results["forces"])
        scale = max(1.0, np.abs(calculator.results["forces"]).max())
        np.testing.assert_allclose(energies, calculator.results["energies"], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(forces, calculator.results["forces"], rtol=0, atol=1e-11 * scale)
        total = sum(part.results["energy"][0] for part in parts)
        np.testing.assert_allclose(total, calculator.results["energy"], rtol=1e-11, atol=1e-11)
        if atoms.cell.rank == 3:
            calculator.calculate(atoms, ["stress"])
            stress = calculator.results["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
            virial = sum(part.results["atom_virials"].sum(axis=0) for part in parts)
            for value in (sum(part.results["stress"] for part in parts), (virial + virial.T) / 2 / atoms.cell.volume):
                np.testing.assert_allclose(value, stress, rtol=0, atol=1e-11 * max(1.0, np.abs(stress).max()))


def test_little_is_exchanged(exported: tuple[Any, Potential]) -> None:
    """Features and their gradients once per round after the first, not what is sent along edges."""
    library, potential = exported
    atoms = ATOMS["mixed species"]
    parts = [Process(atoms, potential.cutoff, own, 1) for own in share_of(atoms, 2)]
    processes = Processes(library, parts)
    assert processes.evaluate() == [OK, OK]
    shapes = [MessageShape(one.message) for one in potential.network.rounds[1:]]
    sizes = [8 * sum(ir.dim * shape.channels for _, ir in shape.irreps) for shape in shapes]
    features = [(False, size) for size in sizes] + [(True, size) for size in reversed(sizes)]
    attributes = 8 * potential.network.irreps_node_attributes.dim
    assert [x for x in processes.exchanges if x[1] != attributes or x in features] == features
    library.segnn_get_info.restype = ctypes.POINTER(ctypes.c_int64)
    most = max([size for _, size in processes.exchanges], default=0)
    assert library.segnn_get_info()[8] == most


def test_energies_alone_return_nothing(exported: tuple[Any, Potential]) -> None:
    library, potential = exported
    atoms = ATOMS["mixed species"]
    parts = [Process(atoms, potential.cutoff, own, 1) for own in share_of(atoms, 2)]
    for part in parts:
        part.struct.forces = part.struct.stress = part.struct.atom_virials = None
    processes = Processes(library, parts)
    assert processes.evaluate() == [OK, OK]
    assert not any(to_owners for to_owners, _ in processes.exchanges)
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64", compile=False)
    total = sum(part.results["energy"][0] for part in parts)
    np.testing.assert_allclose(total, calculator.get_potential_energy(atoms), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_failed_exchange_is_an_error(exported: tuple[Any, Potential], n_threads: int) -> None:
    library, potential = exported
    atoms = ATOMS["mixed species"]
    part = Process(atoms, potential.cutoff, np.ones(len(atoms), dtype=bool), n_threads)
    processes = Processes(library, [part])
    works = part.struct.exchange
    fails = Exchange(lambda *_: 1)
    part.struct.exchange = ctypes.cast(fails, ctypes.c_void_p).value
    assert part.evaluate(library) in {OK, EXCHANGE_FAILED}
    part.struct.exchange = works
    assert processes.evaluate() == [OK]
    assert torch.isfinite(torch.tensor(part.results["forces"])).all()
