"""Counts of everything in the frames of a data set that may be a label; `choice` judges the counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn.quantities import LABELS

from .names import PER_ATOM, RESULTS, LabelKeys, Spelling, looks_like_label, same_name, spelling
from .values import LabelError, explain_lost_cell, frame_weights, has_volume, is_stale, label_value, lost_cell

_Floats = NDArray[np.float64]
_SHOWN, _KEPT = 3, 12  # names of frames in a message, and those that are kept for a page
# Up to which values of two sources are the same: eV/atom, eV/Å, eV/Å³; files round. float32 keeps 1e-7 of a value.
_SAME = {"energy": 1e-5, "forces": 1e-4, "stress": 1e-5}
_RELATIVE = 3e-7
_STALE = "belongs to another structure: atoms were changed after the calculation, or several share one calculator"


@dataclass(frozen=True, order=True)
class Place:
    """Where values are found in frames: a name among the calculator's results, in ``info`` or in ``arrays``."""

    kind: Literal["results", "info", "arrays"]
    name: str

    def __str__(self) -> str:
        return f"'{self.name}'" + " of the calculator results" * (self.kind == "results")


class SomeFrames:
    """Number of frames of a kind and names of the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []
        self.detail = ""  # of the first one

    def add(self, source: str, detail: str = "") -> None:
        """Add one frame."""
        if self.count == 0:
            self.detail = detail
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(source)

    @classmethod
    def joined(cls, parts: Iterable[SomeFrames]) -> SomeFrames:
        """Join groups of frames that have no frame in common."""
        joined = cls()
        for part in parts:
            joined.count += part.count
            joined.first = [*joined.first, *part.first][:_KEPT]
        return joined

    @property
    def have(self) -> str:
        """Return "has" or "have", for after the names of the frames."""
        return "has" if self.count == 1 else "have"

    def tell(self, text: str) -> str:
        """Return a text that starts with "has", and the detail, for after their names."""
        return f"{self.have}{text.removeprefix('has')} {self.detail}".rstrip()

    def __str__(self) -> str:
        if self.count == 1:
            return self.first[0]
        more = f" and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return f"{self.count} frames ({', '.join(self.first[:_SHOWN])}{more})"


@dataclass
class Tally:
    """What was seen at a place, taken for a label.

    Parameters
    ----------
    spelling : of the label
    frames : that have it; a stress counts only in frames with a volume
    problems : what is wrong with values -> frames
    weight_names : names of weights that are zero
    """

    spelling: Spelling
    frames: SomeFrames = field(default_factory=SomeFrames)
    problems: defaultdict[str, SomeFrames] = field(default_factory=lambda: defaultdict(SomeFrames))
    weight_names: set[str] = field(default_factory=set)

    def add(self, source: str, weight: float, names: Collection[str]) -> None:
        """Add a frame with its weight and the names of the weight."""
        self.frames.add(source)
        if weight == 0:
            self.weight_names.update(names)


@dataclass
class Comparison:
    """Values at two places in frames that have both; `largest` difference in eV/atom, eV/Å or eV/Å³."""

    both: int = 0
    equal: int = 0
    largest: float = 0.0

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(self.both + other.both, self.equal + other.equal, max(self.largest, other.largest))


# Places that a frame has for a label, with whether its weight there is not zero; and whether it is a single atom.
Pattern = tuple[frozenset[tuple[Place, bool]], bool]


class LabelSurvey:
    """Counts of all that may be labels in the frames of a data set.

    Parameters
    ----------
    keys : names that are given

    Attributes
    ----------
    n_frames : that were taken in
    tallies : label -> place -> what was seen there
    patterns : label -> pattern -> frames
    without_volume : frames with a stress that means nothing
    zero_without_volume : number of these whose stress is zero
    names : everything that frames hold -> number of frames
    lookalikes : places with names that look like a label -> number of frames
    broken : what makes frames unusable -> these
    """

    def __init__(self, keys: LabelKeys | None = None) -> None:
        self.keys = {label: key for label, key in (keys or LabelKeys()).model_dump().items() if key is not None}
        self.n_frames = 0
        self.tallies: dict[str, dict[Place, Tally]] = {label: {} for label in LABELS}
        self.patterns: dict[str, dict[Pattern, SomeFrames]] = {label: {} for label in LABELS}
        self.without_volume = SomeFrames()
        self.zero_without_volume = 0
        self.names: Counter[str] = Counter()
        self.lookalikes: Counter[Place] = Counter()
        self.broken: defaultdict[str, SomeFrames] = defaultdict(SomeFrames)
        self._comparisons: dict[str, dict[frozenset[Place], Comparison]] = {label: {} for label in LABELS}

    def add(self, atoms: Atoms, source: str) -> None:
        """Add a frame; `source` is its name in messages."""
        self.n_frames += 1
        if len(atoms) == 0:
            self.broken["has no atoms; leave it out"].add(source)
            return
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            self.broken["has positions or a cell that are not finite; leave it out"].add(source)
            return
        name = lost_cell(atoms)
        if name is not None:
            self.broken[explain_lost_cell(name, atoms)].add(source)
            return
        try:
            weights = frame_weights(atoms.info)
        except LabelError as error:
            self.broken[error.problem].add(source, error.detail)
            return
        self._add_labels(atoms, source, weights)

    def comparison(self, label: str, ones: Sequence[Place], others: Sequence[Place]) -> Comparison:
        """Return how the values at some places compare with those at others."""
        pairs = {frozenset((one, other)) for one in ones for other in others if one != other}
        known = self._comparisons[label]
        return sum((known[pair] for pair in pairs if pair in known), Comparison())

    def best_match(self, label: str, places: Sequence[Place], family: str) -> Comparison:
        """Return how a label of a family compares with values that are taken; the best match of several."""
        others = [place for group in self.groups(label, family) for place in group if place not in places]
        found = [self.comparison(label, places, [other]) for other in others]
        return max(found, key=lambda one: (one.both > 0, one.equal / max(one.both, 1)), default=Comparison())

    def groups(self, label: str, family: str) -> list[list[Place]]:
        """Places of a label in a family, those of one quantity together: energies before free energies."""
        groups: dict[str, list[Place]] = {}
        for place, tally in self.tallies[label].items():
            if tally.spelling.family == family:
                groups.setdefault(tally.spelling.quantity, []).append(place)
        return [sorted(groups[quantity], key=partial(self._rank, label)) for quantity in sorted(groups)]

    def without(self, label: str, places: Collection[Place]) -> dict[tuple[Place, ...], SomeFrames]:
        """Frames that have none of some places for a label, but others of the table; by these others.

        Forces and stress of an atom alone tell nothing and are passed over.
        """
        found: dict[tuple[Place, ...], list[SomeFrames]] = {}
        for (pattern, single), frames in self.patterns[label].items():
            known = [place for place, counts in pattern if counts and self.tallies[label][place].spelling.is_known]
            known = [place for place in known if self.tallies[label][place].spelling.quantity == label] or known
            if known and not {place for place, _ in pattern} & set(places) and not (single and label != "energy"):
                found.setdefault(tuple(sorted(known)), []).append(frames)
        return {others: SomeFrames.joined(parts) for others, parts in found.items()}

    def count(self, label: str, places: Collection[Place]) -> int:
        """Count frames that have a label at some places."""
        patterns = self.patterns[label].items()
        return sum(frames.count for (pattern, _), frames in patterns if {place for place, _ in pattern} & set(places))

    def taken(self, label: str, places: Sequence[Place]) -> dict[Place, tuple[SomeFrames, SomeFrames]]:
        """Frames that have their label from each of some places, with and without a weight.

        A frame has it from the first place that has a weight there, or else from the first that it has.
        """
        found: dict[Place, tuple[list[SomeFrames], list[SomeFrames]]] = {}
        for (pattern, _), frames in self.patterns[label].items():
            there = [place for place in places if (place, True) in pattern]
            weightless = [place for place in places if (place, False) in pattern]
            if there or weightless:
                parts = found.setdefault((there or weightless)[0], ([], []))
                parts[0 if there else 1].append(frames)
        return {
            place: (SomeFrames.joined(found[place][0]), SomeFrames.joined(found[place][1]))
            for place in places
            if place in found
        }

    def named(self, label: str, places: Sequence[Place]) -> str:
        """Name places, and say which of them are virials."""
        virial = " as minus the virial"
        return " or ".join(
            f"{place}{virial if self.tallies[label][place].spelling.is_virial else ''}" for place in places
        )

    def _rank(self, label: str, place: Place) -> tuple[bool, Place]:
        return self.tallies[label][place].spelling.is_virial, place

    def _add_labels(self, atoms: Atoms, source: str, weights: Mapping[str, tuple[float, tuple[str, ...]]]) -> None:
        volume, stale = has_volume(atoms), is_stale(atoms)
        values: dict[str, dict[Place, _Floats]] = {label: {} for label in LABELS}
        present: dict[str, set[tuple[Place, bool]]] = {label: set() for label in LABELS}
        useless_stresses = []
        for place, value in named_values(atoms):
            self.names[place.name] += 1
            meanings = list(self._meanings(place))
            usual = place.kind == "results" and place.name in PER_ATOM
            if not meanings and not usual and looks_like_label(place.name):
                self.lookalikes[place] += 1
            for label, spelled in meanings:
                if label == "stress" and not volume:
                    useless_stresses.append(value)
                    continue
                weight, names = weights[label]
                if spelled.is_virial:
                    weight, names = weight * weights["virial"][0], (*names, *weights["virial"][1])
                present[label].add((place, weight > 0))
                tally = self.tallies[label].setdefault(place, Tally(spelled))
                tally.add(source, weight, names)
                if weight > 0:  # else it may be anything
                    try:
                        values[label][place] = _checked_value(place, spelled, value, atoms, stale=stale)
                    except LabelError as error:
                        tally.problems[error.problem].add(source, error.detail)
        if useless_stresses:
            self.without_volume.add(source)
            self.zero_without_volume += all(_is_zero(value) for value in useless_stresses)
        for label, places in present.items():
            if places:
                self.patterns[label].setdefault((frozenset(places), len(atoms) == 1), SomeFrames()).add(source)
            self._compare(label, values[label], len(atoms))

    def _meanings(self, place: Place) -> Iterator[tuple[str, Spelling]]:
        """Labels that may be meant at a place: by the keys that are given, and by the table."""
        spelled = spelling(place.name)
        if place.kind == "arrays" and spelled is not None and spelled.label != "forces":
            spelled = None  # one value per atom
        by_key = [label for label, key in self.keys.items() if same_name(key, place.name)]
        family = place.name if spelled is None else spelled.family
        for label in by_key:
            quantity = spelled.quantity if spelled is not None and spelled.label == label else label
            is_virial = "virial" in place.name.lower()
            yield label, Spelling(quantity, RESULTS if place.kind == "results" else family, is_virial)  # type: ignore[arg-type]  # a label
        if spelled is not None and spelled.label not in by_key:
            yield spelled.label, Spelling(spelled.quantity, RESULTS) if place.kind == "results" else spelled

    def _compare(self, label: str, values: Mapping[Place, _Floats], n_atoms: int) -> None:
        places = list(values)
        per_atom = n_atoms if label == "energy" else 1
        for index, first in enumerate(places):
            for second in places[index + 1 :]:
                comparison = self._comparisons[label].setdefault(frozenset((first, second)), Comparison())
                difference = float(np.abs(values[first] - values[second]).max()) / per_atom
                size = float(np.abs(values[first]).max()) / per_atom
                comparison.both += 1
                comparison.equal += difference <= _SAME[label] + _RELATIVE * size
                comparison.largest = max(comparison.largest, difference)


def named_values(atoms: Atoms) -> Iterator[tuple[Place, Any]]:
    """Yield all that a frame holds beside its structure; results that are None are missing to ASE."""
    if atoms.calc is not None:
        yield from ((Place("results", name), value) for name, value in atoms.calc.results.items() if value is not None)
    yield from ((Place("info", name), value) for name, value in atoms.info.items() if isinstance(name, str))
    yield from (
        (Place("arrays", name), value) for name, value in atoms.arrays.items() if name not in {"numbers", "positions"}
    )


def _checked_value(place: Place, spelled: Spelling, value: Any, atoms: Atoms, *, stale: bool) -> _Floats:
    if place.kind == "results" and stale:
        raise LabelError(_STALE)
    return label_value(spelled, value, atoms)


def _is_zero(value: Any) -> bool:
    try:
        return not np.asarray(value, dtype=np.float64).any()
    except (TypeError, ValueError):
        return False
