"""The plan of a run: how time and labels are shared among rounds, the final fit and the check."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import LearnSettings

_GROWTH = 1.0  # labels of a round, as a share of those before, if there is time for so many rounds
_FEWEST = 10  # labels of a round
_FINAL, _DYNAMICS = 0.6, 0.07  # shares of the time: final fit and check, dynamics of the check
_OF_FIT = 0.7  # of the time of a round
_WITHOUT_LIMIT = 3600.0  # seconds beside the labels
_REPORT = 40.0  # seconds
_TIMES_OVERHEAD, _MOST_OVERHEAD = 4.0, 0.5  # a round takes as many times its overhead; of a round
_LEAST_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """Shares of time and labels, from what is known so far.

    Parameters
    ----------
    settings : of the run
    cost : seconds of a label, median
    used : seconds so far
    labeling : seconds of them that went into labels, as the clock on the wall has it
    n_labels : labels to learn from so far
    overhead : seconds of a round beside fit and exploration, for the start of processes
    """

    settings: LearnSettings
    cost: float
    used: float
    labeling: float
    n_labels: int
    overhead: float = 10.0

    @property
    def max_time(self) -> float:
        """Seconds of the whole run."""
        return self.settings.max_time or _WITHOUT_LIMIT + self.seconds_of(self.settings.labels)

    @property
    def n_learned(self) -> int:
        """Number of labels to learn from at the end."""
        return self.settings.labels - self.settings.n_fresh

    @property
    def n_rounds_left(self) -> int:
        """Number of rounds until there are enough labels: each doubles them, in short runs more."""
        if self.n_labels >= self.n_learned:
            return 0
        enough = math.ceil(math.log(self.n_learned / max(1, self.n_labels)) / math.log(1 + _GROWTH))
        worthwhile = math.floor(self._for_rounds / max(_TIMES_OVERHEAD * self.overhead, 1e-9))
        return max(1, min(enough, worthwhile))

    @property
    def n_next(self) -> int:
        """Number of labels for the next round: as many as are left and as time allows, none when it is spent."""
        if self.n_rounds_left == 0 or self.round_seconds <= _LEAST_SECONDS:
            return 0
        growth: float = (self.n_learned / max(1, self.n_labels)) ** (1 / self.n_rounds_left) - 1
        wanted = min(max(_FEWEST, round(growth * self.n_labels)), self.n_learned - self.n_labels)
        left = self.max_time - self.used - self._final - self.seconds_of(self.settings.n_fresh)
        affordable = math.floor(left / max(self.seconds_of(1), 1e-9))
        return max(0, min(wanted, affordable))

    @property
    def round_seconds(self) -> float:
        """Seconds of fit and exploration in the next round."""
        share = self._for_rounds / max(1, self.n_rounds_left)
        return share - min(self.overhead, _MOST_OVERHEAD * share)

    @property
    def fit_seconds(self) -> float:
        """Seconds of the fit in the next round."""
        return max(_LEAST_SECONDS, _OF_FIT * self.round_seconds)

    @property
    def explore_seconds(self) -> float:
        """Seconds of the exploration in the next round."""
        return max(_LEAST_SECONDS, (1 - _OF_FIT) * self.round_seconds)

    @property
    def dynamics_seconds(self) -> float:
        """Seconds of the dynamics of the final potential."""
        return max(_LEAST_SECONDS, _DYNAMICS * self._without_labels)

    @property
    def final_seconds(self) -> float:
        """Seconds of the final fit: all that is left, but for the check and the report."""
        check = self.dynamics_seconds + self.seconds_of(self.settings.n_fresh) + self._report
        return max(_LEAST_SECONDS, self.max_time - self.used - self.overhead - check)

    def seconds_of(self, n_labels: int) -> float:
        """Return how long labels take."""
        return self.cost * n_labels / self.settings.workers

    @property
    def _without_labels(self) -> float:
        return max(_LEAST_SECONDS, self.max_time - self.seconds_of(self.settings.labels))

    @property
    def _for_rounds(self) -> float:
        return (1 - _FINAL) * self._without_labels - (self.used - self.labeling)

    @property
    def _report(self) -> float:
        return min(_REPORT, 0.1 * self.max_time)

    @property
    def _final(self) -> float:
        return _FINAL * self._without_labels

    def told(self) -> str:
        """Say the plan in one line."""
        n, labels = self.n_rounds_left, self.seconds_of(self.settings.labels)
        return (
            f"{self.settings.labels} labels of {_duration(self.cost)} each, {_duration(labels)} in all; "
            f"{n} rounds of {_duration(self.fit_seconds)} for fits and {_duration(self.explore_seconds)} for walks; "
            f"{_duration(max(0.0, self._final - self.dynamics_seconds))} for the final fit and "
            f"{_duration(self.dynamics_seconds)} for its check: {_duration(self.max_time)}"
        )


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
