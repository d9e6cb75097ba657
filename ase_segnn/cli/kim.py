"""``ase-segnn kim``: a potential as a portable model for programs that know the KIM API."""

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
def kim(
    potential: PotentialArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write, named as the model in KIM; default SEGNN_<name>."),
    ] = None,
    dtype: DTypeOption = DType.float32,
    march: MarchOption = "native",
    member: MemberOption = None,
    force: ForceOption = False,
) -> None:
    """Write a portable model of the KIM API, for programs without plugins; with LAMMPS, pair_style segnn is faster."""
    from ase_segnn.integrations.kim.model import checked_name, model_files, model_name, write_model

    source, loaded, fingerprint = single_potential(potential, member, dtype)
    folder = output or Path(model_name(source.stem))
    kim_name = checked_name(folder.resolve().name)
    folder.mkdir(parents=True, exist_ok=True)
    check_outputs(model_files(folder), force=force)
    write_model(folder, loaded, name=source.stem, kim_name=kim_name, fingerprint=fingerprint, march=march)
    typer.echo(f"model: {folder} ({', '.join(loaded.elements)}; {dtype.value}, {march})")
    typer.echo(f"to install it: kim-api-collections-management install user {folder}")
    typer.echo(f"then, in LAMMPS: kim init {kim_name} metal; in ASE: KIM('{kim_name}')")
