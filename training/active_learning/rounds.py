"""Facts about the rounds of a run of active learning, kept as JSON and shown in the report."""

from __future__ import annotations

from ase_segnn.configuration import Configuration


class Rung(Configuration):
    """Exploration at one temperature.

    Parameters
    ----------
    temperature : K
    picoseconds : of dynamics, all walks together
    n_walks, n_broken : walks, and how many of them ended beyond the upper bound or in a broken structure
    n_seen, n_new : frames whose deviation was computed, and how many of them lay between the bounds
    n_selected : frames sent to the reference
    median_deviation : eV/Å, of the largest deviation in each frame that was seen
    """

    temperature: float
    picoseconds: float
    n_walks: int
    n_broken: int
    n_seen: int
    n_new: int
    n_selected: int = 0
    median_deviation: float


class Round(Configuration):
    """A round: fit of a committee to the labels so far, exploration with it, selection of frames to label next.

    Parameters
    ----------
    number : from 1
    n_labels : frames that the committee learned from or was validated on
    errors : measure -> value on validation frames, the unit is in the measure's name; see `ase_segnn.quantities`
    lower, upper : eV/Å, bounds of the deviation between which a frame is new
    fit_seconds, explore_seconds : duration
    rungs : of the exploration, from cold to hot; none in the last round, which only fits
    """

    number: int
    n_labels: int
    errors: dict[str, float]
    lower: float
    upper: float
    fit_seconds: float
    explore_seconds: float = 0.0
    rungs: tuple[Rung, ...] = ()


class FreshErrors(Configuration):
    """Errors on frames of the final potential's own dynamics at one temperature, labeled when all fits were over.

    Parameters
    ----------
    temperature : K
    n_frames, n_failed : frames with a label, and frames without
    errors : measure -> value, the unit is in the measure's name
    expected : eV/Å, root mean square deviation of a force component between the members of the committee
    """

    temperature: float
    n_frames: int
    n_failed: int
    errors: dict[str, float]
    expected: float | None
