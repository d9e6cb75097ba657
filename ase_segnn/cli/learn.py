"""``ase-segnn learn``: a potential from structures and a reference, without labeled frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import check_outputs, name_of, with_extra_train

if TYPE_CHECKING:
    from ase import Atoms

    from ase_segnn.training import LearnResult


@app.command()
def learn(
    structures: Annotated[
        list[str],
        typer.Argument(
            help="Structures to start from, any files ASE reads, or smiles:CCO; with --resume the folder of a run."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Labels frames: gfn2, emt, FILE.py:FUNCTION or MODULE:CLASS of an ASE calculator, mace:FILE, "
            "sevennet:NAME, chgnet, orb:NAME, so3lr, segnn:NAME. Without it labels are made elsewhere, see --export."
        ),
    ] = None,
    labels: Annotated[int | None, typer.Option(help="The most labels. [default: 500]")] = None,
    time: Annotated[
        str | None, typer.Option(help="How long, such as 30m or 2h. [default: the labels and an hour]")
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(help="K, of the potential's use, such as 300:1500. [default: 300:600]")
    ] = None,
    pressure: Annotated[str | None, typer.Option(help="GPa, of crystals and liquids, such as 0:10.")] = None,
    charge: Annotated[int | None, typer.Option(help='e, for gfn2. [default: "charge" of each structure, or 0]')] = None,
    multiplicity: Annotated[
        int | None, typer.Option(help='2S + 1, for gfn2. [default: "multiplicity" of each structure, or the lowest]')
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that label. [default: 1]")] = None,
    limit: Annotated[
        str | None, typer.Option(help="Time per label, such as 10m. [default: 20 times the median]")
    ] = None,
    committee: Annotated[bool, typer.Option("--committee", help="Keep the committee, not its best member.")] = False,
    deviation: Annotated[
        float | None,
        typer.Option(help="eV/Å, from which on a frame is new. [default: a tenth of the root mean square force]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [default: 0]")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of a training recipe, such as network.cutoff=4.5."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: name of the first structure]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in a folder.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="File for frames to label elsewhere; needs no --reference.")
    ] = None,
    labels_from: Annotated[
        str | None, typer.Option(metavar="FILE", help="Labels made elsewhere, of the frames that were exported.")
    ] = None,
) -> None:
    """Learn a potential of STRUCTURES from a reference that labels frames of the potential's own dynamics."""
    with with_extra_train("training"):
        from ase_segnn.training import LabelsNeeded, learn
        from ase_segnn.training.recipe import key_and_value, set_key
    from ase_segnn.structures import read_named

    resume = resume or labels_from is not None
    if export is not None:
        check_outputs([export], force=False)
    options: dict[str, Any] = {
        "labels": labels,
        "max_time": time,
        "temperatures": temperature,
        "pressures": pressure,
        "charge": charge,
        "multiplicity": multiplicity,
        "workers": workers,
        "limit": limit,
        "committee": committee or None,
        "deviation": deviation,
        "seed": seed,
    }
    settings = {key: value for key, value in options.items() if value is not None}
    recipe: dict[str, Any] = {}
    for key, value in (key_and_value(change) for change in changes or []):
        set_key(recipe, key, value)
    settings |= {"recipe": recipe} if recipe else {}
    if reference is None and not resume and export is None:
        raise ValueError(
            "give --reference, such as gfn2 or my_dft.py:make_calculator; or --export batch.xyz for labels made "
            "elsewhere"
        )
    given: list[Atoms] | None = None
    if resume:
        folder = _folder_of_run(structures)
    else:
        given = [atoms for source in structures for _, atoms in read_named(source)]
        settings["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(structures[0])).strip("-._") or "potential"
        folder = output or Path(settings["name"])
    elsewhere = None if labels_from is None else [atoms for _, atoms in read_named(labels_from)]
    try:
        result = _shown(
            lambda tell: learn(
                given, reference, output=folder, resume=resume, labels_from=elsewhere, on_change=tell, **settings
            )
        )
    except LabelsNeeded as needed:
        _export(needed.frames, folder, export)
        return
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: ase-segnn learn {folder} --resume", err=True)
        raise typer.Exit(130) from None
    for line in result.summary():
        typer.echo(line)
    files = {**result.training.files, "labels": result.labels_path}
    for what, path in files.items():
        typer.echo(f"{what}: {path}")


def _folder_of_run(arguments: list[str]) -> Path:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise ValueError(f"--resume and --labels-from take the folder of a run, got '{' '.join(arguments)}'")
    return Path(arguments[0])


def _shown(run: Callable[[Callable[[str, float], None]], LearnResult]) -> LearnResult:
    """Run with a line that tells what goes on, on a terminal, and a log otherwise."""
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, omit_repeated_times=False)
        form = "%(message)s"
    else:
        handler, form = logging.StreamHandler(), "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[handler])
    columns = (SpinnerColumn(), TextColumn("{task.fields[clock]} {task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", clock="")

        def tell(what: str, seconds: float) -> None:
            minutes, rest = divmod(int(seconds), 60)
            progress.update(task, description=what, clock=f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}")

        return run(tell)


def _export(frames: list[Atoms], folder: Path, export: Path | None) -> None:
    import ase.io

    from ase_segnn.files import written_whole

    if export is None:
        raise ValueError(
            f"{len(frames)} frames need labels that are made elsewhere; write them to a file with "
            f"ase-segnn learn {folder} --resume --export batch.xyz"
        )
    with written_whole(export) as path:
        ase.io.write(path, frames, format="extxyz")
    typer.echo(
        f"{len(frames)} frames to label: {export}\nthen: ase-segnn learn {folder} --labels-from done.xyz --export "
        "next.xyz"
    )
