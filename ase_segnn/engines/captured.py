"""A potential on a GPU whose operations are recorded once and launched together: a CUDA graph.

Launching some hundreds of operations one by one takes longer than they take for a small structure. What is recorded
acts on the same tensors with the same sizes each time, so structures are copied into them, filled up with atoms and
pairs that change nothing (`AtomicGraph.padding`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from ase.data import atomic_numbers

from ase_segnn.engines.surroundings import Lock
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

_log = logging.getLogger(__name__)

_EXTRA_ATOMS = 1  # that the pairs of the padding belong to
_ROOM = 1.1  # factor of the pairs that there are at first, for more of them later
_LEAST_ROOM = 32  # pairs
_WARM_UPS = 3  # runs before recording, in which libraries set up what must not be set up while recording

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative; above rounding, below what wrong kernels gave

Results = TypeVar("Results")


class Recorder(Protocol):
    """What records a function on a device: returns its results, and what renews these."""

    def __call__(  # noqa: D102
        self, function: Callable[[], Results], device: torch.device, /
    ) -> tuple[Results, Callable[[], None]]: ...


def record_cuda_graph(function: Callable[[], Results], device: torch.device) -> tuple[Results, Callable[[], None]]:
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

    A recording is made anew for another number of atoms, and where a structure has more pairs than there is room for, a
    tenth more than in the structure that was recorded. The first results of a recording are compared with the plain
    ones.

    Parameters
    ----------
    potential : on a GPU, frozen, in evaluation mode, and not to be changed any more
    record : what records a function and can run it again, as `record_cuda_graph` does
    """

    name = "CUDA graph"
    reason = ""
    takes_far_pairs = False
    takes_batches = False
    follows_torch = True

    def __init__(self, potential: Potential, *, record: Recorder = record_cuda_graph) -> None:
        self._potential, self._record = potential, record
        self._a_number = atomic_numbers[potential.elements[0]]
        self._recording: _Recording | None = None
        self._lock = Lock()

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return energies, forces and stress of one structure, whatever is wanted: all of them are recorded.

        The stress is nan if the cell has no volume.

        Raises
        ------
        ValueError
            If `graph` holds more than one structure.
        RuntimeError
            If the potential cannot be recorded, or the first results of a recording are not the plain ones.
        """
        del forces, stress
        if graph.n_structures != 1:
            raise ValueError(f"a recorded potential takes one structure at a time, got {graph.n_structures}")
        with self._lock.now:
            return self._evaluate(graph)

    def _evaluate(self, graph: AtomicGraph) -> Prediction:
        if self._recording is not None and self._recording.has_room_for(graph):
            return self._replay(self._recording, graph)
        self._recording = None  # nothing holds it any more, so that its memory is free for the next
        n_edges = max(int(_ROOM * graph.n_edges), graph.n_edges + _LEAST_ROOM)
        still = self._padded(graph, graph.n_atoms + _EXTRA_ATOMS, n_edges)
        results, replay = self._record(lambda: self._potential.predict(still, stress=True), graph.positions.device)
        _log.debug("recorded the potential for %d atoms and up to %d pairs", graph.n_atoms, n_edges)
        recording = _Recording(still, results, replay)
        prediction = self._replay(recording, graph)
        compare_with_plain(self._potential, prediction, graph)
        self._recording = recording
        return prediction

    def _replay(self, recording: _Recording, graph: AtomicGraph) -> Prediction:
        padded = self._padded(graph, recording.graph.n_atoms, recording.graph.n_edges)
        for name, tensor in vars(padded).items():
            getattr(recording.graph, name).copy_(tensor)
        recording.replay()
        results, n = recording.results, graph.n_atoms
        assert results.forces is not None
        assert results.stress is not None
        return Prediction(
            energy=results.energy[:1].clone(),
            atom_energies=results.atom_energies[:n].clone(),
            forces=results.forces[:n].clone(),
            stress=results.stress[:1].clone(),
        )

    def _padded(self, graph: AtomicGraph, n_atoms: int, n_edges: int) -> AtomicGraph:
        sizes = n_atoms - graph.n_atoms, n_edges - graph.n_edges
        padding = AtomicGraph.padding(*sizes, self._potential.cutoff, self._a_number, device=graph.positions.device)
        return AtomicGraph.batch([graph, padding])


def compare_with_plain(potential: Potential, result: Prediction, graph: AtomicGraph) -> None:
    """Stop if a result is not that of `Potential.predict`, by the scale of forces and energies in training or here.

    Raises
    ------
    RuntimeError
    """
    plain = potential.predict(graph, stress=True)
    reference = potential.reference_energies[potential.species_of_number[graph.atomic_numbers]]
    scale = potential.config.energy_scale
    checks = [("energies", result.atom_energies - reference, plain.atom_energies - reference, scale)]
    if result.forces is not None and plain.forces is not None:
        checks.append(("forces", result.forces, plain.forces, scale))
    if result.stress is not None and plain.stress is not None and plain.stress.isfinite().all():
        checks.append(("stress", result.stress, plain.stress, scale * graph.n_atoms / graph.volumes().item()))
    for name, value, expected, usual in checks:
        error = (value - expected).abs().max().item()
        allowed = _TOLERANCES[potential.dtype] * max(expected.abs().max().item(), usual)
        if expected.isfinite().all() and not error <= allowed:
            raise RuntimeError(
                f"recorded {name} differ from the plain ones by {error:.2e}, at most {allowed:.2e} is allowed; use "
                "compile=False, and please report this with your versions of torch and CUDA"
            )
