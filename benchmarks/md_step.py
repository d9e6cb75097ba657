"""Where a step of molecular dynamics spends its time; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/md_step.py

Runs shipped potentials at constant energy from 300 K, 0.5 fs per step, after a warm-up, and measures how much of a step
is the neighbor list (with the searches that fall into the run), the compiled C++, and all the rest: ASE's integrator,
checks, conversion of atoms and results.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from speed import SYSTEMS

from ase_segnn import SEGNNCalculator
from ase_segnn.model.native import NativeFunction
from ase_segnn.neighbors import VerletList

RUNS = (("acac-pbe-fast", "molecule15"), ("acac-pbe", "molecule15"), ("si-pbe", "si216"))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs=3, default=[5000, 5000, 500], help="of each run")
    arguments = parser.parse_args()
    spent: Counter[str] = Counter()
    watch(VerletList, "update_all", spent)
    watch(NativeFunction, "__call__", spent)
    print("| potential | system | step, µs | neighbor list | C++ | rest, µs |")
    print("|---|---|---|---|---|---|")
    for (potential, system), n_steps in zip(RUNS, arguments.steps, strict=True):
        atoms: Atoms = SYSTEMS[system]()
        atoms.calc = SEGNNCalculator(potential, device="cpu")
        spread = np.sqrt(atoms.get_masses() * units.kB * 300)
        atoms.set_momenta(spread[:, None] * np.random.default_rng(0).standard_normal((len(atoms), 3)))
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        dynamics.run(n_steps // 10)
        spent.clear()
        started = time.perf_counter()
        dynamics.run(n_steps)
        total = time.perf_counter() - started
        shares = {name: seconds / total for name, seconds in spent.items()}
        rest = 1e6 * (total - spent.total()) / n_steps
        print(
            f"| {potential} | {system} | {1e6 * total / n_steps:.0f} | {shares['update_all']:.1%} | "
            f"{shares['__call__']:.1%} | {rest:.0f} |",
            flush=True,
        )


def watch(owner: type, name: str, spent: Counter[str]) -> None:
    """Have the seconds in a method of a class added up."""
    method: Callable[..., Any] = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        before = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent[name] += time.perf_counter() - before

    setattr(owner, name, watched)


if __name__ == "__main__":
    main()
