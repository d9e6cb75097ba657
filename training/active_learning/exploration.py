"""Exploration on all cores: walks in several processes, and the choice of frames to label from all that they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.files import written_whole
from ase_segnn.model.committee import Committee
from ase_segnn.potential_file import load_potential
from ase_segnn.selection import select_frames

from ..labeling.workers import n_cores
from .rounds import Rung
from .tasks import run_tasks
from .walks import Band, explore

_FEWEST_FOUND, _TIMES_SELECTED = 200, 8  # frames at one temperature that are looked at once more, so many per selected


@dataclass(frozen=True, eq=False)
class Explored:
    """Frames to label next, and facts about each rung."""

    selected: list[Atoms]
    rungs: list[Rung]


def explore_and_select(
    committee: Path,
    starts: Sequence[Atoms],
    temperatures: Sequence[float],
    band: Band,
    number: int,
    *,
    seconds: float,
    folder: Path,
    pressures: tuple[float, float] | None = None,
    fill_up: bool = False,
    seed: int = 0,
    on_wait: Callable[[str], object] = lambda _: None,
) -> Explored:
    """Explore with a committee in one process per core, and select frames to label.

    Each temperature gets an equal share of the selection; what one cannot fill goes to the others. Within a temperature
    frames are selected by `ase_segnn.selection.select_frames`.

    Parameters
    ----------
    committee : potential file of a committee
    starts, temperatures, band, pressures : see `ase_segnn.training.active_learning.walks.explore`
    number : of frames to select, at most
    seconds : of the walks
    folder : for the files of the processes
    fill_up : select frames that are not new as well where there are too few new ones
    seed : of the walks
    on_wait : see `ase_segnn.training.active_learning.tasks.run_tasks`

    Raises
    ------
    ValueError
        If the file holds no committee.
    RuntimeError
        If a process fails.
    """
    members = load_potential(committee)
    if not isinstance(members, Committee):
        raise ValueError(  # noqa: TRY004  # of a file
            f"exploration goes by the disagreement of a committee, and '{committee}' holds a single potential; train "
            "one with --committee 2 or more"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(folder / "starts.xyz", list(starts), format="extxyz")
    outputs = [folder / f"found-{part + 1}.xyz" for part in range(n_cores())]
    tasks = [
        {
            "kind": "explore",
            "committee": str(committee),
            "starts": str(folder / "starts.xyz"),
            "temperatures": list(temperatures),
            "pressures": pressures,
            "lower": band.lower,
            "upper": band.upper,
            "seconds": seconds,
            "most": max(_FEWEST_FOUND, _TIMES_SELECTED * number // len(temperatures)) // len(outputs),
            "fill_up": fill_up,
            "seed": [seed, part],
            "output": str(output),
        }
        for part, output in enumerate(outputs)
    ]
    run_tasks(tasks, folder, on_wait)
    parts = [json.loads(output.with_suffix(".json").read_text(encoding="utf-8")) for output in outputs]
    rungs = [_together([Rung.model_validate(part[k]) for part in parts]) for k in range(len(temperatures))]
    found = [atoms for output in outputs if output.stat().st_size for atoms in ase.io.iread(output, ":")]
    selected = _select(members, found, rungs, band, number)
    for atoms in selected:
        del atoms.info["new"]
    rungs = [rung.model_copy(update={"n_selected": sum(_is_of(atoms, rung) for atoms in selected)}) for rung in rungs]
    return Explored(selected, rungs)


def explore_part(
    committee: str,
    starts: str,
    temperatures: list[float],
    pressures: tuple[float, float] | None,
    lower: float,
    upper: float,
    seconds: float,
    most: int,
    fill_up: bool,
    seed: Any,
    output: str,
) -> None:
    """Explore in this process; write the most candidates per rung that are wanted, and beside them the facts."""
    members = load_potential(Path(committee))
    assert isinstance(members, Committee)
    structures = list(ase.io.iread(starts, ":", format="extxyz"))
    rungs, found = explore(
        members, structures, temperatures, Band(lower, upper), seconds=seconds, pressures=pressures, seed=seed
    )
    candidates = [atoms for atoms in found if fill_up or atoms.info["new"]]
    thinned = [atoms for rung in rungs for atoms in _thinned([x for x in candidates if _is_of(x, rung)], most)]
    path = Path(output)
    with written_whole(path) as temporary:
        ase.io.write(temporary, thinned, format="extxyz")
    with written_whole(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps([rung.model_dump() for rung in rungs]), encoding="utf-8")


def _thinned(frames: list[Atoms], most: int) -> list[Atoms]:
    """Return so many frames at most: half of them those that deviate most, the others at equal distances in time."""
    if len(frames) <= most:
        return frames
    by_deviation = sorted(range(len(frames)), key=lambda index: -frames[index].info["deviation"])
    deviating, others = by_deviation[: most // 2], sorted(by_deviation[most // 2 :])
    n_others = most - len(deviating)
    spread = [others[k * len(others) // n_others] for k in range(n_others)]
    return [frames[index] for index in sorted([*deviating, *spread])]


def _together(parts: Sequence[Rung]) -> Rung:
    """Sum up the facts of several processes about one rung."""
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("n_walks", "n_broken", "n_seen", "n_new")}
    weights = [max(part.n_seen, 1e-9) for part in parts]
    return Rung(
        temperature=parts[0].temperature,
        picoseconds=sum(part.picoseconds for part in parts),
        median_deviation=float(np.average([part.median_deviation for part in parts], weights=weights)),
        **counts,
    )


def _select(
    committee: Committee, found: Sequence[Atoms], rungs: Sequence[Rung], band: Band, number: int
) -> list[Atoms]:
    calculator = SEGNNCalculator(committee)
    by_rung = sorted(([atoms for atoms in found if _is_of(atoms, rung)] for rung in rungs), key=len)
    selected: list[Atoms] = []
    for place, frames in enumerate(by_rung):
        quota = round((number - len(selected)) / (len(by_rung) - place))
        if quota < 1 or not frames:
            continue
        chosen = select_frames(calculator, frames, quota, max_deviation=band.upper).indices
        selected += [frames[index] for index in chosen]
    return selected


def _is_of(atoms: Atoms, rung: Rung) -> bool:
    return bool(abs(atoms.info["temperature"] - rung.temperature) < 1e-2)
