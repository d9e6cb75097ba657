"""Selection of frames to label next: a committee disagrees about them, and they differ from one another."""

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
from ase_segnn.labels import without_labels

_Floats = NDArray[np.float64]
_NEAR = 0.3  # distance of near-duplicates, frames with a correlation of 1 - 0.3² or more
_SAME = 1e-4  # eV, differences of atom energies by rounding and noise


@dataclass(frozen=True, eq=False)
class Selection:
    """Frames selected by `select_frames`, with the deviations of all frames.

    Write `frames` to a file and label them with the reference method.

    Parameters
    ----------
    frames : copies of the selected frames, the most valuable first, without calculator and without anything that could
        be taken for a label. In ``info``: "source" and "source_index" (index among all frames), "energy_std" (eV) and
        "max_forces_std" (eV/Å); in ``arrays``: "forces_std" (N,) eV/Å
    indices : of the selected frames among all frames, in the same order
    deviations : (all frames,) eV/Å, largest deviation of the force on an atom of each frame
    n_beyond : number of frames left out for a deviation above `max_deviation`
    n_similar : if fewer frames than wanted are selected: number of frames left out as near-duplicates, or because
        members agree exactly
    """

    frames: list[Atoms]
    indices: list[int]
    deviations: _Floats
    n_beyond: int
    n_similar: int


def select_frames(
    calculator: SEGNNCalculator,
    frames: Sequence[Atoms],
    number: int,
    *,
    max_deviation: float | None = None,
    sources: Sequence[str] | None = None,
    on_frame: Callable[[], object] | None = None,
) -> Selection:
    r"""Select frames to label next, by the deviation of a committee and the distance to frames selected before.

    Use `select_frames` after dynamics with a committee. The frames with the largest deviations alone are mostly one
    event many times over, because frames of a trajectory resemble their neighbors in time. Frames are selected one
    after another, each time the one with the largest

    .. math:: \max_i \sigma_i \cdot \min(1, d), \quad d^2 = \frac{1}{N} \sum_a \frac{(\Delta e_a)^2}{2 s_a^2}

    Here :math:`\sigma_i` is the deviation of the force on atom i, and d the distance to the nearest frame selected
    before. e are the atom energies (mean of the committee), sorted within each element, and s their standard deviations
    over all frames, at least 0.1 meV. Two random frames have :math:`d^2 = 1` on average; between frames at least as
    different, the deviation alone decides. Along a trajectory :math:`d^2` is one minus the correlation of two frames. A
    frame with d below 0.3 is a near-duplicate and is never selected.

    Sorted atom energies cost nothing, and do not change when structures turn or equal atoms swap. The distance also
    finds events that come back later, as a least number of steps between frames would not, and needs no order of the
    frames. Frames of different composition always count as different.

    Parameters
    ----------
    calculator : of a committee
    frames : not changed
    number : of frames to select, at least 1; fewer are selected if fewer differ
    max_deviation : eV/Å; frames with a larger deviation, such as those of an explosion, are left out; default: none
    sources : names of the frames for messages and for "source" in ``info``; default: "frame 0" and so on
    on_frame : called after each frame, for a progress bar

    Raises
    ------
    ValueError
        If the calculator has no committee, if `number` or `max_deviation` is not positive, or if no frame is left.
    ValueError, RuntimeError
        If the calculator fails for a frame; the error names the frame.
    """
    if "forces_std" not in calculator.implemented_properties:
        raise ValueError(
            "frames are selected by the disagreement of a committee, and this is a single potential; put potentials "
            "of several seeds into one file with ase_segnn.Committee and ase_segnn.save_potential"
        )
    if number < 1:
        raise ValueError(f"at least 1 frame is selected, got number={number}")
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
    while len(indices) < number:
        scores = np.where(allowed, deviations * novelty.values, 0.0)
        best = int(scores.argmax())
        if scores[best] <= 0:
            break
        indices.append(best)
        novelty.select(best)
    return Selection(
        frames=[_annotated(frames[index], index, names[index], results[index]) for index in indices],
        indices=indices,
        deviations=deviations,
        n_beyond=int((~allowed).sum()),
        n_similar=int(allowed.sum()) - len(indices) if len(indices) < number else 0,
    )


class _Novelty:
    """Novelty of each frame beside all frames selected so far.

    Attributes
    ----------
    values : (frames,) from 0, a near-duplicate, to 1
    """

    def __init__(self, frames: Sequence[Atoms], energies: Sequence[_Floats], allowed: NDArray[np.bool_]) -> None:
        self.values = np.ones(len(frames))
        self._formulas = [frame.get_chemical_formula() for frame in frames]
        indices_of = defaultdict(list)
        for index in np.flatnonzero(allowed).tolist():
            indices_of[self._formulas[index]].append(index)
        self._groups = {}  # formula -> indices of frames, and points with the distances d
        for formula, indices in indices_of.items():
            ordered = np.array([energies[i][np.lexsort((energies[i], frames[i].numbers))] for i in indices])
            scale = np.sqrt(2 * ordered.shape[1]) * np.maximum(ordered.std(axis=0), _SAME)
            self._groups[formula] = np.array(indices), (ordered - ordered.mean(axis=0)) / scale

    def select(self, index: int) -> None:
        """Lower the novelty of all frames near a selected one."""
        indices, points = self._groups[self._formulas[index]]
        distances = np.linalg.norm(points - points[np.searchsorted(indices, index)], axis=1)
        novelty = np.where(distances < _NEAR, 0.0, distances)
        self.values[indices] = np.minimum(self.values[indices], novelty)


def _annotated(frame: Atoms, index: int, source: str, result: dict[str, Any]) -> Atoms:
    """Copy a frame without labels, which could be taken for those of the reference; note source and deviations."""
    copied = without_labels(frame)
    copied.info |= {
        "source": source,
        "source_index": index,
        "energy_std": result["energy_std"],
        "max_forces_std": float(result["forces_std"].max()),
    }
    copied.arrays["forces_std"] = result["forces_std"].copy()
    return copied
