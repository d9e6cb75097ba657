"""Tasks of a run that take long, each in a process of its own: fits, walks, and dynamics of the final potential.

A task is a JSON file. Processes start anew instead of copying this one, so that a script that calls `learn` needs no
main guard, and each has its own threads.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase_segnn.files import written_whole

from ..labeling.workers import n_cores

_MODULE = "ase_segnn.training.active_learning.tasks"
_LOOK = 0.2  # seconds between two looks at the processes
_LAST_LINES = 3  # of the log of a task that failed, for the message


def run_tasks(tasks: Sequence[dict[str, Any]], folder: Path, on_wait: Callable[[str], object]) -> None:
    """Run tasks at the same time, as many as there are cores, and wait for all of them.

    Parameters
    ----------
    tasks : see `perform`
    folder : for the files of tasks and their logs
    on_wait : called several times a second with the last line of a log

    Raises
    ------
    RuntimeError
        If a task fails; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(enumerate(tasks)), dict[int, subprocess.Popen[bytes]]()
    threads = max(1, n_cores() // min(len(tasks), n_cores()))
    try:
        while waiting or running:
            while waiting and len(running) < n_cores():
                number, task = waiting.pop(0)
                running[number] = _started(task, folder / f"{task['kind']}-{number + 1}.json", threads)
            time.sleep(_LOOK)
            for number, process in list(running.items()):
                log = folder / f"{tasks[number]['kind']}-{number + 1}.log"
                on_wait(_end(log, 1))
                if process.poll() is None:
                    continue
                _close(running.pop(number))
                if process.returncode:
                    raise RuntimeError(
                        f"{tasks[number]['kind']} failed (exit {process.returncode}): {_end(log, _LAST_LINES)}; "
                        f"'{log}' has more"
                    )
    finally:
        for process in running.values():
            process.kill()
            _close(process)


def _started(task: dict[str, Any], path: Path, threads: int) -> subprocess.Popen[bytes]:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(task, indent=1), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(path)], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _end(path: Path, n_lines: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return " | ".join(line.strip() for line in lines[-n_lines:])


def perform(task: dict[str, Any]) -> None:
    """Perform a task of the kind "fit", "explore" or "dynamics"; its other keys are arguments."""
    arguments = dict(task)
    kind = arguments.pop("kind")
    if kind == "fit":
        from .fits import fit_member

        start = arguments.pop("start")
        fit_member(
            Path(arguments["labels"]),
            arguments["recipe"],
            None if start is None else Path(start),
            Path(arguments["folder"]),
            Path(arguments["output"]),
        )
    elif kind == "explore":
        from .exploration import explore_part

        explore_part(**arguments)
    else:
        from .fresh import dynamics_part

        dynamics_part(**arguments)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, and with it the other end of the standard input."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    perform(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
