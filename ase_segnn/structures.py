"""Structures from files, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import ase.io
from ase import Atoms


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
        If ASE cannot read it, or it holds no structure.
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
    return frames


def read_structure(source: str | Path) -> Atoms:
    """Read one structure, the last where a file has several; arguments and errors as of `read_structures`."""
    return read_structures(source)[-1]
