from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list
from systems import CUTOFF, systems

from ase_segnn.graphs.atomic_graph import AtomicGraph

SYSTEMS = systems()
PERIODIC_SYSTEMS = [name for name, atoms in SYSTEMS.items() if atoms.cell.rank == 3 and atoms.pbc.all()]


@pytest.mark.parametrize("name", SYSTEMS)
def test_holds_the_atoms(name):
    atoms = SYSTEMS[name].copy()
    graph = AtomicGraph.from_atoms(atoms, CUTOFF)
    assert (graph.n_atoms, graph.n_structures) == (len(atoms), 1)
    for tensor, array in [
        (graph.positions, atoms.positions),
        (graph.atomic_numbers, atoms.numbers),
        (graph.cell[0], atoms.cell.array),
        (graph.pbc[0], atoms.pbc),
    ]:
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert graph.positions.dtype == graph.cell.dtype == graph.cell_shifts.dtype == torch.float64
    atoms.positions += 1.0
    atoms.cell[:] = 1.0
    atoms.pbc = ~atoms.pbc
    np.testing.assert_array_equal(graph.positions.numpy(), SYSTEMS[name].positions)
    np.testing.assert_array_equal(graph.cell[0].numpy(), SYSTEMS[name].cell.array)
    np.testing.assert_array_equal(graph.pbc[0].numpy(), SYSTEMS[name].pbc)


@pytest.mark.parametrize("name", PERIODIC_SYSTEMS)
def test_edge_vectors_equal_those_of_ase(name):
    atoms = SYSTEMS[name]
    graph = AtomicGraph.from_atoms(atoms, CUTOFF)
    i, j, shifts, vectors = primitive_neighbor_list("ijSD", atoms.pbc, atoms.cell.array, atoms.positions, CUTOFF)
    expected = np.column_stack([i, j, shifts])
    found = torch.column_stack([graph.centers, graph.neighbors, graph.cell_shifts.to(torch.int64)]).numpy()
    order, ase_order = np.lexsort(found.T[::-1]), np.lexsort(expected.T[::-1])
    np.testing.assert_array_equal(found[order], expected[ase_order])
    np.testing.assert_allclose(graph.edge_vectors().numpy()[order], vectors[ase_order], atol=1e-10, rtol=0)
    assert graph.n_edges > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_edges_come_in_both_directions(name):
    graph = AtomicGraph.from_atoms(SYSTEMS[name], CUTOFF)
    there = torch.column_stack([graph.centers, graph.neighbors, graph.cell_shifts.to(torch.int64)]).tolist()
    back = torch.column_stack([graph.neighbors, graph.centers, -graph.cell_shifts.to(torch.int64)]).tolist()
    assert sorted(there) == sorted(back)
    assert (graph.centers.diff() >= 0).all()
    assert (graph.edge_vectors().norm(dim=1) < CUTOFF).all()


def test_cutoff_counts():
    assert AtomicGraph.from_atoms(SYSTEMS["bulk"], 3.0).n_edges < AtomicGraph.from_atoms(SYSTEMS["bulk"], 4.5).n_edges


def test_edge_vectors_are_differentiable_in_positions_and_cell():
    graph = AtomicGraph.from_atoms(SYSTEMS["skewed triclinic"], 3.0)
    assert graph.n_edges > 0

    def edge_vectors(positions: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        fields = vars(graph) | {"positions": positions, "cell": cell}
        return AtomicGraph(**fields).edge_vectors()

    inputs = graph.positions.clone().requires_grad_(), graph.cell.clone().requires_grad_()
    assert torch.autograd.gradcheck(edge_vectors, inputs)


def test_batch_keeps_structures_apart():
    names = ["water", "lone atom", "slab", "one-atom cell", "far dimer", "mixed species"]
    graphs = [AtomicGraph.from_atoms(SYSTEMS[name], CUTOFF) for name in names]
    batch = AtomicGraph.batch(graphs)
    assert (batch.n_atoms, batch.n_structures) == (sum(g.n_atoms for g in graphs), len(names))
    assert batch.n_edges == sum(g.n_edges for g in graphs) > 0
    assert torch.equal(batch.structure[batch.centers], batch.structure[batch.neighbors])
    assert (batch.centers.diff() >= 0).all()
    assert torch.equal(batch.edge_vectors(), torch.cat([g.edge_vectors() for g in graphs]))
    for index, graph in enumerate(graphs):
        atoms = batch.structure == index
        assert torch.equal(batch.positions[atoms], graph.positions)
        assert torch.equal(batch.atomic_numbers[atoms], graph.atomic_numbers)
        assert torch.equal(batch.cell[index], graph.cell[0])
        assert torch.equal(batch.pbc[index], graph.pbc[0])


def test_batch_of_batches_is_a_batch():
    graphs = [AtomicGraph.from_atoms(SYSTEMS[name], CUTOFF) for name in ("water", "slab", "dimer", "wire")]
    flat = AtomicGraph.batch(graphs)
    nested = AtomicGraph.batch([AtomicGraph.batch(graphs[:2]), AtomicGraph.batch(graphs[2:])])
    for name, value in vars(flat).items():
        assert torch.equal(value, vars(nested)[name]), name


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one graph, got none"):
        AtomicGraph.batch([])


def test_to_moves_every_tensor():
    graph = AtomicGraph.from_atoms(SYSTEMS["slab"], CUTOFF).to("meta")
    assert {value.device.type for value in vars(graph).values()} == {"meta"}


def test_shortest_distances_are_those_of_each_pair_of_elements():
    atoms = Atoms("CuSiCu", [[0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]], cell=[20, 20, 20], pbc=True)
    assert AtomicGraph.from_atoms(atoms, 4.0).shortest_distances() == pytest.approx({(14, 29): 2.0, (29, 29): 3.0})
    atoms.cell[2, 2] = 1.5  # now each atom has an image nearby
    expected = {(14, 14): 1.5, (14, 29): 2.0, (29, 29): 1.5}
    assert AtomicGraph.from_atoms(atoms, 4.0).shortest_distances() == pytest.approx(expected)
    assert AtomicGraph.from_atoms(Atoms("H"), 4.0).shortest_distances() == {}
