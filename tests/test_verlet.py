"""Graphs from a list with a skin have the pairs of a fresh list, however atoms and cell have moved since."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from pairs import MOLECULE, PERIODIC, as_rows, assert_same_pairs, brute_force, structures
from systems import CUTOFF, systems

from ase_segnn.graphs import backends
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.graphs.neighbors import NeighborList, neighbor_list
from ase_segnn.graphs.verlet import VerletGraphs

SYSTEMS = systems()


def pairs_of(
    verlet: VerletGraphs, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, *, far_pairs: bool = False
) -> NeighborList:
    graph = verlet.graph(Atoms(positions=positions, cell=cell, pbc=pbc), far_pairs=far_pairs)
    cell_shifts = graph.cell_shifts.to(torch.int64)
    assert torch.equal(cell_shifts.to(torch.float64), graph.cell_shifts)
    return NeighborList(graph.centers, graph.neighbors, cell_shifts)


def all_pairs(verlet: VerletGraphs, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
    return pairs_of(verlet, positions, cell, pbc, far_pairs=True)


def assert_graph_of(graph: AtomicGraph, atoms: Atoms, cutoff: float, *, far_pairs: bool = False) -> None:
    """Compare all of a graph with atoms as they are now; further pairs are looked at only where they are allowed."""
    fresh = AtomicGraph.from_atoms(atoms, cutoff, backend="brute-force")
    for name in ("positions", "atomic_numbers", "cell", "pbc", "structure"):
        assert torch.equal(getattr(graph, name), getattr(fresh, name)), name
    found, expected = (
        [*zip(g.centers.tolist(), g.neighbors.tolist(), map(tuple, g.cell_shifts.tolist()), strict=True)]
        for g in (graph, fresh)
    )
    if far_pairs:
        distances = graph.edge_vectors().norm(dim=1).tolist()
        found = [pair for pair, distance in zip(found, distances, strict=True) if distance < cutoff]
    assert sorted(found) == sorted(expected)
    assert expected, "there was nothing to compare"


class TestPairs:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(structures(), st.integers(0, 2**32), st.sampled_from([0.0, 0.003, 0.02]), st.sampled_from([0.01, 0.05, 0.4]))
    def test_equals_a_fresh_list(self, structure, seed, strain, step):
        positions, cell, pbc, cutoff = structure
        rng = np.random.default_rng(seed)
        verlet = VerletGraphs(cutoff, 0.8)
        periodic_cell = np.where(np.array(pbc)[:, None], cell, 0)
        for _ in range(8):
            assert_same_pairs(pairs_of(verlet, positions, cell, pbc), neighbor_list(positions, cell, pbc, cutoff))
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
        verlet = VerletGraphs(CUTOFF, skin)
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
            found = pairs_of(verlet, *arguments)
            assert_same_pairs(found, neighbor_list(*arguments, CUTOFF))
            numbers_of_pairs.add(len(found.centers))
        assert verlet.builds == 12 if skin == 0 else verlet.builds < 12
        if name in {"bulk", "slab"}:
            assert len(numbers_of_pairs) > 3  # pairs came and went

    @pytest.mark.parametrize("backend", ["matscipy", "vesin", "brute-force"])
    def test_backends(self, backend):
        atoms = SYSTEMS["mixed species"]
        verlet = VerletGraphs(3.0, 0.5, backend)
        found = pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
        assert_same_pairs(found, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 3.0))

    def test_atom_that_jumps_by_cell_vectors_needs_no_search(self):
        atoms = SYSTEMS["mixed species"].copy()
        verlet = VerletGraphs(CUTOFF, 0.5)
        before = pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
        atoms.positions[3] += [2, -1, 40] @ atoms.cell
        atoms.positions[0] += [0, -1, 0] @ atoms.cell
        after = pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
        assert not np.array_equal(as_rows(before), as_rows(after))
        assert_same_pairs(after, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert verlet.builds == 1

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_search_comes_just_in_time(self, share):
        """Two atoms from just beyond cutoff + skin approach each other; `share` of the way is that of the first."""
        cutoff, skin = 3.0, 0.6
        start = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, cutoff + skin + 1e-4]])
        way = np.array([[0.0, 0.0, share], [0.0, 0.0, share - 1]])
        verlet = VerletGraphs(cutoff, skin)
        for approach, n_pairs, builds in [(0.0, 0, 1), (skin - 1e-6, 0, 1), (skin + 2e-4, 2, 2)]:
            found = pairs_of(verlet, start + approach * way, np.zeros((3, 3)), MOLECULE)
            assert (len(found.centers), verlet.builds) == (n_pairs, builds)

    def test_distant_cells_move_farther_than_cell_vectors(self):
        """The vectors change by far less than half the skin, but the tenth cell by more than all of it."""
        cutoff, skin = 10.0, 1.0
        cell, positions = np.eye(3), np.zeros((1, 3))
        verlet = VerletGraphs(cutoff, skin)
        old = pairs_of(verlet, positions, cell, PERIODIC)
        smaller = 0.88 * cell
        assert np.abs(smaller - cell).max() < skin / 2
        fresh = brute_force(positions, smaller, PERIODIC, cutoff)
        kept_then = {tuple(row) for row in as_rows(brute_force(positions, cell, PERIODIC, cutoff + skin))}
        assert any(tuple(row) not in kept_then for row in as_rows(fresh))  # the old list would miss pairs
        found = pairs_of(verlet, positions, smaller, PERIODIC)
        assert_same_pairs(found, fresh)
        assert verlet.builds == 2
        assert len(found.centers) > len(old.centers)
        smaller *= 0.95
        found = pairs_of(verlet, positions, smaller, PERIODIC)
        assert_same_pairs(found, brute_force(positions, smaller, PERIODIC, cutoff))
        assert verlet.builds == 2

    def test_rigid_motion_and_expansion_need_no_search(self):
        atoms = SYSTEMS["bulk"].copy()
        verlet = VerletGraphs(CUTOFF, 0.5)
        pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
        atoms.rotate(70, [1, 2, 3], rotate_cell=True)
        atoms.positions += [7.0, 8.0, 9.0]
        atoms.set_cell(atoms.cell * 1.2, scale_atoms=True)
        found = pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
        assert_same_pairs(found, neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert len(found.centers) > 0
        assert verlet.builds == 1

    def test_new_structure_is_noticed(self):
        verlet = VerletGraphs(CUTOFF, 1.0)
        water = SYSTEMS["water"]
        for atoms, pbc in [
            (water, MOLECULE),
            (water[:2], MOLECULE),
            (water, PERIODIC),
            (water, [True, False, False]),
            (water[:0], MOLECULE),
        ]:
            arguments = atoms.positions, 4.0 * np.eye(3), pbc
            assert_same_pairs(pairs_of(verlet, *arguments), neighbor_list(*arguments, CUTOFF))
        assert verlet.builds == 5

    def test_keeps_no_array_of_the_caller(self):
        atoms = SYSTEMS["mixed species"].copy()
        verlet = VerletGraphs(3.0, 0.4)
        first = verlet.graph(atoms)
        before = first.positions.clone(), first.cell.clone(), first.atomic_numbers.clone()
        atoms.positions[0] += [1.5, 0.0, 0.0]
        atoms.cell[:] *= 0.9
        atoms.numbers[:] = 1
        assert_graph_of(verlet.graph(atoms), atoms, 3.0)
        atoms.pbc[:] = False
        assert_graph_of(verlet.graph(atoms), atoms, 3.0)
        assert verlet.builds == 3
        for tensor, value in zip((first.positions, first.cell, first.atomic_numbers), before, strict=True):
            assert torch.equal(tensor, value)

    def test_result_is_not_shared_with_later_ones(self):
        atoms = SYSTEMS["water"]
        verlet = VerletGraphs(CUTOFF, 1.0)
        verlet.graph(atoms).cell_shifts.fill_(99)
        assert_graph_of(verlet.graph(atoms), atoms, CUTOFF)
        assert verlet.builds == 1

    @pytest.mark.parametrize("seed", range(4))
    def test_no_pair_is_missing_among_all_that_are_kept(self, seed):
        """Along steps in which the cell changes, stays changed, or the atoms alone move, for several structures."""
        rng = np.random.default_rng(seed)
        verlet = VerletGraphs(CUTOFF, 0.6)
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
                kept = {tuple(row) for row in as_rows(all_pairs(verlet, *arguments))}
                needed = {tuple(row) for row in as_rows(neighbor_list(*arguments, CUTOFF))}
                assert needed <= kept
                n_steps += 1
        n_builds = verlet.builds
        assert 5 <= n_builds < n_steps / 2

    def test_a_cell_that_changed_without_a_search_is_not_that_of_the_list(self):
        """Atoms are near where they were when the list was built, but their images are nearer to each other."""
        cell, positions = np.diag([20.0, 20.0, 10.0]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 6.05]])
        narrow = cell * [1, 1, 0.94]
        verlet = VerletGraphs(2.9, 1.0)
        assert len(all_pairs(verlet, positions, cell, PERIODIC).centers) == 0
        all_pairs(verlet, positions * [1, 1, 0.94], narrow, PERIODIC)
        assert verlet.builds == 1
        near = positions + np.array([[0.0, 0.0, -0.34], [0.0, 0.0, 0.34]])
        assert len(brute_force(near, narrow, PERIODIC, 2.9).centers) == 2
        assert len(all_pairs(verlet, near, narrow, PERIODIC).centers) == 2


class TestTopology:
    """What stays from graph to graph, and what does not."""

    def test_stays_while_positions_and_cell_change(self):
        atoms = SYSTEMS["mixed species"].copy()
        verlet = VerletGraphs(CUTOFF, 0.8)
        first = verlet.graph(atoms, far_pairs=True)
        for change in (
            lambda: atoms.rattle(0.01),
            lambda: atoms.set_cell(atoms.cell * 1.01, scale_atoms=True),
            lambda: atoms.translate([5.0, 6.0, 7.0]),
        ):
            change()
            graph = verlet.graph(atoms, far_pairs=True)
            for name in ("atomic_numbers", "pbc", "centers", "neighbors", "cell_shifts", "structure"):
                assert getattr(graph, name) is getattr(first, name), name
            np.testing.assert_array_equal(graph.positions, atoms.positions)
            np.testing.assert_array_equal(graph.cell[0], atoms.cell.array)
        assert verlet.builds == 1

    @pytest.mark.parametrize("skin", [0.0, 0.6])
    @pytest.mark.parametrize("far_pairs", [True, False])
    def test_every_change_is_seen(self, skin, far_pairs):
        """Elements, cell and periodicity change one by one and together, with and without a step of the atoms."""
        atoms = SYSTEMS["slab"].copy()
        verlet = VerletGraphs(CUTOFF, skin)
        rng = np.random.default_rng(3)

        def swap() -> None:
            atoms.numbers[:] = rng.permutation(atoms.numbers)
            atoms.numbers[0] = rng.choice([1, 6, 8])

        changes = [
            swap,
            lambda: atoms.rattle(0.02, rng=rng),
            lambda: atoms.set_cell(atoms.cell * [1, 1, 1.1]),  # along which nothing repeats
            lambda: atoms.set_cell(atoms.cell * 1.002, scale_atoms=True),
            lambda: atoms.wrap(),  # noqa: PLW0108  # what it returns is of no use
            lambda: setattr(atoms, "pbc", rng.random(3) < 0.7),
            lambda: atoms.positions.__setitem__(1, atoms.positions[1] + [2, -1, 0] @ atoms.cell),
        ]
        for _ in range(60):
            for index in rng.choice(len(changes), rng.integers(1, 3), replace=False):
                changes[index]()
            assert_graph_of(verlet.graph(atoms, far_pairs=far_pairs), atoms, CUTOFF, far_pairs=far_pairs)

    def test_other_elements_need_no_search(self):
        atoms = SYSTEMS["mixed species"].copy()
        verlet = VerletGraphs(CUTOFF, 0.5)
        first = verlet.graph(atoms, far_pairs=True)
        atoms.numbers[:] = atoms.numbers[::-1].copy()
        for _ in range(2):
            graph = verlet.graph(atoms, far_pairs=True)
            assert not torch.equal(graph.atomic_numbers, first.atomic_numbers)
            assert graph.centers is first.centers
            assert_graph_of(graph, atoms, CUTOFF, far_pairs=True)
        assert verlet.builds == 1

    def test_numbers_of_other_types_are_told_apart(self):
        """The bytes of eight small numbers are those of one large number."""
        eight, one = Atoms("H8", np.zeros((8, 3)) + 9 * np.arange(8)[:, None]), Atoms("H")
        eight.arrays["numbers"] = np.array([1, 0, 0, 0, 0, 0, 0, 0], dtype=np.uint8)
        assert eight.numbers.tobytes() == one.numbers.tobytes()
        verlet = VerletGraphs(3.0, 1e3)
        assert [verlet.graph(atoms).atomic_numbers.tolist() for atoms in (one, eight, one)] == [[1], [1, *[0] * 7], [1]]

    def test_forgotten_pairs_are_searched_for(self):
        verlet = VerletGraphs(CUTOFF, 0.5)
        verlet.graph(SYSTEMS["water"])
        verlet.forget()
        assert_graph_of(verlet.graph(SYSTEMS["water"]), SYSTEMS["water"], CUTOFF)
        assert verlet.builds == 2


class TestErrorsAndBackends:
    @pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
    def test_wrong_skin(self, skin):
        with pytest.raises(ValueError, match="the skin is a length in Å, finite and not negative"):
            VerletGraphs(3.0, skin)

    def test_wrong_argument_in_the_course_of_a_run(self):
        verlet = VerletGraphs(3.0, 1.0)
        good = np.zeros((1, 3)), 2.0 * np.eye(3), PERIODIC
        expected = pairs_of(verlet, *good)
        with pytest.raises(ValueError, match="of atom 0"):
            pairs_of(verlet, np.full((1, 3), np.nan), *good[1:])
        with pytest.raises(ValueError, match="span no volume"):
            pairs_of(verlet, good[0], np.zeros((3, 3)), PERIODIC)
        with pytest.raises(ValueError, match="span no volume"):
            pairs_of(verlet, good[0] + 9.0, np.diag([2.0, 2.0, 0.0]), PERIODIC)
        assert_same_pairs(pairs_of(verlet, *good), expected)

    @pytest.mark.parametrize("right", [True, False])
    def test_a_chosen_backend_that_finds_other_pairs_is_given_up(self, monkeypatch, caplog, right):
        calls = []

        def search(x, h, periodic, cutoff, device):
            calls.append(len(x))
            found = backends.vesin_pairs(x, h, periodic, cutoff, device)
            return found if right else tuple(array[1:] for array in found)

        for module in ("neighbors", "verlet"):
            monkeypatch.setattr(f"ase_segnn.graphs.{module}.choose_backend", lambda *_: "vesin")
        monkeypatch.setattr("ase_segnn.graphs.neighbors.vesin_pairs", search)
        atoms = SYSTEMS["mixed species"]
        verlet = VerletGraphs(CUTOFF, 0.0)
        for _ in range(3):
            found = pairs_of(verlet, atoms.positions, atoms.cell.array, atoms.pbc)
            assert_same_pairs(found, brute_force(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF))
        assert len(calls) == (3 if right else 1)
        assert ("vesin finds other pairs than matscipy" in caplog.text) == (not right)
