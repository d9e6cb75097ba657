"""Sections of the report on active learning: the rounds, and errors on frames that were never learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ase import Atoms

from ase_segnn.quantities import MEASURES, MILLI, QUANTITIES, SIZE_INDEPENDENT

from .page import paragraph, picture, section, table
from .rounds_figures import active_learning

if TYPE_CHECKING:
    from ..active_learning.rounds import FreshErrors, Round

_FORCES = QUANTITIES["forces"].error_name("RMSE")
_MISSING = "–"
_LARGE = 2.0  # factor between errors and deviations from which on a reader is warned


def rounds_sections(rounds: Sequence[Round], fresh: Sequence[FreshErrors], labels: Sequence[Atoms]) -> list[str]:
    """Return the sections of the page on a run of active learning, as HTML for `write_report`.

    Parameters
    ----------
    rounds : in the order of the run
    fresh : errors on frames of the final potential's own dynamics, from cold to hot
    labels : all frames that were learned or validated on, in the order of labeling. Their calculators hold forces.
        Their `info` holds `stage` and `temperature` in K, if known. The stage of the first ones begins with "start"

    Returns
    -------
    "Fresh frames" and "Rounds"; none if there is nothing at all to tell
    """
    if not (rounds or fresh or labels):
        return []
    return [section("Fresh frames", *_fresh(fresh)), section("Rounds", *_rounds(rounds), *_pictures(rounds, labels))]


# ---- fresh frames


def _fresh(fresh: Sequence[FreshErrors]) -> Iterator[str]:
    n_frames, n_failed = sum(each.n_frames for each in fresh), sum(each.n_failed for each in fresh)
    if n_frames == 0:
        failed = f": the reference failed for all {n_failed} of them" if n_failed else ""
        yield paragraph(
            f"No frames of the final potential's own dynamics were labeled{failed}. Its errors there are not known."
        )
        return
    yield paragraph(
        f"When all fits were over, the potential's own dynamics gave {n_frames:,} frames, and the reference labeled "
        "them. The potential never learned any of these frames, and none of them chose its weights: these are the "
        "errors to expect of dynamics."
    )
    yield paragraph(_comparison(fresh))
    columns = [
        (quantity.error_name(measure), quantity.column(measure))
        for quantity in (QUANTITIES[name] for name in SIZE_INDEPENDENT)
        for measure in reversed(MEASURES)
        if any(quantity.error_name(measure) in each.errors for each in fresh)
    ]
    names = [name for name, _ in columns]
    header = ["temperature, K", "frames", "failed", *(column for _, column in columns)]
    # the deviation stands beside the error that it is compared with
    beside = 3 + names.index(_FORCES) if _FORCES in names else len(header)
    header.insert(beside, f"deviation of the committee, {QUANTITIES['forces'].error_unit}")
    rows = []
    for each in fresh:
        row = [f"{each.temperature:g}", f"{each.n_frames:,}", f"{each.n_failed:,}"]
        row += [_number(each.errors.get(name)) for name in names]
        row.insert(beside, _number(None if each.expected is None else MILLI * each.expected))
        rows.append(row)
    yield table(header, rows)


def _comparison(fresh: Sequence[FreshErrors]) -> str:
    """Say how errors of forces compare with the deviations of the committee."""
    factors = {}
    for each in fresh:
        error = each.errors.get(_FORCES)
        if error is not None and math.isfinite(error) and each.expected is not None and each.expected > 0:
            factors[each.temperature] = error / (MILLI * each.expected)
    if not factors:
        return "What the committee expected is not known, so that nothing tells whether its deviations can be trusted."
    given = ", ".join(f"{factor:.2g} times as large at {temperature:g} K" for temperature, factor in factors.items())
    largest, smallest = max(factors.values()), min(factors.values())
    if largest > _LARGE:
        meaning = f"Errors are larger than the committee says: take its deviations times {largest:.2g}."
    elif smallest < 1 / _LARGE:
        meaning = "Errors are smaller than the committee says: its deviations are on the safe side."
    else:
        meaning = "Errors are about as large as the committee says, so that its deviations can be taken at their word."
    return f"Compared with the deviation of the committee, the RMSE of force components is {given}. {meaning}"


# ---- rounds


def _rounds(rounds: Sequence[Round]) -> Iterator[str]:
    if not rounds:
        yield paragraph("The course of the rounds is not known.")
        return
    yield paragraph(
        "In each round a committee learns all labels so far and explores by dynamics. A frame is new if its largest "
        "deviation of a force lies between the bounds, and selected frames are labeled. A walk is broken if it ended "
        "beyond the upper bound or in a broken structure."
    )
    columns = [QUANTITIES[name] for name in ("energy_per_atom", "forces")]
    header = ["round", "labels", "fit, min", "exploration, min", "lower bound, eV/Å", "upper bound, eV/Å"]
    header += [f"validation, {quantity.column('RMSE')}" for quantity in columns]
    yield table(
        header,
        [
            [
                str(each.number),
                f"{each.n_labels:,}",
                _number(each.fit_seconds / 60),
                _number(each.explore_seconds / 60) if each.rungs else _MISSING,
                _number(each.lower),
                _number(each.upper),
                *(_number(each.errors.get(quantity.error_name("RMSE"))) for quantity in columns),
            ]
            for each in rounds
        ],
    )
    explored = [(each.number, rung) for each in rounds for rung in each.rungs]
    if not explored:
        yield paragraph("Nothing was explored.")
        return
    header = [
        "round",
        "temperature, K",
        "dynamics, ps",
        "broken walks",
        "new frames",
        "median deviation, eV/Å",
        "selected",
    ]
    yield table(
        header,
        [
            [
                str(number),
                f"{rung.temperature:g}",
                _number(rung.picoseconds),
                f"{rung.n_broken:,} of {rung.n_walks:,}",
                f"{rung.n_new:,} of {rung.n_seen:,}",
                _number(rung.median_deviation),
                f"{rung.n_selected:,}",
            ]
            for number, rung in explored
        ],
    )


def _pictures(rounds: Sequence[Round], labels: Sequence[Atoms]) -> Iterator[str]:
    figure = active_learning(rounds, labels)
    if figure is not None:
        yield picture(
            figure,
            "The rounds over the number of labels, and where the labels lie; colors are temperatures. When the median "
            "deviation falls below the lower bound, dynamics finds hardly anything new. Distances: the first labels "
            "are filled, the line is all labels. Forces: share of atoms with a larger force than on the lower axis.",
        )


def _number(value: float | None) -> str:
    """Return a number with as many digits as a reader needs, and a dash for one that is missing."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
