"""Copies of atoms instead of an exchange: the energies of some atoms alone count, and forces are those of these."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from compiler import needs_compiler
from numpy.typing import NDArray
from random_potentials import SHAPES, random_potential
from systems import systems

from ase_segnn.engines.export import export_library
from ase_segnn.engines.exported import _Call
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

pytestmark = needs_compiler
OK, NEEDS_ROOM, WRONG_SIZE, OUT_OF_RANGE = 0, 1, 3, 6
ATOMS = {name: systems()[name] for name in ("water", "skewed triclinic", "slab", "mixed species")}
KINDS = ("natural parity", "three layers", "products", "products of order 4")


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Potential]:
    potential = random_potential(SHAPES[request.param]).double().requires_grad_(False).eval()
    path = tmp_path_factory.mktemp("shells") / "model.so"
    export_library(potential, path, name=request.param)
    library = ctypes.CDLL(str(path))
    library.segnn_get_info.restype = ctypes.POINTER(ctypes.c_int64)
    return library, potential


class Copies:
    """Atoms that count and copies of all that they feel, with positions of their own and no periodicity."""

    def __init__(self, atoms: Atoms, cutoff: float, counted: NDArray[np.bool_], reach: int) -> None:
        graph = AtomicGraph.from_atoms(atoms, cutoff + 0.2)
        pairs_of: dict[int, list[tuple[int, NDArray[np.int_]]]] = {}
        for i, j, shift in zip(
            graph.centers.tolist(), graph.neighbors.tolist(), graph.cell_shifts.numpy(), strict=True
        ):
            pairs_of.setdefault(i, []).append((j, np.rint(shift).astype(int)))
        rows = {(int(i), 0, 0, 0): row for row, i in enumerate(np.flatnonzero(counted))}
        shells, pairs = [len(rows)], []
        for _ in range(reach):
            for (i, *at), row in list(rows.items())[shells[-2] if len(shells) > 1 else 0 :]:
                for j, shift in pairs_of.get(i, []):
                    image = (j, *(int(x) for x in np.array(at) + shift))
                    pairs.append((row, rows.setdefault(image, len(rows))))
            shells.append(len(rows))
        images = np.array(list(rows), dtype=int).reshape(-1, 4)
        self.owners, self.n_counted, n = images[:, 0], shells[0], len(rows)
        self.inputs = {
            "positions": atoms.positions[self.owners] + images[:, 1:] @ np.asarray(atoms.cell),
            "cell": np.array(atoms.cell),
            "atomic_numbers": atoms.numbers[self.owners].astype(np.int64),
            "centers": np.array([i for i, _ in pairs], dtype=np.int64),
            "neighbors": np.array([j for _, j in pairs], dtype=np.int64),
            "cell_shifts": np.zeros((len(pairs), 3)),
            "shells": np.array(shells, dtype=np.int64),
        }
        shapes = {"energy": (1,), "atom_energies": (n,), "forces": (n, 3), "stress": (3, 3), "atom_virials": (n, 3, 3)}
        self.results = {name: np.full(shape, 7.0) for name, shape in shapes.items()}

    def call(self, n_threads: int = 1) -> Any:
        places = {name: array.ctypes.data for name, array in (self.inputs | self.results).items()}
        n, n_pairs = len(self.owners), len(self.inputs["centers"])
        return _Call(version=3, n_atoms=n, n_pairs=n_pairs, n_threads=n_threads, **places)

    def evaluate(self, library: Any, call: Any) -> int:
        while (code := library.segnn_evaluate(ctypes.byref(call))) == NEEDS_ROOM:
            self.workspace = np.full(call.workspace_size, 0xFF, np.uint8)  # floating-point numbers of these are nan
            call.workspace = self.workspace.ctypes.data
        return int(code)


def share_of(atoms: Atoms, number: int) -> NDArray[np.bool_]:
    """Divide atoms among three processes by a random number; the last has none."""
    return np.random.default_rng(1).integers(0, 2, len(atoms)) == number


def expected(potential: Potential, atoms: Atoms, counted: NDArray[np.bool_]) -> tuple[NDArray[Any], ...]:
    """Energies of atoms, forces of the sum of those that count, and its derivative by strain."""
    graph = AtomicGraph.from_atoms(atoms, potential.cutoff)
    vectors = graph.edge_vectors().requires_grad_()
    energies = potential(graph, vectors)
    [gradient] = torch.autograd.grad(energies[torch.tensor(counted)].sum(), vectors)
    forces = torch.zeros(len(atoms), 3, dtype=torch.float64)
    forces.index_add_(0, graph.centers, gradient).index_add_(0, graph.neighbors, gradient, alpha=-1)
    virial = vectors.detach().T @ gradient
    return energies.detach().numpy(), forces.numpy(), virial.numpy()


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", ATOMS)
def test_forces_are_those_of_the_energies_that_count(
    exported: tuple[Any, Potential], name: str, number: int, n_threads: int
) -> None:
    library, potential = exported
    atoms, counted = ATOMS[name], share_of(ATOMS[name], number)
    copies = Copies(atoms, potential.cutoff, counted, library.segnn_get_info()[9])
    if len(copies.owners) == 0:
        return
    call = copies.call(n_threads)
    energies, forces, virial = expected(potential, atoms, counted)
    for _ in range(2):
        assert copies.evaluate(library, call) == OK
        found = np.zeros((len(atoms), 3))
        np.add.at(found, copies.owners, copies.results["forces"])
        scale = max(1.0, np.abs(forces).max())
        np.testing.assert_allclose(found, forces, rtol=0, atol=1e-11 * scale)
        of_copies = np.where(np.arange(len(copies.owners)) < copies.n_counted, energies[copies.owners], 0)
        np.testing.assert_allclose(copies.results["atom_energies"], of_copies, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(copies.results["energy"][0], of_copies.sum(), rtol=1e-11, atol=1e-11)
        total = copies.results["atom_virials"].sum(axis=0)
        np.testing.assert_allclose(total, virial, rtol=0, atol=1e-11 * max(1.0, np.abs(virial).max()))


def test_energies_alone(exported: tuple[Any, Potential]) -> None:
    library, potential = exported
    atoms, counted = ATOMS["mixed species"], share_of(ATOMS["mixed species"], 0)
    copies = Copies(atoms, potential.cutoff, counted, library.segnn_get_info()[9])
    call = copies.call()
    call.forces = call.stress = call.atom_virials = None
    assert copies.evaluate(library, call) == OK
    energies, _, _ = expected(potential, atoms, counted)
    np.testing.assert_allclose(copies.results["energy"][0], energies[counted].sum(), rtol=1e-11, atol=1e-11)


def line_of(n: int, cutoff: float) -> Atoms:
    """Atoms of which each has two neighbors, those beside it."""
    return Atoms("C" * n, [[0.7 * cutoff * k, 0.02 * k * k, 0] for k in range(n)])


def test_farther_atoms_change_nothing(exported: tuple[Any, Potential]) -> None:
    """What the library calls its reach is the smallest number of shells that is enough."""
    library, potential = exported
    reach = library.segnn_get_info()[9]
    line = line_of(reach + 3, potential.cutoff)
    _, forces, _ = expected(potential, line, np.arange(len(line)) == 0)
    felt = np.flatnonzero(np.abs(forces).max(axis=1) > 0)
    assert felt.tolist() == list(range(reach + 1))


def test_shells_that_do_not_fit_are_an_error(exported: tuple[Any, Potential]) -> None:
    library, potential = exported
    reach = library.segnn_get_info()[9]
    line = line_of(reach + 3, potential.cutoff)
    copies = Copies(line, potential.cutoff, np.arange(len(line)) == 0, reach)
    right = copies.inputs["shells"].copy()
    assert right.tolist() == list(range(1, reach + 2))
    wrong = {
        WRONG_SIZE: [[*right[:-1], right[-1] - 1], [-1, *right[1:]], [2, 1, *right[2:]] if reach > 1 else [3, 2]],
        OUT_OF_RANGE: [[1, 1, *right[2:]]] if reach > 1 else [],
    }
    for code, cases in wrong.items():
        for shells in cases:
            copies.inputs["shells"][:] = shells
            assert copies.evaluate(library, copies.call()) == code
    copies.inputs["shells"][:] = right
    call = copies.call()
    function = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    call.exchange = ctypes.cast(function, ctypes.c_void_p).value
    assert copies.evaluate(library, call) == WRONG_SIZE
