"""Which labels of a data set are taken: decided once for all its frames.

The order in which names are tried is that of `ase_segnn.labels.names`. `choose_labels` surveys the frames and decides;
`LabelChoice` then reads the labels of each frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn.quantities import LABELS

from .names import FAMILIES, PLAIN, REFERENCE, RESULTS, LabelKeys, Spelling, looks_like_label, same_name
from .report import LabelReport, Remark, by_up_to, make_report, verb
from .survey import LabelSurvey, Place, SomeFrames, named_values
from .values import LabelError, frame_weights, has_volume, label_value

_Floats = NDArray[np.float64]
_AGREEING = 0.99  # share of frames from which two sources count as one computation


@dataclass(frozen=True, eq=False)
class FrameLabels:
    """Labels of one frame of n atoms in ASE's units, None for those it lacks, and weights of their squared errors.

    Parameters
    ----------
    energy : eV
    forces : (n, 3) eV/Å
    stress : (3, 3) eV/Å³, symmetric, positive in tension
    weights : label -> factor; 1 if the frame says nothing
    """

    energy: float | None
    forces: _Floats | None
    stress: _Floats | None
    weights: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class LabelChoice:
    """Places of the labels of a data set; reads the labels of each frame.

    Parameters
    ----------
    places : label -> places in the order in which they are tried
    report : for the user
    """

    places: Mapping[str, Sequence[tuple[Place, Spelling]]]
    report: LabelReport

    def labels(self, atoms: Atoms) -> FrameLabels:
        """Return the labels of a frame that was surveyed. A stress without a volume is left out.

        Raises
        ------
        LabelError
            If a label or weight is not valid. A survey refuses such frames.
        """
        values = dict(named_values(atoms))
        weights = frame_weights(atoms.info)
        found: dict[str, Any] = dict.fromkeys(LABELS)
        factors = {label: weights[label][0] for label in LABELS}
        for label, places in self.places.items():
            there = [(spelled, values[place]) for place, spelled in places if place in values]
            if not there or (label == "stress" and not has_volume(atoms)):
                continue
            of_virials = weights["virial"][0]
            spelled, value = next(((s, v) for s, v in there if of_virials > 0 or not s.is_virial), there[0])
            factors[label] *= of_virials if spelled.is_virial else 1.0
            try:
                found[label] = label_value(spelled, value, atoms)
            except LabelError:
                if factors[label] > 0:  # what has no weight may be anything
                    raise
        energy = None if found["energy"] is None else float(found["energy"])
        return FrameLabels(energy, found["forces"], found["stress"], factors)


def choose_labels(
    frames: Iterable[tuple[str, Atoms]],
    keys: LabelKeys | None = None,
    *,
    required: bool = True,
    options: Mapping[str, str] | None = None,
) -> LabelChoice:
    """Look at all frames of a data set, named by their sources, and decide where their labels are.

    Parameters
    ----------
    frames : sources, such as ``frames.xyz@12``, and structures
    keys : names that are given
    required : refuse a key that no frame has; otherwise that is a warning
    options : label -> what the option for its key is called in messages; by default "energy_key" and so on

    Raises
    ------
    ValueError
        If frames are not usable or lost their cell, a label that is taken is not finite or has a wrong shape, no frame
        has a key that is given, or some frames have a label under other names than the rest. All frames of the first
        of these kinds are counted, and the first ones are named.
    """
    survey = LabelSurvey(keys)
    for source, atoms in frames:
        survey.add(atoms, source)
    return _Chooser(survey, options or {label: f"{label}_key" for label in LABELS}).choose(required=required)


class _Chooser:
    """Chooses the places of labels, and collects remarks for the report."""

    def __init__(self, survey: LabelSurvey, options: Mapping[str, str]) -> None:
        self._survey, self._options = survey, options
        self._places: dict[str, Sequence[Place]] = {}
        self._remarks: list[Remark] = []
        self._told: set[Place] = set()

    def choose(self, *, required: bool) -> LabelChoice:
        survey = self._survey
        if survey.broken:
            raise ValueError("; ".join(f"{frames} {frames.tell(text)}" for text, frames in survey.broken.items()))
        self._take_given(required=required)
        self._take_families()
        for label in LABELS:
            self._check_mix(label)
        self._places = {label: list(survey.taken(label, places)) for label, places in self._places.items()}
        self._check_values()
        spelled = {
            label: [(place, survey.tallies[label][place].spelling) for place in taken]
            for label, taken in self._places.items()
        }
        return LabelChoice(spelled, make_report(survey, self._places, self._options, self._remarks, self._told))

    def _take_given(self, *, required: bool) -> None:
        """Take the labels whose keys are given."""
        for label, key in self._survey.keys.items():
            option, tallies = self._options[label], self._survey.tallies[label]
            if label == "energy" and "peratom" in key.lower().replace("_", ""):
                raise ValueError(
                    f"{option} '{key}' is an energy per atom by its name; expected is that of the whole frame, in eV"
                )
            there = [place for place in tallies if place.name == key]
            there = there or [place for place in tallies if same_name(place.name, key)]
            if there:
                self._places[label] = sorted(there, key=lambda place: ("results", "info", "arrays").index(place.kind))
                continue
            if label == "stress" and self._survey.names[key]:
                text = (
                    f"'{key}', which {option} names, is in frames without a volume only, where a stress means nothing"
                )
            else:
                text = f"no frame has '{key}', which {option} names{self._instead(key)}"
            if required:
                raise ValueError(
                    f"{text}{' Give' if text.endswith('?') else '; give'} {option} another name, or leave it out"
                )
            self._remarks.append(Remark(severity="warning", title=f"no {label}", text=text))
            self._places[label] = []

    def _instead(self, key: str) -> str:
        names = self._survey.names
        close = get_close_matches(key.lower(), [name.lower() for name in names], n=3)
        likely = list(dict.fromkeys(name for word in close for name in names if name.lower() == word))
        if likely:
            offered = [f"'{name}' ({names[name]} frames)" for name in likely]
            return f"; did you mean {' or '.join(offered)}?"
        known = [f"'{name}'" for name in names if looks_like_label(name)]
        return f"; names that look like labels are {', '.join(known)}" if known else ""

    def _take_families(self) -> None:
        """Take the other labels, from one family if that has them all."""
        survey = self._survey
        given = {
            label: survey.tallies[label][taken[0]].spelling.family for label, taken in self._places.items() if taken
        }
        open_labels = [label for label in LABELS if label not in self._places]
        # the energy that is given leads; forces or a stress that are given do not take the place of REF_energy
        first = [given.pop("energy")] if "energy" in given else []
        order = list(dict.fromkeys([*first, REFERENCE, *given.values(), *FAMILIES]))
        if not first:
            having = [family for family in order if any(survey.groups(label, family) for label in open_labels)]
            order = having or order
        anchor, *others = order
        for label in open_labels:
            if groups := survey.groups(label, anchor):
                self._places[label] = groups[0]
        for label in open_labels:
            if label not in self._places:
                self._take_from(label, others)

    def _take_from(self, label: str, families: Sequence[str]) -> None:
        """Take a label that the first family lacks from another one, unless that is another computation."""
        survey = self._survey
        for family in families:
            groups = survey.groups(label, family)
            if not groups:
                continue
            compared = {name: survey.best_match(name, taken, family) for name, taken in self._places.items()}
            compared = {name: found for name, found in compared.items() if found.both}
            differing = [name for name, found in compared.items() if found.equal < _AGREEING * found.both]
            if differing:
                self._reject(label, groups[0], differing[0], family)
                continue
            there = [survey.named(name, taken) for name, taken in self._places.items() if taken]
            known = {family} | {
                survey.tallies[name][place].spelling.family for name, taken in self._places.items() for place in taken
            }
            self._places[label] = groups[0]
            # ASE makes results of `energy` and `forces` beside a plain `virial` in one line of a file
            if there and not compared and not known <= {RESULTS, PLAIN}:
                source = survey.named(label, groups[0])
                text = (
                    f"{source}, as there is none beside {', '.join(there)}; nothing in the files shows whether both "
                    "are of one computation"
                )
                title = f"{label} from another place than the rest"
                self._remarks.append(
                    Remark(severity="note" if label == "stress" else "warning", title=title, text=text)
                )
            return

    def _reject(self, label: str, places: Sequence[Place], other: str, family: str) -> None:
        survey = self._survey
        found = survey.best_match(other, self._places[other], family)
        text = (
            f"{survey.count(label, places)} frames have it as {label}, but it is of another computation than "
            f"{survey.named(other, self._places[other])}: the {other} beside it differs in {found.both - found.equal} "
            f"of {found.both} frames, {by_up_to(other, found)}. If its {label} {verb(label)} right "
            f"all the same, give {self._options[label]}: {places[0].name}"
        )
        title = f"not used: {survey.named(label, places)}"
        self._remarks.append(Remark.about(survey.tallies[label][places[0]].frames, "warning", title, text))
        self._told.update(places)

    def _check_mix(self, label: str) -> None:
        """Refuse frames that have a label only under another name than the rest, unless a key is given."""
        survey, taken = self._survey, self._places.get(label, ())
        left = survey.without(label, taken) if taken and label not in survey.keys else {}
        if not left:
            return
        for family in FAMILIES:  # maybe all frames have another one, with the same values
            for group in survey.groups(label, family):
                found = survey.comparison(label, taken, group)
                if group != taken and found.both and found.equal == found.both and not survey.without(label, group):
                    self._places[label] = group
                    return
        frames = SomeFrames.joined(left.values())
        others = " or ".join(dict.fromkeys(str(place) for places in left for place in places))
        raise ValueError(
            f"{label} {verb(label)} {survey.named(label, taken)} in {survey.count(label, taken)} frames, but {frames} "
            f"{frames.have} only {others}; labels of one data set must not be mixed: write all under one name, or give "
            f"{self._options[label]}, which leaves the frames without this name unlabeled"
        )

    def _check_values(self) -> None:
        """Refuse labels that are not finite or have a wrong shape, all of a kind at once."""
        problems = [
            f"'{place.name}' of {frames} {problem}{frames.detail and ' '}{frames.detail}"
            for label, taken in self._places.items()
            for place in taken
            for problem, frames in self._survey.tallies[label][place].problems.items()
        ]
        if problems:
            raise ValueError("; ".join(problems) + "; mend these labels, or leave them out")
