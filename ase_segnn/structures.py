"""Structures from files, with errors that name the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
from ase import Atoms

from ase_segnn.labels.survey import SomeFrames
from ase_segnn.labels.values import explain_lost_cell, lost_cell


def read_structures(source: str | Path) -> list[Atoms]:
    """Read all structures of a file in any format that ASE knows.

    Parameters
    ----------
    source : path; ``file@index`` selects as in ASE, ``md.traj@-1`` is the last structure, ``md.traj@::10`` each tenth

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If ASE cannot read it, it holds no structure, or crystals in it lost their cell.
    """
    path, _, selection = str(source).partition("@")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        frames = ase.io.read(path, selection or ":")
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise ValueError(f"ASE cannot read '{source}': {error}") from error
    frames = [frames] if isinstance(frames, Atoms) else list(frames)
    if not frames:
        raise ValueError(f"'{source}' holds no structures")
    lost: dict[str, SomeFrames] = {}
    for name, atoms in name_structures(source, frames):
        key = lost_cell(atoms)
        if key is not None:
            lost.setdefault(explain_lost_cell(key, atoms), SomeFrames()).add(name)
    if lost:
        raise ValueError("; ".join(f"{names} {names.tell(text)}" for text, names in lost.items()))
    return frames


def read_structure(source: str | Path) -> Atoms:
    """Read one structure, the last where a file has several; arguments and errors as of `read_structures`."""
    return read_structures(source)[-1]


def name_structures(source: str | Path, structures: Sequence[Atoms]) -> list[tuple[str, Atoms]]:
    """Give structures that `read_structures` read the names ``file@index``, with the index in the file.

    >>> [name for name, _ in name_structures("md.traj@10:16:5", [Atoms(), Atoms()])]
    ['md.traj@10', 'md.traj@15']
    """
    path, _, selection = ("", "", "") if Path(source).is_file() else str(source).rpartition("@")
    path, parts = (path, selection.split(":")) if path else (str(source), [""])
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:  # a query of a database has no indices
        return [(f"{path}@{selection}, structure {index}", atoms) for index, atoms in enumerate(structures)]
    if len(numbers) == 1 and numbers[0] is not None:
        numbers = [numbers[0], numbers[0] + 1 or None]
    chosen = slice(*numbers) if len(numbers) > 1 else slice(None)
    from_end = any(number is not None and number < 0 for number in numbers)
    total = len(ase.io.read(path, ":")) if from_end else sys.maxsize
    return [(f"{path}@{index}", atoms) for index, atoms in zip(range(*chosen.indices(total)), structures, strict=False)]
