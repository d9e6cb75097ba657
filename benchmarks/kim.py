"""A portable model of KIM beside the calculator, both in ASE; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/kim.py

Needs the KIM API and the package kimpy. Installs `si-pbe` in float32 for a home of its own, and times energies and
forces of silicon crystals, one thread each, in alternation, after a warm-up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import ase.build
import numpy as np
from ase import Atoms

from ase_segnn import SEGNNCalculator

_NAME = "SEGNN_si_pbe"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells", type=int, nargs="+", default=[1, 2, 3, 4, 6], help="along each edge, of 8 atoms each"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        commands = [
            [sys.executable, "-m", "ase_segnn", "kim", "si-pbe"],
            ["kim-api-collections-management", "install", "user", _NAME],
        ]
        for command in commands:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home)
        print("| atoms | calculator, ms | KIM, ms | ratio |\n|---|---|---|---|")
        for cells in arguments.cells:
            compare(ase.build.bulk("Si", cubic=True).repeat(cells), arguments.rounds)


def compare(atoms: Atoms, rounds: int) -> None:
    """Time both in alternation and print a row."""
    from ase.calculators.kim import KIM

    both = [atoms.copy(), atoms.copy()]
    both[0].calc, both[1].calc = SEGNNCalculator("si-pbe", device="cpu"), KIM(_NAME)
    times: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for which, one in zip(times, both, strict=True):
            one.positions += 0.002 * np.random.default_rng(number).normal(size=one.positions.shape)
            began = time.perf_counter()
            one.get_forces()
            which.append(time.perf_counter() - began)
    ours, kim = (statistics.median(which[2:]) for which in times)
    error = np.abs(both[0].get_forces() - both[1].get_forces()).max()
    assert error < 1e-3, f"forces differ by {error} eV/Å"
    print(f"| {len(atoms)} | {1e3 * ours:.1f} | {1e3 * kim:.1f} | {kim / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
