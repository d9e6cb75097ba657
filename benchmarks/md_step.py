"""Where a step of molecular dynamics spends its time; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/md_step.py

Runs shipped potentials at constant energy from 300 K, 0.5 fs per step, after a warm-up, and measures how much of a step
is the neighbor list (with the searches that fall into the run), the compiled C++, and all the rest: ASE's integrator,
checks, conversion of atoms and results. In the last row a calculator returns zeros, so that is what ASE itself takes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from speed import SYSTEMS

from ase_segnn import SEGNNCalculator
from ase_segnn.engines.native import NativeFunction
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
        seconds = run(SYSTEMS[system](), SEGNNCalculator(potential, device="cpu"), n_steps, spent)
        shares = {name: part / (n_steps * seconds) for name, part in spent.items()}
        rest = 1e6 * (seconds - spent.total() / n_steps)
        print(
            f"| {potential} | {system} | {1e6 * seconds:.0f} | {shares['update_all']:.1%} | {shares['__call__']:.1%} | "
            f"{rest:.0f} |",
            flush=True,
        )
    seconds = run(SYSTEMS["molecule15"](), Zeros(), arguments.steps[0], spent)
    print(f"| zeros | molecule15 | {1e6 * seconds:.0f} | | | {1e6 * seconds:.0f} |")


class Zeros(Calculator):
    """A calculator that does nothing."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  # ASE's name

    def calculate(self, *arguments: Any) -> None:
        """Fill in zeros, and keep the atoms as calculators do."""
        super().calculate(*arguments)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


def run(atoms: Atoms, calculator: Calculator, n_steps: int, spent: Counter[str]) -> float:
    """Return the seconds of a step; what `watch` adds up starts from nothing after the warm-up."""
    atoms.calc = calculator
    spread = np.sqrt(atoms.get_masses() * units.kB * 300)
    atoms.set_momenta(spread[:, None] * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(n_steps // 10)
    spent.clear()
    started = time.perf_counter()
    dynamics.run(n_steps)
    return (time.perf_counter() - started) / n_steps


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
