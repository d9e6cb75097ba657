"""``ase-segnn explore``: frames on which a committee disagrees, found by its own dynamics."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import ForceOption, check_outputs, with_extra_train

if TYPE_CHECKING:
    from rich.table import Table

    from ase_segnn.training.active_learning.exploration import Explored


@app.command()
def explore(
    committee: Annotated[str, typer.Argument(help="Potential file of a committee.")],
    structures: Annotated[list[str], typer.Argument(help="Structures to start from, any files ASE reads.")],
    temperature: Annotated[str, typer.Option(help="K, such as 300:1500.")] = "300:600",
    pressure: Annotated[str | None, typer.Option(help="GPa, of crystals and liquids, such as 0:10.")] = None,
    time: Annotated[str, typer.Option(help="How long, such as 90s or 10m.")] = "1m",
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Frames to select, at most.")] = 50,
    deviation: Annotated[
        float | None,
        typer.Option(
            help="eV/Å, from which on a frame is new; ten times as much ends a walk. [default: a tenth of the root "
            "mean square force in the training frames]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of starts, velocities and thermostats.")] = 0,
    output: Annotated[Path, typer.Option(help="Extended-xyz file of the selected frames.")] = Path("explored.xyz"),
    force: ForceOption = False,
) -> None:
    """Explore by dynamics of COMMITTEE at several temperatures, on all cores, and select frames to label next."""
    import ase.io
    from rich.console import Console

    from ase_segnn.files import written_whole
    from ase_segnn.model.committee import Committee
    from ase_segnn.potential_file import load_potential
    from ase_segnn.structures import read_named

    with with_extra_train("exploration"):
        from ase_segnn.training.active_learning.exploration import explore_and_select
        from ase_segnn.training.active_learning.settings import ladder, parse_range
        from ase_segnn.training.active_learning.walks import Band
        from ase_segnn.training.recipe import parse_duration

    check_outputs([output], force=force)
    temperatures = ladder(*parse_range(temperature))
    pressures = None if pressure is None else parse_range(pressure)
    seconds = parse_duration(time)
    if deviation is not None and not deviation > 0:
        raise ValueError(f"--deviation is in eV/Å, positive, got {deviation:g}")
    path = Path(committee)
    potential = load_potential(path)
    if not isinstance(potential, Committee):
        raise ValueError(f"exploration needs a committee, and '{committee}' holds a single potential")  # noqa: TRY004
    lower = deviation or 0.1 * potential.config.energy_scale
    starts = [atoms for source in structures for _, atoms in read_named(source)]
    with TemporaryDirectory() as folder:
        explored = explore_and_select(
            path.resolve(),
            starts,
            temperatures,
            Band(lower, 10 * lower),
            number,
            seconds=seconds,
            folder=Path(folder),
            pressures=pressures,
            seed=seed,
        )
    Console().print(_table(explored, lower))
    if not explored.selected:
        typer.echo("no frame is new: nothing is written")
        return
    with written_whole(output) as temporary:
        ase.io.write(temporary, explored.selected, format="extxyz")
    typer.echo(f"selected frames: {output}")


def _table(explored: Explored, lower: float) -> Table:
    from rich.table import Table

    table = Table("K", "ps", "walks", "broken", "frames", "new", "median deviation, eV/Å", "selected")
    table.title = f"new: a deviation of {lower:.3g} to {10 * lower:.3g} eV/Å"
    for rung in explored.rungs:
        table.add_row(
            f"{rung.temperature:.0f}",
            f"{rung.picoseconds:.1f}",
            str(rung.n_walks),
            str(rung.n_broken),
            str(rung.n_seen),
            str(rung.n_new),
            f"{rung.median_deviation:.3g}",
            str(rung.n_selected),
        )
    return table
