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
from ase_segnn.quantities import LABELS, QUANTITIES, VIRIAL_UNIT

if TYPE_CHECKING:
    from rich.table import Table

    from ase_segnn.evaluation import Evaluation

_OPTIONS = {label: f"--{label}-key" for label in LABELS}


def _key_help(label: str) -> str:
    unit = QUANTITIES[label].unit + f", or of the virial, {VIRIAL_UNIT}" * (label == "stress")
    return f"Name of the {label} in FRAMES, {unit}; needed for unusual names, or to choose one of several."


@app.command()
def evaluate(
    potential: PotentialArgument,
    frames: Annotated[list[str], typer.Argument(help="Files with labeled frames, anything ASE reads.")],
    energy_key: Annotated[str | None, typer.Option(help=_key_help("energy"))] = None,
    forces_key: Annotated[str | None, typer.Option(help=_key_help("forces"))] = None,
    stress_key: Annotated[str | None, typer.Option(help=_key_help("stress"))] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for a parity plot; without it none is drawn.")] = None,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.float32,
    force: ForceOption = False,
) -> None:
    """Evaluate POTENTIAL against the labels in FRAMES: a table of errors, and the sources of the labels."""
    from rich.console import Console
    from rich.progress import Progress

    from ase_segnn.evaluation import evaluate_chosen
    from ase_segnn.labels import LabelKeys, choose_labels
    from ase_segnn.structures import read_named

    check_outputs([plot] if plot is not None else [], force=force)
    keys = LabelKeys(energy=energy_key, forces=forces_key, stress=stress_key)
    structures = {source: read_named(source) for source in frames}
    choices = {}
    for source, named in structures.items():
        try:
            choices[source] = choose_labels(named, keys, options=_OPTIONS)
            choices[source].report.check()
        except ValueError as error:  # noqa: PERF203  # of few files
            raise ValueError(f"'{source}': {error}") from error
    calculator = make_calculator(potential, device, dtype)
    evaluations = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for source, named in structures.items():
            task = progress.add_task(source, total=len(named))
            advance = partial(progress.advance, task)
            evaluations[source] = evaluate_chosen(calculator, named, choices[source], on_frame=advance)
    for source, evaluation in evaluations.items():
        Console().print(_table(source, evaluation))
        report = choices[source].report
        typer.echo(f"labels: {report.line()}")
        for remark in report.remarks:
            typer.echo(f"{remark.severity}: {remark}")
    if plot is not None:
        _draw(plot, evaluations, f"{potential} against labels")


def _draw(plot: Path, evaluations: dict[str, Evaluation], title: str) -> None:
    from ase_segnn.plots import parity_plot, save_figure

    stems = [Path(source).name for source in evaluations]
    names = [stem if stems.count(stem) == 1 else source for stem, source in zip(stems, evaluations, strict=True)]
    figure = parity_plot(dict(zip(names, evaluations.values(), strict=True)), title)
    with written_whole(plot) as path:
        save_figure(figure, path)
    typer.echo(f"parity plot: {plot}")


def _table(source: str, evaluation: Evaluation) -> Table:
    from rich.table import Table

    table = Table("", "frames", "values", "MAE", "RMSE", title=f"{source}: {evaluation.n_frames} frames")
    errors = evaluation.errors()
    for name, quantity in QUANTITIES.items():
        if name in evaluation.labels:
            table.add_row(
                quantity.error_heading,
                str(evaluation.n_labeled[name]),
                str(len(evaluation.labels[name])),
                f"{errors[quantity.error_name('MAE')]:.2f}",
                f"{errors[quantity.error_name('RMSE')]:.2f}",
            )
    return table
