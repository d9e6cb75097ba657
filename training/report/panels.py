"""Parts of the figures of reports: grids of panels, scatter plots, distributions and axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Colors that people with any color vision can tell apart: Okabe and Ito, https://jfly.uni-koeln.de/color/
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
OTHERS = "#9a9a9a"
_MOST_POINTS = 20_000  # of one panel
_COLUMNS = 3


def draw_parity(
    axis: Axes, labels: NDArray[np.float64], predictions: NDArray[np.float64], kinds: NDArray[np.str_]
) -> None:
    """Draw predictions over labels (n, ...), a color for each of the most frequent of `kinds` (n,)."""
    names, counts = np.unique(kinds, return_counts=True)
    named = sorted(names[np.argsort(-counts, kind="stable")][: len(COLORS)].tolist())
    colors = dict(zip(named, COLORS, strict=False))
    per_row = labels[0].size
    kinds = np.repeat(kinds, per_row)
    x, y = labels.ravel(), predictions.ravel()
    points = thinned(np.abs(y - x))
    color = np.array([colors.get(kind, OTHERS) for kind in kinds[points].tolist()])
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
        entries = {**colors, **({"other": OTHERS} if len(names) > len(named) else {})}
        for kind, shade in entries.items():
            axis.scatter([], [], s=18, color=shade, label=kind or "no group")
        axis.legend(frameon=False, fontsize=7, handletextpad=0.1, borderpad=0.1, labelspacing=0.3, loc="upper left")


def draw_distribution(
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


def thinned(errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of at most `_MOST_POINTS`, the largest errors and a random choice of the others."""
    if len(errors) <= _MOST_POINTS:
        return np.arange(len(errors))
    order = np.argsort(-errors)
    chosen = np.random.default_rng(0).choice(order[100:], _MOST_POINTS - 100, replace=False)
    return np.concatenate([order[:100], chosen])


def decimal_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers where it spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if high / low < 100 and low >= 1e-3 and high < 1e5:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 3 else range(1, 10)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def signed_logarithmic(axis: Axes, values: NDArray[np.float64], *, linear: float) -> None:
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


def cycle() -> Iterator[str]:
    """Yield colors without end."""
    while True:
        yield from COLORS


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def grid(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of small panels, up to three in a row."""
    columns = 2 if panels == 4 else min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure = new_figure(3.7 * columns, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]
