"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from ase_segnn.files import written_whole


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("an older page")

    def fail(error: BaseException) -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half of")
            raise error

    with pytest.raises(OSError, match=r"cannot write .*page.html', which is as it was before.*No space left"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert path.read_text() == "an older page"
    assert list(tmp_path.iterdir()) == [path]
    with written_whole(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".html"
        temporary.write_text("a newer page")
    assert path.read_text() == "a newer page"
    assert list(tmp_path.iterdir()) == [path]
