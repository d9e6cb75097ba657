"""Files that appear whole or not at all, and errors that name the file."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from ase_segnn.files import reason_of, writing, written_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text("an older page")
    return path


def fail(path: Path, error: BaseException) -> None:
    with written_whole(path) as temporary:
        temporary.write_text("half of")
        raise error


def test_a_file_is_replaced_only_when_the_new_one_is_whole(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(path, KeyboardInterrupt())
    assert path.read_text() == "an older page"
    assert list(path.parent.iterdir()) == [path]
    with written_whole(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".html"
        temporary.write_text("a newer page")
    assert path.read_text() == "a newer page"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_errors_of_writing_name_the_file_and_keep_their_number(path: Path, number: int) -> None:
    with pytest.raises(OSError, match=r"cannot be written and is as it was before \(.*\): '.*page\.html'") as caught:
        fail(path, OSError(number, os.strerror(number)))
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert reason_of(caught.value) == f"'{path}': cannot be written and is as it was before ({os.strerror(number)})"
    assert path.read_text() == "an older page"
    assert list(path.parent.iterdir()) == [path]


def test_errors_of_the_file_itself_keep_their_class(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "page.html"
    with (
        pytest.raises(FileNotFoundError, match=r"cannot be written .*No such file") as caught,
        written_whole(path) as new,
    ):
        new.write_text("page")
    assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(IsADirectoryError, match="cannot be written") as caught,
        written_whole(tmp_path / "folder") as new,
    ):
        new.write_text("page")
    assert caught.value.filename == str(tmp_path / "folder")


class OwnError(OSError):
    """An error as of libraries for files on other machines."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "frames.xyz"),
        PermissionError(errno.EACCES, "Permission denied", b"frames.xyz"),
        OSError(errno.ENOSPC, "No space left on device", "another.txt"),
        OSError(errno.EIO, "Input/output error"),
        TimeoutError("too slow"),
        OwnError("far", "down"),
        ValueError("not a number"),
    ],
)
def test_errors_of_other_files_pass_as_they_are(path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        fail(path, error)
    assert caught.value is error
    assert path.read_text() == "an older page"
    assert list(path.parent.iterdir()) == [path]


def test_writing_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "md.traj"
    with (
        pytest.raises(OSError, match=re.escape("cannot be written (No space left on device)")) as caught,
        writing(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(PermissionError, match=r"other\.csv") as caught, writing(path):
        raise PermissionError(errno.EACCES, "Permission denied", "other.csv")
    with pytest.raises(OSError, match=r"other\.csv"), writing(path), writing(tmp_path / "other.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_reasons_have_no_numbers() -> None:
    assert reason_of(FileNotFoundError(2, "No such file or directory", "a.xyz")) == "'a.xyz': No such file or directory"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(OSError("text")) == "text"


def test_a_read_only_folder_is_an_error_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # Linux refuses to remove what is not there as well
        raise OSError(errno.EROFS, "Read-only file system", str(path.with_name("something")))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match=r"cannot be written and is as it was before \(Read-only") as caught:
        fail(path, OSError(errno.EROFS, "Read-only file system"))
    assert caught.value.filename == str(path)
