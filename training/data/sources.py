"""Sources of data files: a folder, the shared data beside the project, or a public download."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pooch

from ase_segnn.caches import Cache
from ase_segnn.structures import split_source, to_slice

logger = logging.getLogger(__name__)

_DEEPCHEM = "https://raw.githubusercontent.com/deepchem/deepchem/fbe3b911a94a6eb8c84c1a9e7ac67a472c49ea80"
_BOTNET = "https://raw.githubusercontent.com/davkovacs/BOTNet-datasets/29e6d467317e4b5967b7ea5cbee54de953fa0d45"

# Files by the names recipes use: public address and SHA-256.
PUBLIC_FILES = {
    "3bpa/train_300K.xyz": (
        f"{_BOTNET}/dataset_3BPA/train_300K.xyz",
        "d109971fab90e2231ad931a83eb704c8d940f5c7d7a8de27fe3b84ea18634c0a",
    ),
    "acac/isolated_atoms.xyz": (
        f"{_BOTNET}/dataset_acac/isolated_atoms.xyz",
        "b74f321b453374621b447d65c60979f70df1b7182c8ee0215388b2c574f33823",
    ),
    "acac/test_MD_300K.xyz": (
        f"{_BOTNET}/dataset_acac/test_MD_300K.xyz",
        "2291f3186a3cc6a5e05e92952c84a9237ca53f862d78fd3316a769360719ec43",
    ),
    "acac/test_MD_600K.xyz": (
        f"{_BOTNET}/dataset_acac/test_MD_600K.xyz",
        "d5a5bba154ec43f915eb7529f86ec3af60e6f911743859daba030181a0378ff7",
    ),
    "acac/train_300K.xyz": (
        f"{_BOTNET}/dataset_acac/train_300K.xyz",
        "8f5706d6902360555a5be59395612d2afc3489a75688388a58e7275fdad68af3",
    ),
    "organic/delaney-processed.csv": (
        f"{_DEEPCHEM}/datasets/delaney-processed.csv",
        "8c06a76f0c6487d29ab0f903e6a7a7139f189ab3c1178f159c8be8964602f189",
    ),
    "organic/muv.csv.gz": (
        f"{_DEEPCHEM}/datasets/muv.csv.gz",
        "93c8b4a37c5996c76e57d5f3f065fb8b7cf1c19067011eff2293fd2a94ce274a",
    ),
    "organic/tox21.csv.gz": (
        f"{_DEEPCHEM}/datasets/tox21.csv.gz",
        "48b34e4e59a2bae6f95734cd206c1869ab355f50a5e50bb7371a21f861d5e297",
    ),
}


def locate(name: str, folder: Path | None = None) -> Path:
    """Find a data file by name.

    The first place is `folder`, or the working directory without one; the second is ``../shared/data`` beside the
    project. A file of `PUBLIC_FILES` that is in neither place is downloaded to the user's cache.

    Parameters
    ----------
    name : path relative to any of these places, or absolute
    folder : the first place to look

    Raises
    ------
    FileNotFoundError
        If it is in none of these places and cannot be downloaded.
    ValueError
        If a file found under the name of a public one has other contents.
    """
    places = _places(folder)
    for place in places:
        path = place / Path(name).expanduser()
        if path.is_file():
            _check(name, path)
            return path
        if path.is_dir():
            raise IsADirectoryError(f"'{path}' is a folder; give files of frames, such as '{name}/*.xyz'")
    looked = _named(places)
    if name not in PUBLIC_FILES:
        raise FileNotFoundError(f"no data file '{name}' in {looked}; give its folder as 'folder' in the recipe's data")
    address, checksum = PUBLIC_FILES[name]
    try:
        cache = Cache("downloads")
        fetched = pooch.retrieve(
            address, known_hash=f"sha256:{checksum}", fname=name.replace("/", "-"), path=cache.folder
        )
    except Exception as error:  # pooch passes on whatever the connection raises
        raise FileNotFoundError(
            f"no data file '{name}' in {looked}, and it could not be downloaded from {address}: {error}"
        ) from error
    Cache.touch(Path(fetched))
    cache.trim()
    return Path(fetched)


class DataFile(NamedTuple):
    """A file of frames and a selection of them; an empty selection means all frames.

    See `ase_segnn.structures.split_source`.
    """

    path: Path
    selection: str


def locate_all(names: Sequence[str], folder: Path | None = None) -> dict[str, DataFile]:
    """Find several files; a name with ``*``, ``?`` or ``[`` stands for all that fit in the first place that has any.

    A name may end in a selection of frames, such as ``frames.xyz@:100``.

    Returns
    -------
    name with selection -> file, in the order given and then by name

    Raises
    ------
    FileNotFoundError
        As `locate`, or if nothing fits.
    """
    found: dict[str, DataFile] = {}

    def exists(text: str) -> bool:
        return any((place / text).exists() for place in _places(folder))

    for given in names:
        name, selection = split_source(given, exists)
        to_slice(selection)  # an error if it is none
        end = f"@{selection}" if selection else ""
        if not any(letter in name for letter in "*?[") or exists(name):
            found[given] = DataFile(locate(name, folder), selection)
            continue
        absolute = Path(name).anchor
        places = [Path(absolute)] if absolute else _places(folder)
        for place in places:
            matches = sorted(path for path in place.glob(name.removeprefix(absolute)) if path.is_file())
            for path in matches:
                found[f"{path if absolute else path.relative_to(place)}{end}"] = DataFile(path, selection)
            if matches:
                break
        else:
            raise FileNotFoundError(f"no data file fits '{name}' in {_named(places)}")
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _places(folder: Path | None) -> list[Path]:
    return [folder or Path(), Path(__file__).parents[3] / "shared" / "data"]


def _named(places: Sequence[Path]) -> str:
    return ", ".join(f"'{place}'" for place in places)


def _check(name: str, path: Path) -> None:
    if name in PUBLIC_FILES and sha256(path) != PUBLIC_FILES[name][1]:
        raise ValueError(
            f"'{path}' is not the public file '{name}': its SHA-256 differs; remove it, or give yours another name"
        )
