"""``ase-segnn select``: frames of a trajectory to label next."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    DeviceOption,
    DType,
    DTypeOption,
    ForceOption,
    check_outputs,
    make_calculator,
)
from ase_segnn.files import written_whole

if TYPE_CHECKING:
    from rich.table import Table

    from ase_segnn.selection import Selection


@app.command()
def select(
    committee: Annotated[str, typer.Argument(help="Potential file of a committee.")],
    trajectory: Annotated[str, typer.Argument(help="Any file ASE reads; 'file@::10' takes each tenth frame.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Frames to select, at most.")] = 50,
    max_deviation: Annotated[
        float | None, typer.Option(help="eV/Å; leave out frames above it, such as those of an explosion.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Extended-xyz file of the frames.")] = Path("selected.xyz"),
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.float32,
    force: ForceOption = False,
) -> None:
    """Select frames of TRAJECTORY to label next: frames that differ, with large deviations of COMMITTEE."""
    import ase.io
    from rich.console import Console
    from rich.progress import Progress

    from ase_segnn.selection import select_frames
    from ase_segnn.structures import read_named

    check_outputs([output], force=force)
    named = read_named(trajectory)
    frames, sources = [atoms for _, atoms in named], [name for name, _ in named]
    calculator = make_calculator(committee, device, dtype)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(trajectory, total=len(frames))
        advance = partial(progress.advance, task)
        selection = select_frames(
            calculator, frames, number, max_deviation=max_deviation, sources=sources, on_frame=advance
        )
    for frame, index in zip(selection.frames, selection.indices, strict=True):
        in_file = sources[index].rpartition("@")[2]
        frame.info["source_index"] = int(in_file) if in_file.isdecimal() else index
    with written_whole(output) as path:
        ase.io.write(path, selection.frames, format="extxyz")
    Console().print(_table(trajectory, selection))
    typer.echo(f"selected frames: {output}")


def _table(trajectory: str, selection: Selection) -> Table:
    from rich.table import Table

    table = Table("", "frames", "smallest", "median", "largest", title=f"{trajectory}: largest deviations, eV/Å")
    selected = selection.deviations[selection.indices]
    for label, values in (("all", selection.deviations), ("selected", selected)):
        row = (values.min(), float(np.median(values)), values.max())
        table.add_row(label, str(len(values)), *(f"{value:.3g}" for value in row))
    table.add_row("left out, above --max-deviation", str(selection.n_beyond))
    table.add_row("left out, near-duplicates", str(selection.n_similar))
    return table
