"""Structures from files, selected by texts such as ``md.traj@::10``; errors name file and structure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from ase_segnn.builders import built, is_built
from ase_segnn.labels.survey import SomeFrames
from ase_segnn.labels.values import explain_lost_cell, lost_cell

_Item = TypeVar("_Item")
_NUMBER, _SLICE = re.compile(r"[+-]?\d+"), re.compile(r"([+-]?\d+)?:([+-]?\d+)?(:([+-]?\d+)?)?")


def split_source(source: str | Path, exists: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """Split ``file@selection`` into path and selection; without a selection, the second is "".

    If the whole text is a path that exists, there is no selection. Otherwise the last ``@`` splits, if a number or a
    slice follows. A ``~`` at the beginning is the home folder.

    Parameters
    ----------
    source : such as ``md.traj@-1``, ``md.traj@::10`` or ``me@there/md.traj``
    exists : tells whether a path exists; default: from the working directory

    >>> split_source("me@there/md.traj@::10")
    ('me@there/md.traj', '::10')
    >>> split_source("me@there/md.traj")
    ('me@there/md.traj', '')
    """
    text = str(source)
    if text.startswith("~"):
        text = str(Path(text).expanduser())
    path, at, selection = text.rpartition("@")
    is_selection = bool(at and path) and bool(_NUMBER.fullmatch(selection) or _SLICE.fullmatch(selection))
    if not is_selection or (exists or _exists)(text):
        return text, ""
    return path, selection


def to_slice(selection: str) -> slice:
    """Return a selection as a slice of the structures of a file; "" selects all.

    Raises
    ------
    ValueError
        If the step is zero.
    """
    if not selection:
        return slice(None)
    if _NUMBER.fullmatch(selection):
        index = int(selection)
        return slice(index, index + 1 or None)
    parts = [int(part) if part else None for part in selection.split(":")]
    if len(parts) == 3 and parts[2] == 0:
        raise ValueError(f"the selection '@{selection}' has a step of 0; give another, such as @::10")
    return slice(*parts)


def selected(items: Iterable[_Item], selection: str, path: str | Path) -> Iterator[_Item]:
    """Yield the selected items of an iterable, reading no more of it than needed.

    >>> list(selected("abcdef", "1::2", "letters.xyz"))
    ['b', 'd', 'f']

    Parameters
    ----------
    items : one per structure of a file, in order
    selection : as of `to_slice`
    path : of the file, for messages

    Raises
    ------
    ValueError
        If nothing is selected.
    """
    wanted = to_slice(selection)
    if _counts_from_end(wanted):
        chosen = iter(list(items)[wanted])
    else:
        chosen = islice(items, wanted.start, wanted.stop, wanted.step)
    n_chosen = 0
    for item in chosen:
        yield item
        n_chosen += 1
    if n_chosen == 0 and selection:
        raise ValueError(f"'{path}' has no structure that '@{selection}' selects")


def read_numbered(source: str | Path) -> list[tuple[int, Atoms]]:
    """Read structures from a file in any format of ASE, each with its number in the file, from 0; or build one.

    Parameters
    ----------
    source : path, or ``file@selection`` as in ASE: ``md.traj@-1`` is the last structure, ``md.traj@::10`` each tenth;
        see `split_source`. Or ``bulk:Si``, ``molecule:H2O``, ``smiles:CCO``; see `ase_segnn.builders.built`

    Raises
    ------
    ImportError
        If RDKit is missing for a SMILES.
    FileNotFoundError, IsADirectoryError
        If there is no such file.
    ValueError
        If ASE cannot read the file, no structure is in it or selected, or crystals in it lost their cell; or the
        structure cannot be built.
    """
    if is_built(str(source)):
        return [(0, built(str(source)))]
    text, selection = split_source(source)
    path, wanted = Path(text), to_slice(selection)
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; give a file of structures")
    if not path.is_file():
        raise FileNotFoundError(_not_found(text))
    if path.stat().st_size == 0:
        raise ValueError(f"'{path}' is empty")
    if _counts_from_end(wanted):
        frames = list(enumerate(_read(path, slice(None))))
        chosen, n_frames = frames[wanted], str(len(frames))
    else:
        numbers = range(wanted.start or 0, 10**18, wanted.step or 1)
        chosen = list(zip(numbers, _read(path, wanted), strict=False))
        n_frames = "fewer"
    if not chosen:
        what = f"no structure that '@{selection}' selects; it holds {n_frames}" if selection else "no structures"
        raise ValueError(f"'{path}' has {what}")
    lost: dict[str, SomeFrames] = {}
    for number, atoms in chosen:
        key = lost_cell(atoms)
        if key is not None:
            lost.setdefault(explain_lost_cell(key, atoms), SomeFrames()).add(f"{path}@{number}")
    if lost:
        raise ValueError("; ".join(f"{names} {names.tell(what)}" for what, names in lost.items()))
    return chosen


def read_named(source: str | Path) -> list[tuple[str, Atoms]]:
    """Read structures from a file, each with its name ``file@number``; argument and errors as of `read_numbered`."""
    path = str(source) if is_built(str(source)) else split_source(source)[0]
    return [(f"{path}@{number}", atoms) for number, atoms in read_numbered(source)]


def read_structures(source: str | Path) -> list[Atoms]:
    """Read structures from a file; argument and errors as of `read_numbered`."""
    return [atoms for _, atoms in read_numbered(source)]


def read_structure(source: str | Path) -> Atoms:
    """Read the last selected structure of a file; argument and errors as of `read_numbered`."""
    return read_structures(source)[-1]


def check_writable_format(path: Path) -> None:
    """Refuse the name of a file if ASE cannot tell its format or cannot write it.

    Raises
    ------
    ValueError
    """
    try:
        known = ioformats[filetype(str(path), read=False)].can_write
    except (UnknownFileTypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"ASE writes no structures to files such as '{path}'; choose a name that ends in .xyz or .cif")


def _exists(text: str) -> bool:
    return Path(text).exists()


def _counts_from_end(wanted: slice) -> bool:
    return any(part is not None and part < 0 for part in (wanted.start, wanted.stop, wanted.step))


def _read(path: Path, wanted: slice) -> list[Atoms]:
    try:
        frames = ase.io.read(path.absolute(), wanted, format=_format(path), do_not_split_by_at_sign=True)
    except UnknownFileTypeError as error:
        raise ValueError(
            f"ASE cannot read '{path}': neither its name nor its first lines tell the format; name it as its format "
            "wants, such as .xyz, .traj, .cif or POSCAR"
        ) from error
    except Exception as error:  # ASE's readers raise whatever they stumble over
        raise ValueError(f"ASE cannot read '{path}': {_one_line(error)}") from error
    return [frames] if isinstance(frames, Atoms) else list(frames)


def _format(path: Path) -> str | None:
    """Return the format of a file such as ``frames.xyz@old``, whose suffix ASE does not know; None for other files."""
    name, at, _ = path.name.partition("@")
    if not at or not name or path.suffix == Path(name).suffix:
        return None
    try:
        return filetype(name, read=False)
    except UnknownFileTypeError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or f"its reader ends in {type(error).__name__}"


def _not_found(text: str) -> str:
    path, at, selection = text.rpartition("@")
    if at and Path(path).is_file():
        return f"there is no file '{text}', and '{selection}' selects nothing of '{path}': write @-1, @10: or @::10"
    return f"there is no file '{text}'"
