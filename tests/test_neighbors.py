from __future__ import annotations

import logging
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from ase.neighborlist import primitive_neighbor_list
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from systems import CUTOFF, systems

from ase_segnn import pair_search
from ase_segnn.neighbors import BACKENDS, NeighborList, VerletList, choose_backend, neighbor_list

SYSTEMS = systems()
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


class TestBackends:
    @settings(max_examples=120, deadline=None)
    @given(structures())
    def test_brute_force_equals_ase(self, structure):
        np.testing.assert_array_equal(as_rows(brute_force(*structure)), ase_rows(*structure))

    @pytest.mark.parametrize("backend", ["matscipy", "vesin"])
    @settings(max_examples=300, deadline=None)
    @given(structures())
    def test_others_equal_brute_force(self, backend, structure):
        assert_same_pairs(neighbor_list(*structure, backend=backend), brute_force(*structure))

    @settings(max_examples=100, deadline=None)
    @given(structures(max_atoms=100))
    def test_torch_cluster_equals_brute_force(self, structure):
        pytest.importorskip("torch_cluster")
        positions, cell, _, cutoff = structure
        found = neighbor_list(positions, cell, MOLECULE, cutoff, backend="torch-cluster")
        assert_same_pairs(found, brute_force(positions, cell, MOLECULE, cutoff))

    @pytest.mark.parametrize("backend", ["matscipy", "vesin"])
    @pytest.mark.parametrize("pbc", [[bool(mask & 1), bool(mask & 2), bool(mask & 4)] for mask in range(8)])
    def test_every_periodicity(self, pbc, backend):
        rng = np.random.default_rng(5)
        cell = np.diag([2.0, 3.0, 6.0]) + rng.uniform(-0.8, 0.8, (3, 3))
        positions = rng.uniform(-20, 20, (5, 3)) * pbc + rng.uniform(0, 4, (5, 3))
        expected = brute_force(positions, cell, pbc, 4.0)
        assert_same_pairs(neighbor_list(positions, cell, pbc, 4.0, backend=backend), expected)
        assert len(expected.centers) > 0
        assert (expected.cell_shifts.abs().amax(0) > 0).tolist() == pbc

    @pytest.mark.parametrize("backend", ["matscipy", "vesin"])
    @pytest.mark.parametrize("name", SYSTEMS)
    def test_named_systems(self, name, backend):
        atoms = SYSTEMS[name]
        before = atoms.copy()
        arguments = atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF
        found = neighbor_list(*arguments, backend=backend)
        assert_same_pairs(found, brute_force(*arguments))
        assert (len(found.centers) == 0) == (name in {"lone atom", "far dimer"})
        assert atoms == before

    @pytest.mark.parametrize("backend", ["matscipy", "vesin", "brute-force"])
    def test_pair_at_the_cutoff_is_not_listed(self, backend):
        found = neighbor_list(np.zeros((1, 3)), 3.0 * np.eye(3), PERIODIC, 3.0, backend=backend)
        assert len(found.centers) == 0
        found = neighbor_list(np.zeros((1, 3)), 3.0 * np.eye(3), PERIODIC, np.nextafter(3.0, 4.0), backend=backend)
        assert len(found.centers) == 6

    @pytest.mark.parametrize("backend", ["matscipy", "vesin"])
    def test_vacuum_of_any_size_is_quick_and_complete(self, backend):
        rng = np.random.default_rng(3)
        cluster = rng.uniform(0, 5, (6, 3))
        for size in (1e3, 1e5, 1e9):
            positions = np.concatenate([cluster, cluster + 0.4 * size])
            cell = size * np.eye(3)
            for pbc in (PERIODIC, MOLECULE):
                found = neighbor_list(positions, cell, pbc, 4.0, backend=backend)
                assert_same_pairs(found, brute_force(positions, cell, pbc, 4.0))
                assert len(found.centers) > 0

    @pytest.mark.parametrize("backend", ["auto", "matscipy", "vesin", "brute-force"])
    def test_no_atoms(self, backend):
        assert as_rows(neighbor_list(np.zeros((0, 3)), np.eye(3), PERIODIC, 3.0, backend=backend)).shape == (0, 5)


class FakeTorchCluster(ModuleType):
    """A stand-in for torch-cluster that keeps only so many neighbors, like the real one, and counts its calls."""

    def __init__(self) -> None:
        super().__init__("torch_cluster")
        self.rooms: list[int] = []

    def radius(
        self, x: torch.Tensor, y: torch.Tensor, r: float, *, max_num_neighbors: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.rooms.append(max_num_neighbors)
        close = torch.cdist(y, x) < r
        close &= close.cumsum(1) <= max_num_neighbors
        rows, columns = close.nonzero(as_tuple=True)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        return rows[order], columns[order]


class TestTorchCluster:
    @pytest.fixture
    def fake(self, monkeypatch):
        module = FakeTorchCluster()
        monkeypatch.setitem(sys.modules, "torch_cluster", module)
        return module

    @pytest.mark.parametrize("n_atoms", [0, 1, 2, 3, 4, 5, 30])
    def test_neighbors_that_it_leaves_out_are_found(self, fake, monkeypatch, n_atoms):
        monkeypatch.setattr(pair_search, "_CLUSTER_NEIGHBORS", 3)
        positions = np.random.default_rng(2).uniform(0, 3, (n_atoms, 3))
        found = neighbor_list(positions, np.zeros((3, 3)), MOLECULE, 2.5, backend="torch-cluster")
        assert_same_pairs(found, brute_force(positions, np.zeros((3, 3)), MOLECULE, 2.5))
        assert fake.rooms == {0: [], 1: [1], 2: [2], 3: [3], 4: [3, 4], 5: [3, 5], 30: [3, 12, 30]}[n_atoms]

    def test_one_search_suffices_where_there_is_room(self, fake):
        positions = np.random.default_rng(2).uniform(0, 12, (200, 3))
        found = neighbor_list(positions, np.zeros((3, 3)), MOLECULE, 3.0, backend="torch-cluster")
        assert_same_pairs(found, brute_force(positions, np.zeros((3, 3)), MOLECULE, 3.0))
        assert fake.rooms == [64]

    def test_real_one_leaves_nothing_out(self):
        pytest.importorskip("torch_cluster")
        positions = np.random.default_rng(2).uniform(0, 4, (300, 3))
        found = neighbor_list(positions, np.zeros((3, 3)), MOLECULE, 3.0, backend="torch-cluster")
        assert found.centers.bincount().max() > pair_search._CLUSTER_NEIGHBORS
        assert_same_pairs(found, brute_force(positions, np.zeros((3, 3)), MOLECULE, 3.0))

    def test_refuses_periodic_structures(self):
        with pytest.raises(ValueError, match=r"pairs across cells, got pbc=\[False, False, True\]; use 'matscipy'"):
            neighbor_list(np.zeros((1, 3)), np.eye(3), [False, False, True], 3.0, backend="torch-cluster")

    def test_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch_cluster", None)
        with pytest.raises(ImportError, match=r'--no-build-isolation "ase-segnn\[cluster\]"'):
            neighbor_list(np.zeros((1, 3)), np.eye(3), MOLECULE, 3.0, backend="torch-cluster")


def test_vesin_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vesin", None)
    with pytest.raises(ImportError, match=r'pip install "ase-segnn\[vesin\]"'):
        neighbor_list(np.zeros((1, 3)), np.eye(3), MOLECULE, 3.0, backend="vesin")


class TestChoice:
    @pytest.mark.parametrize(
        ("pbc", "device", "installed", "expected"),
        [
            (MOLECULE, "cpu", ["torch_cluster", "vesin"], "matscipy"),
            (PERIODIC, "cuda", ["torch_cluster"], "matscipy"),
            ([False, True, False], "cuda", ["torch_cluster", "vesin"], "vesin"),
            (MOLECULE, "cuda", [], "matscipy"),
            (MOLECULE, "cuda", ["vesin"], "vesin"),
            (MOLECULE, "cuda:1", ["torch_cluster", "vesin"], "torch-cluster"),
        ],
    )
    def test_of_auto(self, monkeypatch, pbc, device, installed, expected):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
        assert choose_backend(pbc, device) == expected
        assert expected in BACKENDS

    @pytest.mark.parametrize("right", [True, False])
    def test_that_finds_other_pairs_is_given_up(self, monkeypatch, caplog, right):
        calls = []

        def search(x, h, periodic, cutoff, device):
            calls.append(len(x))
            found = pair_search.vesin_pairs(x, h, periodic, cutoff, device)
            return found if right else tuple(array[1:] for array in found)

        monkeypatch.setattr("ase_segnn.neighbors.choose_backend", lambda *_: "vesin")
        monkeypatch.setattr("ase_segnn.neighbors.vesin_pairs", search)
        atoms = SYSTEMS["mixed species"]
        verlet = VerletList(CUTOFF, 0.0)
        for _ in range(3):
            found = verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
            assert_same_pairs(found, brute_force(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert len(calls) == (3 if right else 1)
        assert ("vesin finds other pairs than matscipy" in caplog.text) == (not right)

    def test_is_logged(self, caplog):
        with caplog.at_level(logging.DEBUG, logger="ase_segnn"):
            neighbor_list(np.zeros((2, 3)), np.eye(3), PERIODIC, 0.5)
        assert "backend: matscipy (2 atoms" in caplog.text


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cutoff": 0.0}, "the cutoff is a length in Å, finite and positive, got 0.0"),
            ({"cutoff": -1.0}, "finite and positive, got -1.0"),
            ({"cutoff": np.nan}, "finite and positive, got nan"),
            ({"cutoff": np.inf}, "finite and positive, got inf"),
            ({"backend": "ase"}, "'auto' or one of 'matscipy', 'vesin', 'torch-cluster', 'brute-force', got 'ase'"),
            ({"positions": [[0, 0, 0], [1, np.nan, 0]]}, r"of 1 atoms are not finite.*\[1.0, nan, 0.0\] of atom 1"),
            ({"positions": [[0, 0, 1e30]]}, r"an atom is 1.0e\+30 cells away, at most 1e\+09.*time step"),
            ({"positions": [0, 0, 0]}, r"shape \(atoms, 3\), got \(3,\)"),
            ({"positions": [[0, 0]]}, r"shape \(atoms, 3\), got \(1, 2\)"),
            ({"cell": [3, 3, 3]}, r"shape \(3, 3\).*got \(3,\)"),
            ({"cell": np.diag([1, 1, np.inf])}, "cell vectors along periodic directions are not finite"),
            ({"cell": np.zeros((3, 3))}, "span no volume"),
            ({"cell": np.diag([1, 1, 0])}, "span no volume"),
            ({"cell": [[1, 0, 0], [0, 1, 0], [1, 1, 1e-9]]}, "span no volume.*or set pbc to False"),
            ({"cell": [[1, 0, 0], [2, 0, 0], [0, 0, 0]], "pbc": [True, True, False]}, "span no volume"),
            ({"pbc": True}, r"pbc has the shape \(3,\)"),
        ],
    )
    def test_wrong_argument(self, change, message):
        arguments = {"positions": np.zeros((2, 3)), "cell": np.eye(3), "pbc": PERIODIC, "cutoff": 0.9} | change
        with pytest.raises(ValueError, match=message):
            neighbor_list(**arguments)

    @pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
    def test_wrong_skin(self, skin):
        with pytest.raises(ValueError, match="the skin is a length in Å, finite and not negative"):
            VerletList(3.0, skin)

    def test_wrong_argument_of_verlet_list_in_the_course_of_a_run(self):
        verlet = VerletList(3.0, 1.0)
        good = np.zeros((1, 3)), 2.0 * np.eye(3), PERIODIC
        expected = verlet.update(*good)
        with pytest.raises(ValueError, match="of atom 0"):
            verlet.update(np.full((1, 3), np.nan), *good[1:])
        with pytest.raises(ValueError, match="span no volume"):
            verlet.update(good[0], np.zeros((3, 3)), PERIODIC)
        with pytest.raises(ValueError, match="span no volume"):
            verlet.update(good[0] + 9.0, np.diag([2.0, 2.0, 0.0]), PERIODIC)
        assert_same_pairs(verlet.update(*good), expected)


class TestVerletList:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(structures(), st.integers(0, 2**32), st.sampled_from([0.0, 0.003, 0.02]), st.sampled_from([0.01, 0.05, 0.4]))
    def test_equals_a_fresh_list(self, structure, seed, strain, step):
        positions, cell, pbc, cutoff = structure
        rng = np.random.default_rng(seed)
        verlet = VerletList(cutoff, 0.8)
        periodic_cell = np.where(np.array(pbc)[:, None], cell, 0)
        for _ in range(8):
            assert_same_pairs(verlet.update(positions, cell, pbc), neighbor_list(positions, cell, pbc, cutoff))
            deformation = np.eye(3) + rng.normal(0, strain, (3, 3))
            positions = positions @ deformation + rng.normal(0, step, positions.shape) + rng.normal(0, 1, 3)
            cell, periodic_cell = cell @ deformation, periodic_cell @ deformation
            if rng.random() < 0.5:
                positions += rng.integers(-1, 2, positions.shape) @ periodic_cell
        if len(positions) and (strain, step) == (0.0, 0.01):
            assert verlet.builds == 1

    @pytest.mark.parametrize("name", SYSTEMS)
    @pytest.mark.parametrize("skin", [0.0, 0.5])
    def test_run_with_a_barostat(self, name, skin):
        atoms = SYSTEMS[name].copy()
        rng = np.random.default_rng(7)
        verlet = VerletList(CUTOFF, skin)
        shared = rng.normal(0, 0.03, (3, 3))
        numbers_of_pairs = set()
        for step in range(12):
            atoms.set_cell(
                SYSTEMS[name].cell @ (np.eye(3) + shared * np.sin(step / 8)), scale_atoms=atoms.cell.rank == 3
            )
            atoms.positions += rng.normal(0, 0.025, atoms.positions.shape)
            if step % 3 == 2:
                atoms.wrap()
            arguments = atoms.positions, atoms.cell.array, atoms.pbc
            found = verlet.update(*arguments)
            assert_same_pairs(found, neighbor_list(*arguments, CUTOFF))
            numbers_of_pairs.add(len(found.centers))
        assert verlet.builds == 12 if skin == 0 else verlet.builds < 12
        if name in {"bulk", "slab"}:
            assert len(numbers_of_pairs) > 3  # pairs came and went

    @pytest.mark.parametrize("backend", ["matscipy", "vesin", "brute-force"])
    def test_backends(self, backend):
        atoms = SYSTEMS["mixed species"]
        verlet = VerletList(3.0, 0.5, backend)
        found = verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
        assert_same_pairs(found, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 3.0))

    def test_atom_that_jumps_by_cell_vectors_needs_no_search(self):
        atoms = SYSTEMS["mixed species"].copy()
        verlet = VerletList(CUTOFF, 0.5)
        before = verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
        atoms.positions[3] += [2, -1, 40] @ atoms.cell
        atoms.positions[0] += [0, -1, 0] @ atoms.cell
        after = verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
        assert not np.array_equal(as_rows(before), as_rows(after))
        assert_same_pairs(after, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert verlet.builds == 1

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_search_comes_just_in_time(self, share):
        """Two atoms from just beyond cutoff + skin approach each other; `share` of the way is that of the first."""
        cutoff, skin = 3.0, 0.6
        start = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, cutoff + skin + 1e-4]])
        way = np.array([[0.0, 0.0, share], [0.0, 0.0, share - 1]])
        verlet = VerletList(cutoff, skin)
        for approach, n_pairs, builds in [(0.0, 0, 1), (skin - 1e-6, 0, 1), (skin + 2e-4, 2, 2)]:
            found = verlet.update(start + approach * way, np.zeros((3, 3)), MOLECULE)
            assert (len(found.centers), verlet.builds) == (n_pairs, builds)

    def test_distant_cells_move_farther_than_cell_vectors(self):
        """The vectors change by far less than half the skin, but the tenth cell by more than all of it."""
        cutoff, skin = 10.0, 1.0
        cell, positions = np.eye(3), np.zeros((1, 3))
        verlet = VerletList(cutoff, skin)
        old = verlet.update(positions, cell, PERIODIC)
        smaller = 0.88 * cell
        assert np.abs(smaller - cell).max() < skin / 2
        fresh = brute_force(positions, smaller, PERIODIC, cutoff)
        kept_then = {tuple(row) for row in as_rows(brute_force(positions, cell, PERIODIC, cutoff + skin))}
        assert any(tuple(row) not in kept_then for row in as_rows(fresh))  # the old list would miss pairs
        found = verlet.update(positions, smaller, PERIODIC)
        assert_same_pairs(found, fresh)
        assert verlet.builds == 2
        assert len(found.centers) > len(old.centers)
        assert_same_pairs(
            verlet.update(positions, 0.95 * smaller, PERIODIC), brute_force(positions, 0.95 * smaller, PERIODIC, cutoff)
        )
        assert verlet.builds == 2

    def test_rigid_motion_and_expansion_need_no_search(self):
        atoms = SYSTEMS["bulk"].copy()
        verlet = VerletList(CUTOFF, 0.5)
        verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
        atoms.rotate(70, [1, 2, 3], rotate_cell=True)
        atoms.positions += [7.0, 8.0, 9.0]
        atoms.set_cell(atoms.cell * 1.2, scale_atoms=True)
        found = verlet.update(atoms.positions, atoms.cell.array, atoms.pbc)
        assert_same_pairs(found, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert len(found.centers) > 0
        assert verlet.builds == 1

    def test_new_structure_is_noticed(self):
        verlet = VerletList(CUTOFF, 1.0)
        water = SYSTEMS["water"]
        for atoms, pbc in [
            (water, MOLECULE),
            (water[:2], MOLECULE),
            (water, PERIODIC),
            (water, [True, False, False]),
            (water[:0], MOLECULE),
        ]:
            arguments = atoms.positions, 4.0 * np.eye(3), pbc
            assert_same_pairs(verlet.update(*arguments), neighbor_list(*arguments, CUTOFF))
        assert verlet.builds == 5

    def test_keeps_no_array_of_the_caller(self):
        atoms = SYSTEMS["mixed species"].copy()
        positions, cell, pbc = atoms.positions, atoms.cell.array.copy(), atoms.pbc.copy()
        verlet = VerletList(3.0, 0.4)
        verlet.update(positions, cell, pbc)
        positions[0] += [1.5, 0.0, 0.0]
        cell *= 0.9
        assert_same_pairs(verlet.update(positions, cell, pbc), neighbor_list(positions, cell, pbc, 3.0))
        pbc[:] = False
        assert_same_pairs(verlet.update(positions, cell, pbc), neighbor_list(positions, cell, pbc, 3.0))
        assert verlet.builds == 3

    def test_result_is_not_shared_with_later_ones(self):
        atoms = SYSTEMS["water"]
        verlet = VerletList(CUTOFF, 1.0)
        arguments = atoms.positions, atoms.cell.array, atoms.pbc
        verlet.update(*arguments).cell_shifts.fill_(99)
        assert_same_pairs(verlet.update(*arguments), neighbor_list(*arguments, CUTOFF))
        assert verlet.builds == 1

    @pytest.mark.parametrize("seed", range(4))
    def test_no_pair_is_missing_among_all_that_are_kept(self, seed):
        """Along steps in which the cell changes, stays changed, or the atoms alone move, for several structures."""
        rng = np.random.default_rng(seed)
        verlet = VerletList(CUTOFF, 0.6)
        n_builds = n_steps = 0
        for name in ("bulk", "slab", "water", "skewed triclinic", "unwrapped"):
            atoms = SYSTEMS[name].copy()
            for _ in range(40):
                kind = rng.integers(4)
                if kind == 0 and atoms.pbc.all():
                    strain = np.eye(3) + rng.normal(0, 0.01, (3, 3))
                    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                elif kind == 1:
                    atoms.positions += rng.normal(0, 0.3)
                else:
                    atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
                arguments = atoms.positions, atoms.cell.array, atoms.pbc
                kept = {tuple(row) for row in as_rows(verlet.update_all(*arguments))}
                needed = {tuple(row) for row in as_rows(neighbor_list(*arguments, CUTOFF))}
                assert needed <= kept
                n_steps += 1
        n_builds = verlet.builds
        assert 5 <= n_builds < n_steps / 2

    def test_a_cell_that_changed_without_a_search_is_not_that_of_the_list(self):
        """Atoms are near where they were when the list was built, but their images are nearer to each other."""
        cell, positions = np.diag([20.0, 20.0, 10.0]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 6.05]])
        narrow = cell * [1, 1, 0.94]
        verlet = VerletList(2.9, 1.0)
        assert len(verlet.update_all(positions, cell, PERIODIC).centers) == 0
        verlet.update_all(positions * [1, 1, 0.94], narrow, PERIODIC)
        assert verlet.builds == 1
        near = positions + np.array([[0.0, 0.0, -0.34], [0.0, 0.0, 0.34]])
        assert len(brute_force(near, narrow, PERIODIC, 2.9).centers) == 2
        assert len(verlet.update_all(near, narrow, PERIODIC).centers) == 2
