"""Data files and inputs for LAMMPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from ase_segnn.files import written_whole

_VACUUM = 10.0  # Å around atoms along directions without periodicity

_INPUT = """\
# {symbols} with pair_style segnn. Run it with: mpirun -n 2 lmp -in {name}
units metal
atom_style atomic
atom_modify map yes
boundary {boundary}
read_data {data}

pair_style segnn
pair_coeff * * {libraries} {symbols}

velocity all create {temperature:g} {seed} mom yes rot no
timestep {timestep:g}
fix 1 all nve
thermo_style custom step temp pe ke etotal press
thermo 100
run 1000
"""


def boxed(atoms: Atoms) -> Atoms:
    """Return a copy whose cell is a box, as LAMMPS needs one, with vacuum along directions without periodicity.

    Raises
    ------
    ValueError
        If the structure is periodic along a vector that is zero or lies in the plane of the others.
    """
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    for axis in np.flatnonzero(~copy.pbc):
        copy.center(vacuum=_VACUUM, axis=int(axis))
    if copy.cell.rank < 3:
        raise ValueError(
            f"LAMMPS needs a cell with a volume, got pbc={atoms.pbc.tolist()} and {atoms.cell}; set the cell"
        )
    return copy


def write_input(
    folder: Path, atoms: Atoms, libraries: Sequence[Path], *, timestep: float, temperature: float, seed: int = 1
) -> tuple[Path, Path]:
    """Write a data file of atoms, and an input of LAMMPS that runs a little dynamics of them; return the paths.

    Parameters
    ----------
    folder : for ``structure.data`` and ``in.lammps``
    atoms : with a volume along periodic directions
    libraries : of the potential, in the same folder; several are a committee
    timestep : fs
    temperature : K, of the velocities at the start
    seed : of these velocities

    Raises
    ------
    ValueError
        As of `boxed`.
    OSError
        If a file cannot be written.
    """
    data, script = input_files(folder)
    symbols = sorted(set(atoms.symbols))
    with written_whole(data) as temporary:
        write(temporary, boxed(atoms), "lammps-data", specorder=symbols, masses=True, atom_style="atomic")
    text = _INPUT.format(
        name=script.name,
        boundary=" ".join("p" if periodic else "s" for periodic in atoms.pbc),
        data=data.name,
        libraries=" ".join(path.name for path in libraries),
        symbols=" ".join(symbols),
        timestep=timestep / 1000,
        temperature=temperature,
        seed=seed,
    )
    with written_whole(script) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return data, script


def input_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths that `write_input` writes to."""
    return folder / "structure.data", folder / "in.lammps"
