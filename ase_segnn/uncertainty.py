"""The limit on how far a committee may disagree about forces, and what happens beyond it."""

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
    """The members of a committee disagree about the force on an atom by more than is allowed."""


class DeviationLimit:
    """Looks at every evaluation, and warns of deviations beyond the limit or stops there.

    Warnings come for the 1st, 10th, 100th, ... structure beyond the limit, each with the number so far and the largest
    deviation: a long run logs some lines, not one at each step.

    Parameters
    ----------
    max_deviation : eV/Å, of the force on an atom
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
        """Look at the deviations (N,), eV/Å, of one evaluation.

        Raises
        ------
        UncertaintyError
            If one is beyond the limit and it is to stop there.
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
