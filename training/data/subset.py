"""Some of the frames of a store, their graphs and their statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ase_segnn.labels import LABELS
from ase_segnn.model.zbl import pair_name

from .batches import LabeledGraph
from .frames import Frame
from .store import FrameStore

_MOST_BYTES_IN_MEMORY = 2 * 2**30  # of graphs; larger data are read from disk whenever they are needed
_BYTES_PER_EDGE, _BYTES_PER_ATOM = 40, 80


class Subset(Dataset[LabeledGraph]):
    """Some of the frames of a store. Graphs are found by their index in the store.

    Parameters
    ----------
    store : of the frames
    indices : (n,) int64, of the frames in the store
    group_weights : group -> factor of the weights of its frames
    """

    def __init__(
        self, store: FrameStore, indices: NDArray[np.int64], group_weights: Mapping[str, float] | None = None
    ) -> None:
        self.store, self.indices = store, indices
        self._group_weights = dict(group_weights or {})
        n_bytes = _BYTES_PER_EDGE * store.n_edges[indices].sum() + _BYTES_PER_ATOM * store.n_atoms[indices].sum()
        self._kept: dict[int, LabeledGraph] | None = {} if n_bytes <= _MOST_BYTES_IN_MEMORY else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> LabeledGraph:
        """Return the graph of a frame by its index in the store."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        graph = self.store.labeled_graph(index)
        if self._group_weights:
            graph = graph.times(self._group_weights.get(self.store.group(index), 1.0))
        if self._kept is not None:
            self._kept[index] = graph
        return graph

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs: every process keeps its own."""
        return {**self.__dict__, "_kept": None if self._kept is None else {}}

    def frames(self) -> Iterator[Frame]:
        """Read the frames one after another."""
        return (self.store.frame(int(index)) for index in self.indices)

    def elements(self) -> tuple[str, ...]:
        """Chemical symbols, by atomic number."""
        return self.store.elements(self.indices)

    def counts(self, elements: Sequence[str]) -> NDArray[np.float64]:
        """Numbers of atoms of each element in each frame, (n, len(elements))."""
        numbers = np.array([chemical_symbols.index(symbol) for symbol in elements])
        return np.array([(self.store.numbers(int(i))[:, None] == numbers).sum(0) for i in self.indices], dtype=float)

    def energies(self) -> NDArray[np.float64]:
        """Energies of the frames, (n,) eV, NaN where missing or of no weight."""
        weights = np.array([float(self[int(index)].energy_weights) for index in self.indices])
        return np.where(weights > 0, self.store.energies[self.indices], np.nan)

    def drawn(self, random: np.random.Generator) -> Subset:
        """Draw as many frames at random, with repetition."""
        drawn = random.choice(self.indices, len(self.indices))
        return Subset(self.store, np.sort(drawn), self._group_weights)

    def n_labels(self) -> dict[str, int]:
        """Return the number of frames that have a label, of weight more than 0, by label."""
        present = np.array([(self[int(index)].n_labels() > 0).tolist() for index in self.indices])
        return dict(zip(LABELS, present.sum(0).tolist(), strict=True))

    def forces_rms(self) -> float:
        """Root mean square of all force components, eV/Å; 1 without any."""
        sums = np.zeros(2)
        for index in self.indices:
            graph = self[int(index)]
            known = graph.forces_weights > 0
            sums += [float(graph.forces[known].square().sum()), 3 * float(known.sum())]
        return float(np.sqrt(sums[0] / sums[1])) if sums[1] > 0 else 1.0

    def average_neighbors(self) -> float:
        """Mean number of neighbors of an atom within the cutoff."""
        return float(self.store.n_edges[self.indices].sum() / self.store.n_atoms[self.indices].sum())

    def shortest_distances(self) -> dict[str, float]:
        """Shortest distances of pairs of elements within the cutoff, Å, named as of `ase_segnn.model.zbl.pair_name`."""
        shortest: dict[str, float] = {}
        for index in self.indices:
            for pair, distance in self[int(index)].graph.shortest_distances().items():
                name = pair_name(*pair)
                shortest[name] = min(distance, shortest.get(name, distance))
        return shortest


def whole(store: FrameStore) -> Subset:
    """All frames of a store."""
    return Subset(store, np.arange(len(store)))
