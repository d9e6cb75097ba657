"""What all engines have in common: from a graph to energies, forces and stress."""

from __future__ import annotations

from typing import Protocol

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Prediction


class Engine(Protocol):
    """One way to evaluate a potential; all ways give the same numbers up to rounding.

    An engine belongs to one potential, which must not change any more. Several threads may use an engine.

    Attributes
    ----------
    name : for users, such as "compiled C++"
    reason : for users, why `ase_segnn.engines.choice.choose_engine` took this one
    takes_far_pairs : whether a graph may have pairs beyond the cutoff, which the engine passes over at little cost.
        Hand over a whole Verlet list then
    takes_batches : whether a graph may have several structures
    follows_torch : whether the state of torch matters: its inference mode, autocast, and the precision of products of
        matrices
    """

    name: str
    reason: str
    takes_far_pairs: bool
    takes_batches: bool
    follows_torch: bool

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return energies and what else is wanted, detached.

        Parameters
        ----------
        graph : its pairs are sorted by their centers
        forces, stress : what is wanted. An engine that has no way to leave one out returns it all the same. The stress
            of a structure whose cell has no volume is nan
        """
        ...
