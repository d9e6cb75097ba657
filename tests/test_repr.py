"""What objects say of themselves: one line."""

from __future__ import annotations

import pytest
from ase.build import bulk, molecule
from random_potentials import CONFIGS, random_potential

from ase_segnn import AtomicGraph, Committee, NetworkConfig, Potential, PotentialConfig, SEGNNCalculator
from ase_segnn.graphs.neighbors import neighbor_list


@pytest.fixture
def committee() -> Committee:
    return Committee([random_potential(CONFIGS["with ZBL"], seed=seed) for seed in (1, 2)])


def test_repr_of_potentials(committee: Committee) -> None:
    shape = "H C O Si Cu, cutoff 4.5 Å, 2 layers, 8x0e+4x1o, attributes up to l = 1, ZBL"
    assert repr(committee.members[0]) == f"Potential({shape}, float32, cpu)"
    assert str(committee.double()) == f"Committee(2 x Potential({shape}, float64, cpu))"
    shape = "H C O Si Cu, cutoff 4.5 Å, 2 layers, 8x0e+8x1o+8x2e, attributes up to l = 2, products up to order 3"
    assert repr(random_potential(CONFIGS["products"])) == f"Potential({shape}, float32, cpu)"


def test_repr_of_a_potential_for_many_elements() -> None:
    elements = ["H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg"]
    network = NetworkConfig(
        irreps_hidden="2x0e+2x1o", n_layers=1, l_max_attributes=2, l_max_node_attributes=1, correlation=1
    )
    config = PotentialConfig(elements=elements, reference_energies=dict.fromkeys(elements, 0.0), network=network)
    assert repr(Potential(config)) == (
        "Potential(H He Li Be B C N O F Ne and 2 more, cutoff 5 Å, 1 layer, 2x0e+2x1o, attributes up to l = 2 at edges "
        "and 1 at nodes, float32, cpu)"
    )


def test_repr_of_calculators(committee: Committee) -> None:
    assert repr(SEGNNCalculator("si-pbe", device="cpu", compile=False)) == (
        "SEGNNCalculator(potential 'si-pbe': Si, cutoff 4.5 Å, 2 layers, 32x0e+32x1o+32x2e, attributes up to l = 3, "
        "products up to order 3, ZBL; device='cpu', dtype='float32', skin=1.0, backend='auto', compile=False)"
    )
    assert repr(SEGNNCalculator(committee, "cpu", "float64", max_deviation=0.5)) == (
        "SEGNNCalculator(this committee: 2 x H C O Si Cu, cutoff 4.5 Å, 2 layers, 8x0e+4x1o, attributes up to l = 1, "
        "ZBL; device='cpu', dtype='float64', skin=1.0, backend='auto', compile='auto', max_deviation=0.5, "
        "on_deviation='warn')"
    )


def test_repr_of_graphs_and_pairs() -> None:
    silicon, water = bulk("Si"), molecule("H2O")
    graph = AtomicGraph.from_atoms(silicon, 2.5)
    assert repr(graph) == "AtomicGraph(1 structure, 2 atoms, 8 edges, cpu)"
    batch = AtomicGraph.batch([graph, AtomicGraph.from_atoms(water, 2.5)])
    assert repr(batch) == "AtomicGraph(2 structures, 5 atoms, 14 edges, cpu)"
    pairs = neighbor_list(silicon.positions, silicon.cell.array, silicon.pbc, 2.5)
    assert repr(pairs) == "NeighborList(8 pairs, cpu)"


def test_repr_of_predictions(committee: Committee) -> None:
    graph = AtomicGraph.from_atoms(molecule("H2O"), committee.cutoff)
    assert repr(committee.members[0].predict(graph, forces=False)) == (
        "Prediction(energy (1,), atom_energies (3,), cpu)"
    )
    assert repr(committee.predict(graph)) == (
        "CommitteePrediction(energy (1,), atom_energies (3,), forces (3, 3), energy_std (1,), atom_energies_std (3,), "
        "forces_std (3,), cpu)"
    )
