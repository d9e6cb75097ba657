"""Figures of the report of a training run; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from .checks import DimerCurve, VolumeCurve
    from .predictions import Predictions
    from .stability import Run

# Colors that people with any color vision can tell apart: Okabe and Ito, https://jfly.uni-koeln.de/color/
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_OTHERS = "#9a9a9a"
_MOST_POINTS = 20_000  # of one panel
_COLUMNS = 3
_HISTORY = {
    "loss": "loss",
    "validation_energy_RMSE_meV": "validation, energy RMSE, meV",
    "validation_forces_RMSE_meV_per_A": "validation, forces RMSE, meV/Å",
    "validation_stress_RMSE_meV_per_A3": "validation, stress RMSE, meV/Å³",
    "validation_positions_MSE": "validation, MSE of positions",
    "validation_forces_MSE": "validation, MSE of forces",
    "validation_later_forces_MSE": "validation, MSE of later forces",
    "learning_rate": "learning rate",
}
_PARITY = {"energy_per_atom": "energy per atom, eV", "forces": "force components, eV/Å", "stress": "stress, eV/Å³"}
_DISTRIBUTED = {
    "energy_per_atom": "energy per atom, meV",
    "forces": "force component, meV/Å",
    "stress": "stress, meV/Å³",
}


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, validation errors and learning rate over epochs, as far as `history` holds them."""
    panels = {}
    for name, label in _HISTORY.items():
        points = [(entry["epoch"], entry[name]) for entry in history if entry.get(name) is not None]
        points = [(epoch, value) for epoch, value in points if np.isfinite(value) and value > 0]
        if points:
            panels[label] = np.array(points, dtype=np.float64).T
    figure, axes = _grid(len(panels))
    for axis, (label, (epochs, values)) in zip(axes, panels.items(), strict=True):
        axis.plot(epochs, values, color=_COLORS[0], linewidth=1.2, marker="." if len(epochs) < 40 else None)
        axis.set(xlabel="epoch", yscale="log")
        axis.set_title(label, fontsize=9)
        axis.grid(which="major", color="0.9")
        _decimal_ticks(axis.yaxis, values.min(), values.max())
    return figure


def parity(sets: Mapping[str, Predictions]) -> Figure:
    """Predictions over labels, a row per set: energies and stresses colored by group, forces by element."""
    columns = [name for name in _PARITY if any(np.isfinite(p.labels[name]).any() for p in sets.values())]
    figure = _figure(3.7 * len(columns), 3.9 * len(sets))
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
            _parity(axis, labels[known] - zero, predicted[known] - zero, kinds[known])
            relative = " − median label" if name == "energy_per_atom" else ""
            axis.set(xlabel=f"label{relative}", ylabel=f"prediction{relative}")
            axis.set_title(f"{data}: {_PARITY[name]}", fontsize=9)
    return figure


def error_distributions(sets: Mapping[str, Predictions]) -> Figure:
    """Share of values whose error is larger than x, on logarithmic axes, a curve per set."""
    columns = [name for name in _DISTRIBUTED if any(np.isfinite(p.labels[name]).any() for p in sets.values())]
    figure, axes = _grid(len(columns))
    for axis, name in zip(axes, columns, strict=True):
        ends = []
        for color, (data, predictions) in zip(_cycle(), sets.items(), strict=False):
            errors = 1000 * np.abs(predictions.difference(name)).ravel()
            ends += _distribution(axis, errors, color, data)
        axis.set_xlabel(f"error of {_DISTRIBUTED[name]}")
        if ends:
            axis.set_xlim(np.min(ends), np.max(ends))
            _decimal_ticks(axis.xaxis, float(np.min(ends)), float(np.max(ends)))
            axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def particle_errors(targets: NDArray[np.float64], predictions: NDArray[np.float64], target: str) -> Figure:
    """Predicted over true components of vectors (T, n, 3), and the share of particles with a larger error."""
    figure, (left, right) = _grid(2)
    _parity(left, targets.reshape(-1, 3), predictions.reshape(-1, 3), np.full(targets[..., 0].size, ""))
    left.set(xlabel="simulated", ylabel="predicted")
    left.set_title("components of displacements" if target == "positions" else "components of forces", fontsize=9)
    [ends] = _distribution(right, np.linalg.norm(predictions - targets, axis=2).ravel(), _COLORS[0], "")
    right.set(xlabel="length of the error vector", xlim=ends)
    return figure


def dynamics(runs: Sequence[Run], targets: Sequence[float | None]) -> Figure:
    """Temperature over time of runs with a target (K), total energy of those without."""
    figure, axes = _grid(len(runs))
    for axis, run, target in zip(axes, runs, targets, strict=True):
        failed = run.verdict.outcome == "failed"
        values = run.energy if target is None else run.temperature_K
        axis.plot(1000 * run.time_ps, values, color=_COLORS[1 if failed else 0], linewidth=0.9)
        if target is not None:
            axis.axhline(target, color="0.4", linewidth=0.8, linestyle="--")
            axis.set_ylim(bottom=0)
        axis.set(xlabel="time, fs", ylabel="temperature, K" if target is not None else "energy change, meV/atom")
        axis.set_title(f"{run.verdict.name}: {run.verdict.outcome}", fontsize=9)
        axis.ticklabel_format(useOffset=False)
    return figure


def dimers(curves: Sequence[DimerCurve]) -> Figure:
    """Energy of two atoms over their distance; holes are red, the dashed line is the shortest distance in the data."""
    figure, axes = _grid(len(curves))
    for axis, curve in zip(axes, curves, strict=True):
        axis.plot(curve.distances, curve.energies, color=_COLORS[0], linewidth=1.2)
        axis.axhline(0, color="0.7", linewidth=0.6)
        if curve.hole is not None:
            axis.axvspan(*curve.hole, color=_COLORS[1], alpha=0.35, linewidth=0)
        if curve.shortest_in_data is not None:
            axis.axvline(curve.shortest_in_data, color="0.3", linewidth=0.9, linestyle="--")
        axis.set(xlabel="distance, Å", ylabel="energy, eV", xlim=(0, curve.distances[-1]))
        axis.set_title(curve.pair, fontsize=9)
        _signed_logarithmic(axis, curve.energies, linear=1.0)
    return figure


def volume(curve: VolumeCurve) -> Figure:
    """Energy per atom over volume per atom of one structure; the dashed line is its own volume."""
    figure, [axis] = _grid(1)
    axis.plot(curve.volumes, curve.energies, color=_COLORS[0], linewidth=1.2, marker=".")
    axis.axvline(curve.own_volume, color="0.3", linewidth=0.9, linestyle="--")
    _signed_logarithmic(axis, curve.energies, linear=0.1)
    axis.set(xlabel="volume, Å³/atom", ylabel="energy above the lowest, eV/atom")
    return figure


def calibration(deviations: NDArray[np.float64], errors: NDArray[np.float64]) -> Figure:
    """Errors of the forces on atoms over the deviation of a committee, eV/Å, and their root mean square in ten bins."""
    figure = _figure(5.0, 4.4)
    axis = figure.subplots()
    shown = (deviations > 0) & (errors > 0)
    deviations, errors = deviations[shown], errors[shown]
    points = _thinned(errors)
    axis.scatter(deviations[points], errors[points], s=5, alpha=0.4, linewidths=0, color=_OTHERS, rasterized=True)
    bins = np.array_split(np.argsort(deviations), min(10, max(len(errors) // 10, 1)))
    rms = [[np.sqrt(np.mean(values[index] ** 2)) for index in bins] for values in (deviations, errors)]
    axis.plot(*rms, color=_COLORS[1], marker="o", markersize=4, label="root mean square, bins of equal size")
    ends = np.array([deviations.min(), deviations.max()])
    axis.plot(ends, ends, color="0.2", linewidth=0.8, label="error = deviation")
    axis.set(xscale="log", yscale="log", xlabel="deviation of the committee, eV/Å", ylabel="error of the force, eV/Å")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _distribution(
    axis: Axes, errors: NDArray[np.float64], color: str, label: str
) -> list[tuple[np.float64, np.float64]]:
    """Draw the share of values with a larger error over errors (n,); return the range of interest, if there is any."""
    axis.set(xscale="log", yscale="log", ylabel="share with a larger error")
    axis.grid(which="major", color="0.9")
    errors = np.sort(errors[np.isfinite(errors) & (errors > 0)])
    if len(errors) == 0:
        return []
    # the largest error has a share of 1/n, so that it is seen on a logarithmic axis
    shares = 1 - np.arange(len(errors)) / len(errors)
    shown = np.unique(np.geomspace(1, len(errors), 2000).astype(int))
    axis.plot(errors[-shown], shares[-shown], color=color, linewidth=1.3, label=label)
    return [(min(max(errors[len(errors) // 20], 1e-3 * errors[-1]), errors[-1] / 3), 1.5 * errors[-1])]


def _parity(axis: Axes, labels: NDArray[np.float64], predictions: NDArray[np.float64], kinds: NDArray[np.str_]) -> None:
    names, counts = np.unique(kinds, return_counts=True)
    named = sorted(names[np.argsort(-counts, kind="stable")][: len(_COLORS)].tolist())
    colors = dict(zip(named, _COLORS, strict=False))
    per_row = labels[0].size
    kinds = np.repeat(kinds, per_row)
    x, y = labels.ravel(), predictions.ravel()
    points = _thinned(np.abs(y - x))
    color = np.array([colors.get(kind, _OTHERS) for kind in kinds[points].tolist()])
    order = np.random.default_rng(0).permutation(len(points))  # so that no kind hides another
    both = np.concatenate([x, y])
    margin = 0.04 * (float(np.ptp(both)) or 1.0)
    limits = (float(both.min() - margin), float(both.max() + margin))
    axis.plot(limits, limits, color="0.6", linewidth=0.8, zorder=1)
    axis.scatter(x[points][order], y[points][order], s=6, alpha=0.6, linewidths=0, c=color[order], rasterized=True)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)
    if len(names) > 1:
        entries = {**colors, **({"other": _OTHERS} if len(names) > len(named) else {})}
        for kind, shade in entries.items():
            axis.scatter([], [], s=18, color=shade, label=kind or "no group")
        axis.legend(frameon=False, fontsize=7, handletextpad=0.1, borderpad=0.1, labelspacing=0.3, loc="upper left")


def _elements(predictions: Predictions) -> NDArray[np.str_]:
    return np.array(chemical_symbols)[predictions.atomic_numbers]


def _thinned(errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of at most `_MOST_POINTS`, the largest errors and a random choice of the others."""
    if len(errors) <= _MOST_POINTS:
        return np.arange(len(errors))
    order = np.argsort(-errors)
    chosen = np.random.default_rng(0).choice(order[100:], _MOST_POINTS - 100, replace=False)
    return np.concatenate([order[:100], chosen])


def _decimal_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers where it spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if high / low < 100 and low >= 1e-3 and high < 1e5:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 3 else range(1, 10)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _signed_logarithmic(axis: Axes, values: NDArray[np.float64], *, linear: float) -> None:
    """Give an axis with values of either sign and of many sizes a scale that is logarithmic beyond `linear`."""
    from matplotlib.ticker import StrMethodFormatter

    if np.abs(values).max() < 20 * linear:
        return
    sizes = linear * 10.0 ** np.arange(16)
    sizes = sizes[sizes <= np.abs(values).max()]
    sizes = sizes[:: 1 + len(sizes) // 6]
    axis.set_yscale("symlog", linthresh=linear)
    axis.set_ylim(bottom=1.5 * min(values.min(), 0.0) - 0.3 * linear)
    axis.set_yticks([*-sizes[-sizes >= values.min()], 0, *sizes[sizes <= values.max()]])
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.minorticks_off()


def _cycle() -> Iterator[str]:
    while True:
        yield from _COLORS


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _grid(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of small panels, up to three in a row."""
    columns = 2 if panels == 4 else min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure = _figure(3.7 * columns, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]
