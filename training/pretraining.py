"""Pretraining: frames around the training frames, labeled by a cheap reference and learned before them."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.quantities import LABELS, QUANTITIES, shown_errors

from .base import adapted
from .data import Subset, TrainingData, least_squares_energies, read_store
from .fit import CHECKPOINT, PotentialModule, fit, start_from
from .folder import LABELS_FILE, PRETRAINING
from .labeling import Walkers, collect, find_reference
from .recipe import DataSection, PretrainSection, Recipe

logger = logging.getLogger(__name__)

_MOST_SHARE, _FRAMES_OF_IT = 0.75, 50  # of a run, and for how many training frames at most
_SHARE_OF_LABELS = 0.5  # of the time of pretraining
_VALIDATION = 0.05  # of the labels


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
        self.seconds = 0.0
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
            If the labels in the folder are of another run, or the reference fails for almost all structures.
        """
        folder.mkdir(parents=True, exist_ok=True)
        settings, max_time = self._settings, self._recipe.optimization.max_time
        walkers = Walkers(self._starts, self._reference, settings.temperature, self._recipe.seed)
        positions = hashlib.sha256(b"".join(atoms.positions.tobytes() for atoms in self._starts)).hexdigest()
        decisive = {
            **settings.model_dump(mode="json", exclude={"frames", "share", "rates_after"}),
            "seed": self._recipe.seed,
            "training frames": positions,
        }
        limit = math.inf if max_time is None else _SHARE_OF_LABELS * self._share * max_time
        logger.info("pretraining: labels and their fit are %.0f %% of the run", 100 * self._share)
        self._collection = collect(folder / LABELS_FILE, walkers, settings.frames, decisive, limit)
        self.seconds = self._collection.seconds
        self.labels = self._divided(self._collection.path)

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
            name = f"validation_{QUANTITIES['forces'].error_name('RMSE')}"
            last = [entry for entry in result.history if name in entry][-1]
            errors = {name.removeprefix("validation_"): value for name, value in last.items()}
            self._errors = f"RMSE on {len(labels.validation)} of them {', '.join(shown_errors(errors, LABELS))}"
        optimization, factor = member.optimization, self._settings.rates_after
        changes: dict[str, Any] = {
            "learning_rate": factor * optimization.learning_rate,
            "muon_learning_rate": factor * optimization.muon_learning_rate,
        }
        if optimization.max_time is not None:
            left = optimization.max_time - result.seconds - self._collection.seconds / self._recipe.committee
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
        labels = self._collection
        return (
            f"{labels.n_labels:,} frames around the training frames, of dynamics at {self._settings.temperature:g} K, "
            f"labeled by {self._reference.description}; {labels.n_failed:,} further structures got no label; "
            f"{self._errors}; {self.seconds / 60:.1f} minutes"
        )

    def _recipe_of(self, member: Recipe) -> Recipe:
        """Return the recipe of the fit of the labels: as long as its share of the run."""
        share, optimization = self._share, member.optimization
        changes: dict[str, Any] = {"early_stopping": None}
        if optimization.max_time is not None:
            whole = share * optimization.max_time
            left = whole - self._collection.seconds / self._recipe.committee
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
    def checksums(self) -> dict[str, str]:
        """The file of labels in the folder of the run -> SHA-256."""
        return {f"{PRETRAINING}/{LABELS_FILE}": checksum for checksum in self.labels.checksums.values()}

    @property
    def _share(self) -> float:
        share = self._settings.share
        assert share is not None
        return share

    def _divided(self, path: Path) -> TrainingData:
        """Read the labels, with reference energies of their own."""
        settings = DataSection.model_validate({"train": str(path.resolve()), "cache": self._recipe.data.cache})
        cutoff = self._run.training.store.cutoff
        store, checksums = read_store(settings.train, settings, cutoff, PRETRAINING, required=True)
        order = np.random.default_rng(self._recipe.seed).permutation(len(store))
        drawn, rest = np.split(order, [max(1, round(_VALIDATION * len(store)))])
        learned = Subset(store, np.sort(rest))
        elements = learned.elements()
        watched = [index for index in np.sort(drawn) if set(store.elements([index])) <= set(elements)]
        energies = least_squares_energies(elements, learned.counts(elements), learned.energies())
        bound = self._run.energy_shifts()
        return TrainingData(
            training=learned,
            validation=Subset(store, np.array(watched)),
            tests={},
            reference_energies={symbol: energy - bound[symbol] for symbol, energy in energies.items()},
            origin_of_references="least squares",
            checksums=checksums,
        )
