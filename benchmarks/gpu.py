"""Speed, memory and training on a GPU; prints Markdown tables. It takes about four minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --count si-pbe acac-pbe

The first command needs a GPU. It first compares energies, forces and stress with those in float64 on the CPU, and ends
where they differ. Then it times steps through the ASE calculator, energy and forces, with all atoms displaced at every
step and the neighbor list reused: ours, ours in plain torch, and MACE (with and without cuEquivariance) and NequIP
(AOTInductor) if they are installed, in alternation, medians of rounds. Then training, with the recipe of
`acac-pbe-fast`: seconds per epoch with 5 frames a step.

The second command needs none. From the program of a potential it counts, per atom: bytes of memory; bytes that
evaluations move at least (each row of an array once per kernel) and bytes that kernels ask the caches for; operations
of kernels and of products of matrices; and the time of an evaluation on a card of 3 TB/s and 30 TFLOP/s, whose caches
are twice as fast as its memory: the larger of the times for bytes and for operations, kernel by kernel.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from floor import operations_per_channel
from speed import SYSTEMS, silicon
from speed_worker import ase_segnn, mace, nequip

import ase_segnn as package
from ase_segnn import Potential, SEGNNCalculator
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.program import Loop, Product, Step, Total
from ase_segnn.engines.kernels import inference_kernels
from ase_segnn.graphs.neighbors import neighbor_list

CHECKED = {"si-pbe": ("si216", ["float32", "float64"]), "acac-pbe-fast": ("molecule15", ["float32"])}
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # relative to the largest
SILICON = {"si8": 1, "si216": 3, "si1000": 5, "si8000": 10, "si97336": 23, "si1000000": 50}
LARGEST_OF_OTHERS = 8000  # atoms
BYTES_PER_S, CACHE_BYTES_PER_S, OPERATIONS_PER_S = 3e12, 6e12, 30e12
COUNTED = {"si-pbe": "si1000", "acac-pbe": "molecule15", "acac-pbe-fast": "molecule15", "cu-pbe": "cu256"}
OF_PAIR = 8 + 8 + 24 + 8 + 24  # bytes of the list, given and copied: centers, neighbors, shifts, and the last two again
SKIN = 1.0  # Å


def main() -> None:
    """Measure or count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", nargs="+", metavar="POTENTIAL", choices=COUNTED, help="count, without a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.count:
        print_counts(arguments.count)
        return
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; --count needs none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ase-segnn {package.__version__}", flush=True)
    check_results()
    time_steps(arguments.rounds)
    time_training()


# ---- with a GPU


def check_results() -> None:
    """Print the largest differences from the CPU, and end where they are too large."""
    print("\n| potential | system | dtype | energy | forces | stress |\n|---|---|---|---|---|---|")
    for name, (system, dtypes) in CHECKED.items():
        atoms = SYSTEMS[system]()
        exact = results(atoms, SEGNNCalculator(name, device="cpu", dtype="float64"))
        for dtype in dtypes:
            calculator = SEGNNCalculator(name, device="cuda", dtype=dtype)
            found = results(atoms, calculator)
            errors = {key: float(np.abs(found[key] - exact[key]).max() / np.abs(exact[key]).max()) for key in exact}
            shown = " | ".join(f"{errors[key]:.1e}" if key in errors else "" for key in ("energy", "forces", "stress"))
            print(f"| {name}, {calculator.engine.name} | {system} | {dtype} | {shown} |", flush=True)
            if not max(errors.values()) < TOLERANCES[dtype]:
                sys.exit("results on the GPU are wrong")


def results(atoms: Atoms, calculator: Calculator) -> dict[str, np.ndarray]:
    """Energies of atoms, forces and, in a cell, stress."""
    atoms = atoms.copy()
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energies(), "forces": atoms.get_forces()}
    return found | ({"stress": atoms.get_stress()} if atoms.cell.rank == 3 else {})


def contestants() -> Iterator[tuple[str, Callable[[], Calculator]]]:
    """Name, and how to build it."""
    yield "ours", lambda: ase_segnn("float32", device="cuda")
    yield "shape of si-pbe", lambda: ase_segnn("float32", device="cuda", like="si-pbe")
    yield "ours, plain torch", lambda: ase_segnn("float32", device="cuda", compile_it=False)
    small = {"irreps": "96x0e+96x1o", "cutoff": 4.5, "device": "cuda"}
    if find_spec("mace"):
        yield "MACE, shape of OFF small", lambda: mace("float32", **small)
        if find_spec("cuequivariance_torch"):
            yield "the same, cuEquivariance", lambda: mace("float32", **small, enable_cueq=True)
    if find_spec("nequip"):
        yield "NequIP S", lambda: nequip("float32", cutoff=5.0, preset="S", device="cuda")


def time_steps(rounds: int) -> None:
    """Print times of steps and memory."""
    built = {}
    for name, build in contestants():
        started = time.perf_counter()
        built[name] = build()
        print(f"\n{name} built in {time.perf_counter() - started:.0f} s", flush=True)
    systems = {"molecule15": SYSTEMS["molecule15"](), **{name: silicon(n) for name, n in SILICON.items()}}
    print("\n| | " + " | ".join(f"{name}, µs per atom (GiB)" for name in systems) + " |")
    print("|---" * (len(systems) + 1) + "|", flush=True)
    rows: dict[str, list[str]] = {name: [] for name in built}
    for atoms in systems.values():
        runs = {
            name: Steps(atoms, calculator)
            for name, calculator in built.items()
            if len(atoms) <= LARGEST_OF_OTHERS or name in ("ours", "shape of si-pbe")
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, steps in runs.items():
                times[name].append(steps.seconds())
        for name, row in rows.items():
            if name not in runs or runs[name].failed:
                row.append(runs[name].failed if name in runs else "")
                continue
            row.append(f"{1e6 * statistics.median(times[name]) / len(atoms):.3g} ({runs[name].gibibytes:.2g})")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |", flush=True)


class Steps:
    """Evaluations of one structure by one calculator."""

    def __init__(self, atoms: Atoms, calculator: Calculator) -> None:
        self._atoms, self._start = atoms.copy(), atoms.positions.copy()
        self._atoms.calc = calculator
        self._random = np.random.default_rng(0)
        self.gibibytes, self.failed = 0.0, ""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            for _ in range(3):
                self._step()
        except (MemoryError, RuntimeError) as error:
            self.failed = type(error).__name__
        self.gibibytes = torch.cuda.max_memory_allocated() / 2**30

    def seconds(self, most: float = 0.5) -> float:
        """Median time of a step, from half a second of steps or from two."""
        if self.failed:
            return float("nan")
        times: list[float] = []
        while len(times) < 2 or sum(times) < most:
            before = time.perf_counter()
            self._step()
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    def _step(self) -> None:
        self._atoms.positions = self._start + self._random.normal(0, 0.01, self._start.shape)
        self._atoms.get_forces()
        torch.cuda.synchronize()


def time_training() -> None:
    """Print seconds per epoch."""
    from training_speed import BATCH_SIZE, N_FRAMES, our_rate

    print(
        f"\nTraining, {N_FRAMES} frames of acetylacetone, {BATCH_SIZE} per step, the recipe of acac-pbe-fast: ", end=""
    )
    print(f"{N_FRAMES / our_rate():.2f} s per epoch, validation and checkpoint included", flush=True)


# ---- without


class Count(NamedTuple):
    """Of one kernel or product of matrices, per atom."""

    least_bytes: float
    cache_bytes: float
    operations: float

    @property
    def seconds(self) -> float:
        """On the card."""
        for_bytes = max(self.least_bytes / BYTES_PER_S, self.cache_bytes / CACHE_BYTES_PER_S)
        return max(for_bytes, self.operations / OPERATIONS_PER_S)


def print_counts(names: list[str]) -> None:
    """Print the table."""
    print(
        "| potential | system | edges | memory, KiB | moved at least, KiB | asked of caches, KiB | kernels, MFLOP "
        "| matrices, MFLOP | launches | µs |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        potential = SEGNNCalculator(name, device="cpu").potential
        assert isinstance(potential, Potential)
        atoms = SYSTEMS[COUNTED[name]]()
        n_edges, n_listed = (
            len(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff + skin).centers)
            / len(atoms)
            for skin in (0.0, SKIN)
        )
        program = program_of(copy.deepcopy(potential))
        counts = [(step, count(program.tape, step, n_edges)) for step in program.steps if not isinstance(step, Total)]
        kernels, products = ([one for step, one in counts if isinstance(step, kind)] for kind in (Loop, Product))
        rows = inference_kernels(potential)[0].bytes_of_row
        memory = rows["node"] + n_listed * (rows["edge"] + OF_PAIR)
        everything = [*kernels, *products]
        numbers = [
            memory / 1024,
            sum(one.least_bytes for one in everything) / 1024,
            sum(one.cache_bytes for one in everything) / 1024,
            sum(one.operations for one in kernels) / 1e6,
            sum(one.operations for one in products) / 1e6,
        ]
        shown = " | ".join(f"{number:.3g}" for number in numbers)
        seconds = sum(one.seconds for one in everything)
        print(
            f"| {name} | {COUNTED[name]} | {n_edges:.1f} | {shown} | {len(everything) + 1} | {1e6 * seconds:.3g} |",
            flush=True,
        )


def count(tape: Tape, step: Step, n_edges: float) -> Count:
    """Count one step."""
    if isinstance(step, Product):
        rows = step.source.components
        moved = 4 * rows * (step.source.width + (1 + step.adds) * step.target.width)
        return Count(moved, moved, 2.0 * rows * step.source.width * step.target.width)
    assert isinstance(step, Loop)
    turns = n_edges if step.over == "edges" else 1.0
    least, asked = 0.0, 0.0
    for array, at in dict.fromkeys([*step.reads, *step.writes]):
        places = {leaf for leaf in step.leaves if (leaf.array, leaf.at) == (array, at)}
        places |= {store.leaf for store in step.stores if (store.leaf.array, store.leaf.at) == (array, at)}
        size = (8 if array.is_double else 4) * max(array.channels, 1) * len(places)
        times = turns if at != "center" or array.rows in ("edge", "pair") else 1.0
        if array.rows == "knot":
            size *= 6
        elif array.rows in ("node", "edge"):
            least += size * (turns if array.rows == "edge" else 1.0)
        asked += size * times
    channels = max(step.channels, 1)
    return Count(least, asked, turns * channels * operations_per_channel(tape, step))


if __name__ == "__main__":
    main()
