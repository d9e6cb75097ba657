"""Writing files whole or not at all, with errors that name the file."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of writing; only `open` adds the name of the file to them.
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to `path` at the end, unless there is an error.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, written_whole(Path(folder, "a.txt")) as temporary:
    ...     _ = temporary.write_text("whole")

    Raises
    ------
    OSError
        If the file cannot be written; the error names it, and the old contents of `path` are kept. Errors about other
        files are raised unchanged.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")  # same suffix: some writers go by it
    try:
        yield temporary
        if temporary.exists():  # of several processes maybe only one has written
            temporary.replace(path)
    except OSError as error:
        if _is_about(error, temporary) or _is_about(error, path):
            raise _named(error, path, "cannot be written and is as it was before") from error
        raise
    finally:
        with suppress(OSError):  # a read-only folder raises even if there is nothing to remove
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the name of a file to errors of writing it that lack a name, such as the error of a full disk.

    Raises
    ------
    OSError
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and _is_about(error, path):
            raise _named(error, path, "cannot be written") from error
        raise


def reason_of(error: OSError) -> str:
    """Return which file failed and why, without the number of the error."""
    if not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"'{os.fsdecode(error.filename)}': {error.strerror}"


def _is_about(error: OSError, path: Path) -> bool:
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, str | bytes)]
    return path.absolute() in [Path(file).absolute() for file in files] if files else error.errno in _OF_WRITING


def _named(error: OSError, path: Path, what: str) -> OSError:
    """Return an error of the same class and number that names the file."""
    return OSError(error.errno, f"{what} ({error.strerror})", str(path))
