"""Labels made one after another until there are enough, with what decided them, so that an interruption loses none."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ase_segnn.files import written_whole

from .labeling import LabelFile, NoLabelError
from .walkers import Walkers

logger = logging.getLogger(__name__)

_FEWEST = 10  # labels, and attempts until a reference is given up
_MOST_ATTEMPTS = 3  # per label that is wanted
_LONG = 3600.0  # seconds of labels without a limit of time
_KNOWN_AFTER, _TOLD = 5, 0.1  # labels until their cost is known; share of the labels from one message to the next


@dataclass(frozen=True)
class Collection:
    """A file of labels that is finished.

    Parameters
    ----------
    path : of the file
    n_labels, n_failed : attempts with and without a label
    seconds : that the attempts took
    """

    path: Path
    n_labels: int
    n_failed: int
    seconds: float


def collect(
    path: Path, walkers: Walkers, wanted: int, decisive: Mapping[str, Any], limit: float = math.inf
) -> Collection:
    """Collect labels of walkers in a file; the labels in the file from an interrupted session are the first.

    A JSON file beside the labels says what decided them, and how many attempts there were once they are finished.

    Parameters
    ----------
    path : of the file
    walkers : that have made no attempt yet
    wanted : number of labels
    decisive : what decides the labels, as plain data
    limit : seconds after which labels end early; 10 attempts are made in any case

    Raises
    ------
    ValueError
        If the labels in the file were decided by other data, or there are fewer than 10 in the end.
    """
    file, origin = LabelFile(path), path.with_suffix(".json")
    n_attempts = _compared(origin, decisive) if file.frames else None
    if not file.frames:
        _write(origin, decisive, None)
    for atoms in file.frames:
        walkers.keep(atoms)
    seconds = sum(float(atoms.info["seconds"]) for atoms in file.frames)
    reasons: Counter[str] = Counter()
    while n_attempts is None and not _enough(len(file.frames), walkers.n_attempts, wanted, seconds >= limit):
        began = time.monotonic()
        try:
            walkers.keep(file.append(walkers.attempt()))
        except NoLabelError as error:
            reasons[str(error)] += 1
            seconds += time.monotonic() - began
            continue
        seconds += float(file.frames[-1].info["seconds"])
        _tell(file, walkers, wanted, seconds, limit)
    failures = "failures: " + (", ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) or "none")
    if len(file.frames) < _FEWEST:
        raise ValueError(
            f"{walkers.reference.description} labeled {len(file.frames)} of {walkers.n_attempts} structures, and at "
            f"least {_FEWEST} labels are needed; {failures}; look at the structures, or take another reference"
        )
    if n_attempts is None:
        n_attempts = walkers.n_attempts
        _write(origin, decisive, n_attempts)
    collection = Collection(path, len(file.frames), n_attempts - len(file.frames), seconds)
    level = logging.WARNING if collection.n_failed > collection.n_labels else logging.INFO
    logger.log(level, "labels: %s of %s attempts, %.0f s; %s", len(file.frames), n_attempts, seconds, failures)
    return collection


def _enough(n_labels: int, n_attempts: int, wanted: int, over: bool) -> bool:
    if n_labels >= wanted or n_attempts >= _MOST_ATTEMPTS * wanted:
        return True
    return n_attempts >= _FEWEST and (over or n_labels == 0)


def _tell(file: LabelFile, walkers: Walkers, wanted: int, seconds: float, limit: float) -> None:
    """Log the plan once the cost of an evaluation is known, and the progress from time to time."""
    n_labels = len(file.frames)
    if n_labels == _KNOWN_AFTER:
        cost = float(np.median([atoms.info["seconds"] for atoms in file.frames]))
        planned = cost * walkers.n_evaluations(wanted)
        too_long = math.isinf(limit) and planned > _LONG
        end = f", of which there are {limit:.0f}" * (limit < planned)
        end += "; give the run a time, or want fewer labels" * too_long
        logger.log(
            logging.WARNING if too_long else logging.INFO,
            "plan: %d labels by %s x %.0f ms (an evaluation takes %.3g ms) = %.0f s%s",
            wanted,
            walkers.reference.description,
            1000 * planned / wanted,
            1000 * cost,
            planned,
            end,
        )
    elif n_labels % max(1, round(_TOLD * wanted)) == 0:
        logger.info("%d of %d labels after %.0f s", n_labels, wanted, seconds)


def _compared(path: Path, decisive: Mapping[str, Any]) -> int | None:
    """Return the number of attempts of finished labels, None of others.

    Raises
    ------
    ValueError
        If other data decided the labels.
    """
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = " and ".join(name for name, value in decisive.items() if before["decisive"].get(name) != value)
    if differing:
        raise ValueError(
            f"the labels in '{path.parent}' are of another run, with other {differing}; resume with what it began "
            "with, or start anew with --force or in another folder"
        )
    n_attempts: int | None = before["n_attempts"]
    return n_attempts


def _write(path: Path, decisive: Mapping[str, Any], n_attempts: int | None) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"decisive": decisive, "n_attempts": n_attempts}, indent=1), encoding="utf-8")
