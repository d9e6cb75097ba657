"""Figures of active learning: the course of the rounds, and where the labels lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.quantities import QUANTITIES

from .panels import COLORS, OTHERS, decimal_ticks, draw_distribution, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..active_learning.rounds import Round

_Shades: TypeAlias = dict[float | None, str]
_Points: TypeAlias = "list[tuple[float, float]]"

_START = "start"  # first word of the stages of labels that the first round learns
_BIN = 0.02  # Å
_REACHES = (3.0, 6.0)  # Å, of pairs; the second where no two atoms are nearer than the first
_MOST_PAIRS = 6
_MOST_NAMES = 20  # of stages on an axis
_MOST_COLUMNS = 8  # of the legend
_LIGHTEST = 0.85  # of the color map: its end is too light for lines on white
_HEIGHT = 0.85  # of a histogram, in distances between two of them


def active_learning(rounds: Sequence[Round], labels: Sequence[Atoms]) -> Figure | None:
    """Draw the course of the rounds over the number of labels, and origin, distances and forces of the labels.

    Panels without numbers are left out; None if all are.

    Parameters
    ----------
    rounds : in the order of the run
    labels : with forces as results of their calculators; stage and temperature in K stand in `info`, as far as known
    """
    explored: defaultdict[float | None, _Points] = defaultdict(list)
    for each in rounds:
        for rung in each.rungs:
            explored[_rounded(rung.temperature)] += _positive([(each.n_labels, rung.median_deviation)])
    name = QUANTITIES["forces"].error_name("RMSE")
    errors = _positive([(each.n_labels, each.errors.get(name, np.nan)) for each in rounds])
    histograms = next(filter(None, (_histograms(labels, reach) for reach in _REACHES)), None)
    forces = _forces(labels)
    shades = _shades({*explored, *map(_temperature, labels)})
    panels: list[Callable[[Axes], None]] = []
    if errors:
        panels.append(partial(_draw_errors, points=errors))
    if any(explored.values()):
        panels.append(partial(_draw_deviations, explored=explored, rounds=rounds, shades=shades))
    if labels:
        panels.append(partial(_draw_origins, labels=labels, shades=shades))
    if histograms:
        panels.append(partial(_draw_distances, histograms=histograms))
    if forces:
        panels.append(partial(_draw_forces, forces=forces, shades=shades))
    return _drawn(panels, shades) if panels else None


def _drawn(panels: Sequence[Callable[[Axes], None]], shades: _Shades) -> Figure:
    """Draw panels, and below them one legend of the temperatures."""
    figure, axes = grid(len(panels))
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis)
    if shades:
        from matplotlib.patches import Patch

        handles = [Patch(color=shade, label=_name(temperature)) for temperature, shade in shades.items()]
        columns = min(len(handles), _MOST_COLUMNS)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


# ---- course


def _draw_errors(axis: Axes, points: _Points) -> None:
    counts, errors = np.array(points).T
    axis.plot(counts, errors, color=COLORS[0], linewidth=1.2, marker="o", markersize=4)
    forces = QUANTITIES["forces"]
    axis.set(yscale="log", ylabel=f"RMSE, {forces.error_unit}")
    axis.set_title(f"validation, {forces.title}", fontsize=9)
    _finish(axis, counts)


def _draw_deviations(
    axis: Axes, explored: Mapping[float | None, _Points], rounds: Sequence[Round], shades: _Shades
) -> None:
    for temperature, points in explored.items():
        if points:
            axis.plot(*np.array(points).T, color=shades[temperature], linewidth=1.2, marker="o", markersize=4)
    for bound, style in (("upper", "--"), ("lower", ":")):
        values = _positive([(each.n_labels, getattr(each, bound)) for each in rounds])
        if len({value for _, value in values}) == 1:
            axis.axhline(values[0][1], color="0.3", linewidth=0.9, linestyle=style, label=f"{bound} bound")
        elif values:
            axis.plot(*np.array(values).T, color="0.3", linewidth=0.9, linestyle=style, label=f"{bound} bound")
    axis.set(yscale="log", ylabel="deviation, eV/Å")
    axis.set_title("exploration, median deviation", fontsize=9)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    _finish(axis, np.array([count for points in explored.values() for count, _ in points]))


def _finish(axis: Axes, counts: NDArray[np.float64]) -> None:
    """Scale an axis of numbers of labels, logarithmic where they grow tenfold, and label the other one."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("labels")
    if counts.max() >= 10 * counts.min():
        axis.set_xscale("log")
        decimal_ticks(axis.xaxis, *axis.get_xlim())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    decimal_ticks(axis.yaxis, *axis.get_ylim())
    axis.grid(which="major", color="0.9")


def _positive(points: _Points) -> _Points:
    """Return the points that have a place on logarithmic axes."""
    return [(float(x), float(y)) for x, y in points if np.isfinite([x, y]).all() and x > 0 and y > 0]


# ---- labels


def _draw_origins(axis: Axes, labels: Sequence[Atoms], shades: _Shades) -> None:
    counts: defaultdict[str, dict[float | None, int]] = defaultdict(lambda: dict.fromkeys(shades, 0))
    for atoms in labels:
        counts[_stage(atoms)][_temperature(atoms)] += 1
    rows = np.arange(len(counts))
    totals = np.zeros(len(counts))
    for temperature, shade in shades.items():
        widths = np.array([count[temperature] for count in counts.values()])
        axis.barh(rows, widths, left=totals, color=shade, height=0.75)
        totals += widths
    for row, total in enumerate(totals):
        axis.text(total, row, f" {total:.0f}", va="center", fontsize=7)
    step = 1 + len(rows) // (_MOST_NAMES + 1)
    axis.set_yticks(rows[::step], list(counts)[::step], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15 * totals.max())
    axis.locator_params(axis="x", nbins=5, integer=True)
    axis.set_xlabel("labels")
    axis.set_title("origin of the labels", fontsize=9)


@dataclass(frozen=True, eq=False)
class _Histogram:
    """Numbers of distances of a pair of elements in bins of `_BIN` from 0 Å, in the first labels and in all."""

    pair: str
    start: NDArray[np.float64]
    everything: NDArray[np.float64]


def _histograms(labels: Sequence[Atoms], reach: float) -> list[_Histogram]:
    """Count the distances below `reach` in Å, of the most frequent pairs, which come first."""
    n_bins = round(reach / _BIN)
    counts: defaultdict[tuple[int, int], NDArray[np.float64]] = defaultdict(lambda: np.zeros((2, n_bins)))
    for atoms in labels:
        is_start = _stage(atoms).split()[:1] == [_START]
        graph = AtomicGraph.from_atoms(atoms, reach)
        numbers = graph.atomic_numbers.numpy()
        ends = np.sort([numbers[graph.centers.numpy()], numbers[graph.neighbors.numpy()]], axis=0)
        bins = np.minimum((graph.edge_vectors().norm(dim=1).numpy() / _BIN).astype(int), n_bins - 1)
        for pair in np.unique(ends, axis=1).T:
            # an edge leads from either atom to the other
            found = np.bincount(bins[(ends == pair[:, None]).all(axis=0)], minlength=n_bins) / 2
            counts[int(pair[0]), int(pair[1])] += [found * is_start, found]
    frequent = sorted(counts, key=lambda pair: -counts[pair][1].sum())[:_MOST_PAIRS]
    return [_Histogram("-".join(chemical_symbols[number] for number in pair), *counts[pair]) for pair in frequent]


def _draw_distances(axis: Axes, histograms: Sequence[_Histogram]) -> None:
    edges = _BIN * np.arange(len(histograms[0].everything) + 1)
    for row, histogram in enumerate(reversed(histograms)):
        scale = _HEIGHT / np.log1p(histogram.everything.max())
        start, everything = (row + scale * np.log1p(each) for each in (histogram.start, histogram.everything))
        axis.stairs(start, edges, baseline=row, fill=True, color=COLORS[5], label=_START if row == 0 else None)
        axis.stairs(everything, edges, baseline=row, color="0.2", linewidth=0.8, label=None if row else "all")
    occupied = np.flatnonzero(sum(histogram.everything for histogram in histograms))
    axis.set_xlim(edges[occupied[0]] - 5 * _BIN, edges[-1])
    axis.set_ylim(-0.1, len(histograms) + 0.35)
    axis.set_yticks(range(len(histograms)), [histogram.pair for histogram in reversed(histograms)], fontsize=8)
    axis.set_xlabel("distance, Å")
    axis.set_title("distances, logarithm of their number", fontsize=9)
    axis.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", borderpad=0.1)


def _forces(labels: Sequence[Atoms]) -> dict[float | None, NDArray[np.float64]]:
    """Temperature -> sizes of the forces on atoms, eV/Å."""
    found = defaultdict(list)
    for atoms in labels:
        results: dict[str, Any] = getattr(atoms.calc, "results", {})
        if results.get("forces") is not None:
            sizes = np.linalg.norm(results["forces"], axis=1)
            found[_temperature(atoms)].append(sizes[np.isfinite(sizes) & (sizes > 0)])
    joined = {temperature: np.concatenate(sizes) for temperature, sizes in found.items()}
    return {temperature: sizes for temperature, sizes in joined.items() if len(sizes)}


def _draw_forces(axis: Axes, forces: dict[float | None, NDArray[np.float64]], shades: _Shades) -> None:
    ends = []
    for temperature, shade in shades.items():
        if temperature in forces:
            ends += draw_distribution(axis, forces[temperature], shade, _name(temperature))
    axis.set(xlabel="force on an atom, eV/Å", ylabel="share with a larger force")
    axis.set_title("forces", fontsize=9)
    axis.set_xlim(np.min(ends), np.max(ends))
    decimal_ticks(axis.xaxis, float(np.min(ends)), float(np.max(ends)))


# ---- stages and temperatures


def _stage(atoms: Atoms) -> str:
    return str(atoms.info.get("stage", "not known"))


def _temperature(atoms: Atoms) -> float | None:
    """Return the temperature in K of the dynamics that a label is from, None if no number is given."""
    value = atoms.info.get("temperature")
    return _rounded(float(value)) if isinstance(value, (int, float, np.integer, np.floating)) else None


def _rounded(temperature: float) -> float | None:
    """Return a temperature as it is shown, None for one that is not finite."""
    return round(temperature, 1) if np.isfinite(temperature) else None


def _shades(temperatures: Iterable[float | None]) -> _Shades:
    """Return a color for each temperature in order, from dark to light, and gray for none."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    given = set(temperatures)
    known = sorted(temperature for temperature in given if temperature is not None)
    shades: _Shades = {None: OTHERS} if None in given else {}
    colors = colormaps["plasma"](np.linspace(0, _LIGHTEST, len(known)))
    return shades | {temperature: to_hex(color) for temperature, color in zip(known, colors, strict=True)}


def _name(temperature: float | None) -> str:
    return "no temperature" if temperature is None else f"{temperature:g} K"
