"""Neighbor lists of all backends: the same pairs as brute force, which has the same as ASE."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pairs import MOLECULE, PERIODIC, as_rows, ase_rows, assert_same_pairs, brute_force, structures
from systems import CUTOFF, systems

from ase_segnn.graphs import backends
from ase_segnn.graphs.backends import BACKENDS
from ase_segnn.graphs.neighbors import choose_backend, neighbor_list

SYSTEMS = systems()


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
        monkeypatch.setattr(backends, "CLUSTER_NEIGHBORS", 3)
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
        assert found.centers.bincount().max() > backends.CLUSTER_NEIGHBORS
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
