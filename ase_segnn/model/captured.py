"""A potential on a GPU whose operations are recorded once and launched together: a CUDA graph.

Launching some hundreds of operations one by one takes longer than they take for a small structure. What is recorded
acts on the same tensors with the same sizes each time, so structures are copied into them, filled up with atoms and
pairs that change nothing (`AtomicGraph.padding`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from ase.data import atomic_numbers

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.compiled import compare_with_plain
from ase_segnn.model.potential import Potential, Prediction

_log = logging.getLogger(__name__)

_EXTRA_ATOMS = 1  # that the pairs of the padding belong to
_ROOM = 1.1  # factor of the pairs that there are at first, for more of them later
_LEAST_ROOM = 32  # pairs
_WARM_UPS = 3  # runs before recording, in which libraries set up what must not be set up while recording

Recorder = Callable[[Callable[[], Prediction], torch.device], tuple[Prediction, Callable[[], None]]]


def record_cuda_graph(
    function: Callable[[], Prediction], device: torch.device
) -> tuple[Prediction, Callable[[], None]]:
    """Record what a function launches; return its results, and what launches all of it again to renew these results."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return results, replay


class _Recording(NamedTuple):
    graph: AtomicGraph  # what it acts on; its tensors are written into before each replay
    results: Prediction
    replay: Callable[[], None]

    def has_room_for(self, graph: AtomicGraph) -> bool:
        return self.graph.n_atoms == graph.n_atoms + _EXTRA_ATOMS and self.graph.n_edges >= graph.n_edges


class CapturedPotential:
    """Energy, forces and stress as `Potential.predict` gives them, launched as one CUDA graph.

    There is one recording without the stress and one with it. It is made anew for another number of atoms, and where a
    structure has more pairs than it has room for, a tenth more than the structure that it was made for; its first
    results are compared with the plain ones.

    Parameters
    ----------
    potential : on a GPU, frozen, in evaluation mode, and not to be changed any more
    record : what records a function and can run it again, as `record_cuda_graph` does
    """

    def __init__(self, potential: Potential, *, record: Recorder = record_cuda_graph) -> None:
        self._potential, self._record = potential, record
        self._a_number = atomic_numbers[potential.elements[0]]
        self._recordings: dict[bool, _Recording] = {}

    def predict(self, graph: AtomicGraph, *, stress: bool = False) -> Prediction:
        """Return energies, forces and, where asked for, stress of one structure.

        Raises
        ------
        ValueError
            If `graph` holds more than one structure.
        RuntimeError
            If the potential cannot be recorded, or the first results of a recording are not the plain ones.
        """
        if graph.n_structures != 1:
            raise ValueError(f"a recorded potential takes one structure at a time, got {graph.n_structures}")
        recording = self._recordings.get(stress)
        if recording is not None and recording.has_room_for(graph):
            return self._replay(recording, graph)
        recording = None
        self._recordings.pop(stress, None)  # nothing holds it any more, so that its memory is free for the next
        n_edges = max(int(_ROOM * graph.n_edges), graph.n_edges + _LEAST_ROOM)
        still = self._padded(graph, graph.n_atoms + _EXTRA_ATOMS, n_edges)
        results, replay = self._record(lambda: self._potential.predict(still, stress=stress), graph.positions.device)
        _log.debug("recorded the potential for %d atoms and up to %d pairs", graph.n_atoms, n_edges)
        recording = _Recording(still, results, replay)
        prediction = self._replay(recording, graph)
        compare_with_plain(self._potential, prediction, graph, stress=stress, what="recorded")
        self._recordings[stress] = recording
        return prediction

    def _replay(self, recording: _Recording, graph: AtomicGraph) -> Prediction:
        padded = self._padded(graph, recording.graph.n_atoms, recording.graph.n_edges)
        for name, tensor in vars(padded).items():
            getattr(recording.graph, name).copy_(tensor)
        recording.replay()
        results, n = recording.results, graph.n_atoms
        assert results.forces is not None
        return Prediction(
            energy=results.energy[:1].clone(),
            atom_energies=results.atom_energies[:n].clone(),
            forces=results.forces[:n].clone(),
            stress=None if results.stress is None else results.stress[:1].clone(),
        )

    def _padded(self, graph: AtomicGraph, n_atoms: int, n_edges: int) -> AtomicGraph:
        sizes = n_atoms - graph.n_atoms, n_edges - graph.n_edges
        padding = AtomicGraph.padding(*sizes, self._potential.cutoff, self._a_number, device=graph.positions.device)
        return AtomicGraph.batch([graph, padding])
