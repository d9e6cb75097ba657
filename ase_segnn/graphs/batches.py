"""Batches of many structures, for those that are too small to be worth an evaluation each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from ase import Atoms

from ase_segnn.graphs.atomic_graph import AtomicGraph


def batches(
    structures: Sequence[Atoms],
    cutoff: float,
    most_edges: int,
    *,
    backend: str = "auto",
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, AtomicGraph]]:
    """Put consecutive structures together as long as they have at most `most_edges` edges; a larger one stays alone.

    Parameters
    ----------
    structures : in any order of sizes, which is kept
    cutoff : Å
    most_edges : of a batch
    backend, device : as for `AtomicGraph.from_atoms`

    Yields
    ------
    index of the first structure of a batch, and the graph of all of the batch
    """
    start, n_edges = 0, 0
    graphs: list[AtomicGraph] = []
    for index, atoms in enumerate(structures):
        graph = AtomicGraph.from_atoms(atoms, cutoff, backend=backend, device=device)
        if graphs and n_edges + graph.n_edges > most_edges:
            yield start, _joined(graphs)
            start, n_edges, graphs = index, 0, []
        graphs.append(graph)
        n_edges += graph.n_edges
    if graphs:
        yield start, _joined(graphs)


def _joined(graphs: list[AtomicGraph]) -> AtomicGraph:
    return graphs[0] if len(graphs) == 1 else AtomicGraph.batch(graphs)
