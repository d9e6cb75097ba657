"""``ase-segnn export``: a potential as a library for programs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import DType, DTypeOption, ForceOption, MarchOption, PotentialArgument, check_outputs


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
    member: Annotated[int | None, typer.Option(min=0, help="Which potential of a committee.")] = None,
    force: ForceOption = False,
) -> None:
    """Compile a potential into a library with an interface in C, which needs no Python; see the header."""
    import hashlib

    import torch

    from ase_segnn.engines.export import export_library
    from ase_segnn.model.committee import Committee
    from ase_segnn.potential_file import load_potential
    from ase_segnn.potentials import path_of

    source = path_of(potential)
    library = output or Path(f"{source.stem}.so")
    check_outputs([library, library.with_suffix(".h")], force=force)
    loaded = load_potential(source)
    if isinstance(loaded, Committee):
        last = len(loaded.members) - 1
        if member is None or member > last:
            raise ValueError(
                f"'{potential}' is a committee, and a library holds one potential; choose one, --member 0 to {last}"
            )
        loaded = loaded.members[member]
    elif member is not None:
        raise ValueError(f"--member is for committees, and '{potential}' is a single potential")
    files = export_library(
        loaded.to(torch.float64 if dtype is DType.float64 else torch.float32),
        library,
        name=source.stem,
        fingerprint=hashlib.sha256(source.read_bytes()).hexdigest(),
        march=march,
    )
    size = files[0].stat().st_size / 1e6
    typer.echo(f"library: {files[0]} ({', '.join(loaded.elements)}; {dtype.value}, {march}, {size:.1f} MB)")
    typer.echo(f"header: {files[1]}")
