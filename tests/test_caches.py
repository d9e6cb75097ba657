"""Caches: where they are, whose they are, and what is removed from them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ase_segnn import caches
from ase_segnn.caches import Cache, user_cache_folder

HOUR = 3600


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache folder, and forget which folders were used before."""
    monkeypatch.setattr(caches, "_chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode_of(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def put(cache: Cache, name: str, n_bytes: int, hours_ago: float) -> Path:
    path = cache.folder / name
    path.write_bytes(bytes(n_bytes))
    used = time.time() - hours_ago * HOUR
    os.utime(path, (used, used))
    return path


def in_another_process(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run Python code that imports little, with some variables of the environment changed or removed."""
    changed = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], env=changed, capture_output=True, text=True, check=False)


# ---- where they are


def test_a_cache_is_a_private_folder_of_the_user(root: Path) -> None:
    cache = Cache("graphs")
    assert cache.folder == root / "ase-segnn" / "graphs"
    assert not cache.is_temporary
    assert [mode_of(folder) for folder in (root / "ase-segnn", cache.folder)] == [0o700, 0o700]
    assert cache.most_bytes == 4 * 2**30
    assert list(cache.folder.iterdir()) == []
    with pytest.raises(KeyError):
        Cache("nothing")


def test_a_folder_that_was_removed_is_made_again() -> None:
    cache = Cache("graphs")
    first = cache.folder
    first.rmdir()
    first.parent.rmdir()
    assert cache.folder == first
    assert first.is_dir()


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/some/where"}, "/some/where"),
        ("darwin", {"XDG_CACHE_HOME": "/some/where"}, "/some/where"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache"),
        ("linux", {"LOCALAPPDATA": "/local"}, "/home/me/.cache"),
        ("darwin", {}, "/home/me/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local"),
    ],
)
def test_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert user_cache_folder() == Path(expected)


@pytest.mark.parametrize("folder", ["", "ase-segnn", "ase-segnn/graphs"])
def test_folders_that_are_too_open_are_closed(root: Path, folder: str) -> None:
    (root / "ase-segnn" / "graphs").mkdir(parents=True)
    for part in ("ase-segnn/graphs", "ase-segnn"):
        (root / part).chmod(0o700)
    root.chmod(0o755)
    (root / folder).chmod(0o1777 if folder == "" else 0o777)  # a folder such as /tmp may hold others
    cache = Cache("graphs")
    assert not cache.is_temporary
    assert mode_of(root / "ase-segnn") == mode_of(cache.folder) == 0o700


# ---- what cannot be used


def expect_temporary(cache: Cache, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    with caplog.at_level(logging.WARNING):
        folder = cache.folder
        assert cache.is_temporary
        assert Cache(cache.name).folder == folder
    assert mode_of(folder) == 0o700
    (folder / "a").write_text("can be written")
    [record] = caplog.records
    message = record.getMessage()
    assert message.startswith(f"the cache folder '{cache.wanted_folder.parent}")
    assert f"cannot be used ({reason}" in message
    assert "until its end; set XDG_CACHE_HOME" in message


def test_one_warning_is_enough_for_all_caches(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.write_text("a file")
    expect_temporary(Cache("graphs"), caplog, f"'{root}': File exists")
    assert Cache("compiled").folder == Cache("graphs").folder.parent / "compiled"
    assert Cache("compiled").is_temporary
    assert mode_of(Cache("compiled").folder) == 0o700
    assert len(caplog.records) == 1


def test_a_folder_of_another_user_is_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "ase-segnn").mkdir(parents=True)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    expect_temporary(Cache("graphs"), caplog, f"'{root}/ase-segnn' belongs to user {own}, and this is user {own + 1}")
    assert list((root / "ase-segnn").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given_away", ["link", "target"])
def test_a_link_of_or_to_another_user_is_not_followed(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, given_away: str
) -> None:
    (root / "ase-segnn").mkdir(parents=True)
    target = tmp_path / "elsewhere"
    target.mkdir()
    link = root / "ase-segnn" / "compiled"
    link.symlink_to(target)
    os.chown(link if given_away == "link" else target, 12345, -1, follow_symlinks=False)
    expect_temporary(Cache("compiled"), caplog, f"'{link}' belongs to user 12345")
    assert list(target.iterdir()) == []


def test_a_link_of_the_user_to_a_folder_of_the_user_is_followed(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (tmp_path / "scratch").mkdir(mode=0o755)
    (root / "ase-segnn").symlink_to(tmp_path / "scratch")
    cache = Cache("graphs")
    assert not cache.is_temporary
    assert (tmp_path / "scratch" / "graphs").is_dir()
    assert mode_of(tmp_path / "scratch") == 0o700


def test_a_folder_that_everybody_can_replace_is_not_used(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.mkdir()
    root.chmod(0o777)
    expect_temporary(Cache("compiled"), caplog, f"everybody may replace '{root}/ase-segnn', since everybody may write")


def test_a_folder_that_stays_open_is_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "ase-segnn").mkdir(parents=True)
    (root / "ase-segnn").chmod(0o770)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as on file systems without modes
    expect_temporary(Cache("compiled"), caplog, "others may write to")


def test_a_file_in_the_place_of_the_folder(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.mkdir()
    (root / "ase-segnn").write_text("a file")
    expect_temporary(Cache("graphs"), caplog, f"'{root}/ase-segnn': File exists")


def test_a_read_only_folder(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(caches.tempfile, "TemporaryFile", refuse)
    expect_temporary(Cache("graphs"), caplog, "Read-only file system")


def test_without_any_place_the_error_names_the_folder_and_what_to_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    root.write_text("a file")
    monkeypatch.setattr(caches.tempfile, "mkdtemp", refuse)
    with pytest.raises(FileNotFoundError, match=r"no temporary folder can be made \(No usable.*set XDG_CACHE_HOME"):
        _ = Cache("graphs").folder


@pytest.mark.parametrize("environment", [{"HOME": "/proc/none"}, {"HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/proc/1"}])
def test_without_a_home_a_process_has_a_folder_until_its_end(environment: dict[str, str]) -> None:
    code = (
        "from ase_segnn.caches import Cache\ncache = Cache('graphs')\nfolder = cache.folder\n"
        "assert cache.is_temporary and folder.is_dir()\n(folder / 'a').write_text('a')\nprint(folder)"
    )
    done = in_another_process(code, **{"XDG_CACHE_HOME": None, **environment})
    assert done.returncode == 0, done.stderr
    assert f"the cache folder '{next(iter(environment.values()))}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path(done.stdout.strip()).exists()


def test_a_home_that_is_not_set_is_looked_up() -> None:
    code = "from ase_segnn.caches import user_cache_folder; print(user_cache_folder())"
    done = in_another_process(code, XDG_CACHE_HOME=None, HOME=None)
    assert Path(done.stdout.strip()).is_absolute()


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for users without an entry
    expect_temporary(Cache("graphs"), caplog, "this user has no home folder")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_shares_the_temporary_folder_and_leaves_it() -> None:
    code = """
import multiprocessing, os, sys, warnings
from ase_segnn.caches import Cache

warnings.simplefilter("ignore")
folder = Cache("graphs").folder
def child(queue):
    shared = Cache("graphs").folder
    os.environ["XDG_CACHE_HOME"] = "/proc/2"  # has no folder yet
    queue.put((shared, Cache("graphs").folder))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
shared, own = queue.get()
process.join()
assert shared == folder and folder.is_dir(), shared
assert own != folder and not own.exists(), own
pid = os.fork()
if pid == 0:
    sys.exit(0)
os.waitpid(pid, 0)
assert folder.is_dir()
print(folder)
"""
    done = in_another_process(code, XDG_CACHE_HOME="/proc/1")
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


# ---- what is removed


def test_entries_are_listed_by_last_use() -> None:
    cache = Cache("graphs")
    new, old = put(cache, "new", 10, 1), put(cache, "old", 20, 3)
    (cache.folder / "deeper").mkdir()
    middle = put(cache, "deeper/middle", 30, 2)
    assert [(entry.path, entry.n_bytes) for entry in cache.entries()] == [(old, 20), (middle, 30), (new, 10)]
    cache.touch(old)
    assert cache.entries()[-1].path == old
    assert time.time() - cache.entries()[-1].last_use < HOUR
    cache.touch(cache.folder / "nothing")


def test_trimming_takes_what_was_unused_for_longest() -> None:
    cache = Cache("graphs", most_bytes=100)
    paths = [put(cache, f"{hours}", 40, hours) for hours in (9, 8, 7, 6)]
    assert cache.trim(keep=[paths[1]]) == (2, 80)
    assert [path.exists() for path in paths] == [False, True, False, True]
    assert cache.trim() == (0, 0)


def test_trimming_leaves_what_may_be_in_use() -> None:
    cache = Cache("graphs", most_bytes=10)
    used, ahead = put(cache, "used", 40, 0.5), put(cache, "ahead", 40, -0.5)
    assert cache.trim() == (0, 0)
    wrong = put(cache, "wrong clock", 40, -10)
    assert cache.trim() == (1, 40)
    assert (used.exists(), ahead.exists(), wrong.exists()) == (True, True, False)


def test_clearing_takes_everything_that_is_whole() -> None:
    cache = Cache("graphs")
    put(cache, "used", 40, 0)
    put(cache, ".0a1b2c3d-left.h5", 5, 2)
    unfinished = put(cache, ".0a1b2c3d-unfinished.h5", 3, 0)
    assert cache.empty() == (2, 45)
    assert [entry.path for entry in cache.entries()] == [unfinished]


def test_another_process_may_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("graphs", most_bytes=10)
    gone, there = put(cache, "gone", 40, 3), put(cache, "there", 40, 2)
    entries = cache.entries()
    gone.unlink()
    monkeypatch.setattr(cache, "entries", lambda: entries)
    assert cache.trim() == (1, 40)
    assert not there.exists()
    monkeypatch.undo()
    monkeypatch.setattr(os, "walk", lambda folder: iter([(folder, [], ["gone"])]))
    assert cache.entries() == []
