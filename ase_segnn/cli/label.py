"""``ase-segnn label``: energies and forces of frames by a reference, to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import ForceOption, check_outputs, with_extra_train

if TYPE_CHECKING:
    from ase_segnn.training.labeling import LabeledFrames

_INTERRUPTED = 130  # exit code, as of programs that Ctrl-C ends


@app.command()
def label(
    frames: Annotated[
        list[str], typer.Argument(help="Files that ASE reads; 'file@::10' takes each tenth frame.", metavar="FRAMES")
    ],
    reference: Annotated[
        str,
        typer.Option(
            help="gfn2, emt, FILE.py:FUNCTION or package.module:FUNCTION that makes an ASE calculator, mace:FILE, "
            "sevennet:NAME, chgnet, orb:NAME, so3lr, or segnn:NAME."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Extended-xyz file of the labels.")] = Path("labels.xyz"),
    charge: Annotated[int | None, typer.Option(help='e, for gfn2; default "charge" of each frame, or 0.')] = None,
    multiplicity: Annotated[
        int | None, typer.Option(min=1, help='2S + 1, for gfn2; default "multiplicity" of each frame, or the lowest.')
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that label.")] = 1,
    limit: Annotated[
        str | None, typer.Option(help="Longest time of a label, such as 10m; default 20 times the median.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the labels of an interrupted session.")] = False,
    force: ForceOption = False,
) -> None:
    """Label FRAMES with a reference; each label is on the disk the moment it is known."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from ase_segnn.structures import read_named

    with with_extra_train("labeling"):
        from ase_segnn.training.labeling import LabelOutputs, label_frames
        from ase_segnn.training.recipe import parse_duration
    outputs = LabelOutputs(output)
    check_outputs([outputs.labels, outputs.failed, outputs.origin], force=True)  # their folder; the rest is the next's
    outputs.check(resume=resume, overwrite=force)
    seconds = parse_duration(limit)
    named = [frame for source in frames for frame in read_named(source)]
    n_done = 0
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task("labels", total=len(named))

        def show(n: int) -> None:
            nonlocal n_done
            n_done = n
            progress.update(task, completed=n)

        try:
            labeled = label_frames(
                [atoms for _, atoms in named],
                reference,
                output,
                sources=[name for name, _ in named],
                charge=charge,
                multiplicity=multiplicity,
                workers=workers,
                limit=seconds,
                resume=resume,
                overwrite=force,
                on_progress=show,
            )
        except KeyboardInterrupt:
            progress.stop()
            typer.echo(f"interrupted after {n_done} of {len(named)} frames; go on with --resume", err=True)
            raise typer.Exit(_INTERRUPTED) from None
    _tell(labeled)


def _tell(labeled: LabeledFrames) -> None:
    for reason, n in labeled.reasons.most_common():
        typer.echo(f"no label: {n} x {reason}")
    if labeled.reasons:
        typer.echo(f"frames without a label: {labeled.outputs.failed}")
    each = f"{1000 * labeled.seconds:.3g} ms" if labeled.seconds < 1 else f"{labeled.seconds:.3g} s"
    typer.echo(f"labels: {labeled.n_labels} of {labeled.n_frames} frames, {each} each; {labeled.outputs.labels}")
