"""Outcomes of physical checks: one word, and plain sentences that say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check, in one word and in plain sentences."""

    name: str
    outcome: Outcome
    statement: str
