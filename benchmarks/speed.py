"""Time per atom through the ASE calculator, ours beside its peers; prints a Markdown table.

    python benchmarks/speed.py --threads 1 --python .venv-mace/bin/python mace-off-small --systems molecule15 si216

measures ours with 64x0e+64x1o, attributes up to l = 2 and 2 layers, with the neighbor list reused and rebuilt at every
call (the peers rebuild theirs); then each contestant that `--python` names with the interpreter that runs it. `--ours`
chooses among ours; "ours-plain" has compile=False, "ours-l1" attributes up to l = 1, "ours-l2" 32x0e+32x1o+32x2e.
The environments of the peers, in folders of their own since they pin different versions of e3nn, need ``pip install
mace-torch``, ``pip install nequip nequip-allegro matscipy``, ``pip install chgnet sevenn``, ``pip install
"ace-jax[fast-neighbours]"``, ``pip install python-ace`` (PACE) or ``pip install calorine`` (NEP). Contestants and their
shapes are in `speed_worker.py`; trained ones are named KIND:FILE, such as ``ace:fit/model.npz`` of `aj fit`.

All contestants are built first, then measured in alternation: in each round each gets about a second per system, with
energy and forces of newly displaced atoms at every evaluation. The table holds medians over the rounds of the median
time; the ratio to the first contestant is taken within each round and given with its smallest and largest value.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import ase.build
import ase.io
import numpy as np
from ase import Atoms

from ase_segnn.graphs.neighbors import neighbor_list
from ase_segnn.training.data.sources import locate

WORKER = Path(__file__).with_name("speed_worker.py")
MOLECULE = Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz"
OURS = ("ours", "ours-rebuilt", "ours-plain", "ours-l1", "ours-l2", "acac-pbe", "si-pbe")


def silicon(n_cells: int) -> Atoms:
    """Return diamond silicon of 8 n³ atoms, rattled."""
    atoms = ase.build.bulk("Si", cubic=True) * (n_cells, n_cells, n_cells)
    atoms.rattle(0.05, seed=0)
    return atoms


def copper() -> Atoms:
    """Return 256 atoms of fcc copper, rattled."""
    atoms = ase.build.bulk("Cu", cubic=True) * (4, 4, 4)
    atoms.rattle(0.05, seed=0)
    return atoms


def water() -> Atoms:
    """Return 64 molecules of water at 1 g/cm³, turned at random, on a grid with sites as far apart as the density asks.

    The number of neighbors within 5 or 6 Å, which decides the cost, is that of the liquid to a few percent.
    """
    rng = np.random.default_rng(0)
    side = 12.42
    molecule = ase.build.molecule("H2O")
    box = Atoms(cell=[side] * 3, pbc=True)
    for site in np.ndindex(4, 4, 4):
        one = molecule.copy()
        one.euler_rotate(*rng.uniform(0, 360, 3))
        one.translate((np.array(site) + 0.5) * side / 4 + rng.normal(0, 0.1, 3) - one.get_center_of_mass())
        box += one
    return box


SYSTEMS = {
    "molecule15": lambda: ase.io.read(MOLECULE),
    "molecule27": lambda: ase.io.read(locate("3bpa/train_300K.xyz"), 0),
    "water64": water,
    "si216": lambda: silicon(3),
    "cu256": copper,
    "si1000": lambda: silicon(5),
    "si8000": lambda: silicon(10),
    "si32768": lambda: silicon(16),
    "si97336": lambda: silicon(23),
}


class Contestant:
    """A calculator in a process of its own."""

    def __init__(self, name: str, python: str, dtype: str, log: Path) -> None:
        self.name, self._log = name, log
        command = [python, str(WORKER), name, "--dtype", dtype]
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self.ready = self._answer()

    def ask(self, **request: Any) -> Any:
        """Send one request to the worker, arguments of its `measure` or `predict`, and wait for the answer."""
        stream: IO[str] | None = self._process.stdin
        assert stream is not None
        print(json.dumps(request), file=stream, flush=True)
        return self._answer()

    def end(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended:\n{self._log.read_text(encoding='utf-8')[-3000:]}")
        return json.loads(line)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="and cores")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=OURS[:2], help="in the order of the table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per contestant, system and round")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["molecule15", "water64", "si216"])
    parser.add_argument(
        "--python",
        nargs="+",
        action="append",
        default=[],
        metavar=("INTERPRETER", "CONTESTANT"),
        help="interpreter, then the contestants that it runs; may be given several times",
    )
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    jobs = [(name, sys.executable) for name in arguments.ours]
    jobs += [(name, python) for python, *names in arguments.python for name in names]
    with tempfile.TemporaryDirectory() as folder:
        run(jobs, arguments, Path(folder))


def run(jobs: list[tuple[str, str]], arguments: argparse.Namespace, folder: Path) -> None:
    """Start the contestants, measure and print."""
    contestants = [
        Contestant(name, python, arguments.dtype, folder / f"{index}.log") for index, (name, python) in enumerate(jobs)
    ]
    print(f"{platform.platform()}, {_processor()}, {arguments.threads} threads, {arguments.dtype}")
    for contestant in contestants:
        versions = ", ".join(f"{name} {number}" for name, number in contestant.ready["versions"].items())
        print(f"{contestant.name}: {contestant.ready['package']} with {versions}; {contestant.ready['build_s']:.0f} s")
    for name in arguments.systems:
        atoms = SYSTEMS[name]()
        file = folder / f"{name}.xyz"
        ase.io.write(file, atoms)
        edges = len(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 5.0).centers) / len(atoms)
        print(f"\n{name}: {len(atoms)} atoms, {edges:.1f} neighbors within 5 Å\n")
        print(f"| contestant | µs/atom (range) | time / {contestants[0].name} (range) | memory, MiB |")
        print("|---|---|---|---|", flush=True)
        for row in compare(contestants, str(file), arguments.rounds, arguments.seconds):
            print(row, flush=True)


def compare(contestants: list[Contestant], file: str, rounds: int, seconds: float) -> list[str]:
    """Measure all contestants on one system in alternation; rows of the table."""
    answers = alternate(contestants, file, rounds, seconds)
    rows = []
    for index, contestant in enumerate(contestants):
        times = [answer[index]["us_per_atom"] for answer in answers]
        ratios = [answer[index]["us_per_atom"] / answer[0]["us_per_atom"] for answer in answers]
        peak = answers[-1][index]["peak_MiB"]
        rows.append(f"| {contestant.name} | {spread(times, '.0f')} | {spread(ratios, '.2f')} | {peak:.0f} |")
    return rows


def alternate(contestants: list[Contestant], file: str, rounds: int, seconds: float) -> list[list[dict[str, float]]]:
    """Measure all contestants in each round; the answers by round and contestant."""
    for contestant in contestants:
        contestant.ask(file=file, seed=0, seconds=seconds)  # warm up
    return [[c.ask(file=file, seed=seed, seconds=seconds) for c in contestants] for seed in range(1, rounds + 1)]


def use_threads(threads: int) -> None:
    """Restrict the processes that are started from now on; on Linux to so many cores, whatever pools they open."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def spread(values: list[float], form: str) -> str:
    """Median, smallest and largest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
