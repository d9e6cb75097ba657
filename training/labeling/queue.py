"""A queue of structures to label, whose labels and failures are on the disk the moment they are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
from ase import Atoms

from .labeling import LabelFile
from .workers import Attempt, Labelers

_FEWEST = 10  # attempts until a reference is given up


def label_queue(
    queue: Sequence[Atoms],
    labels: LabelFile,
    failed: LabelFile,
    labelers: Labelers,
    on_attempt: Callable[[Attempt], object] | None = None,
    *,
    gives_up: bool = True,
) -> None:
    """Label the structures of a queue that are in neither of two files, and append each to one of them.

    Use `label_queue` again with the same arguments to go on after an interruption at any instant.

    Parameters
    ----------
    queue : structures with a number of their own as "id" in ``info``
    labels : gets the labeled structures, with "seconds" in ``info`` beside what was there
    failed : gets the structures without a label, with "reason" in ``info``
    labelers : that label
    on_attempt : called after each structure, for a progress bar
    gives_up : whether it is an error if the first 10 structures of all get no label

    Raises
    ------
    ValueError
        If an "id" is missing or occurs twice, or if the first 10 structures of all get no label and `gives_up`.
    RuntimeError
        If no process of the reference can be started.
    OSError
        If a file cannot be written.
    """
    numbers = _numbers(queue)
    done = {int(atoms.info["id"]) for atoms in (*labels.frames, *failed.frames)}
    missing = [atoms for number, atoms in zip(numbers, queue, strict=True) if number not in done]
    with closing(labelers.label(missing)) as attempts:
        for index, attempt in attempts:
            if attempt.atoms is not None:
                attempt.atoms.info["seconds"] = attempt.seconds
                labels.append(attempt.atoms)
            else:
                bare = missing[index].copy()
                bare.info["reason"] = attempt.reason
                failed.append(bare)
            if on_attempt is not None:
                on_attempt(attempt)
            if gives_up and not labels.frames and len(failed.frames) >= _FEWEST:
                raise ValueError(
                    f"{labelers.reference.description} labeled none of the first {len(failed.frames)} structures; "
                    f"failures: {tell_reasons(reasons_of(failed))}; look at the structures, or take another reference"
                )


def reasons_of(failed: LabelFile) -> Counter[str]:
    """Count why structures got no label."""
    return Counter(str(atoms.info["reason"]) for atoms in failed.frames)


def tell_reasons(reasons: Counter[str]) -> str:
    """Return the most frequent reasons in one line.

    >>> tell_reasons(Counter(["no license", "forces not finite", "no license"]))
    '2 x no license, 1 x forces not finite'
    """
    return ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) or "none"


def _numbers(queue: Sequence[Atoms]) -> list[int]:
    numbers: list[int] = []
    for atoms in queue:
        number = atoms.info.get("id")
        if not isinstance(number, int | np.integer):
            raise ValueError(f"structures to label have an 'id' in info, a whole number each; got {number!r}")  # noqa: TRY004
        numbers.append(int(number))
    twice = [number for number, n in Counter(numbers).items() if n > 1]
    if twice:
        raise ValueError(f"structures to label have an 'id' in info, each its own; {twice[0]} occurs twice")
    return numbers
