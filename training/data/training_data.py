"""The data of a run: files found, read and divided into training, validation and test frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ase_segnn.caches import Cache

from ..recipe import DataSection
from .frames import tell_labels
from .reference_energies import energies_of_atoms, find_reference_energies, least_squares_energies, reference_files
from .sources import locate_all, sha256
from .store import FrameStore
from .subset import Subset, whole

HELD_OUT = "held out"


@dataclass(frozen=True)
class TrainingData:
    """All frames of a run.

    Parameters
    ----------
    training, validation : frames to learn from and to watch
    tests : name -> frames, evaluated at the end
    reference_energies : eV per element of the training frames
    origin_of_references : "given", "isolated atoms" or "least squares"
    checksums : file -> SHA-256
    """

    training: Subset
    validation: Subset
    tests: dict[str, Subset]
    reference_energies: dict[str, float]
    origin_of_references: str
    checksums: dict[str, str]

    @classmethod
    def read(cls, settings: DataSection, cutoff: float, seed: int, known_elements: Sequence[str] = ()) -> TrainingData:
        """Find and read all files, including the tests.

        Parameters
        ----------
        settings : which files, and what to do with them
        cutoff : of the graphs, Å
        seed : of the frames that are drawn
        known_elements : elements allowed in validation and test frames beside those of the training frames

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If a file cannot be read, a frame is not as it should be, or too few frames are left to train on.
        """
        names = {"train": settings.train, **{f"test {name}": files for name, files in settings.test.items()}}
        if isinstance(settings.validation, list):
            names["validation"] = settings.validation
        for files in names.values():  # all are found before any is read
            locate_all(files, settings.folder)
        checksums = {name: sha256(path) for name, path in reference_files(settings).items()}
        stores = {}
        for use, files in names.items():
            stores[use], own = read_store(files, settings, cutoff, use, required=use == "train")
            checksums |= own
        return cls.divide(stores, settings, seed, checksums, known_elements)

    @classmethod
    def divide(
        cls,
        stores: Mapping[str, FrameStore],
        settings: DataSection,
        seed: int,
        checksums: dict[str, str],
        known_elements: Sequence[str] = (),
    ) -> TrainingData:
        """Divide the frames of stores named "train", "validation" and "test <name>"."""
        store = stores["train"]
        isolated = [i for i in range(len(store)) if store.n_atoms[i] == 1 and store.frame(i).is_isolated_atom]
        rest = np.setdiff1d(np.arange(len(store)), isolated)
        n_validation = 0 if isinstance(settings.validation, list) else _number(settings.validation, len(rest))
        n_held_out = 0 if settings.held_out is None else _number(settings.held_out, len(rest))
        training, validation, held_out = split(rest, n_validation, n_held_out, seed)
        tests = {name: whole(stores[f"test {name}"]) for name in settings.test}
        if n_held_out:
            tests[HELD_OUT] = Subset(store, held_out)
        learned = Subset(store, training, settings.group_weights)
        watched = whole(stores["validation"]) if "validation" in stores else Subset(store, validation)
        unknown = set(settings.group_weights) - store.groups()
        if unknown:
            raise ValueError(
                f"group_weights names {', '.join(sorted(unknown))}; the groups of the training frames are "
                f"{', '.join(sorted(store.groups() - {''})) or 'none'}"
            )
        elements = learned.elements()
        for name, subset in {"validation": watched, **tests}.items():
            foreign = set(subset.elements()) - {*elements, *known_elements}
            if foreign:
                raise ValueError(
                    f"the frames of '{name}' have {', '.join(sorted(foreign))}, training frames have not; if they were "
                    "drawn from the same files, another seed draws others"
                )
        atoms = energies_of_atoms(map(store.frame, isolated)) if settings.reference_energies == "auto" else {}
        energies, origin = find_reference_energies(settings, learned, elements, atoms)
        return cls(learned, watched, tests, energies, origin, checksums)

    def energy_shifts(self) -> dict[str, float]:
        """Mean energy of each element less its reference energy, eV, fitted to the training frames."""
        elements = self.training.elements()
        counts = self.training.counts(elements)
        composition = counts @ np.array([self.reference_energies[symbol] for symbol in elements])
        return least_squares_energies(elements, counts, self.training.energies() - composition)

    @property
    def sets(self) -> dict[str, Subset]:
        """Validation and test frames by name."""
        return {"validation": self.validation, **self.tests}


def read_store(
    names: Sequence[str], settings: DataSection, cutoff: float, use: str, *, required: bool
) -> tuple[FrameStore, dict[str, str]]:
    """Find the files of a data set and open their store; return the store and the checksum of each file.

    The log tells the labels of the data set.

    Parameters
    ----------
    names : of the files; files found by a pattern may be unreadable
    settings : folders, and the keys of labels
    cutoff : of the graphs, Å
    use : of the data set, for the log
    required : refuse a label key that no frame has

    Raises
    ------
    FileNotFoundError, ValueError
        See `TrainingData.read`.
    """
    files = locate_all(names, settings.folder)
    checksums = {name: sha256(file.path) for name, file in files.items()}
    cache = Cache("graphs")
    may_fail = set(files) - set(names)
    try:
        store = FrameStore.of_files(
            files,
            checksums,
            settings.label_keys,
            cutoff,
            settings.cache or cache.folder,
            required=required,
            may_fail=may_fail,
        )
    except ValueError as error:
        raise ValueError(f"{use}: {error}") from error
    store.stress_offset = settings.stress_offset
    Cache.touch(store.path)
    if settings.cache is None:
        cache.trim()
    tell_labels(use, store.labels)
    return store, checksums


def split(
    indices: NDArray[np.int64], n_validation: int, n_held_out: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Divide frames at random into those to train on, to validate on and to hold out, each in ascending order.

    Raises
    ------
    ValueError
        If that leaves no frame to train on.
    """
    if n_validation + n_held_out >= len(indices):
        raise ValueError(
            f"{n_validation} validation frames{f' and {n_held_out} held out' * (n_held_out > 0)} of {len(indices)} "
            "leave none to train on"
        )
    order = np.random.default_rng(seed).permutation(len(indices))
    ends = [n_validation, n_validation + n_held_out]
    validation, held_out, training = (np.sort(indices[part]) for part in np.split(order, ends))
    return training, validation, held_out


def _number(wanted: float, n_frames: int) -> int:
    """Return the number of frames that a number or a fraction stands for; at least one."""
    return wanted if isinstance(wanted, int) else max(1, round(wanted * n_frames))
