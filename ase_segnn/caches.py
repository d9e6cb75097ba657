"""Caches: folders of files below the user's cache folder, all of which may be lost without harm."""

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

# Kinds of caches -> most bytes that each of them keeps.
MOST_BYTES = {
    "compiled": 256 * 2**20,  # libraries made of generated C++
    "graphs": 4 * 2**30,  # frames and graphs of training data
    "trajectories": 2**30,  # of simulated particles, see ase_segnn.training.particles
    "downloads": 2**30,  # public data
}
_IN_USE = 3600.0  # seconds since the last use during which no file is trimmed, since a process may have it open
_chosen: dict[Path, Path] = {}  # folder that was wanted -> folder in use, for the life of the process


@dataclass(frozen=True)
class CacheEntry:
    """A file in a cache.

    Parameters
    ----------
    path : of the file
    n_bytes : its size
    last_use : seconds since the epoch, see `Cache.touch`
    """

    path: Path
    n_bytes: int
    last_use: float


class Cache:
    """A bounded folder of files that may be lost without harm: ``<user cache>/ase-segnn/<name>``.

    The user's cache folder is `user_cache_folder`. Several processes may use one cache. Files that are being written
    have names that start with a dot, as those of `ase_segnn.files.written_whole`.

    Parameters
    ----------
    name : of the folder
    most_bytes : that `trim` leaves; by default those of `MOST_BYTES`
    """

    def __init__(self, name: str, most_bytes: int | None = None) -> None:
        self.name = name
        self.most_bytes = MOST_BYTES[name] if most_bytes is None else most_bytes

    def __repr__(self) -> str:
        return f"Cache('{self.name}', most_bytes={self.most_bytes})"

    @property
    def wanted_folder(self) -> Path:
        """Folder that is used if it can be."""
        return user_cache_folder() / "ase-segnn" / self.name

    @property
    def folder(self) -> Path:
        """Folder in use, which exists, belongs to the current user and is open to nobody else (mode 0700).

        Where `wanted_folder` cannot be that, this is in a temporary folder of the process, which is removed when the
        process ends, and one warning is logged. A forked process goes on with the temporary folder of its parent.

        Raises
        ------
        OSError
            If there is no place for a temporary folder either.
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
        """Whether the folder ends with this process."""
        return self.folder != self.wanted_folder

    def entries(self) -> list[CacheEntry]:
        """Return all files, those unused for longest first."""
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
        """Take note that a file is used now."""
        with suppress(OSError):  # another process may have removed it
            os.utime(path)

    def trim(self, keep: Collection[Path] = ()) -> tuple[int, int]:
        """Remove files unused for longest until at most `most_bytes` are left, without those used in the last hour.

        Parameters
        ----------
        keep : files that stay in any case

        Returns
        -------
        number of files and of bytes removed
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

    def clear(self) -> tuple[int, int]:
        """Remove all files, without those that a process is writing; return the number of files and of bytes removed.

        A process that has a file open keeps its contents.
        """
        return _remove(entry for entry in self.entries() if not (entry.path.name[0] == "." and _is_recent(entry)))


def user_cache_folder() -> Path:
    """Return the folder for caches of the current user, which need not exist.

    It is ``$XDG_CACHE_HOME`` if that is set to an absolute path; otherwise ``~/.cache`` on Linux, ``~/Library/Caches``
    on macOS and ``%LOCALAPPDATA%`` on Windows.
    """
    for variable in ("XDG_CACHE_HOME", *(("LOCALAPPDATA",) if sys.platform == "win32" else ())):
        given = os.environ.get(variable, "")
        if Path(given).is_absolute():
            return Path(given)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() is an error where there is none
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def _in_use(wanted: Path) -> Path:
    """Return the folder that this process uses in the place of `wanted`, most often that one."""
    folder = _chosen.get(wanted)
    if folder is None or not folder.is_dir():
        folder = _chosen[wanted] = _usable(wanted)
    return folder


def _usable(wanted: Path) -> Path:
    """Return `wanted` as a private folder, or a temporary one if it cannot be had."""
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
    # Runs in this process only, not in one forked from it, but also where this process was forked by multiprocessing.
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
        If the folder is somebody else's or could be replaced by somebody else, or cannot be made or written.
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
    for owner in (folder.lstat().st_uid, folder.stat().st_uid):  # of a link, and of the folder that it leads to
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
