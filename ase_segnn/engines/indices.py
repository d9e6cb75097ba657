"""Checks of the indices of a graph, by which compiled code reads and writes memory."""

from __future__ import annotations

from torch import Tensor

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential


def checked_species(graph: AtomicGraph, potential: Potential) -> Tensor:
    """Return the species of each atom, (N,), after a check of all indices of a graph.

    Raises
    ------
    ValueError
        If edges are not sorted by their centers or join atoms that are not there or of different structures, or if
        atoms are not sorted by their structures or of one that is not there.
    IndexError
        If an element is not among those of the potential.
    """
    _check_edges(graph)
    _check_structures(graph)
    table, numbers = potential.species_of_number, graph.atomic_numbers
    species = table[numbers.clamp(0, len(table) - 1)]
    if bool(((numbers < 0) | (numbers >= len(table)) | (species >= len(potential.elements))).any()):
        raise IndexError(f"an element is none of the potential's, {', '.join(potential.elements)}")
    return species


def _check_edges(graph: AtomicGraph) -> None:
    centers, neighbors = graph.centers, graph.neighbors
    if bool((centers[1:] < centers[:-1]).any()):
        raise ValueError("the edges of the graph are not sorted by their centers")
    if len(centers) > 0:
        first, last = neighbors.aminmax()
        if min(int(centers[0]), int(first)) < 0 or max(int(centers[-1]), int(last)) >= graph.n_atoms:
            raise ValueError("an edge of the graph joins atoms that are not there")


def _check_structures(graph: AtomicGraph) -> None:
    structure = graph.structure
    if bool((structure[1:] < structure[:-1]).any()):
        raise ValueError("the atoms of each structure of the graph do not follow each other")
    if len(structure) > 0 and not 0 <= int(structure[0]) <= int(structure[-1]) < graph.n_structures:
        raise ValueError("an atom of the graph is of a structure that is not there")
    if bool((structure[graph.centers] != structure[graph.neighbors]).any()):
        raise ValueError("an edge of the graph joins atoms of different structures")
