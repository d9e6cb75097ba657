"""Where a step of molecular dynamics spends its time; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/md_step.py

Runs shipped potentials at constant energy from 300 K, 0.5 fs per step, after a warm-up, and measures how much of a step
is the graph (with the searches for neighbors that fall into the run), the compiled C++, and all the rest: ASE's
integrator, checks, results. In the last row a calculator returns zeros, so that is what ASE itself takes.
Then steps of silicon at constant pressure are timed in alternation with steps at constant energy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from speed import SYSTEMS

from ase_segnn import SEGNNCalculator
from ase_segnn.engines.native import NativeFunction
from ase_segnn.graphs.verlet import VerletGraphs

RUNS = (("acac-pbe-fast", "molecule15"), ("acac-pbe", "molecule15"), ("si-pbe", "si216"))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs=3, default=[5000, 5000, 500], help="of each run")
    arguments = parser.parse_args()
    spent: Counter[str] = Counter()
    watch(VerletGraphs, "graph", spent)
    watch(NativeFunction, "__call__", spent)
    print("| potential | system | step, µs | graph | C++ | rest, µs |")
    print("|---|---|---|---|---|---|")
    for (potential, system), n_steps in zip(RUNS, arguments.steps, strict=True):
        seconds = run(SYSTEMS[system](), SEGNNCalculator(potential, device="cpu"), n_steps, spent)
        shares = {name: part / (n_steps * seconds) for name, part in spent.items()}
        rest = 1e6 * (seconds - spent.total() / n_steps)
        print(
            f"| {potential} | {system} | {1e6 * seconds:.0f} | {shares['graph']:.1%} | {shares['__call__']:.1%} | "
            f"{rest:.0f} |",
            flush=True,
        )
    seconds = run(SYSTEMS["molecule15"](), Zeros(), arguments.steps[0], spent)
    print(f"| zeros | molecule15 | {1e6 * seconds:.0f} | | | {1e6 * seconds:.0f} |")
    ratios = npt_over_nve(arguments.steps[2] // 20)
    print(
        f"\na step of si216 at constant pressure over one at constant energy: {statistics.median(ratios):.2f} ", end=""
    )
    print(f"({min(ratios):.2f}–{max(ratios):.2f}), {len(ratios)} rounds")


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


def npt_over_nve(n_steps: int, rounds: int = 15) -> list[float]:
    """Return ratios of the times of steps in the two ensembles, run in alternation, of si-pbe."""
    runs = []
    for make in (
        lambda atoms: VelocityVerlet(atoms, units.fs),
        lambda atoms: IsotropicMTKNPT(
            atoms, units.fs, temperature_K=300, pressure_au=0.0, tdamp=100 * units.fs, pdamp=1000 * units.fs
        ),
    ):
        atoms = SYSTEMS["si216"]()
        atoms.calc = SEGNNCalculator("si-pbe", device="cpu")
        runs.append(make(atoms))
        runs[-1].run(n_steps)
    ratios = []
    for number in range(rounds):
        seconds = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            before = time.perf_counter()
            runs[index].run(n_steps)
            seconds[index] = time.perf_counter() - before
        ratios.append(seconds[1] / seconds[0])
    return ratios


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
