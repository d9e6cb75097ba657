"""The data of a run: files found, read and divided into training, validation and test frames, and their statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ase_segnn.caches import Cache
from ase_segnn.labels import LABELS, LabelKeys, LabelReport
from ase_segnn.model.zbl import pair_name, usual_end

from .batches import LabeledGraph
from .frames import Frame, FrameFiles
from .recipe import DataSection
from .sources import DataFile, locate, locate_all, sha256
from .store import FrameStore

logger = logging.getLogger(__name__)

_MOST_BYTES_IN_MEMORY = 2 * 2**30  # of graphs; larger data are read from disk whenever they are needed
# Of the shortest distances; networks are good somewhat beyond their data, and hotter frames come closer.
_MARGIN = 0.8
_BYTES_PER_EDGE, _BYTES_PER_ATOM = 40, 80
_SAME_ATOM = 1e-3  # eV, between energies of one isolated atom

HELD_OUT = "held out"


class Subset(Dataset[LabeledGraph]):
    """Some of the frames of a store, which its graphs are asked for by their index there.

    Parameters
    ----------
    store : of the frames
    indices : (n,) int64, without order
    group_weights : group -> factor of the weights of its frames
    """

    def __init__(
        self, store: FrameStore, indices: NDArray[np.int64], group_weights: Mapping[str, float] | None = None
    ) -> None:
        self.store, self.indices = store, indices
        self._group_weights = dict(group_weights or {})
        n_bytes = _BYTES_PER_EDGE * store.n_edges[indices].sum() + _BYTES_PER_ATOM * store.n_atoms[indices].sum()
        self._kept: dict[int, LabeledGraph] | None = {} if n_bytes <= _MOST_BYTES_IN_MEMORY else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> LabeledGraph:
        """Return the graph of a frame by its index in the store."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        graph = self.store.labeled_graph(index)
        if self._group_weights:
            graph = graph.times(self._group_weights.get(self.store.group(index), 1.0))
        if self._kept is not None:
            self._kept[index] = graph
        return graph

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs: every process keeps its own."""
        return {**self.__dict__, "_kept": None if self._kept is None else {}}

    def frames(self) -> Iterator[Frame]:
        """Read the frames one after another."""
        return (self.store.frame(int(index)) for index in self.indices)

    def elements(self) -> tuple[str, ...]:
        """Chemical symbols, by atomic number."""
        return self.store.elements(self.indices)

    def counts(self, elements: Sequence[str]) -> NDArray[np.float64]:
        """Numbers of atoms of each element in each frame, (n, len(elements))."""
        numbers = np.array([chemical_symbols.index(symbol) for symbol in elements])
        return np.array([(self.store.numbers(int(i))[:, None] == numbers).sum(0) for i in self.indices], dtype=float)

    def energies(self) -> NDArray[np.float64]:
        """Energies of the frames, (n,) eV, NaN where missing or of no weight."""
        weights = np.array([float(self[int(index)].energy_weights) for index in self.indices])
        return np.where(weights > 0, self.store.energies[self.indices], np.nan)

    def drawn(self, random: np.random.Generator) -> Subset:
        """Draw as many frames at random, with repetition."""
        drawn = random.choice(self.indices, len(self.indices))
        return Subset(self.store, np.sort(drawn), self._group_weights)

    def n_labels(self) -> dict[str, int]:
        """Return the number of frames that have a label, of weight more than 0, by label."""
        present = np.array([(self[int(index)].n_labels() > 0).tolist() for index in self.indices])
        return dict(zip(LABELS, present.sum(0).tolist(), strict=True))

    def forces_rms(self) -> float:
        """Root mean square of all force components, eV/Å; 1 without any."""
        sums = np.zeros(2)
        for index in self.indices:
            graph = self[int(index)]
            known = graph.forces_weights > 0
            sums += [float(graph.forces[known].square().sum()), 3 * float(known.sum())]
        return float(np.sqrt(sums[0] / sums[1])) if sums[1] > 0 else 1.0

    def average_neighbors(self) -> float:
        """Mean number of neighbors of an atom within the cutoff."""
        return float(self.store.n_edges[self.indices].sum() / self.store.n_atoms[self.indices].sum())

    def repulsion_ends(self) -> dict[str, float]:
        """Return where the repulsion of nuclei has to end, Å, to leave these frames and somewhat closer ones alone.

        That is at 0.8 of the shortest distance of each pair of elements. Where the usual end is less, the pair is left
        out; see `ase_segnn.model.zbl.ZBLRepulsion`.
        """
        ends: dict[str, float] = {}
        for index in self.indices:
            for pair, distance in self[int(index)].graph.shortest_distances().items():
                name, end = pair_name(*pair), _MARGIN * distance
                if end < ends.get(name, usual_end(*pair)):
                    ends[name] = end
        return ends


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
        """Find and read all files, those of the tests too.

        Parameters
        ----------
        settings : which files, and what to do with them
        cutoff : of the graphs, Å
        seed : of the frames that are drawn
        known_elements : that frames to validate or test on may have though no training frame has them

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
        checksums = {name: sha256(path) for name, path in _reference_files(settings).items()}
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
        """Divide frames that are read already; `stores` are named "train", "validation" and "test <name>"."""
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
        energies, origin = _reference_energies(settings, learned, elements, atoms)
        return cls(learned, watched, tests, energies, origin, checksums)

    @property
    def sets(self) -> dict[str, Subset]:
        """Validation and test frames by name."""
        return {"validation": self.validation, **self.tests}


def read_store(
    names: Sequence[str], settings: DataSection, cutoff: float, use: str, *, required: bool
) -> tuple[FrameStore, dict[str, str]]:
    """Find files and read them, with the graphs of this cutoff (Å); return the checksum of each file as well.

    What is taken as their labels is told in the log.

    Parameters
    ----------
    names : of files that are one data set; of those that a pattern stands for, some may be unreadable
    settings : where they are, and the names of labels
    cutoff : Å
    use : of the data set, for the log
    required : whether some frame must have the labels whose keys are given

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
    Cache.touch(store.path)
    if settings.cache is None:
        cache.trim()
    tell_labels(use, store.labels)
    return store, checksums


def tell_labels(use: str, report: LabelReport | None) -> None:
    """Write to the log which labels the frames of a data set have and where they are from, and what is not used."""
    if report is None:
        return
    logger.info("%s: %d frames; %s", use, report.n_frames, report.line())
    for remark in report.remarks:
        logger.log(logging.WARNING if remark.severity == "warning" else logging.INFO, "%s: %s", use, remark)


def whole(store: FrameStore) -> Subset:
    """All frames of a store."""
    return Subset(store, np.arange(len(store)))


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


def least_squares_energies(
    elements: Sequence[str], counts: NDArray[np.float64], energies: NDArray[np.float64]
) -> dict[str, float]:
    """Energies per element whose sums fit `energies` (n,) best; of several that do, those nearest to equal.

    Energies that are NaN are left out; without any the result is 0.
    """
    known = np.isfinite(energies)
    counts, energies = counts[known], energies[known]
    if not known.any():
        return dict.fromkeys(elements, 0.0)
    mean = energies.sum() / counts.sum()
    correction, *_ = np.linalg.lstsq(counts, energies - mean * counts.sum(1), rcond=None)
    return {symbol: float(mean + value) for symbol, value in zip(elements, correction, strict=True)}


def isolated_atom_energies(path: Path, elements: Sequence[str], keys: LabelKeys | None = None) -> dict[str, float]:
    """Read reference energies of `elements` from a file with one frame per isolated atom.

    Raises
    ------
    ValueError
        If a frame holds more than one atom or has no energy, an element has no frame, or frames of one element differ.
    """
    files = FrameFiles({path.name: DataFile(path, "")})
    choice = files.choose_labels(None if keys is None else LabelKeys(energy=keys.energy), required=False)
    tell_labels(f"reference energies, {path.name}", choice.report)
    frames = []
    for frame in files.frames(choice):
        if len(frame.atoms) != 1 or frame.energy is None:
            raise ValueError(
                f"{frame.source} has {len(frame.atoms)} atoms and {'no' if frame.energy is None else 'an'} energy; "
                "reference energies need single atoms with an energy"
            )
        frames.append(frame)
    energies = energies_of_atoms(frames)
    missing = [symbol for symbol in elements if symbol not in energies]
    if missing:
        raise ValueError(f"'{path}' has no isolated atom of {', '.join(missing)}")
    return {symbol: energies[symbol] for symbol in elements}


def energies_of_atoms(frames: Iterable[Frame]) -> dict[str, float]:
    """Energies in eV by chemical symbol of frames of single atoms; those without an energy, or a weight, are left out.

    Raises
    ------
    ValueError
        If two atoms of an element differ by more than 1 meV.
    """
    first: dict[str, Frame] = {}
    for frame in frames:
        if "energy" not in frame.weighted_labels:
            continue
        symbol = frame.atoms.get_chemical_symbols()[0]
        other = first.setdefault(symbol, frame)
        assert frame.energy is not None
        assert other.energy is not None
        if abs(frame.energy - other.energy) > _SAME_ATOM:
            raise ValueError(
                f"isolated atoms of {symbol} have different energies: {other.energy:.6g} eV in {other.source} and "
                f"{frame.energy:.6g} eV in {frame.source}; leave in the one that belongs to the other frames, or set "
                "reference_energies"
            )
    return {symbol: frame.energy for symbol, frame in first.items() if frame.energy is not None}


def _reference_files(settings: DataSection) -> dict[str, Path]:
    """Find the file with isolated atoms, if the settings name one."""
    reference = settings.reference_energies
    if isinstance(reference, dict) or reference in ("auto", "least-squares"):
        return {}
    return {reference: locate(reference, settings.folder)}


def _reference_energies(
    settings: DataSection,
    training: Subset,
    elements: tuple[str, ...],
    isolated: Mapping[str, float],
) -> tuple[dict[str, float], str]:
    reference = settings.reference_energies
    if isinstance(reference, dict):
        missing = [symbol for symbol in elements if symbol not in reference]
        if missing:
            raise ValueError(f"reference_energies lack {', '.join(missing)}, which the training frames have")
        return {symbol: reference[symbol] for symbol in elements}, "given"
    for path in _reference_files(settings).values():
        return isolated_atom_energies(path, elements, settings.label_keys), "isolated atoms"
    if reference == "auto" and isolated:
        missing = [symbol for symbol in elements if symbol not in isolated]
        if missing:
            raise ValueError(
                f"the training files have isolated atoms of {', '.join(sorted(isolated))}, but none of "
                f"{', '.join(missing)}; add them, or set reference_energies"
            )
        return {symbol: isolated[symbol] for symbol in elements}, "isolated atoms"
    return least_squares_energies(elements, training.counts(elements), training.energies()), "least squares"


def _number(wanted: float, n_frames: int) -> int:
    """Return the number of frames that a number or a fraction stands for; at least one."""
    return wanted if isinstance(wanted, int) else max(1, round(wanted * n_frames))
