"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; that file takes the place of `path` unless there is an error.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, written_whole(Path(folder, "a.txt")) as temporary:
    ...     _ = temporary.write_text("whole")

    Raises
    ------
    OSError
        If it cannot be written; what `path` held is kept.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")  # the suffix stays, some writers go by it
    try:
        yield temporary
        if temporary.exists():  # of several processes maybe only one has written
            temporary.replace(path)
    except OSError as error:
        raise OSError(f"cannot write '{path}', which is as it was before: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def reason_of(error: OSError) -> str:
    """Say what failed and for which file, without the number of the error."""
    file = "" if error.filename is None else f": '{error.filename}'"
    return f"{error.strerror}{file}" if error.strerror else str(error)
