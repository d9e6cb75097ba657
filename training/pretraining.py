"""Pretraining: frames around the training frames, labeled by a cheap reference and learned before them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_segnn.files import written_whole
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.quantities import LABELS, shown_errors

from .base import adapted
from .data import Subset, TrainingData
from .fit import CHECKPOINT, PotentialModule, fit, start_from
from .folder import LABELS_FILE, ORIGIN_FILE, PRETRAINING
from .learn import LabelFile, NoLabelError, Walkers, find_reference
from .recipe import DataSection, PretrainSection, Recipe

logger = logging.getLogger(__name__)

_MOST_SHARE, _FRAMES_OF_IT = 0.5, 100  # of a run, and for how many training frames at most
_SHARE_OF_LABELS = 0.5  # of the time of pretraining
_VALIDATION = 0.05  # of the labels
_FEWEST = 10  # labels, and attempts until the reference is given up
_MOST_ATTEMPTS = 3  # per frame that is wanted
_KNOWN_AFTER, _TOLD = 5, 0.1  # labels until their cost is known; share of the labels from one message to the next


def with_share(settings: PretrainSection, n_training: int) -> PretrainSection:
    """Return settings with the share of the run settled: the fewer training frames, the longer pretraining helps."""
    if settings.share is not None:
        return settings
    share = _MOST_SHARE * min(1.0, (_FRAMES_OF_IT / n_training) ** 0.5)
    return settings.model_copy(update={"share": round(share, 3)})


class Pretraining:
    """The labels of a run's reference, and how long to learn them.

    Energies of two methods differ by a constant per element, which may be thousands of eV, and only differences within
    a method mean anything. Each set of labels therefore has reference energies of its own. Those of the reference are
    fitted to its labels, less the mean binding energies of the training frames, so that the network learns alike parts
    from both.

    Parameters
    ----------
    recipe : settled
    data : of the run; frames are made around the training frames alone

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        If there is no such reference, or it cannot compute the training frames; before any work.

    Attributes
    ----------
    n_labels, n_failed : attempts with and without a label
    seconds : that labels and fits of them took, interrupted sessions included
    labels : of the reference, once made
    """

    def __init__(self, recipe: Recipe, data: TrainingData) -> None:
        assert recipe.pretrain is not None
        self._settings: PretrainSection = recipe.pretrain
        self._recipe, self._run = recipe, data
        settings = self._settings
        self._reference = find_reference(settings.reference, settings.charge, settings.multiplicity)
        frames = [frame for frame in data.training.frames() if len(frame.atoms) > 1]
        if not frames:
            raise ValueError("no training frame has two atoms or more, and pretraining starts from such frames")
        self._reference.check((frame.source, frame.atoms) for frame in frames)
        order = np.random.default_rng(recipe.seed).permutation(len(frames))
        self._starts = [frames[index].atoms for index in order]
        self.n_labels = self.n_failed = 0
        self.seconds = self._seconds_of_labels = 0.0
        self._energies: PotentialConfig | None = None  # of the first member
        self._errors = ""

    def label(self, folder: Path) -> None:
        """Make the labels that are missing in a folder, and divide them for a fit.

        Parameters
        ----------
        folder : of the labels; those in it from an interrupted session are kept

        Raises
        ------
        ValueError
            If the labels in the folder are of another run, or the reference fails for the first frames.
        """
        folder.mkdir(parents=True, exist_ok=True)
        origin = _Origin.open(folder / ORIGIN_FILE, self._decisive())
        file = LabelFile(folder / LABELS_FILE)
        settings = self._settings
        walkers = Walkers(self._starts, self._reference, settings.temperature, self._recipe.seed, file.frames)
        self.seconds = sum(float(atoms.info["seconds"]) for atoms in file.frames)
        reasons: Counter[str] = Counter()
        while origin.n_attempts is None and not self._enough(len(file.frames), walkers.n_attempts):
            began = time.monotonic()
            try:
                walkers.keep(file.append(walkers.attempt()))
            except NoLabelError as error:
                reasons[str(error)] += 1
                self.seconds += time.monotonic() - began
                continue
            self.seconds += float(file.frames[-1].info["seconds"])
            self._tell(file.frames, walkers)
        if len(file.frames) < _FEWEST:
            raise ValueError(
                f"{self._reference.description} labeled {len(file.frames)} of {walkers.n_attempts} structures, "
                f"and at least {_FEWEST} labels are needed; {self._most(reasons)}; look at the training frames, or "
                "take another reference"
            )
        if origin.n_attempts is None:
            origin.finish(walkers.n_attempts)
        self.n_labels, self.n_failed = len(file.frames), (origin.n_attempts or 0) - len(file.frames)
        level = logging.WARNING if self.n_failed > self.n_labels else logging.INFO
        logger.log(level, "%s, in %.0f s; %s", self._sentence(), self.seconds, self._most(reasons))
        self._seconds_of_labels = self.seconds
        self.labels = self._divided(folder)

    def fit(
        self, new: Callable[[Recipe, TrainingData, Subset], Potential], member: Recipe, folder: Path, *, resume: bool
    ) -> tuple[Potential, Recipe]:
        """Fit the labels, for a member of the run.

        Parameters
        ----------
        new : makes a potential with random weights, for frames to learn and other frames
        member : recipe of the member
        folder : of the member
        resume : go on from a checkpoint, if there is one

        Returns
        -------
        the potential, with energies corrected for the training frames, and the recipe of the fit that follows: with the
        time that is left, and lower learning rates
        """
        labels, folder = self.labels, folder / PRETRAINING
        folder.mkdir(exist_ok=True)
        recipe = self._recipe_of(member)
        potential = new(recipe, labels, self._run.training)
        module = PotentialModule(potential, labels.training, labels.validation, recipe)
        result = fit(module, recipe, folder, resume=resume and (folder / CHECKPOINT).is_file())
        self.seconds += result.seconds
        if not self._errors:
            last = [entry for entry in result.history if "validation_forces_RMSE_meV_per_A" in entry][-1]
            errors = {name.removeprefix("validation_"): value for name, value in last.items()}
            self._errors = f"RMSE on {len(labels.validation)} of them {', '.join(shown_errors(errors, LABELS))}"
        optimization, factor = member.optimization, self._settings.rates_after
        changes: dict[str, Any] = {
            "learning_rate": factor * optimization.learning_rate,
            "muon_learning_rate": factor * optimization.muon_learning_rate,
        }
        if optimization.max_time is not None:
            left = optimization.max_time - result.seconds - self._seconds_of_labels / self._recipe.committee
            changes["max_time"] = max(1.0, left)
        optimization = optimization.model_copy(update=changes)
        potential = adapted(potential, self._run)
        if self._energies is None:
            self._energies = potential.config
        else:  # members of a committee differ in their weights alone
            known = self._energies
            potential = start_from(potential, (), known.reference_energies, known.energy_shifts)
        return potential, member.model_copy(update={"optimization": optimization})

    def note(self) -> str:
        """Return what card and report say."""
        return f"{self._sentence()}; {self._errors}; {self.seconds / 60:.1f} minutes"

    def _recipe_of(self, member: Recipe) -> Recipe:
        """Return the recipe of the fit of the labels: as long as its share of the run."""
        share, optimization = self._share, member.optimization
        changes: dict[str, Any] = {"early_stopping": None}
        if optimization.max_time is not None:
            whole = share * optimization.max_time
            left = whole - self._seconds_of_labels / self._recipe.committee
            changes["max_time"] = max(left, (1 - _SHARE_OF_LABELS) * whole)
        assert optimization.epochs is not None
        sizes = [
            max(1, int(data.training.store.n_edges[data.training.indices].sum())) for data in (self._run, self.labels)
        ]
        changes["epochs"] = max(1, round(share / (1 - share) * optimization.epochs * sizes[0] / sizes[1]))
        if not self.labels.training.n_labels()["stress"]:
            changes["stress_weight"] = 0.0
        return member.model_copy(
            update={
                "name": f"{member.name}-{PRETRAINING}",
                "pretrain": None,
                "bootstrap": False,
                "optimization": optimization.model_copy(update=changes),
                "validate_every": 1,
            }
        )

    @property
    def _share(self) -> float:
        share = self._settings.share
        assert share is not None
        return share

    @property
    def _limit(self) -> float:
        """Seconds that labels may take."""
        max_time = self._recipe.optimization.max_time
        return math.inf if max_time is None else _SHARE_OF_LABELS * self._share * max_time

    def _sentence(self) -> str:
        return (
            f"{self.n_labels:,} frames around the training frames, of dynamics at {self._settings.temperature:g} K, "
            f"labeled by {self._reference.description}; {self.n_failed:,} further structures got no label"
        )

    @staticmethod
    def _most(reasons: Counter[str]) -> str:
        return "failures: " + (", ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) or "none")

    def _enough(self, n_labels: int, n_attempts: int) -> bool:
        wanted = self._settings.frames
        if n_labels == 0 and n_attempts >= _FEWEST:
            return True
        if n_labels >= wanted or n_attempts >= _MOST_ATTEMPTS * wanted:
            return True
        return n_attempts >= _FEWEST and self.seconds >= self._limit

    def _tell(self, frames: Sequence[Atoms], walkers: Walkers) -> None:
        """Log the plan once the cost of an evaluation is known, and the progress from time to time."""
        wanted, n_labels = self._settings.frames, len(frames)
        if n_labels == _KNOWN_AFTER:
            cost = float(np.median([atoms.info["seconds"] for atoms in frames]))
            seconds = cost * walkers.n_evaluations(wanted)
            limit = self._limit
            logger.info(
                "pretraining: %s frames by %s at %.3g ms per evaluation and about %.0f ms per frame take %.0f s%s; "
                "labels and pretraining are %.0f %% of the run",
                f"{wanted:,}",
                self._reference.description,
                1000 * cost,
                1000 * seconds / wanted,
                seconds,
                f", of which there are {limit:.0f}" if limit < seconds else "",
                100 * self._share,
            )
        elif n_labels % max(1, round(_TOLD * wanted)) == 0:
            logger.info(
                "pretraining: %s of %s frames labeled after %.0f s", f"{n_labels:,}", f"{wanted:,}", self.seconds
            )

    def _decisive(self) -> dict[str, Any]:
        """Everything that decides the labels, as plain data."""
        positions = hashlib.sha256(b"".join(atoms.positions.tobytes() for atoms in self._starts)).hexdigest()
        settings = self._settings.model_dump(mode="json", exclude={"frames", "share", "rates_after"})
        return {**settings, "seed": self._recipe.seed, "training frames": positions}

    def _divided(self, folder: Path) -> TrainingData:
        """Read the labels, with reference energies of their own."""
        settings = DataSection(
            train=[str(folder.resolve() / LABELS_FILE)],
            validation=_VALIDATION,
            reference_energies="least-squares",
            cache=self._recipe.data.cache,
            held_out=None,
        )
        data = TrainingData.read(settings, self._run.training.store.cutoff, self._recipe.seed)
        bound = self._run.energy_shifts()
        energies = {symbol: value - bound[symbol] for symbol, value in data.reference_energies.items()}
        return replace(data, reference_energies=energies)


@dataclass
class _Origin:
    """What decided the labels in a folder, and the number of attempts once these are finished."""

    path: Path
    decisive: dict[str, Any]
    n_attempts: int | None = None

    @classmethod
    def open(cls, path: Path, decisive: dict[str, Any]) -> _Origin:
        """Write the file if there is none, or compare with what was written before.

        Raises
        ------
        ValueError
            If the labels are of another run.
        """
        origin = cls(path, decisive)
        if not path.exists():
            origin._write()
            return origin
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = " and ".join(name for name, value in decisive.items() if before["decisive"].get(name) != value)
        if differing:
            raise ValueError(
                f"the labels in '{path.parent}' are of another run, with other {differing}; resume with what it began "
                "with, or start anew with --force or in another folder"
            )
        origin.n_attempts = before["n_attempts"]
        return origin

    def finish(self, n_attempts: int) -> None:
        """Note that no labels are to follow."""
        self.n_attempts = n_attempts
        self._write()

    def _write(self) -> None:
        values = {"decisive": self.decisive, "n_attempts": self.n_attempts}
        with written_whole(self.path) as temporary:
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
