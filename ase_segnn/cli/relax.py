"""``ase-segnn relax``: minimize the energy of a structure."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    DeviceOption,
    DType,
    DTypeOption,
    ForceOption,
    PotentialArgument,
    StructureArgument,
    check_outputs,
    make_calculator,
    name_of,
    not_nan,
)
from ase_segnn.files import writing, written_whole


class Optimizer(str, Enum):
    """Optimizer of ASE."""

    bfgs = "BFGS"
    lbfgs = "LBFGS"
    fire = "FIRE"


@app.command()
def relax(
    potential: PotentialArgument,
    structure: StructureArgument,
    output: Annotated[
        Path | None, typer.Option(help="Relaxed structure, in any format ASE writes; default <name>-relaxed.xyz.")
    ] = None,
    fmax: Annotated[
        float, typer.Option(callback=not_nan, min=1e-12, max=1e6, help="Largest force at the end, eV/Å.")
    ] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Largest number of steps.")] = 500,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    optimizer: Annotated[Optimizer, typer.Option(help="Algorithm.")] = Optimizer.bfgs,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.float64,
    force: ForceOption = False,
) -> None:
    """Relax STRUCTURE until all forces are below FMAX; exit status 1 if they are not after STEPS."""
    import ase.io
    import ase.optimize
    from ase.filters import FrechetCellFilter
    from ase.io.trajectory import Trajectory

    from ase_segnn.checks import check_numbers
    from ase_segnn.constraints import check_for_cell, constrained_by, for_dynamics
    from ase_segnn.structures import check_writable_format, read_structure

    output = output or Path(f"{name_of(structure)}-relaxed.xyz")
    trajectory = output.with_suffix(".traj")
    check_outputs(dict.fromkeys([output, trajectory]), force=force)
    check_writable_format(output)
    atoms = read_structure(structure)
    check_numbers(atoms)
    if cell and not atoms.pbc.all():
        raise ValueError(f"--cell needs a structure that is periodic along all three vectors, pbc={atoms.pbc.tolist()}")
    given = list(atoms.constraints)
    if cell:
        check_for_cell(atoms, structure)
    else:
        atoms.set_constraint(for_dynamics(atoms))
    atoms.calc = make_calculator(potential, device, dtype)
    before = atoms.get_potential_energy()

    def write_frame() -> None:
        with writing(trajectory), constrained_by(atoms, given):
            frames.write()

    with writing(trajectory), Trajectory(trajectory, "w", atoms) as frames:
        algorithm = getattr(ase.optimize, optimizer.value)
        with algorithm(FrechetCellFilter(atoms) if cell else atoms, logfile="-") as run:
            run.attach(write_frame)
            converged = run.run(fmax=fmax, steps=steps)
    if output != trajectory:
        with written_whole(output) as path, constrained_by(atoms, given):
            ase.io.write(path, atoms)
    outcome = "converged" if converged else "NOT converged"
    typer.echo(f"{outcome} after {run.nsteps} steps; energy {before:.6f} -> {atoms.get_potential_energy():.6f} eV")
    typer.echo(f"structure: {output}\ntrajectory: {trajectory}")
    if not converged:
        raise typer.Exit(1)
