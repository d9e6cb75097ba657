"""Caches: bounded folders below the user's cache folder, with files that may be lost without harm."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from ase_segnn.files import reason_of

logger = logging.getLogger(__name__)

# Name of each cache -> the most bytes it keeps.
MOST_BYTES = {
    "compiled": 256 * 2**20,  # libraries made of generated C++
    "graphs": 4 * 2**30,  # frames and graphs of training data
    "trajectories": 2**30,  # of simulated particles, see ase_segnn.training.particles
    "downloads": 2**30,  # public data
}
_IN_USE = 3600.0  # seconds; no file is trimmed so soon after its last use, since a process may have it open
_chosen: dict[Path, Path] = {}  # wanted folder -> folder in use, for the life of the process


@dataclass(frozen=True)
class CacheEntry:
    """A file in a cache.

    Parameters
    ----------
    path : of the file
    n_bytes : size of the file
    last_use : time in seconds since the epoch, see `Cache.touch`
    """

    path: Path
    n_bytes: int
    last_use: float


class Cache:
    """A bounded folder of files, ``<user cache>/ase-segnn/<name>``, open to the user alone.

    Put files here that can be made again, and call `trim` afterwards. The user's cache folder is `user_cache_folder`.
    Several processes may use one cache. A name that starts with a dot marks a file being written, as
    `ase_segnn.files.written_whole` names it.

    Parameters
    ----------
    name : of the folder
    most_bytes : limit of `trim`; default: the limit in `MOST_BYTES`
    """

    def __init__(self, name: str, most_bytes: int | None = None) -> None:
        self.name = name
        self.most_bytes = MOST_BYTES[name] if most_bytes is None else most_bytes

    def __repr__(self) -> str:
        return f"Cache('{self.name}', most_bytes={self.most_bytes})"

    @property
    def wanted_folder(self) -> Path:
        """Folder to use, unless it cannot be made private; need not exist."""
        return user_cache_folder() / "ase-segnn" / self.name

    @property
    def folder(self) -> Path:
        """Folder in use: exists, belongs to the current user, and is open to nobody else (mode 0700).

        Usually `wanted_folder`. If `wanted_folder` cannot be made private, a folder inside a temporary one, with one
        warning in the log. The temporary folder is removed when the process ends. A forked process uses the temporary
        folder of its parent.

        Raises
        ------
        OSError
            If no temporary folder can be made either.
        """
        wanted = self.wanted_folder
        root = _in_use(wanted.parent)
        if root == wanted.parent:
            return _in_use(wanted)
        folder = root / self.name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def is_temporary(self) -> bool:
        """Whether the folder is removed when this process ends."""
        return self.folder != self.wanted_folder

    def entries(self) -> list[CacheEntry]:
        """Return all files, longest unused first."""
        entries = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):  # another process may have removed it
                    status = path.lstat()
                    entries.append(CacheEntry(path, status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry.last_use)

    @staticmethod
    def touch(path: Path) -> None:
        """Note that a file is used now, so that `trim` keeps it."""
        with suppress(OSError):  # another process may have removed it
            os.utime(path)

    def trim(self, keep: Collection[Path] = ()) -> tuple[int, int]:
        """Remove the longest unused files until at most `most_bytes` are left; files used in the last hour stay.

        Parameters
        ----------
        keep : files to keep in any case

        Returns
        -------
        number of removed files and of removed bytes
        """
        entries = self.entries()
        excess = sum(entry.n_bytes for entry in entries) - self.most_bytes
        outdated = []
        for entry in entries:
            if excess <= 0:
                break
            if entry.path not in keep and not _is_recent(entry):
                outdated.append(entry)
                excess -= entry.n_bytes
        return _remove(outdated)

    def empty(self) -> tuple[int, int]:
        """Remove all files but files being written; return the number of removed files and of removed bytes.

        A process with an open file can still read the contents.
        """
        return _remove(entry for entry in self.entries() if not (entry.path.name[0] == "." and _is_recent(entry)))


def user_cache_folder() -> Path:
    """Return the folder for caches of the current user, which need not exist.

    ``$XDG_CACHE_HOME`` if set to an absolute path; otherwise ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS and
    ``%LOCALAPPDATA%`` on Windows.
    """
    for variable in ("XDG_CACHE_HOME", *(("LOCALAPPDATA",) if sys.platform == "win32" else ())):
        given = os.environ.get(variable, "")
        if Path(given).is_absolute():
            return Path(given)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() is an error where there is none
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def _in_use(wanted: Path) -> Path:
    """Return `wanted`, or the folder that this process uses instead."""
    folder = _chosen.get(wanted)
    if folder is None or not folder.is_dir():
        folder = _chosen[wanted] = _usable(wanted)
    return folder


def _usable(wanted: Path) -> Path:
    """Return `wanted`, made private, or a new temporary folder if that fails."""
    try:
        _make_private(wanted)
    except OSError as error:
        reason = reason_of(error)
    else:
        return wanted
    try:
        folder = Path(tempfile.mkdtemp(prefix="ase-segnn-"))
    except OSError as error:
        raise OSError(
            error.errno,
            f"this cache folder cannot be used ({reason}), and no temporary folder can be made ({reason_of(error)}); "
            "set XDG_CACHE_HOME to a folder of yours that can be written",
            str(wanted),
        ) from error
    # Finalize runs in this process, even if multiprocessing forked it, but in no process forked from it.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    logger.warning(
        "the cache folder '%s' cannot be used (%s); this process keeps such files in '%s' until its end; set "
        "XDG_CACHE_HOME to a folder of yours that can be written",
        wanted,
        reason,
        folder,
    )
    return folder


def _make_private(folder: Path) -> None:
    """Make a folder for the current user alone.

    Raises
    ------
    OSError
        If the folder cannot be made or written, belongs to another user, or could be replaced by another user.
    """
    if not folder.is_absolute():
        raise FileNotFoundError("this user has no home folder")
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid"):  # not on Windows
        _check_owner(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_owner(folder: Path) -> None:
    user = os.geteuid()
    for owner in (folder.lstat().st_uid, folder.stat().st_uid):  # of a link, and of its target
        if owner != user:
            raise PermissionError(f"'{folder}' belongs to user {owner}, and this is user {user}")
    above = folder.resolve().parent
    if _is_open_to_others(above, stat.S_IWOTH) and not above.stat().st_mode & stat.S_ISVTX:
        raise PermissionError(f"everybody may replace '{folder}', since everybody may write to '{above}'")
    if _is_open_to_others(folder, stat.S_IRWXG | stat.S_IRWXO):
        with suppress(OSError):
            folder.chmod(0o700)
        if _is_open_to_others(folder, stat.S_IWGRP | stat.S_IWOTH):  # some file systems have no modes
            raise PermissionError(f"others may write to '{folder}', and its mode cannot be changed")


def _is_open_to_others(folder: Path, permissions: int) -> bool:
    return bool(folder.stat().st_mode & permissions)


def _is_recent(entry: CacheEntry) -> bool:
    return abs(time.time() - entry.last_use) < _IN_USE  # clocks of file servers may be ahead


def _remove(entries: Iterable[CacheEntry]) -> tuple[int, int]:
    n_files, n_bytes = 0, 0
    for entry in entries:
        with suppress(OSError):  # another process was faster, or has it open on Windows
            entry.path.unlink()
            n_files, n_bytes = n_files + 1, n_bytes + entry.n_bytes
    return n_files, n_bytes
