"""``ase-segnn export``: a potential as a library for programs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    DType,
    DTypeOption,
    ForceOption,
    MarchOption,
    MemberOption,
    PotentialArgument,
    check_outputs,
    single_potential,
)


@app.command()
def export(
    potential: PotentialArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Library to write, ends in .so; default <name>.so. A header goes beside it."
        ),
    ] = None,
    dtype: DTypeOption = DType.float32,
    march: MarchOption = "native",
    member: MemberOption = None,
    force: ForceOption = False,
) -> None:
    """Compile a potential into a library with an interface in C, which needs no Python; see the header."""
    from ase_segnn.engines.export import export_library

    source, loaded, fingerprint = single_potential(potential, member, dtype)
    library = output or Path(f"{source.stem}.so")
    header = library.with_suffix(".h")
    check_outputs([library, header], force=force)
    export_library(loaded, library, name=source.stem, fingerprint=fingerprint, march=march, header=header)
    size = library.stat().st_size / 1e6
    typer.echo(f"library: {library} ({', '.join(loaded.elements)}; {dtype.value}, {march}, {size:.1f} MB)")
    typer.echo(f"header: {header}")
