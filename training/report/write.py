"""The report of a finished training run: one page that says whether to trust the potential."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator

from ase_segnn.files import written_whole
from ase_segnn.physics.dynamics import Run, constant_energy_run, langevin_run
from ase_segnn.physics.verdicts import Verdict
from ase_segnn.quantities import MEASURES, MILLI, QUANTITIES, SIZE_INDEPENDENT

from ..data.frames import Frame
from . import checks, figures
from .checks import DimerCurve, Survey, VolumeCurve
from .page import bullets, page, paragraph, picture, section, table
from .predictions import Predictions, predict_frames

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluatedSets:
    """Predictions for sets of frames, and facts about the frames.

    Parameters
    ----------
    predictions : name of a set -> labels beside predictions
    survey : of all frames
    """

    predictions: dict[str, Predictions]
    survey: Survey


def evaluate_sets(calculator: Calculator, sets: Mapping[str, Iterable[Frame]]) -> EvaluatedSets:
    """Evaluate a calculator on sets of labeled frames. Molecular dynamics will start from a frame of the first set.

    Raises
    ------
    ValueError
        If no frame has a label.
    RuntimeError, ValueError
        If a frame cannot be read or evaluated.
    """
    survey = Survey()
    predictions = {}
    for index, (name, frames) in enumerate(sets.items()):
        predictions[name] = predict_frames(calculator, survey.watch(frames, as_start=index == 0))
        _log.info("%s: %d labeled frames evaluated", name, predictions[name].n_frames)
    if not any(predicted.n_frames for predicted in predictions.values()):
        raise ValueError(
            f"no frame of {', '.join(sets) or 'any set'} has an energy, forces or a stress to compare with"
        )
    return EvaluatedSets(predictions, survey)


def write_report(
    path: Path,
    calculator: Calculator,
    evaluated: EvaluatedSets,
    history: Sequence[Mapping[str, Any]],
    *,
    title: str,
    facts: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
    temperatures: Sequence[float] = (300.0, 600.0),
    steps: int = 2000,
    seconds: float = 10.0,
) -> list[Verdict]:
    """Check a potential, and write the report as one HTML file that needs nothing else.

    Parameters
    ----------
    path : of the page, written whole or not at all; a page that is there already is replaced
    calculator : of the finished potential; keeps the results of the last structure that was looked at
    evaluated : of the same calculator; frames without labels are left out
    history : one mapping per epoch with `epoch`, and as far as known `loss`, `learning_rate`,
        names of errors after "validation_", see `ase_segnn.quantities`
    title : of the page
    facts : name -> value, of the run
    notes : sentences, such as findings about the labels
    sections : HTML of the caller's own sections, shown after the summary; see `page.section`
    temperatures : K, of the runs with a thermostat; the first is that of the run at constant energy too
    steps, seconds : each run of dynamics ends with the first that is reached

    Returns
    -------
    what the checks found, in the order of the page

    Raises
    ------
    OSError
        If the page cannot be written.
    """
    predictions, survey = evaluated.predictions, evaluated.survey
    labeled = {name: predicted for name, predicted in predictions.items() if predicted.n_frames}
    found = _Checks.perform(calculator, survey, labeled, temperatures, steps, seconds)
    parts = [
        _summary(labeled, found.verdicts, facts or {}, [*notes, *_missing(predictions)]),
        *sections,
        _learning(history),
        *_errors(labeled),
        *_dynamics(found, temperatures, survey),
        *_curves(found),
        _calibration(labeled, found.verdicts[-1]),
    ]
    with written_whole(path) as temporary:
        temporary.write_text(page(title, *parts), encoding="utf-8")
    return found.verdicts


@dataclass(frozen=True, eq=False)
class _Checks:
    """Findings of the checks; `verdicts` in the order of the page, deviations last."""

    runs: list[Run]
    dimers: list[DimerCurve]
    volume: VolumeCurve | None
    verdicts: list[Verdict]

    @classmethod
    def perform(
        cls,
        calculator: Calculator,
        survey: Survey,
        labeled: Mapping[str, Predictions],
        temperatures: Sequence[float],
        steps: int,
        seconds: float,
    ) -> _Checks:
        n_pairs = len(survey.elements) * (len(survey.elements) + 1) // 2
        curves = checks.dimer_curves(calculator, survey.elements, survey.shortest)
        runs: list[Run] = []
        volume = None
        if survey.start is None:
            nothing = "The first set has no frame of two atoms or more to start from."
            verdicts = [Verdict("Dynamics", "not applicable", nothing)]
        else:
            source, atoms = survey.start
            for temperature in temperatures:
                runs.append(langevin_run(calculator, atoms, temperature, steps=steps, seconds=seconds))
                _log.info("%s: %s", runs[-1].verdict.name, runs[-1].verdict.outcome)
            runs.append(constant_energy_run(calculator, atoms, temperatures[0], steps=steps, seconds=seconds))
            verdicts = [run.verdict for run in runs]
            if atoms.pbc.all() and atoms.cell.rank == 3:
                volume = checks.volume_curve(calculator, source, atoms)
        verdicts.insert(0, checks.check_accuracy(next(iter(labeled.values()))))
        verdicts.append(checks.check_dimers(curves, n_pairs))
        if volume is not None:
            verdicts.append(volume.verdict)
        verdicts.append(checks.check_deviations({name: p.calibration() for name, p in labeled.items()}))
        return cls(runs, curves, volume, verdicts)


def _summary(
    labeled: Mapping[str, Predictions], verdicts: list[Verdict], facts: Mapping[str, object], notes: Sequence[str]
) -> str:
    failed = [verdict.name for verdict in verdicts if verdict.outcome == "failed"]
    applied = sum(verdict.outcome != "not applicable" for verdict in verdicts)
    if failed:
        overall = f"{len(failed)} of {applied} checks failed: {', '.join(failed)}. Read below what that means for you."
    else:
        overall = f"All {applied} checks that apply passed. They are short and show no more than what they say."
    words = {"passed": "passed", "failed": "failed", "not applicable": "other"}
    return section(
        "Summary",
        *(paragraph(_in_words(name, predictions)) for name, predictions in labeled.items()),
        paragraph(overall),
        table(
            ["check", "", "what it means"],
            [[verdict.name, verdict.outcome, verdict.statement] for verdict in verdicts],
            [["text", words[verdict.outcome], "text"] for verdict in verdicts],
        ),
        table(["fact", "value"], [[name, str(value)] for name, value in facts.items()], [["text"] * 2] * len(facts))
        if facts
        else "",
        paragraph("Findings about the data:") + bullets(notes) if notes else "",
    )


def _in_words(name: str, predictions: Predictions) -> str:
    errors = predictions.errors()
    parts = [
        f"{quantity.title} {_number(errors[quantity.error_name('RMSE')])} {quantity.error_unit}"
        for quantity in (QUANTITIES[each] for each in SIZE_INDEPENDENT)
        if quantity.error_name("RMSE") in errors
    ]
    return f"Root mean square errors on {name} ({predictions.n_frames} frames): {', '.join(parts)}."


def _missing(predictions: Mapping[str, Predictions]) -> Iterator[str]:
    """Sentences about sets without any labels."""
    for name, predicted in predictions.items():
        if predicted.n_frames == 0:
            yield f"No frame of {name} has a label; it is left out of this page."


def _learning(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return section("Learning curves", paragraph("The course of the run is not known."))
    forces = QUANTITIES["forces"]
    name = f"validation_{forces.error_name('RMSE')}"
    validated = [entry for entry in history if np.isfinite(entry.get(name) or np.nan)]
    text = f"{len(history)} epochs."
    if validated:
        best = min(validated, key=lambda entry: float(entry[name]))
        text += (
            f" The forces of the validation set were best in epoch {best['epoch']}, {_number(best[name])} "
            f"{forces.error_unit}; "
            f"in epoch {validated[-1]['epoch']}, the last that was validated, they were {_number(validated[-1][name])}."
        )
    figure = figures.learning_curves(history)
    return section("Learning curves", paragraph(text), picture(figure, "Learning curves over epochs."))


def _errors(labeled: Mapping[str, Predictions]) -> Iterator[str]:
    """Yield the sections on errors against labels."""
    by_set = {(name, "", predictions.n_frames): predictions.errors() for name, predictions in labeled.items()}
    by_group, by_element = {}, []
    for name, predictions in labeled.items():
        if len(np.unique(predictions.groups)) > 1:
            for group, errors in predictions.errors_by_group().items():
                count = int((predictions.groups == group).sum())
                by_group[name, group or "no group", count] = errors
        for symbol, errors in predictions.forces_errors_by_element().items():
            values = (_number(errors[QUANTITIES["forces"].error_name(measure)]) for measure in MEASURES)
            by_element.append([name, symbol, *values])
    yield section(
        "Errors",
        paragraph(
            "MAE is the mean absolute, RMSE the root mean square error, of energies of frames and of components of "
            "forces and stresses."
        ),
        _error_table(by_set, "set"),
        _error_table(by_group, "set", "group") if by_group else "",
    )
    if by_element:
        header = ["set", "element", *(QUANTITIES["forces"].column(measure) for measure in MEASURES)]
        classes = [["text", "text", "", ""]] * len(by_element)
        yield section("Forces by element", table(header, by_element, classes))
    caption = "Predictions over labels. Energies and stresses are colored by group, force components by element."
    yield section("Parity", picture(figures.parity(labeled), caption))
    caption = "Share of values whose error is larger than the one on the lower axis. Long tails are outliers."
    yield section("Distribution of errors", picture(figures.error_distributions(labeled), caption))
    yield section("Worst frames", *_worst(labeled))


def _error_table(rows: Mapping[tuple[str, str, int], Mapping[str, float]], *keys: str) -> str:
    names = [
        (quantity.error_name(measure), quantity.column(measure))
        for quantity in QUANTITIES.values()
        for measure in MEASURES
        if any(quantity.error_name(measure) in errors for errors in rows.values())
    ]
    cells: list[list[str]] = [
        [
            *map(str, key[: len(keys)]),
            f"{key[2]:,}",
            *(_number(errors[name]) if name in errors else "–" for name, _ in names),
        ]
        for key, errors in rows.items()
    ]
    classes = [["text"] * len(keys) + [""] * (1 + len(names))] * len(cells)
    return table([*keys, "frames", *(label for _, label in names)], cells, classes)


def _worst(labeled: Mapping[str, Predictions]) -> Iterator[str]:
    energies = [
        [name, frame.source, frame.group, str(frame.n_atoms), f"{MILLI * frame.error:+.4g}"]
        for name, predictions in labeled.items()
        for frame in predictions.worst_frames("energy_per_atom")
    ]
    forces = [
        [
            name,
            frame.source,
            frame.group,
            str(frame.n_atoms),
            f"{frame.atom} ({frame.symbol})",
            f"{MILLI * frame.error:.4g}",
        ]
        for name, predictions in labeled.items()
        for frame in predictions.worst_frames("forces")
    ]
    yield paragraph("Look at these first: large errors are often wrong labels or structures of a kind of their own.")
    if energies:
        unit = QUANTITIES["energy_per_atom"].error_unit
        header = ["set", "frame", "group", "atoms", f"energy error, {unit}"]
        yield table(header, energies, [["text"] * 3 + [""] * 2] * len(energies))
    if forces:
        unit = QUANTITIES["forces"].error_unit
        header = ["set", "frame", "group", "atoms", "atom of the worst force", f"its error, {unit}"]
        yield table(header, forces, [["text"] * 3 + [""] * 3] * len(forces))


def _dynamics(found: _Checks, temperatures: Sequence[float], survey: Survey) -> Iterator[str]:
    if survey.start is None:
        yield section("Dynamics", paragraph(found.verdicts[1].statement))
        return
    source, atoms = survey.start
    yield section("Speed", paragraph(_speed(found.runs[-1], source, atoms)))
    targets = [*temperatures, None]
    yield section(
        "Dynamics",
        paragraph(f"All runs start from {source}, {atoms.get_chemical_formula()}."),
        *(paragraph(f"{run.verdict.name}: {run.verdict.outcome}. {run.verdict.statement}") for run in found.runs),
        picture(
            figures.dynamics(found.runs, targets),
            "Temperature of runs with a thermostat; total energy of that without.",
        ),
    )


def _speed(run: Run, source: str, atoms: Atoms) -> str:
    if not np.isfinite(run.seconds_per_step):
        return "Not known, since dynamics did not take a step."
    per_atom = 1e6 * run.seconds_per_step / len(atoms)
    return (
        f"{per_atom:.0f} µs per atom and step, {1000 * run.seconds_per_step:.2f} ms per step, in dynamics of "
        f"{len(atoms)} atoms ({source}), the time of ASE itself included; on this machine ({platform.machine()}, "
        f"threads: {torch.get_num_threads()}). Small structures take more time per atom than large ones."
    )


def _curves(found: _Checks) -> Iterator[str]:
    verdicts = {verdict.name: verdict for verdict in found.verdicts}
    dimers = next(verdict for name, verdict in verdicts.items() if name == "Repulsion at short range")
    parts = [paragraph(f"{dimers.outcome}. {dimers.statement}")]
    finite = [curve for curve in found.dimers if np.isfinite(curve.energies).all()]
    if finite:
        caption = (
            "Energy of two atoms alone. Dashed: the shortest distance of this pair in the frames of this page, nearer "
            "than which the potential may be guessing. Red: attraction where real atoms repel each other."
        )
        parts.append(picture(figures.dimers(finite), caption))
        shortest = [
            [curve.pair, "never within 4 Å" if curve.shortest_in_data is None else f"{curve.shortest_in_data:.3f}"]
            for curve in found.dimers
        ]
        parts.append(table(["pair", "shortest distance in the frames of this page, Å"], shortest))
    yield section("Short range", *parts)
    if found.volume is not None:
        verdict = found.volume.verdict
        caption = "Energy of the structure scaled uniformly. Dashed: its own volume."
        drawable = np.isfinite(found.volume.energies).all()
        yield section(
            "Energy and volume",
            paragraph(f"{verdict.outcome}. {verdict.statement}"),
            picture(figures.volume(found.volume), caption) if drawable else "",
        )


def _calibration(labeled: Mapping[str, Predictions], verdict: Verdict) -> str:
    parts = [paragraph(f"{verdict.outcome}. {verdict.statement}")]
    for name, predictions in labeled.items():
        if predictions.calibration() is not None and predictions.forces_std is not None:
            errors = predictions.forces_error()
            known = np.isfinite(errors) & np.isfinite(predictions.forces_std)
            figure = figures.calibration(predictions.forces_std[known], errors[known])
            parts.append(
                picture(figure, f"{name}: error of the force on each atom over the deviation of the committee.")
            )
    return section("Deviations of the committee", *parts)


def _number(value: float) -> str:
    """Return a number with as many digits as a reader needs."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
