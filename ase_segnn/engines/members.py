"""The engine of a committee: an engine for each member."""

from __future__ import annotations

from collections.abc import Sequence

from ase_segnn.engines.engine import Engine
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.committee import CommitteePrediction, combine


class CommitteeEngine:
    """Engines of one kind, whose predictions are combined to means and deviations.

    Parameters
    ----------
    engines : one for each member of a committee
    """

    reason = ""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        first = engines[0]
        self.name = f"{len(engines)} x {first.name}"
        self.takes_far_pairs, self.takes_batches = first.takes_far_pairs, first.takes_batches
        self.follows_torch = first.follows_torch

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> CommitteePrediction:
        """Return what `Committee.predict` returns."""
        return combine([engine.evaluate(graph, forces=forces, stress=stress) for engine in self._engines])
