"""Processes that label structures: they may crash or hang without harm to the program that waits for them."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import jsonio

from .references import find_reference
from .worker import encoded

logger = logging.getLogger(__name__)

_START_LIMIT = 600.0  # seconds, of imports and of making the calculator
_FIRST_LIMIT = 3600.0  # seconds per label, until the durations of some labels are known
_KNOWN_AFTER, _TIMES_MEDIAN, _LEAST_LIMIT = 3, 20.0, 60.0  # labels; seconds
_REMEMBERED = 1000  # durations
_MOST_BAD_STARTS = 3  # in a row, until the reference is given up
_PATIENCE = 1.0  # seconds between two looks at the clock

# What a process runs. The folder in which a program starts must not hide Python's own modules.
_MAIN = """
import sys
if sys.path and not sys.path[0]:
    del sys.path[0]
import json
sys.path[:] = json.loads(sys.argv[1])
from ase_segnn.training.labeling.worker import main
main()
"""


@dataclass(frozen=True, eq=False)
class Attempt:
    """What became of a structure that was to be labeled.

    Parameters
    ----------
    atoms : labeled copy; None if there is no label
    reason : why there is no label, in one line; otherwise ""
    seconds : of the last try
    n_tries : number of tries
    """

    atoms: Atoms | None
    reason: str
    seconds: float
    n_tries: int


@dataclass(frozen=True)
class _Job:
    """A structure to label, by its index, and the number of the try, from 1."""

    index: int
    n_tries: int


class Labelers:
    """Processes that label structures with a reference, each with a calculator of its own.

    Use `Labelers` for references that take long or may fail. A process that crashes, or takes too long for a label, is
    replaced. All processes end with the ``with`` statement, and also if this program is killed.

    Calculators that write files do so in a folder per process, ``process-0`` and so on inside their own, if there are
    several processes.

    Parameters
    ----------
    reference, charge, multiplicity : see `ase_segnn.training.labeling.find_reference`
    workers : number of processes
    limit : seconds per label; default: an hour until three labels are known, then 20 times the median of their
        durations, but at least a minute. The start of a process may take ten minutes besides
    retries : how often a failed label is tried again. A force above the largest allowed would be the same again, and is
        not
    log : file to which the processes append what they print; default: nowhere

    Attributes
    ----------
    reference : in this process, for its description and its check of structures

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        If there is no such reference, or `workers`, `limit` or `retries` is out of range.
    """

    def __init__(
        self,
        reference: str,
        charge: int | None = None,
        multiplicity: int | None = None,
        *,
        workers: int = 1,
        limit: float | None = None,
        retries: int = 1,
        log: Path | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"at least one process labels, got workers={workers}")
        if limit is not None and not limit > 0:
            raise ValueError(f"the limit of a label is in seconds, positive, got {limit!r}")
        if retries < 0:
            raise ValueError(f"the number of retries is 0 or more, got {retries}")
        self.reference = find_reference(reference, charge, multiplicity)
        self._setup = {"reference": reference, "charge": charge, "multiplicity": multiplicity}
        self._workers, self._limit, self._retries = workers, limit, retries
        self._place = _Place.here(workers, log)
        self._wanted = workers  # fewer if some cannot be started beside the others
        self._processes: list[_Process] = []
        self._answers: SimpleQueue[tuple[_Process, dict[str, Any] | None]] = SimpleQueue()
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._n_bad_starts = 0

    def __enter__(self) -> Labelers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(list(self._processes))

    def label(self, structures: Sequence[Atoms]) -> Generator[tuple[int, Attempt], None, None]:
        """Yield the index of each structure and what became of it, as results come, in any order.

        Labels are those of `ase_segnn.training.labeling.label` in the same process, to the last digit.

        Parameters
        ----------
        structures : not changed

        Raises
        ------
        RuntimeError
            If no process can be started.
        """
        waiting = deque(_Job(index, 1) for index in range(len(structures)))
        n_left = len(waiting)
        try:
            while n_left:
                self._fill(min(self._wanted, n_left))
                for process in self._processes:
                    if process.is_ready and process.job is None and waiting:
                        job = waiting.popleft()
                        process.label(job, structures[job.index])
                for process, answer in self._events():
                    job_done = self._settled(process, answer)
                    if job_done is None:
                        continue
                    attempt = self._attempt(structures[job_done.index], job_done, answer)
                    if attempt.atoms is None and answer.get("again", True) and job_done.n_tries <= self._retries:
                        waiting.append(_Job(job_done.index, job_done.n_tries + 1))
                        continue
                    n_left -= 1
                    yield job_done.index, attempt
        finally:  # of structures that nobody waits for any more
            self._stop([process for process in self._processes if process.job is not None])

    @property
    def _limit_of_label(self) -> float:
        if self._limit is not None:
            return self._limit
        if len(self._durations) < _KNOWN_AFTER:
            return _FIRST_LIMIT
        return max(_LEAST_LIMIT, _TIMES_MEDIAN * statistics.median(self._durations))

    def _fill(self, n_wanted: int) -> None:
        """Start the processes that are missing, also in place of those that died while they had nothing to do."""
        self._stop([process for process in self._processes if process.job is None and process.has_died])
        while len(self._processes) < n_wanted:
            taken = {process.number for process in self._processes}
            number = next(number for number in range(self._workers) if number not in taken)
            folder = f"process-{number}" if self._workers > 1 else None
            self._processes.append(
                _Process(number, json.dumps({**self._setup, "folder": folder}), self._place, self._answers)
            )

    def _events(self) -> list[tuple[_Process, dict[str, Any]]]:
        """Wait for answers, and return those that came, with reasons for processes that died or took too long."""
        limits = {p: _START_LIMIT if not p.is_ready else self._limit_of_label for p in self._processes if p.is_busy}
        now = time.monotonic()
        soonest = min((p.began + limit - now for p, limit in limits.items()), default=_PATIENCE)
        came: dict[_Process, dict[str, Any]] = {}
        wait = min(max(soonest, 0.0), _PATIENCE)
        with suppress(Empty):
            while True:
                process, answer = self._answers.get(timeout=wait)
                wait = 0.0
                if process in self._processes:
                    came[process] = {"reason": self._end_of(process)} if answer is None else answer
        now = time.monotonic()
        for process, limit in limits.items():
            if process not in came and now - process.began > limit:
                self._stop([process])
                came[process] = {"reason": f"took longer than {limit:g} s", "seconds": now - process.began}
        return list(came.items())

    def _end_of(self, process: _Process) -> str:
        self._stop([process])
        code = process.exit_code
        how = "unknown" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process of the reference ended ({how})"

    def _settled(self, process: _Process, answer: dict[str, Any]) -> _Job | None:
        """Return the job that an answer is for; None for the answer that a process is ready, or that it never will be.

        Raises
        ------
        RuntimeError
            If no process can be started.
        """
        job = process.job
        process.job = None
        if process.is_ready:
            return job
        if "reason" not in answer:
            process.is_ready = True
            self._n_bad_starts = 0
            return None
        self._stop([process])
        if any(other.is_ready for other in self._processes):  # as licenses or memory allow
            self._wanted = len(self._processes)
            logger.warning(
                "%d processes of the reference label, and one more cannot be started: %s",
                self._wanted,
                answer["reason"],
            )
            return None
        self._n_bad_starts += 1
        if self._n_bad_starts >= _MOST_BAD_STARTS:
            raise RuntimeError(
                f"no process of the reference '{self._setup['reference']}' can be started: {answer['reason']}"
            )
        return None

    def _attempt(self, atoms: Atoms, job: _Job, answer: dict[str, Any]) -> Attempt:
        seconds = float(answer.get("seconds", 0.0))
        if "results" not in answer:
            return Attempt(None, answer["reason"], seconds, job.n_tries)
        self._durations.append(seconds)
        labeled = atoms.copy()
        labeled.calc = SinglePointCalculator(labeled, **answer["results"])
        return Attempt(labeled, "", seconds, job.n_tries)

    def _stop(self, processes: list[_Process]) -> None:
        self._processes = [process for process in self._processes if process not in processes]
        for process in processes:
            process.kill()
        for process in processes:
            process.close()


@dataclass(frozen=True)
class _Place:
    """Where processes run: working directory, environment, and the file of what they print."""

    directory: Path
    environment: dict[str, str]
    log: Path | None

    @classmethod
    def here(cls, workers: int, log: Path | None) -> _Place:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // workers)))
        # beside other programs, threads that wait for each other by turning round make labels a hundred times slower
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return cls(Path.cwd(), environment, None if log is None else log.absolute())


class _Process:
    """A process with a calculator, and the thread that talks to it, so that nobody else waits.

    Attributes
    ----------
    number : from 0, free again when the process has ended
    job : that the process works on
    is_ready : whether the calculator is made
    began : time of the start or of the last job
    """

    def __init__(
        self, number: int, setup: str, place: _Place, answers: SimpleQueue[tuple[_Process, dict[str, Any] | None]]
    ) -> None:
        self.number = number
        self.job: _Job | None = None
        self.is_ready = False
        self.began = time.monotonic()
        self._answers = answers
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        command = [sys.executable, "-c", _MAIN, json.dumps(sys.path)]
        errors = Path(os.devnull) if place.log is None else place.log
        with errors.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=place.directory,
                env=place.environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # programs that the calculator starts end with it
            )
        self._thread = threading.Thread(target=self._converse, daemon=True)
        self._thread.start()
        self._lines.put(setup)

    @property
    def is_busy(self) -> bool:
        """Whether an answer is due."""
        return self.job is not None or not self.is_ready

    @property
    def has_died(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None if the process has not ended."""
        return self._process.returncode

    def label(self, job: _Job, atoms: Atoms) -> None:
        """Send a structure."""
        self.job, self.began = job, time.monotonic()
        self._lines.put(encoded(atoms))

    def kill(self) -> None:
        """End the process and all that it started."""
        if self._process.returncode is None:  # after that the number may be another's
            with suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
        self._lines.put(None)

    def close(self) -> None:
        """Wait for the end of a process that was killed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with suppress(OSError):  # of what was never sent
                    pipe.close()

    def _converse(self) -> None:
        """Send lines as they are put, each after the answer to the one before; an answer of None is the end."""
        inbox, outbox = self._process.stdin, self._process.stdout
        assert inbox is not None
        assert outbox is not None
        with suppress(OSError, ValueError):  # the process has died, or died amid a line
            while (line := self._lines.get()) is not None:
                inbox.write(line + "\n")
                inbox.flush()
                self._answers.put((self, jsonio.mydecode(outbox.readline())))
        self._answers.put((self, None))


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
