"""Frames worth labeling next: those about which a committee disagrees most, and that differ from one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.evaluation import predict_named
from ase_segnn.labels.names import looks_like_label, weighted_labels

_Floats = NDArray[np.float64]
_NEAR = 0.3  # nearer frames, correlated by 1 - 0.3² or more, are near-duplicates
_SAME = 1e-4  # eV, what atom energies differ by from rounding and noise


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select_frames` picked, and from what.

    Parameters
    ----------
    frames : copies of the picked frames, the most valuable first, without a calculator and without anything that could
        be taken for a label. In ``info``: "source" and "source_index", the place among all frames, "energy_std" (eV)
        and "max_forces_std" (eV/Å); in ``arrays``: "forces_std" (N,) eV/Å
    indices : of the picked frames among all, in the same order
    deviations : (frames,) eV/Å, the largest deviation of the force on an atom, of each frame looked at
    n_beyond : frames left out since their deviation was beyond the allowed one
    n_similar : frames left out as near-duplicates, or since members agree exactly, where fewer than wanted were picked
    """

    frames: list[Atoms]
    indices: list[int]
    deviations: _Floats
    n_beyond: int
    n_similar: int


def select_frames(
    calculator: SEGNNCalculator,
    frames: Sequence[Atoms],
    n: int,
    *,
    max_deviation: float | None = None,
    sources: Sequence[str] | None = None,
    on_frame: Callable[[], object] | None = None,
) -> Selection:
    r"""Pick frames, one after another, that have a large deviation and are unlike those picked before.

    Frames of a trajectory resemble their neighbors in time, so that those with the largest deviations are mostly one
    event, many times over, and labeling all of them teaches little. A frame is therefore picked by

    .. math:: \max_i \sigma_i \cdot \min(1, d), \quad d^2 = \frac{1}{N} \sum_a \frac{(\Delta e_a)^2}{2 s_a^2}

    with the deviation :math:`\sigma_i` of the force on atom i and the distance d to the nearest frame picked before.
    Its e are the atom energies (mean of the committee) sorted within each element, s their standard deviations over all
    frames, at least 0.1 meV. Two frames at random have :math:`d^2 = 1` on average, so that deviation alone decides
    between frames that are as different as that; along a trajectory :math:`d^2` is one minus the correlation of two
    frames. Those with d below 0.3 are near-duplicates and never picked.

    Unlike positions, sorted atom energies do not change as structures turn or equal atoms swap; they cost nothing, and
    tell apart what the potential tells apart. Unlike a least number of steps between frames, the distance also finds
    what comes back later, and needs no order of the frames. Frames of different composition are always different.

    Parameters
    ----------
    calculator : of a committee
    frames : evaluated, and not changed
    n : number of frames to pick, at least 1; fewer where there are not so many that differ
    max_deviation : eV/Å; frames beyond it, such as those of a trajectory that exploded, are left out. None takes all
    sources : names of the frames for messages and for "source" in ``info``; by default "frame 0" and so on
    on_frame : called after each frame, for a progress bar

    Raises
    ------
    ValueError
        If the calculator is not one of a committee, `n` or `max_deviation` are not positive, or no frame is left.
    ValueError, RuntimeError
        If the calculator fails for a frame, which the error names.
    """
    if "forces_std" not in calculator.implemented_properties:
        raise ValueError(
            "frames are selected by the disagreement of a committee, and this is a single potential; put potentials "
            "of several seeds into one file with ase_segnn.Committee and ase_segnn.save_potential"
        )
    if n < 1:
        raise ValueError(f"at least 1 frame is selected, got n={n}")
    if max_deviation is not None and not max_deviation > 0:
        raise ValueError(f"max_deviation is in eV/Å, positive, got {max_deviation!r}")
    names = [f"frame {index}" for index in range(len(frames))] if sources is None else sources
    results = []
    for result in predict_named(calculator, list(zip(names, frames, strict=True)), ["forces_std"]):
        results.append({name: result[name] for name in ("energy_std", "energies", "forces_std")})
        if on_frame is not None:
            on_frame()
    deviations = np.array([result["forces_std"].max() for result in results])
    limit = np.inf if max_deviation is None else max_deviation
    allowed = deviations <= limit
    if not (allowed & (deviations > 0)).any():
        raise ValueError(
            f"none of the {len(frames)} frames has a deviation above 0 and up to max_deviation={limit:g} eV/Å"
            + (f"; the smallest is {deviations.min():.3g}" if len(frames) else "")
        )
    novelty = _Novelty(frames, [result["energies"] for result in results], allowed)
    indices: list[int] = []
    while len(indices) < n:
        scores = np.where(allowed, deviations * novelty.values, 0.0)
        best = int(scores.argmax())
        if scores[best] <= 0:
            break
        indices.append(best)
        novelty.pick(best)
    return Selection(
        frames=[_annotated(frames[index], index, names[index], results[index]) for index in indices],
        indices=indices,
        deviations=deviations,
        n_beyond=int((~allowed).sum()),
        n_similar=int(allowed.sum()) - len(indices) if len(indices) < n else 0,
    )


class _Novelty:
    """How unlike all frames picked so far each frame is: `values` (frames,) from 0, a near-duplicate, to 1."""

    def __init__(self, frames: Sequence[Atoms], energies: Sequence[_Floats], allowed: NDArray[np.bool_]) -> None:
        self.values = np.ones(len(frames))
        self._formulas = [frame.get_chemical_formula() for frame in frames]
        indices_of = defaultdict(list)
        for index in np.flatnonzero(allowed).tolist():
            indices_of[self._formulas[index]].append(index)
        self._groups = {}  # by formula: indices of frames, and points in a space whose distances are d
        for formula, indices in indices_of.items():
            ordered = np.array([energies[i][np.lexsort((energies[i], frames[i].numbers))] for i in indices])
            scale = np.sqrt(2 * ordered.shape[1]) * np.maximum(ordered.std(axis=0), _SAME)
            self._groups[formula] = np.array(indices), (ordered - ordered.mean(axis=0)) / scale

    def pick(self, index: int) -> None:
        """Take note that a frame was picked."""
        indices, points = self._groups[self._formulas[index]]
        distances = np.linalg.norm(points - points[np.searchsorted(indices, index)], axis=1)
        novelty = np.where(distances < _NEAR, 0.0, distances)
        self.values[indices] = np.minimum(self.values[indices], novelty)


def _annotated(frame: Atoms, index: int, source: str, result: dict[str, Any]) -> Atoms:
    """Copy a frame without labels, as those it has could be taken for those of the reference method.

    The frame is to be labeled anew: names of labels and their weights in ``info`` and ``arrays`` go, whatever their
    prefix.
    """
    copied: Atoms = frame.copy()
    for values in (copied.info, copied.arrays):
        for name in [name for name in map(str, values) if looks_like_label(name) or weighted_labels(name)]:
            del values[name]
    copied.info |= {
        "source": source,
        "source_index": index,
        "energy_std": result["energy_std"],
        "max_forces_std": float(result["forces_std"].max()),
    }
    copied.arrays["forces_std"] = result["forces_std"].copy()
    return copied
