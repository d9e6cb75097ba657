"""What keeps threads from sharing the work of a step of dynamics; prints a Markdown table.

    python benchmarks/threads.py --threads 1 2 --cells 10

runs silicon of 8 n³ atoms at 1000 K with `si-pbe`, so that the neighbor list is made anew as often as in a simulation.
Shares are of the time of all threads together: what the slowest thread of each pass makes the others wait for, what one
thread alone does within a call, and what Python does around it, with the neighbor list by itself. With one thread, they
are what further threads would wait for. Memory is that of the compiled code's arrays; the last column is the part that
only further threads need. Shares say nothing on a machine whose processors are busy with something else.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from speed import silicon

from ase_segnn import SEGNNCalculator
from ase_segnn.engines import native
from ase_segnn.graphs import verlet

_MOST_PARTS = 64


class Stopwatch:
    """Adds up the time that calls of a function take."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds, self.calls = 0.0, 0
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    calls, lists = Stopwatch(native.NativeFunction, "__call__"), Stopwatch(verlet, "neighbor_list")
    print("| threads | step, ms | µs per atom | waiting | one thread | list | rest of Python | memory, MB | halos |")
    print("|---|---|---|---|---|---|---|---|---|")
    for n_threads in arguments.threads:
        torch.set_num_threads(n_threads)
        print(_row(n_threads, arguments, calls, lists), flush=True)


def _row(n_threads: int, arguments: argparse.Namespace, calls: Stopwatch, lists: Stopwatch) -> str:
    atoms = silicon(arguments.cells)
    atoms.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float32")
    MaxwellBoltzmannDistribution(atoms, temperature_K=1000, rng=np.random.default_rng(arguments.seed))
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    dynamics.run(2)
    function = atoms.calc.engine.function
    function.busy = np.zeros((n_threads, _MOST_PARTS))
    calls.seconds = lists.seconds = 0.0
    start = time.perf_counter()
    dynamics.run(arguments.steps)
    total = time.perf_counter() - start
    n_parts = function.n_parts
    busy = function.busy.ravel()[: n_threads * n_parts].reshape(n_threads, n_parts)
    waiting = (busy.max(axis=0) - busy.mean(axis=0)).sum()
    alone = (calls.seconds - busy.max(axis=0).sum()) * (n_threads - 1) / n_threads
    around = (n_threads - 1) / n_threads
    shares = [waiting, alone, lists.seconds * around, (total - calls.seconds - lists.seconds) * around]
    if n_threads == 1:  # what would keep further threads waiting
        shares = [0.0, calls.seconds - busy.sum(), lists.seconds, total - calls.seconds - lists.seconds]
    per_step = total / arguments.steps
    memory, halos = function.memory
    columns = [
        f"{n_threads}",
        f"{1e3 * per_step:.1f}",
        f"{1e6 * per_step / len(atoms):.1f}",
        *(f"{100 * share / total:.2f} %" for share in shares),
        f"{memory / 1e6:.1f}",
        f"{100 * halos / memory:.1f} %",
    ]
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    sys.exit(main())
