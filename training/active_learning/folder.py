"""The folder of a run of active learning: its files, the time it took, and what it must be resumed with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from filelock import FileLock, Timeout

from ase_segnn.files import written_whole

from .rounds import Round
from .settings import LearnSettings

FRESH = "fresh"  # stage of the frames of the final potential
_MAY_CHANGE = {"labels", "max_time", "workers", "limit"}  # settings of a run that is resumed
_BETWEEN_NOTES = 5.0  # seconds between two notes of the time


class LearnFolder:
    """Files of a run. All are written whole or grow by whole frames, so that a run can end at any moment.

    =========================  =========================================================================
    ``settings.json``          what the run was started with
    ``structures.xyz``         structures of the user
    ``queues/``                frames to label, a file for each stage
    ``labels.xyz``             frames with labels
    ``failed.xyz``             frames without, with the reason
    ``fresh.xyz``              labeled frames of the final potential, which nothing learns
    ``rounds.json``            facts about the rounds
    ``state.json``             time that the run took so far, and whether it is over
    ``work/``                  members of the committee, checkpoints and logs
    =========================  =========================================================================

    Parameters
    ----------
    path : of the folder
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file, self.structures = path / "settings.json", path / "structures.xyz"
        self.labels, self.failed, self.fresh = path / "labels.xyz", path / "failed.xyz", path / "fresh.xyz"
        self.work, self._rounds, self._state = path / "work", path / "rounds.json", path / "state.json"
        self._before, self._began, self._noted = 0.0, time.monotonic(), 0.0

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Make the folder if there is none, lock out other runs, and count the time.

        Raises
        ------
        FileExistsError
            If another run is using the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._before, self._began = self._read(self._state, {}).get("seconds", 0.0), time.monotonic()
                try:
                    yield
                finally:
                    self.note_time(always=True)
        except Timeout as error:
            raise FileExistsError(f"another run is using '{self.path}'; choose another folder") from error

    @property
    def seconds(self) -> float:
        """Time that the run took so far, interrupted sessions included."""
        return self._before + time.monotonic() - self._began

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self._read(self._state, {}).get("finished", False))

    def note_time(self, *, always: bool = False, finished: bool = False) -> None:
        """Write down the time, at most every five seconds unless `always`."""
        if always or self.seconds - self._noted > _BETWEEN_NOTES:
            self._noted = self.seconds
            state = {"seconds": round(self.seconds, 1), "finished": finished or self.is_finished}
            self._write(self._state, state)

    def begin(self, settings: LearnSettings, structures: Sequence[Atoms]) -> None:
        """Write what a new run starts with.

        Raises
        ------
        FileExistsError
            If there is a run in the folder.
        """
        if self.settings_file.exists():
            raise FileExistsError(
                f"'{self.path}' holds a run already; resume it with --resume, or choose another folder with --output"
            )
        with written_whole(self.structures) as path:
            ase.io.write(path, list(structures), format="extxyz")
        self._write(self.settings_file, settings.model_dump(mode="json"))

    def resumed(self, changes: dict[str, Any]) -> tuple[LearnSettings, list[Atoms]]:
        """Return settings and structures of a run that was begun.

        Parameters
        ----------
        changes : settings that were given again; labels, time, workers and limit may differ from before

        Raises
        ------
        FileNotFoundError
            If there is no run in the folder.
        ValueError
            If another setting differs.
        """
        if not self.settings_file.is_file():
            raise FileNotFoundError(f"'{self.path}' holds no run of ase-segnn learn to resume")
        before = self._read(self.settings_file, {})
        wanted = LearnSettings.model_validate({**before, **changes}).model_dump(mode="json")
        differing = [name for name in wanted if wanted[name] != before.get(name)]
        fixed = [name for name in differing if name not in _MAY_CHANGE]
        if fixed:
            shown = ", ".join(f"{name} was {before.get(name)!r} and is {wanted[name]!r}" for name in fixed)
            raise ValueError(
                f"the run in '{self.path}' cannot go on: {shown}; labels and frames so far come from the old value. "
                "Leave it out, or start a new run in another folder"
            )
        if differing:
            self._write(self.settings_file, wanted)
        return LearnSettings.model_validate(wanted), list(ase.io.iread(self.structures, ":", format="extxyz"))

    @property
    def rounds(self) -> list[Round]:
        """Rounds so far."""
        return [Round.model_validate(each) for each in self._read(self._rounds, [])]

    def add_round(self, found: Round) -> None:
        """Keep the facts about a round, in place of those from before an interruption."""
        kept = [each for each in self.rounds if each.number != found.number]
        self._write(self._rounds, [each.model_dump(mode="json") for each in [*kept, found]])

    def queue(self, stage: str) -> list[Atoms] | None:
        """Return the frames to label of a stage; None if they are not decided yet."""
        path = self._queue_file(stage)
        if not path.is_file():
            return None
        return list(ase.io.iread(path, ":", format="extxyz")) if path.stat().st_size else []

    def put_queue(self, stage: str, frames: Sequence[Atoms]) -> list[Atoms]:
        """Keep the frames to label of a stage, with ids that no other frame of the run has."""
        first = sum(len(self.queue(path.stem) or []) for path in (self.path / "queues").glob("*.xyz"))
        for number, atoms in enumerate(frames):
            atoms.info = {**atoms.info, "id": first + number, "stage": stage.replace("-", " ")}
            atoms.calc = None
        self._queue_file(stage).parent.mkdir(exist_ok=True)
        with written_whole(self._queue_file(stage)) as path:
            ase.io.write(path, list(frames), format="extxyz")
        queue = self.queue(stage)
        assert queue is not None
        return queue

    def _queue_file(self, stage: str) -> Path:
        return self.path / "queues" / f"{stage}.xyz"

    @staticmethod
    def _write(path: Path, values: Any) -> None:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")

    @staticmethod
    def _read(path: Path, default: Any) -> Any:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
