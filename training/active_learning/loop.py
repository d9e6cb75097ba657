"""The loop of active learning: label, fit, explore, select; then fit once more, and test."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance, load_potential, save_potential
from ase_segnn.quantities import LABELS, shown_errors

from ..data import Frame
from ..labeling import Attempt, Labelers, LabelFile, label_queue
from ..labeling.workers import n_cores
from .exploration import explore_and_select
from .fits import fitted, is_kept, raw_recipe
from .folder import FRESH, LearnFolder
from .fresh import fresh_frames
from .outcome import LearnResult, concluded_run
from .plan import Plan
from .rounds import Round
from .settings import LearnSettings
from .start import first_frames, isolated_atoms, next_frames
from .tasks import run_tasks
from .walks import Band

logger = logging.getLogger(__name__)

_LEAST_START = 5  # frames with a label
_GENERATIONS = 3  # of start frames, each moved along the forces of the one before
_LOWER, _UPPER = 0.1, 10.0  # of the root mean square force component; of the lower bound
_QUIET, _SEEN = 0.01, 50  # share of new frames, and frames looked at, with which a rung is quiet
_QUIET_ROUNDS = 2  # in a row, until the run ends
# Weights are those of the end, where validation frames are looked at once: they are few and hard, and best after a few
# epochs, when the errors in dynamics are still three times as large.
_ONLY_AT_THE_END = 10**6  # epochs between validations
_SAME = 1e-3  # Å, of positions written and read by other programs


class LabelsNeeded(Exception):  # noqa: N818  # no error: the run goes on when the labels are there
    """Labels that are made elsewhere are missing.

    Parameters
    ----------
    frames : to label
    """

    def __init__(self, frames: list[Atoms]) -> None:
        super().__init__(f"{len(frames)} frames need labels")
        self.frames = frames


class Loop:
    """A run: stages whose results are files. A stage whose file is there is passed over.

    Parameters
    ----------
    folder : of the run, reserved
    settings, structures : of the run
    labels_from, on_change : see `ase_segnn.training.active_learning.learn`
    """

    def __init__(
        self,
        folder: LearnFolder,
        settings: LearnSettings,
        structures: list[Atoms],
        labels_from: Sequence[Atoms] | None,
        on_change: Callable[[str, float], object],
    ) -> None:
        self._folder, self._settings, self._structures = folder, settings, structures
        self._labels_from = None if labels_from is None else list(labels_from)
        self._on_change = on_change
        self._labels, self._failed, self._fresh = (
            LabelFile(path) for path in (folder.labels, folder.failed, folder.fresh)
        )
        self._labelers: Labelers | None = None
        self._labeling = 0.0
        self._overheads: list[float] = []  # of rounds, the first with compiling in it
        for file in (self._labels, self._failed, self._fresh):
            self._labeling += sum(float(atoms.info.get("seconds", 0.0)) for atoms in file.frames) / settings.workers
        self._errors = ""
        self._ends: float | None = None  # seconds, once the cost of a label is known

    def perform(self) -> LearnResult:
        """Perform all stages that are not done yet."""
        settings = self._settings
        with ExitStack() as open_until_the_end:
            if settings.reference is not None:
                self._labelers = open_until_the_end.enter_context(
                    Labelers(
                        settings.reference,
                        settings.charge,
                        settings.multiplicity,
                        workers=settings.workers,
                        limit=settings.limit,
                        log=self._folder.path / "reference.log",
                    )
                )
            return self._perform()

    def _perform(self) -> LearnResult:
        self._start()
        plan = self._plan()
        self._ends = plan.max_time
        logger.info("plan: %s", plan.told())
        number, quiet = 1, 0
        while quiet < _QUIET_ROUNDS and (self._folder.queue(f"round-{number}") is not None or plan.n_next > 0):
            quiet = quiet + 1 if _is_quiet(self._round(number, plan)) else 0
            number, plan = number + 1, self._plan()
        if quiet == _QUIET_ROUNDS:
            logger.info("nothing new was found in %d rounds", quiet)
        result = self._end(number, plan)
        self._folder.note_time(always=True, finished=True)
        return result

    # ---- stages

    def _start(self) -> None:
        """Label the start frames, a generation after another."""
        settings = self._settings
        hottest = settings.temperatures[1]
        if settings.reference is None:
            self._stage("start-1", lambda: first_frames(self._structures, settings.n_start, hottest, settings.seed))
            return
        per_generation = math.ceil(settings.n_start / _GENERATIONS)
        self._stage("start-1", lambda: first_frames(self._structures, per_generation, hottest, settings.seed))
        for generation in range(2, _GENERATIONS + 1):
            self._stage(
                f"start-{generation}",
                lambda: next_frames(self._molecules(), per_generation, hottest, settings.seed),
            )
        assert self._labelers is not None
        is_neutral = settings.charge in (None, 0) and settings.multiplicity is None
        if is_neutral and self._labelers.reference.knows_atoms:
            self._stage("atoms", lambda: isolated_atoms(self._structures))
        if len(self._molecules()) < _LEAST_START:
            raise ValueError(
                f"only {len(self._molecules())} of the start frames have a label, and {_LEAST_START} are needed; "
                f"'{self._folder.failed}' has the others, each with its reason"
            )

    def _round(self, number: int, plan: Plan) -> Round:
        """Fit, explore and label once."""
        stage = f"round-{number}"
        known = {each.number: each for each in self._folder.rounds}
        if self._folder.queue(stage) is None:
            began = time.monotonic()
            members, errors = self._fit(number, plan.fit_seconds)
            band, explored_from = self._band(), time.monotonic()
            explored = explore_and_select(
                _joined(members, self._folder.work / stage / "committee.safetensors"),
                self._molecules(),
                self._settings.rungs,
                band,
                plan.n_next,
                seconds=plan.explore_seconds,
                pressures=self._settings.pressures,
                fill_up=True,
                folder=self._folder.work / stage / "explore",
                seed=self._settings.seed + number,
                on_wait=lambda _: self._tell(f"round {number}, exploring"),
            )
            found = Round(
                number=number,
                n_labels=len(self._labels.frames),
                errors=errors,
                lower=band.lower,
                upper=band.upper,
                fit_seconds=round(plan.fit_seconds, 1),
                explore_seconds=round(time.monotonic() - explored_from, 1),
                rungs=tuple(explored.rungs),
            )
            self._folder.add_round(found)
            known[number] = found
            selected = explored.selected
            if not selected and not _is_quiet(found):  # every walk broke at once
                selected = next_frames(self._molecules(), plan.n_next, self._settings.temperatures[1], number)
            self._folder.put_queue(stage, selected)
            self._overheads.append(max(0.0, time.monotonic() - began - plan.fit_seconds - plan.explore_seconds))
            self._told_round(found)
        self._stage(stage, list)
        return known[number]

    def _end(self, number: int, plan: Plan) -> LearnResult:
        """Fit the final potential, test it, and write everything."""
        members, errors = self._fit(number, plan.final_seconds)
        settings, folder = self._settings, self._folder
        if number not in [each.number for each in folder.rounds]:
            band = self._band()
            last = Round(
                number=number,
                n_labels=len(self._labels.frames),
                errors=errors,
                lower=band.lower,
                upper=band.upper,
                fit_seconds=round(plan.final_seconds, 1),
            )
            folder.add_round(last)
            self._told_round(last)
        committee = _joined(members, folder.work / f"round-{number}" / "committee.safetensors")
        best = min(members, key=lambda path: math.prod(fitted(path).errors.values()))
        chosen = committee if settings.committee else best
        self._stage(FRESH, lambda: self._fresh_frames(chosen, plan.dynamics_seconds), self._fresh)
        self._tell("report")
        return concluded_run(folder, settings, self._structures, best, committee)

    def _fresh_frames(self, potential: Path, seconds: float) -> list[Atoms]:
        settings, starts = self._settings, self._molecules()
        if settings.pressures is None:
            starts = list({atoms.get_chemical_formula(): atoms for atoms in sorted(starts, key=_hotness)}.values())
        starts = [starts[k] for k in np.random.default_rng(settings.seed).permutation(len(starts))]  # of all sizes
        return fresh_frames(
            potential,
            starts,
            settings.rungs,
            settings.n_fresh,
            seconds=seconds,
            folder=self._folder.work / FRESH,
            seed=settings.seed,
            on_wait=lambda _: self._tell("dynamics of the final potential"),
        )

    # ---- steps of stages

    def _stage(self, name: str, frames: Callable[[], list[Atoms]], labels: LabelFile | None = None) -> None:
        """Label the frames of a stage; decide them first, unless that was done before an interruption."""
        queue = self._folder.queue(name)
        if queue is None:
            queue = self._folder.put_queue(name, frames())
        labels = labels or self._labels
        done = {int(atoms.info["id"]) for atoms in (*labels.frames, *self._failed.frames)}
        missing = [atoms for atoms in queue if int(atoms.info["id"]) not in done]
        if not missing:
            return
        if self._labelers is None:
            self._take_labels(missing, labels)
            return

        def tell(attempt: Attempt) -> None:
            self._tell(f"{name.replace('-', ' ')}, labeling{'' if attempt.atoms is not None else ', one failed'}")

        began = time.monotonic()
        label_queue(queue, labels, self._failed, self._labelers, tell, gives_up=name != FRESH)
        self._labeling += time.monotonic() - began
        n_failed = len(self._failed.frames)
        logger.info("%s: %d labels, %d failed", name.replace("-", " "), len(labels.frames), n_failed)

    def _take_labels(self, missing: list[Atoms], labels: LabelFile) -> None:
        """Take labels that were made elsewhere.

        Raises
        ------
        LabelsNeeded
            If there are none any more.
        ValueError
            If none of those that were given is for these frames.
        """
        if self._labels_from is None:
            raise LabelsNeeded(missing)
        given, self._labels_from = self._labels_from, None
        found = [(atoms, _labeled_as(atoms, given)) for atoms in missing]
        if not any(label is not None for _, label in found):
            raise ValueError(
                f"none of the {len(given)} labeled frames is one of the {len(missing)} that need labels, of the same "
                f"atoms in the same order within {_SAME:g} Å; '{self._folder.path}' has them in queues"
            )
        for atoms, label in found:
            if label is None:
                atoms.info["reason"] = "no label among those that were given"
                self._failed.append(atoms)
            else:
                labels.append(label)

    def _fit(self, number: int, seconds: float) -> tuple[list[Path], dict[str, float]]:
        """Fit all members of the committee to the labels so far, from their weights before.

        Returns
        -------
        potential files, and the errors on validation frames, mean over the members
        """
        settings, folder = self._settings, self._folder.work / f"round-{number}"
        outputs = [folder / f"member-{member + 1}.safetensors" for member in range(settings.n_members)]
        raw = raw_recipe(settings)
        n_turns = math.ceil(len(outputs) / n_cores())
        tasks = []
        for member, output in enumerate(outputs):
            before = self._folder.work / f"round-{number - 1}" / output.name
            if output.is_file() or is_kept(before, output, seconds / n_turns):
                continue
            optimization = {**raw.get("optimization", {}), "max_time": seconds / n_turns}
            recipe = {
                "validate_every": _ONLY_AT_THE_END,
                **raw,
                "seed": (settings.seed + member) % 2**32,
                "optimization": optimization,
            }
            tasks.append(
                {
                    "kind": "fit",
                    "labels": str(self._folder.labels),
                    "recipe": recipe,
                    "start": str(before) if before.is_file() else None,
                    "folder": str(folder / output.stem),
                    "output": str(output),
                }
            )
        if tasks:
            run_tasks(tasks, folder, lambda _: self._tell(f"round {number}, fitting"))
        found = [fitted(output).errors for output in outputs]
        return outputs, {name: float(np.mean([errors[name] for errors in found])) for name in found[0]}

    def _plan(self) -> Plan:
        known = [atoms.info["seconds"] for atoms in self._labels.frames if "seconds" in atoms.info]
        plan = Plan(
            self._settings,
            cost=float(np.median(known)) if known else 0.0,
            used=self._folder.seconds,
            labeling=self._labeling,
            n_labels=len(self._labels.frames),
        )
        return replace(plan, overhead=min(self._overheads)) if self._overheads else plan

    def _molecules(self) -> list[Atoms]:
        """Labeled frames of two atoms or more."""
        return [atoms for atoms in self._labels.frames if len(atoms) > 1]

    def _band(self) -> Band:
        lower = self._settings.deviation
        if lower is None:
            forces = np.concatenate([atoms.get_forces().ravel() for atoms in self._molecules()])
            lower = _LOWER * float(np.sqrt(np.mean(forces**2)))
        return Band(lower, _UPPER * lower)

    def _tell(self, what: str) -> None:
        labels = f"{len(self._labels.frames) + len(self._fresh.frames)} of {self._settings.labels} labels"
        failed = f", {len(self._failed.frames)} failed" if self._failed.frames else ""
        seconds = self._folder.seconds
        left = "" if self._ends is None else f"; {max(0.0, self._ends - seconds) / 60:.0f} min left"
        self._folder.note_time()
        self._on_change(f"{what}; {labels}{failed}{self._errors}{left}", seconds)

    def _told_round(self, found: Round) -> None:
        errors = ", ".join(shown_errors(found.errors, ("energy_per_atom", *LABELS)))
        self._errors = f"; validation {errors}"
        rungs = "; ".join(
            f"{rung.temperature:.0f} K: {rung.n_new} of {rung.n_seen} frames new in {rung.picoseconds:.1f} ps"
            for rung in found.rungs
        )
        logger.info("round %d, %d labels: validation %s; %s", found.number, found.n_labels, errors, rungs or "final")


def _is_quiet(found: Round) -> bool:
    return all(rung.n_seen >= _SEEN and rung.n_new <= _QUIET * rung.n_seen for rung in found.rungs)


def _hotness(atoms: Atoms) -> float:
    """Order frames of one formula by falling energy, so that the last is the most relaxed."""
    return -float(atoms.get_potential_energy())


def _joined(members: Sequence[Path], path: Path) -> Path:
    """Write the members of a committee into one file."""
    if not path.is_file():
        potentials = [load_potential(member) for member in members]
        committee = Committee([each for each in potentials if isinstance(each, Potential)])
        save_potential(committee, path, provenance=Provenance())
    return path


def _labeled_as(wanted: Atoms, given: Sequence[Atoms]) -> Atoms | None:
    """Return a frame with the labels of the same structure among labeled frames, and its own info; None without one."""
    for atoms in given:
        if len(atoms) == len(wanted) and (atoms.numbers == wanted.numbers).all():
            near = np.abs(atoms.positions - wanted.positions).max() < _SAME
            if near and np.abs(atoms.cell.array - wanted.cell.array).max() < _SAME:
                labeled: Atoms = Frame.from_atoms(atoms, "a label").labeled_atoms()
                labeled.set_constraint(wanted.constraints)
                labeled.info = dict(wanted.info)
                return labeled
    return None
