"""Figures of the command line; matplotlib is imported when a figure is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ase_segnn.evaluation import Evaluation
from ase_segnn.quantities import QUANTITIES, SIZE_INDEPENDENT, shown_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_POINT = "#2f6f9f"


def parity_plot(evaluations: dict[str, Evaluation], title: str) -> Figure:
    """Draw predictions over labels: a row per data set, a column per property, the RMSE in each panel.

    Parameters
    ----------
    evaluations : by name of the data set
    title : of the figure
    """
    from matplotlib.figure import Figure

    columns = [name for name in SIZE_INDEPENDENT if any(name in e.labels for e in evaluations.values())]
    rows = len(evaluations)
    figure = Figure(figsize=(4.2 * len(columns), 0.5 + 3.9 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row, (data, evaluation) in zip(axes, evaluations.items(), strict=True):
        errors = evaluation.errors()
        for axis, name in zip(row, columns, strict=True):
            if name not in evaluation.labels:
                axis.set_axis_off()
                continue
            _parity(axis, evaluation.labels[name], evaluation.predictions[name])
            axis.set_title(f"{data}: {QUANTITIES[name].heading}", fontsize=9)
            text = f"RMSE {' '.join(shown_errors(errors, [name]))}"
            axis.text(0.04, 0.96, text, transform=axis.transAxes, va="top", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _parity(axis: Axes, labels: NDArray[np.float64], predictions: NDArray[np.float64]) -> None:
    both = np.concatenate([labels, predictions])
    margin = 0.04 * (np.ptp(both) or 1.0)
    limits = (float(both.min() - margin), float(both.max() + margin))
    axis.plot(limits, limits, color="0.6", linewidth=0.8, zorder=1)
    axis.scatter(labels, predictions, s=5, alpha=0.5, linewidths=0, color=_POINT, zorder=2, rasterized=True)
    axis.set(xlim=limits, ylim=limits, aspect="equal", xlabel="label", ylabel="prediction")
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)


def dynamics_plot(log: dict[str, list[float]], title: str) -> Figure:
    """Draw temperature and energies over time.

    Parameters
    ----------
    log : columns of the log of `ase-segnn md`
    title : of the figure
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    temperature, energy = figure.subplots(2, 1, sharex=True)
    time = np.array(log["time_fs"]) / 1000
    temperature.plot(time, log["temperature_K"], color="#b5482a", linewidth=0.9)
    temperature.set_ylabel("temperature, K")
    for name, color in (("potential", _POINT), ("total", "0.2")):
        values = np.array(log[f"{name}_eV"])
        energy.plot(time, values - log["potential_eV"][0], color=color, linewidth=0.9, label=f"{name} energy")
    energy.set(xlabel="time, ps", ylabel="energy − first potential energy, eV")
    energy.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png")
