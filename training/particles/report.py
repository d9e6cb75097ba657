"""The report of a run on simulated particles: one page with its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ase_segnn.files import written_whole

from ..report.figures import learning_curves
from ..report.page import page, paragraph, picture, section, table
from ..report.panels import COLORS, draw_distribution, draw_parity, grid
from .recipe import ParticleRecipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {
    "validation_positions_MSE": "validation, MSE of positions",
    "validation_forces_MSE": "validation, MSE of forces",
    "validation_later_forces_MSE": "validation, MSE of later forces",
}
_SHARES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a run has found.

    Parameters
    ----------
    errors : measure -> mean squared error
    targets, predictions : (T, n, 3), of the test
    history : lines of the learning curve
    facts : about the run
    """

    errors: Mapping[str, float]
    targets: NDArray[np.float64]
    predictions: NDArray[np.float64]
    history: Sequence[Mapping[str, Any]]
    facts: Mapping[str, str]


def write_report(path: Path, recipe: ParticleRecipe, findings: Findings) -> None:
    """Write the page, whole or not at all."""
    squares = np.square(findings.predictions - findings.targets).mean(axis=2).ravel()  # of each particle
    worst = np.sort(squares)[::-1]
    of_worst = worst[: max(1, len(worst) // 100)].sum() / worst.sum()
    quantiles = [
        (f"{share:.1%} of the particles are better than", f"{np.quantile(squares, share):.3g}") for share in _SHARES
    ]
    recipe_text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    text = page(
        recipe.name,
        section(
            "Errors",
            table(("mean squared error over components", ""), [(k, f"{v:.5g}") for k, v in findings.errors.items()]),
        ),
        section(
            "Particles",
            table(("squared error of a particle of the test, mean over x, y, z", ""), quantiles),
            paragraph(f"The worst hundredth of the particles makes up {of_worst:.0%} of the mean."),
            picture(
                particle_errors(findings.targets, findings.predictions, recipe.system.target),
                "Test: predicted over true components, and the distribution of the errors.",
            ),
        ),
        section(
            "Learning",
            picture(
                learning_curves(findings.history, _CURVES), "Loss, error on validation trajectories and learning rate."
            ),
        ),
        section("Run", table(("", ""), list(findings.facts.items()))),
        section("Recipe", f"<pre>{escape(recipe_text)}</pre>"),
    )
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def particle_errors(targets: NDArray[np.float64], predictions: NDArray[np.float64], target: str) -> Figure:
    """Predicted over true components of vectors (T, n, 3), and the share of particles with a larger error."""
    figure, (left, right) = grid(2)
    draw_parity(left, targets.reshape(-1, 3), predictions.reshape(-1, 3), np.full(targets[..., 0].size, ""))
    left.set(xlabel="simulated", ylabel="predicted")
    left.set_title("components of displacements" if target == "positions" else "components of forces", fontsize=9)
    [ends] = draw_distribution(right, np.linalg.norm(predictions - targets, axis=2).ravel(), COLORS[0], "")
    right.set(xlabel="length of the error vector", xlim=ends)
    return figure
