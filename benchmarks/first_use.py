"""What the first use on a machine takes: import, calculator, and the first evaluation with an empty cache.

    python benchmarks/first_use.py --rounds 3

starts new processes on one core with one thread, each with an empty cache of compiled code, and again with the cache
that is full then; prints the medians in seconds. Only Linux can keep a process on one core, elsewhere it may use all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MOLECULE = Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz"
_CODE = """
import json, os, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
started = time.perf_counter()
from ase.io import read
from ase_segnn import SEGNNCalculator
imported = time.perf_counter()
atoms = read(sys.argv[2])
atoms.calc = SEGNNCalculator(sys.argv[1], device="cpu")
made = time.perf_counter()
atoms.get_forces()
done = time.perf_counter()
print(json.dumps([imported - started, made - imported, done - made, done - started]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potentials", nargs="+", default=["acac-pbe-fast"], help="that know acetylacetone")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| potential | cache | import | calculator | first evaluation | all |")
    print("|---|---|---|---|---|---|")
    for potential in arguments.potentials:
        rows: dict[str, list[list[float]]] = {"empty": [], "full": []}
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for row in rows.values():
                    row.append(run(potential, cache))
        for name, row in rows.items():
            medians = (statistics.median(column) for column in zip(*row, strict=True))
            print(f"| {potential} | {name} | {' | '.join(f'{seconds:.1f}' for seconds in medians)} |", flush=True)


def run(potential: str, cache: str) -> list[float]:
    """Return the seconds of one process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", _CODE, potential, str(MOLECULE)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    seconds: list[float] = json.loads(output)
    return seconds


if __name__ == "__main__":
    main()
