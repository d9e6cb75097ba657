"""Fresh frames: dynamics of the final potential, whose frames the reference labels and nothing learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.electrons import keep_electrons
from ase_segnn.files import written_whole
from ase_segnn.physics.dynamics import INTERVAL, langevin_run
from ase_segnn.physics.verdicts import Verdict

from ..labeling.workers import n_cores
from .tasks import run_tasks

_EQUILIBRATION = 0.2  # of each run
_MANY_STEPS = 10**9
_MOST_KEPT = 2000  # frames of a run in memory
_OF_RUN = 2  # frames of a run at least, where there are more structures than temperatures


def fresh_frames(
    potential: Path,
    starts: Sequence[Atoms],
    temperatures: Sequence[float],
    number: int,
    *,
    seconds: float,
    folder: Path,
    seed: int = 0,
    on_wait: Callable[[str], object] = lambda _: None,
) -> list[Atoms]:
    """Run dynamics of a potential at each temperature, on all cores, and take frames at equal intervals.

    Masses and steps are those of real dynamics. The first fifth of each run is left out. There are as many runs as
    temperatures and cores need, and more where there are more structures.

    Parameters
    ----------
    potential : its file
    starts : of the runs, one after another
    temperatures : K
    number : of frames, shared by the temperatures
    seconds : of all runs together, on all cores
    folder : for the files of the processes
    seed : of velocities and thermostats
    on_wait : see `ase_segnn.training.active_learning.tasks.run_tasks`

    Returns
    -------
    frames with "temperature" in ``info``; `verdicts_in` has the verdicts on the runs

    Raises
    ------
    RuntimeError
        If a process fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_turns = math.ceil(max(len(temperatures), min(len(starts), number // _OF_RUN)) / n_cores())  # runs of a core
    n_runs = n_turns * n_cores()
    per_run = [len(part) for part in np.array_split(np.arange(number), n_runs)]
    runs = []
    for run in range(n_runs):
        start = folder / f"start-{run + 1}.xyz"
        ase.io.write(start, starts[run % len(starts)], format="extxyz")
        runs.append(
            {
                "start": str(start),
                "temperature": temperatures[run % len(temperatures)],
                "number": per_run[run],
                "seconds": seconds / n_turns,
                "seed": seed + run,
                "output": str(folder / f"run-{run + 1}.xyz"),
            }
        )
    parts = [runs[core :: n_cores()] for core in range(n_cores())]
    run_tasks([{"kind": "dynamics", "potential": str(potential), "runs": part} for part in parts], folder, on_wait)
    outputs = [Path(str(run["output"])) for run in runs]
    return [atoms for output in outputs if output.stat().st_size for atoms in ase.io.iread(output, ":")]


def verdicts_in(folder: Path) -> list[Verdict]:
    """Return the verdicts on the runs of `fresh_frames` in a folder: whether the structure held together."""
    return [Verdict(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("run-*.json"))]


def dynamics_part(potential: str, runs: Sequence[dict[str, Any]]) -> None:
    """Run dynamics in this process, one run after another; write the frames of each, and beside them its verdict."""
    calculator = SEGNNCalculator(Path(potential))
    for run in runs:
        _dynamics(calculator, **run)


def _dynamics(
    calculator: SEGNNCalculator, start: str, temperature: float, number: int, seconds: float, seed: int, output: str
) -> None:
    seen: list[Atoms] = []
    stride = 1

    def keep(step: int, atoms: Atoms) -> None:
        nonlocal stride
        if step % (stride * INTERVAL) == 0:
            frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            seen.append(keep_electrons(frame, atoms))
        if len(seen) >= _MOST_KEPT:
            del seen[1::2]
            stride *= 2

    atoms = ase.io.read(start, format="extxyz")
    assert isinstance(atoms, Atoms)
    least = INTERVAL * math.ceil(1 + number / (1 - _EQUILIBRATION))
    run = langevin_run(calculator, atoms, temperature, steps=_MANY_STEPS, seconds=seconds, seed=seed, watch=keep)
    if run.verdict.outcome != "failed" and len(seen) * stride * INTERVAL < least:  # which time did not allow
        seen, stride = [], 1
        run = langevin_run(calculator, atoms, temperature, steps=least, seed=seed, watch=keep)
    late = seen[max(1, round(_EQUILIBRATION * len(seen))) :]
    chosen = [late[k] for k in sorted({round(k) for k in np.linspace(0, len(late) - 1, number)})] if late else []
    for frame in chosen:
        frame.info["temperature"] = round(temperature, 3)
        frame.set_constraint(atoms.constraints)
    path = Path(output)
    with written_whole(path) as temporary:
        ase.io.write(temporary, chosen, format="extxyz")
    with written_whole(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(run.verdict)), encoding="utf-8")
