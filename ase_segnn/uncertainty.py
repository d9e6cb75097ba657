"""A limit on how far a committee may disagree about forces."""

from __future__ import annotations

import logging
import math
from typing import Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn.checks import named

_log = logging.getLogger(__name__)


class UncertaintyError(RuntimeError):
    """The members of a committee disagree about the force on an atom by more than `max_deviation`."""


class DeviationLimit:
    """A limit on the deviation of forces, checked at each evaluation: warns or stops above it.

    Warnings come for the 1st, 10th, 100th, ... structure above the limit, with the number so far and the largest
    deviation. So a long run logs a few lines instead of one at each step.

    Parameters
    ----------
    max_deviation : eV/Å, largest allowed deviation of the force on an atom
    on_deviation : "warn" logs, "stop" raises

    Raises
    ------
    ValueError
        If an argument has a value that is not allowed.
    """

    def __init__(self, max_deviation: float, on_deviation: Literal["warn", "stop"]) -> None:
        if not (math.isfinite(max_deviation) and max_deviation > 0):
            raise ValueError(
                f"max_deviation is the largest deviation of a force in eV/Å, positive, got {max_deviation!r}; a few "
                "times the deviations for structures like the training data is a start"
            )
        if on_deviation not in {"warn", "stop"}:
            raise ValueError(f"on_deviation is 'warn' or 'stop', got {on_deviation!r}")
        self._limit, self._stops = float(max_deviation), on_deviation == "stop"
        self._n_looked_at = self._n_beyond = 0
        self._next_warning = 1
        self._largest = 0.0

    def check(self, atoms: Atoms, forces_std: NDArray[np.float64]) -> None:
        """Check the deviations (N,) in eV/Å of one evaluation.

        Raises
        ------
        UncertaintyError
            If a deviation is above the limit and `on_deviation` is "stop".
        """
        self._n_looked_at += 1
        largest = float(forces_std.max())
        if largest <= self._limit:
            return
        beyond = (
            f"the committee disagrees about the forces on {named(atoms, forces_std > self._limit)} by up to "
            f"{largest:.3g} eV/Å, more than max_deviation={self._limit:g}"
        )
        advice = "label such structures with the reference method and train on them too, or allow a larger deviation"
        if self._stops:
            raise UncertaintyError(f"{beyond}; {advice}")
        self._n_beyond += 1
        self._largest = max(self._largest, largest)
        if self._n_beyond == self._next_warning:
            self._next_warning *= 10
            _log.warning(
                "%s; %d of %d evaluations so far, largest %.3g eV/Å, next warning at %d; %s",
                beyond, self._n_beyond, self._n_looked_at, self._largest, self._next_warning, advice,
            )  # fmt: skip
