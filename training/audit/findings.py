"""Findings of the audit, and the numbers of all frames that the checks look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ase_segnn.labels import LABELS

_Integers = NDArray[np.int64]
_Bools = NDArray[np.bool_]
Severity = Literal["error", "warning", "note"]

TRAINING, VALIDATION = "training", "validation"


@dataclass(frozen=True)
class Finding:
    """Something about the data that its user should know.

    Parameters
    ----------
    severity : "error" if training makes no sense, "warning" if something seems wrong, "note" for the rest
    title : in a few words
    explanation : what it means and what to do
    frames : sources of all frames concerned, or of the first ones
    remarks : about each of `frames`, or empty
    total : number of frames concerned, if more than in `frames`
    """

    severity: Severity
    title: str
    explanation: str
    frames: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    total: int = 0

    @property
    def n_frames(self) -> int:
        """Number of frames concerned."""
        return max(self.total, len(self.frames))


@dataclass(frozen=True, eq=False)
class Collected:
    """Numbers of all n frames.

    Parameters
    ----------
    rows : (n,) of dtype `ROW`
    sources : of each frame
    data_sets, groups : names to which the columns of `rows` point
    elements : symbols
    compositions : (n_compositions, n_elements) numbers of atoms, to which a column of `rows` points
    weights : of each label in the objective
    """

    rows: NDArray[np.void]
    sources: Sequence[str]
    data_sets: Sequence[str]
    groups: Sequence[str]
    elements: Sequence[str]
    compositions: _Integers
    weights: Mapping[str, float]

    def of(self, data_set: str) -> _Bools:
        """Mask of the frames of a data set, (n,)."""
        index = self.data_sets.index(data_set) if data_set in self.data_sets else -1
        return np.asarray(self.rows["data_set"] == index, dtype=bool)

    def has(self, label: str) -> _Bools:
        """Mask of the frames that have a label with a weight, (n,)."""
        column = {"energy": "energy", "forces": "largest_force", "stress": "largest_stress"}[label]
        return np.asarray(~np.isnan(self.rows[column]), dtype=bool)

    def present(self, label: str) -> _Bools:
        """Mask of the frames that have a label, whatever its weight, (n,)."""
        return np.asarray(self.rows["present"][:, LABELS.index(label)], dtype=bool)

    def atoms(self, frames: _Bools) -> _Integers:
        """Atoms of each element in the masked frames, (n_masked, n_elements)."""
        return np.asarray(self.compositions[self.rows["composition"][frames]])

    def counts_for(self, label: str) -> _Bools:
        """Mask of the frames whose own weight of a label is not zero, (n,)."""
        return np.asarray(self.rows["weights"][:, LABELS.index(label)] > 0, dtype=bool)

    def finding(
        self, label: str, title: str, explanation: str, frames: _Bools | _Integers, remarks: Sequence[str] = ()
    ) -> Finding:
        """Make a warning about a label, or a note if the label is not learned."""
        indices = np.flatnonzero(frames) if frames.dtype == bool else frames
        severity: Severity = "warning" if self.weights.get(label, 0.0) > 0 else "note"
        return Finding(severity, title, explanation, tuple(self.sources[i] for i in indices.tolist()), tuple(remarks))

    def names(self, frames: _Bools) -> tuple[str, ...]:
        """Name the masked frames by their sources."""
        return tuple(self.sources[i] for i in np.flatnonzero(frames).tolist())
