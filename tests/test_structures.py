"""Structures from files: which file a text means, and which of its structures."""

from __future__ import annotations

from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import molecule

from ase_segnn.structures import read_numbered, read_structure, read_structures, split_source

N = 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, n_frames: int = N, suffix: str = ".xyz") -> None:
    """Write frames that carry their number, under any name."""
    frames = [molecule("H2O") for _ in range(n_frames)]
    for number, atoms in enumerate(frames):
        atoms.info["number"] = number
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(f"plain{suffix}", frames)
    Path(f"plain{suffix}").rename(name)


def numbers(source: str | Path) -> list[int]:
    chosen = read_numbered(source)
    assert [int(atoms.info["number"]) for _, atoms in chosen] == [number for number, _ in chosen]
    return [number for number, _ in chosen]


@pytest.mark.parametrize(
    "name",
    [
        "frames.xyz",
        "me@there/frames.xyz",
        "me@2/frames.xyz",
        "me@1:3/frames.xyz",
        "fr@mes.xyz",
        "frames@2.xyz",
        "frames.xyz@1",
        "frames.xyz@::2",
        "@.xyz",
        "with a space/frames 1.xyz",
        "any*letters?[1].xyz",
        "größe/水.xyz",
        "-.xyz",
        "~/frames.xyz",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_any_path_that_exists_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, absolute: bool) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    write(name.replace("~", "home"))
    source = str(folder / name) if absolute and "~" not in name else name
    everything = list(range(N))
    assert numbers(source) == everything
    for selection in ("3", "-1", ":2", "10:", "-2:", "2:9:3", "::5", "::-5", ":"):
        expected = [everything[int(selection)]] if ":" not in selection else eval(f"everything[{selection}]")
        assert numbers(f"{source}@{selection}") == expected
    assert read_structure(source).info["number"] == N - 1
    assert len(read_structures(Path(folder / name.replace("~", "home")))) == N


@pytest.mark.parametrize("suffix", [".xyz", ".traj"])
def test_an_existing_path_comes_before_a_selection(suffix: str) -> None:
    write(f"frames{suffix}", suffix=suffix)
    assert numbers(f"frames{suffix}@1") == [1]
    write(f"frames{suffix}@1", n_frames=3, suffix=suffix)
    assert numbers(f"frames{suffix}@1") == [0, 1, 2]
    assert numbers(f"frames{suffix}@1@0") == [0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.xyz", "there is no file 'nothing.xyz'"),
        ("nothing.xyz@2", "there is no file 'nothing.xyz'"),
        ("me@there/nothing.xyz", "there is no file 'me@there/nothing.xyz'"),
        (
            "frames.xyz@first",
            "there is no file 'frames.xyz@first', and 'first' selects nothing of 'frames.xyz': write @-1",
        ),
        ("frames.xyz@1:2:3:4", "selects nothing of 'frames.xyz'"),
        ("frames.xyz@", "selects nothing of 'frames.xyz'"),
        ("frames.xyz@12", "'frames.xyz' has no structure that '@12' selects; it holds fewer"),
        ("frames.xyz@-13", "'frames.xyz' has no structure that '@-13' selects; it holds 12"),
        ("frames.xyz@99999999999999999999", "'frames.xyz' has no structure that '@99999999999999999999' selects"),
        ("frames.xyz@5:3", "'frames.xyz' has no structure that '@5:3' selects"),
        ("frames.xyz@::0", "the selection '@::0' has a step of 0"),
        ("a folder", "'a folder' is a folder; give a file of structures"),
        ("empty.xyz", "'empty.xyz' is empty"),
        ("garbage.xyz", "ASE cannot read 'garbage.xyz': "),
        ("garbage", "ASE cannot read 'garbage': neither its name nor its first lines tell the format"),
    ],
)
def test_errors_name_file_and_selection(folder: Path, source: str, message: str) -> None:
    write("frames.xyz")
    (folder / "a folder").mkdir()
    (folder / "empty.xyz").write_text("")
    for name in ("garbage.xyz", "garbage"):
        (folder / name).write_bytes(bytes(range(256)) * 9)
    with pytest.raises((ValueError, OSError), match=message.replace("(", r"\(")) as caught:
        read_numbered(source)
    assert "\n" not in str(caught.value)


def test_a_path_may_exist_elsewhere() -> None:
    assert split_source("frames.xyz@1", lambda text: text == "frames.xyz@1") == ("frames.xyz@1", "")
    assert split_source("frames.xyz@1") == ("frames.xyz", "1")


def test_a_structure_without_atoms_is_read_as_it_is() -> None:
    ase.io.write("none.xyz", Atoms())
    assert len(read_structure("none.xyz")) == 0
