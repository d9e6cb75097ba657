"""The folder of a run: places of its files, the lock against other runs, and the provenance of results."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ase_segnn.files import written_whole
from ase_segnn.potential_file import Provenance

from .fit import CHECKPOINT, CURVE
from .recipe import RunSection
from .yaml12 import dump_yaml

PRETRAINING, LABELS_FILE, ORIGIN_FILE = "pretraining", "labels.xyz", "labels.json"  # folder, and the labels in it
_FOLDERS = {"folder", "cache"}  # keys of recipes that name one of this machine
_RECORDED = ("ase-segnn", "torch", "e3nn", "ase", "numpy", "lightning")


@dataclass(frozen=True)
class RunFiles:
    """Places of the files of a run.

    Parameters
    ----------
    folder : of the run
    name : of the potential
    n_members : of the committee, 1 for a single potential
    """

    folder: Path
    name: str
    n_members: int = 1

    @property
    def potential(self) -> Path:
        """The potential file."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.folder / f"{self.name}.md"

    @property
    def recipe(self) -> Path:
        """The settled recipe."""
        return self.folder / "recipe.yaml"

    @property
    def audit(self) -> Path:
        """The audit of the data."""
        return self.folder / "audit.md"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @property
    def pretraining(self) -> Path:
        """Folder with the labels of pretraining."""
        return self.folder / PRETRAINING

    @property
    def members(self) -> list[Path]:
        """Folders with checkpoint and learning curve of each fit."""
        if self.n_members == 1:
            return [self.folder]
        return [self.folder / f"member-{number + 1}" for number in range(self.n_members)]

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write over another run, or to resume without a checkpoint.

        Raises
        ------
        FileExistsError
            If the folder holds a run and neither `resume` nor `overwrite` is set, or the folder is a file.
        FileNotFoundError
            If there is nothing to resume.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"'{self.folder}' is a file, and no folder for a run; choose another output or name")
        checkpoint, labels = self.members[0] / CHECKPOINT, self.pretraining / LABELS_FILE
        if resume and not (checkpoint.is_file() or labels.is_file()):
            raise FileNotFoundError(f"no checkpoint '{checkpoint}' to resume from; leave out the option to start a run")
        kept = [checkpoint, labels, self.potential, self.card, *self.folder.glob(f"member-*/{CHECKPOINT}")]
        if not (resume or overwrite) and any(path.exists() for path in kept):
            raise FileExistsError(
                f"'{self.folder}' holds a run already; resume it, overwrite it, or choose another folder"
            )

    def _forget(self) -> None:
        """Remove the files of an earlier run."""
        for path in (self.potential, self.card, self.report, self.audit, self.recipe):
            path.unlink(missing_ok=True)
        for folder in (self.folder, *self.folder.glob("member-*")):
            for name in (CHECKPOINT, CURVE):
                (folder / name).unlink(missing_ok=True)
                (folder / PRETRAINING / name).unlink(missing_ok=True)
        for name in (LABELS_FILE, ORIGIN_FILE):
            (self.pretraining / name).unlink(missing_ok=True)

    @contextmanager
    def reserved(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Make the folder if there is none, lock out other runs, check once more, and remove what is to be overwritten.

        Raises
        ------
        FileExistsError, FileNotFoundError
            As `check`, or if another run uses the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                self.check(resume=resume, overwrite=overwrite)
                if overwrite and not resume:
                    self._forget()
                yield
        except Timeout as error:
            raise FileExistsError(f"another run is using '{self.folder}'; choose another folder") from error

    def write_recipe(self, recipe: RunSection) -> None:
        """Write the settled recipe: first what is learned, then how."""
        values = recipe.model_dump(mode="json")
        order = sorted(values, key=lambda key: key != "name" and key in RunSection.model_fields)
        text = dump_yaml({key: values[key] for key in order})
        with written_whole(self.recipe) as path:
            path.write_text(text, encoding="utf-8")


def provenance_of(recipe: RunSection, checksums: dict[str, str]) -> Provenance:
    """Return the provenance of a result without errors yet, and without folders of this machine."""
    values = recipe.model_dump(mode="json")
    names = _names_of_places({*_texts(values), *checksums})
    return Provenance(
        recipe=_without_places(values, names),
        data={names.get(file, file): checksum for file, checksum in checksums.items()},
        commit=current_commit(),
        seed=recipe.seed,
        versions={name: version(name) for name in _RECORDED},
        created=now(),
    )


def without_places(sentences: Sequence[str], files: Iterable[str]) -> list[str]:
    """Return sentences with the names of files as `provenance_of` gives them."""
    names = _names_of_places(set(files))
    changed = list(sentences)
    for place in sorted(names, key=len, reverse=True):
        changed = [sentence.replace(place, names[place]) for sentence in changed]
    return changed


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _texts(value)
    if isinstance(values, str):
        yield values


def _names_of_places(texts: set[str]) -> dict[str, str]:
    """Map absolute paths to their last parts: as few parts as tell the paths apart."""
    parts = {text: Path(text).parts for text in texts if Path(text).is_absolute() or text.startswith(("~", "../"))}
    names = {}
    for text, own in parts.items():
        others = [other for other in parts.values() if other != own]
        n = next(n for n in range(1, len(own) + 1) if own[-n:] not in [other[-n:] for other in others])
        names[text] = "/".join(own[-n:])
    return names


def _without_places(values: Any, names: Mapping[str, str]) -> Any:
    if isinstance(values, dict):
        return {key: None if key in _FOLDERS else _without_places(value, names) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_places(value, names) for value in values]
    return names.get(values, values) if isinstance(values, str) else values


def now() -> str:
    """Return date and time, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def current_commit() -> str | None:
    """Return the commit of the code in use, marked if it was changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*command, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")
