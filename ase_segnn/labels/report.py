"""The report on the labels of a data set: their sources, and everything that is not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ase_segnn.quantities import LABELS, QUANTITIES

from .survey import Comparison, LabelSurvey, Place, SomeFrames

_FREE_ENERGY = 1e-3  # eV/atom, a difference to the energy that is more than a note

_COMPARED = {"energy": "energy_per_atom"}  # label -> quantity whose differences are told

Places = Mapping[str, Sequence[Place]]  # of each label, in the order in which they are tried


class Remark(BaseModel):
    """Something about the labels of a data set that its user should know.

    Parameters
    ----------
    severity : "warning" if labels may be lost or wrong, "note" for the rest
    title : in a few words
    text : in sentences, with numbers of frames
    frames : sources of the first frames concerned
    n_frames : number of all of these
    """

    model_config = ConfigDict(frozen=True)

    severity: Literal["warning", "note"]
    title: str
    text: str
    frames: tuple[str, ...] = ()
    n_frames: int = 0

    @classmethod
    def about(cls, frames: SomeFrames, severity: Literal["warning", "note"], title: str, text: str) -> Remark:
        """Make a remark about some frames."""
        return cls(severity=severity, title=title, text=text, frames=tuple(frames.first), n_frames=frames.count)

    @property
    def level(self) -> int:
        """Level of the remark in a log."""
        return logging.WARNING if self.severity == "warning" else logging.INFO

    def __str__(self) -> str:
        return f"{self.title}: {self.text}"


class LabelReport(BaseModel):
    """Labels of a data set with their sources, and remarks on everything that is not used.

    Parameters
    ----------
    n_frames : of the data set
    counts : label -> number of frames that have it, with a weight of more than zero
    sources : label -> where it is from, such as ``'REF_energy'``; without labels that no frame has
    remarks : warnings first
    """

    model_config = ConfigDict(frozen=True)

    n_frames: int
    counts: dict[str, int]
    sources: dict[str, str]
    remarks: tuple[Remark, ...] = ()

    def check(self) -> None:
        """Refuse data sets without any label.

        Raises
        ------
        ValueError
        """
        if not any(self.counts.values()):
            remarks = "".join(f"; {remark}" for remark in self.remarks)
            raise ValueError(
                f"none of the {self.n_frames} frames has an energy, forces or a stress to compare with{remarks}"
            )

    def line(self) -> str:
        """All labels in one line: number of frames and source of each."""
        return "; ".join(
            f"{label} of {self.counts[label]} frames from {self.sources[label]}"
            if label in self.sources
            else f"no {label}"
            for label in LABELS
        )


def make_report(
    survey: LabelSurvey, places: Places, options: Mapping[str, str], remarks: Sequence[Remark], told: set[Place]
) -> LabelReport:
    """Make the report of a choice.

    Parameters
    ----------
    survey : of all frames
    places : where each label is taken from
    options : label -> what the option for its key is called
    remarks : made during the choice
    told : places that `remarks` name already
    """
    all_remarks = [
        *remarks,
        *_on_names(survey, places),
        *_on_unlabeled(survey, places, options),
        *_on_weights(survey, places),
        *_on_volumes(survey),
        *_on_unused(survey, places, options, told),
        *_on_lookalikes(survey, places, options),
    ]
    return LabelReport(
        n_frames=survey.n_frames,
        counts={
            label: sum(some.count for some, _ in survey.taken(label, places.get(label, ())).values())
            for label in LABELS
        },
        sources={label: survey.named(label, taken) for label, taken in places.items() if taken},
        remarks=tuple(sorted(all_remarks, key=lambda remark: remark.severity != "warning")),
    )


def _on_names(survey: LabelSurvey, places: Places) -> Iterator[Remark]:
    """Several names of one label, of which each frame has one or more."""
    for label, taken in places.items():
        if len(taken) < 2:
            continue
        used = survey.taken(label, taken).items()
        names = ", ".join(f"{place} ({some.count + others.count} frames)" for place, (some, others) in used)
        found = survey.comparison(label, taken, taken)
        differ = found.both - found.equal
        text = f"{names}, in different frames"
        if differ:
            text += f"; they differ in {differ} of {found.both} frames with two of them, {by_up_to(label, found)}"
        yield Remark(severity="warning", title=f"several names of the {label}", text=text)


def _on_unlabeled(survey: LabelSurvey, places: Places, options: Mapping[str, str]) -> Iterator[Remark]:
    """Frames that lack the key that is given, and have the label under another name."""
    for label, key in survey.keys.items():
        left = survey.without(label, places[label]) if places[label] else {}
        if left:
            frames = SomeFrames.joined(left.values())
            others = " or ".join(dict.fromkeys(str(place) for known in left for place in known))
            text = f"{frames} {frames.have} no '{key}', which {options[label]} names, but {others}, which is not used"
            yield Remark.about(frames, "warning", f"frames without {label}", text)


def _on_weights(survey: LabelSurvey, places: Places) -> Iterator[Remark]:
    for label, taken in places.items():
        for place in taken:
            weighted, weightless = survey.taken(label, taken)[place]
            if weightless.count:
                names = ", ".join(sorted(survey.tallies[label][place].weight_names))
                total = weighted.count + weightless.count
                text = (
                    f"{weightless.count} of {total} frames have {place} with a weight of zero ({names}); it does not "
                    "count there"
                )
                yield Remark.about(weightless, "note", f"{label} of weight zero", text)


def _on_volumes(survey: LabelSurvey) -> Iterator[Remark]:
    frames, zeros = survey.without_volume, survey.zero_without_volume
    if frames.count:
        all_zero = zeros == frames.count
        text = (
            f"{frames} {frames.have} a stress, but no volume, since not periodic along all three cell vectors; these "
            "stresses are left out"
        )
        if zeros:
            text += f", {'all' if all_zero else zeros} of them zeros"
        yield Remark.about(frames, "note" if all_zero else "warning", "stress without a volume", text)


def _on_unused(survey: LabelSurvey, places: Places, options: Mapping[str, str], told: set[Place]) -> Iterator[Remark]:
    """Places of the table that are not taken."""
    used = {place for taken in places.values() for place in taken}
    for label, tallies in survey.tallies.items():
        taken = places.get(label, ())
        for place, tally in tallies.items():
            if place in used or place in told or not tally.spelling.is_known:
                continue
            found = survey.comparison(label, [place], taken)
            differ = found.both - found.equal
            text = f"{tally.frames.count} frames have it"
            if taken:
                text += f"; {label} {verb(label)} taken from {survey.named(label, taken)}"
            if differ:
                text += f"; the two differ in {differ} of {found.both} frames, {by_up_to(label, found)}"
            elif found.both:
                text += f", with the same values in all {found.both} frames that have both"
            severe = (differ > 0 or not found.both) and label not in survey.keys
            if tally.spelling.quantity == "free" and differ:
                severe = severe and found.largest > _FREE_ENERGY
                text += (
                    ". Forces of smeared electrons belong to the free energy, "
                    f"{options['energy']}: {place.name} takes it"
                )
            yield Remark.about(tally.frames, "warning" if severe else "note", f"not used: {place}", text)


def _on_lookalikes(survey: LabelSurvey, places: Places, options: Mapping[str, str]) -> Iterator[Remark]:
    """Names beyond the table."""
    used = {place for taken in places.values() for place in taken}
    odd = {place: count for place, count in survey.lookalikes.items() if place not in used}
    for tallies in survey.tallies.values():
        odd |= {
            place: tally.frames.count
            for place, tally in tallies.items()
            if place not in used and not tally.spelling.is_known
        }
    if odd:
        text = (
            f"{', '.join(f'{place} ({count} frames)' for place, count in odd.items())}; {', '.join(options.values())} "
            "take labels of any name"
        )
        yield Remark(severity="warning", title="not used, though names look like labels", text=text)


def verb(label: str) -> str:
    """Return "is" or "are"."""
    return "are" if label == "forces" else "is"


def by_up_to(label: str, comparison: Comparison) -> str:
    """Say how much two sources of a label differ; energies per atom."""
    return f"by up to {comparison.largest:.3g} {QUANTITIES[_COMPARED.get(label, label)].unit}"
