"""``ase-segnn evaluate``: errors of a potential against labeled frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    DeviceOption,
    DType,
    DTypeOption,
    ForceOption,
    PotentialArgument,
    check_outputs,
    make_calculator,
)
from ase_segnn.files import written_whole

if TYPE_CHECKING:
    from rich.table import Table

    from ase_segnn.evaluation import Evaluation

_ROWS = {
    "energy": "energy, meV",
    "energy_per_atom": "energy per atom, meV",
    "forces": "force components, meV/Å",
    "stress": "stress, meV/Å³",
}


@app.command()
def evaluate(
    potential: PotentialArgument,
    frames: Annotated[list[str], typer.Argument(help="Files with labeled frames, anything ASE reads.")],
    plot: Annotated[Path, typer.Option(help="PNG file of the parity plot.")] = Path("parity.png"),
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.float32,
    force: ForceOption = False,
) -> None:
    """Compare a potential with the labels in FRAMES: table of errors and parity plot."""
    from rich.console import Console
    from rich.progress import Progress

    from ase_segnn.evaluation import evaluate as evaluate_frames
    from ase_segnn.plots import parity_plot, save_figure
    from ase_segnn.structures import read_structures

    check_outputs([plot], force=force)
    structures = {source: read_structures(source) for source in frames}
    calculator = make_calculator(potential, device, dtype)
    evaluations = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for source, atoms in structures.items():
            task = progress.add_task(source, total=len(atoms))
            try:
                evaluations[source] = evaluate_frames(calculator, atoms, on_frame=partial(progress.advance, task))
            except ValueError as error:
                raise ValueError(f"'{source}': {error}") from error
    for source, evaluation in evaluations.items():
        Console().print(_table(source, evaluation))
    by_name = {Path(source).name: evaluation for source, evaluation in evaluations.items()}
    figure = parity_plot(by_name, f"{potential} against labels")
    with written_whole(plot) as path:
        save_figure(figure, path)
    typer.echo(f"parity plot: {plot}")


def _table(source: str, evaluation: Evaluation) -> Table:
    from rich.table import Table

    from ase_segnn.evaluation import ERROR_UNITS

    table = Table("", "frames", "values", "MAE", "RMSE", title=f"{source}: {evaluation.n_frames} frames")
    errors = evaluation.errors()
    for name, label in _ROWS.items():
        if name in evaluation.labels:
            unit, _ = ERROR_UNITS[name]
            table.add_row(
                label,
                str(evaluation.n_labeled[name]),
                str(len(evaluation.labels[name])),
                f"{errors[f'{name}_MAE_{unit}']:.2f}",
                f"{errors[f'{name}_RMSE_{unit}']:.2f}",
            )
    return table
