"""Figures of the report of a training run; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from ase_segnn.quantities import LABELS, MILLI, QUANTITIES, SIZE_INDEPENDENT

from .panels import (
    COLORS,
    OTHERS,
    cycle,
    decimal_ticks,
    draw_distribution,
    draw_parity,
    grid,
    new_figure,
    signed_logarithmic,
    thinned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ase_segnn.physics.dynamics import Run

    from .checks import DimerCurve, VolumeCurve
    from .predictions import Predictions

ERRORS_OF_LABELS = {
    f"validation_{quantity.error_name('RMSE')}": f"validation, {quantity.column('RMSE')}"
    for quantity in (QUANTITIES[label] for label in LABELS)
}


def learning_curves(history: Sequence[Mapping[str, Any]], errors: Mapping[str, str] = ERRORS_OF_LABELS) -> Figure:
    """Loss, validation errors and learning rate over epochs, as far as `history` holds them.

    Parameters
    ----------
    history : one mapping per epoch
    errors : column of an error -> title of its panel
    """
    panels = {}
    for name, label in {"loss": "loss", **errors, "learning_rate": "learning rate"}.items():
        points = [(entry["epoch"], entry[name]) for entry in history if entry.get(name) is not None]
        points = [(epoch, value) for epoch, value in points if np.isfinite(value) and value > 0]
        if points:
            panels[label] = np.array(points, dtype=np.float64).T
    figure, axes = grid(len(panels))
    for axis, (label, (epochs, values)) in zip(axes, panels.items(), strict=True):
        axis.plot(epochs, values, color=COLORS[0], linewidth=1.2, marker="." if len(epochs) < 40 else None)
        axis.set(xlabel="epoch", yscale="log")
        axis.set_title(label, fontsize=9)
        axis.grid(which="major", color="0.9")
        decimal_ticks(axis.yaxis, values.min(), values.max())
    return figure


def parity(sets: Mapping[str, Predictions]) -> Figure:
    """Predictions over labels, a row per set: energies and stresses colored by group, forces by element."""
    columns = [name for name in SIZE_INDEPENDENT if any(np.isfinite(p.labels[name]).any() for p in sets.values())]
    figure = new_figure(3.7 * len(columns), 3.9 * len(sets))
    for row, (data, predictions) in zip(
        figure.subplots(len(sets), len(columns), squeeze=False), sets.items(), strict=True
    ):
        for axis, name in zip(row, columns, strict=True):
            labels, predicted = predictions.labels[name], predictions.predictions[name]
            kinds = _elements(predictions) if name == "forces" else predictions.groups
            known = np.isfinite(labels.reshape(len(labels), -1)).all(axis=1)
            if not known.any():
                axis.set_axis_off()
                continue
            zero = float(np.median(labels[known])) if name == "energy_per_atom" else 0.0
            draw_parity(axis, labels[known] - zero, predicted[known] - zero, kinds[known])
            relative = " − median label" if name == "energy_per_atom" else ""
            axis.set(xlabel=f"label{relative}", ylabel=f"prediction{relative}")
            axis.set_title(f"{data}: {QUANTITIES[name].heading}", fontsize=9)
    return figure


def error_distributions(sets: Mapping[str, Predictions]) -> Figure:
    """Share of values whose error is larger than x, on logarithmic axes, a curve per set."""
    columns = [name for name in SIZE_INDEPENDENT if any(np.isfinite(p.labels[name]).any() for p in sets.values())]
    figure, axes = grid(len(columns))
    for axis, name in zip(axes, columns, strict=True):
        ends = []
        for color, (data, predictions) in zip(cycle(), sets.items(), strict=False):
            errors = MILLI * np.abs(predictions.difference(name)).ravel()
            ends += draw_distribution(axis, errors, color, data)
        axis.set_xlabel(f"error of {QUANTITIES[name].error_heading}")
        if ends:
            axis.set_xlim(np.min(ends), np.max(ends))
            decimal_ticks(axis.xaxis, float(np.min(ends)), float(np.max(ends)))
            axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def dynamics(runs: Sequence[Run], targets: Sequence[float | None]) -> Figure:
    """Temperature over time of runs with a target (K), total energy of those without."""
    figure, axes = grid(len(runs))
    for axis, run, target in zip(axes, runs, targets, strict=True):
        failed = run.verdict.outcome == "failed"
        values = run.energy if target is None else run.temperature_K
        axis.plot(1000 * run.time_ps, values, color=COLORS[1 if failed else 0], linewidth=0.9)
        if target is not None:
            axis.axhline(target, color="0.4", linewidth=0.8, linestyle="--")
            axis.set_ylim(bottom=0)
        axis.set(xlabel="time, fs", ylabel="temperature, K" if target is not None else "energy change, meV/atom")
        axis.set_title(f"{run.verdict.name}: {run.verdict.outcome}", fontsize=9)
        axis.ticklabel_format(useOffset=False)
    return figure


def dimers(curves: Sequence[DimerCurve]) -> Figure:
    """Energy of two atoms over their distance; holes are red, the dashed line is the shortest distance in the data."""
    figure, axes = grid(len(curves))
    for axis, curve in zip(axes, curves, strict=True):
        axis.plot(curve.distances, curve.energies, color=COLORS[0], linewidth=1.2)
        axis.axhline(0, color="0.7", linewidth=0.6)
        if curve.hole is not None:
            axis.axvspan(*curve.hole, color=COLORS[1], alpha=0.35, linewidth=0)
        if curve.shortest_in_data is not None:
            axis.axvline(curve.shortest_in_data, color="0.3", linewidth=0.9, linestyle="--")
        axis.set(xlabel="distance, Å", ylabel="energy, eV", xlim=(0, curve.distances[-1]))
        axis.set_title(curve.pair, fontsize=9)
        signed_logarithmic(axis, curve.energies, linear=1.0)
    return figure


def volume(curve: VolumeCurve) -> Figure:
    """Energy per atom over volume per atom of one structure; the dashed line is its own volume."""
    figure, [axis] = grid(1)
    axis.plot(curve.volumes, curve.energies, color=COLORS[0], linewidth=1.2, marker=".")
    axis.axvline(curve.own_volume, color="0.3", linewidth=0.9, linestyle="--")
    signed_logarithmic(axis, curve.energies, linear=0.1)
    axis.set(xlabel="volume, Å³/atom", ylabel="energy above the lowest, eV/atom")
    return figure


def calibration(deviations: NDArray[np.float64], errors: NDArray[np.float64]) -> Figure:
    """Errors of the forces on atoms over the deviation of a committee, eV/Å, and their root mean square in ten bins."""
    figure = new_figure(5.0, 4.4)
    axis = figure.subplots()
    shown = (deviations > 0) & (errors > 0)
    deviations, errors = deviations[shown], errors[shown]
    points = thinned(errors)
    axis.scatter(deviations[points], errors[points], s=5, alpha=0.4, linewidths=0, color=OTHERS, rasterized=True)
    bins = np.array_split(np.argsort(deviations), min(10, max(len(errors) // 10, 1)))
    rms = [[np.sqrt(np.mean(values[index] ** 2)) for index in bins] for values in (deviations, errors)]
    axis.plot(*rms, color=COLORS[1], marker="o", markersize=4, label="root mean square, bins of equal size")
    ends = np.array([deviations.min(), deviations.max()])
    axis.plot(ends, ends, color="0.2", linewidth=0.8, label="error = deviation")
    axis.set(xscale="log", yscale="log", xlabel="deviation of the committee, eV/Å", ylabel="error of the force, eV/Å")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _elements(predictions: Predictions) -> NDArray[np.str_]:
    return np.array(chemical_symbols)[predictions.atomic_numbers]
