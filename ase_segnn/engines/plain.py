"""The engine that can evaluate every potential on every device: torch, one operation after another."""

from __future__ import annotations

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction


class PlainPotential:
    """A potential, evaluated as its modules say.

    Parameters
    ----------
    potential : frozen, in evaluation mode
    """

    name = "plain torch"
    reason = ""
    takes_far_pairs = False
    takes_batches = True
    follows_torch = True

    def __init__(self, potential: Potential) -> None:
        self._potential = potential

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns."""
        return self._potential.predict(graph, forces=forces, stress=stress)
