"""What an evaluation costs at least: its floating-point operations, and how fast this machine does them.

    python benchmarks/floor.py 64x0e+64x1o:2:l_max_attributes=2 32x0e+32x1o+32x2e:2:cutoff=4.5:correlation=3

Networks are given as for `short_runs.py`. Per atom of a system of `speed.py`, on one thread: the operations of the
products of matrices at atoms, of the loops over atoms (gates, residuals, products of sums of messages) and of the loops
along edges in the native C++, forces included; the time that the
products would take at the rate of torch's own product of two matrices of 1024 rows, and that they take at the sizes
that they have; and the time of an evaluation through the calculator. Times are medians of rounds in which all are taken
in turn, each as the best of some repetitions.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from short_runs import network_keys
from speed import SYSTEMS

from ase_segnn import Potential, PotentialConfig, SEGNNCalculator
from ase_segnn.codegen.cpp import HEADERS, preamble
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.program import Loop, Product
from ase_segnn.engines.build import load_library
from ase_segnn.graphs.neighbors import neighbor_list
from ase_segnn.model.config import NetworkConfig

_BLOCK = 32  # atoms
# Operations per channel: the exponential's series and the division, and the six pieces of a spline.
_OPERATIONS = {"add": 1, "multiply": 1, "sigmoid": 27, "spline": 11, "slope": 11}


def main() -> None:
    """Count, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="IRREPS:LAYERS[:KEY=VALUE...]")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["molecule15", "si216"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    for name in arguments.systems:
        atoms = SYSTEMS[name]()
        jobs = [Job(network, atoms, dtype) for network in arguments.networks]
        rates, rows = [], [[] for _ in jobs]
        for _ in range(arguments.rounds):
            rates.append(rate_of_torch(dtype))
            for job, row in zip(jobs, rows, strict=True):
                row.append((job.products_us(), job.evaluation_us()))
        rate = statistics.median(rates)
        print(f"\n{name}, {arguments.dtype}, one thread; torch.mm: {rate / 1e9:.0f} GFLOP/s\n")
        print(
            "| network | matrices, MFLOP | atoms, MFLOP | edges, MFLOP "
            "| matrices at torch's rate, µs | as they are, µs | all, µs |"
        )
        print("|---|---|---|---|---|---|---|")
        for job, row in zip(jobs, rows, strict=True):
            products, evaluation = (statistics.median(column) for column in zip(*row, strict=True))
            print(
                f"| {job.name} | {job.product_operations / 1e6:.2f} | {job.atom_operations / 1e6:.2f} | "
                f"{job.edge_operations / 1e6:.2f} | "
                f"{1e6 * job.product_operations / rate:.1f} | {products:.1f} | {evaluation:.1f} |",
                flush=True,
            )


class Job:
    """One network on one structure."""

    def __init__(self, name: str, atoms: Atoms, dtype: torch.dtype) -> None:
        elements = tuple(sorted(set(atoms.get_chemical_symbols())))
        potential = Potential(
            PotentialConfig(
                elements=elements,
                reference_energies=dict.fromkeys(elements, 0.0),
                average_neighbors=20,
                network=NetworkConfig(**network_keys(name)),
            )
        )
        self.name, self._atoms, self._start = name, atoms.copy(), atoms.positions.copy()
        self._atoms.calc = SEGNNCalculator(potential, device="cpu", dtype=str(dtype).removeprefix("torch."))
        self._rng = np.random.default_rng(0)
        program = program_of(potential.to(dtype).eval())
        self._shapes = [
            (step.source.components, step.source.width, step.target.width)
            for step in program.steps
            if isinstance(step, Product)
        ]
        self.product_operations = sum(2 * rows * k * n for rows, k, n in self._shapes)
        pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff)
        loops = [step for step in program.steps if isinstance(step, Loop)]
        per_atom, per_edge = (
            sum(step.channels * operations_per_channel(program.tape, step) for step in loops if step.over == over)
            for over in ("nodes", "edges")
        )
        self.atom_operations = per_atom
        self.edge_operations = per_edge * len(pairs.centers) / len(atoms)
        channels = max(step.channels for step in loops)
        self._run_products = _products_alone(self._shapes, dtype, channels)

    def evaluation_us(self) -> float:
        """Time per atom of energy and forces."""

        def evaluate() -> None:
            self._atoms.positions = self._start + self._rng.normal(0, 0.01, self._start.shape)
            self._atoms.get_forces()

        return _best(evaluate, 5) / len(self._atoms) * 1e6

    def products_us(self) -> float:
        """Time per atom of all products of matrices by themselves."""
        return _best(self._run_products, 10) / _BLOCK * 1e6


def rate_of_torch(dtype: torch.dtype) -> float:
    """Operations per second of a product of square matrices."""
    a, b = torch.randn(2, 1024, 1024, dtype=dtype)
    return 2 * 1024**3 / _best(lambda: torch.mm(a, b), 3)


def _best(function: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return min(times)


def operations_per_channel(tape: Tape, loop: Loop) -> int:
    """Operations with vectors per turn of a loop, sums over edges among them."""
    nodes = [tape.nodes[index] for index in tape.needed(loop.values)]
    made = sum(_OPERATIONS.get(node.operation, 0) for node in nodes if node.is_vector)
    if loop.over == "nodes":
        return made
    return made + sum(tape.nodes[store.value].is_vector and store.leaf.at != "edge" for store in loop.stores)


def _products_alone(shapes: list[tuple[int, int, int]], dtype: torch.dtype, channels: int) -> Callable[[], None]:
    """Return a function that does these products for one block of atoms, each with a matrix of its own."""
    lines, matrices, rows, columns = [], 0, 0, 0
    for per_atom, k, n in shapes:
        lines.append(f"  multiply({_BLOCK * per_atom}, {k}, {n}, a, b + {matrices}, c, 0);")
        matrices += k * n
        rows, columns = max(rows, _BLOCK * per_atom * k), max(columns, _BLOCK * per_atom * n)
    code = "\n".join(['extern "C" void products(const T* a, const T* b, T* c) {', *lines, "}"])
    library = load_library(preamble(dtype, channels) + '#include "products.hpp"\n' + code, HEADERS)
    arrays = [torch.rand(size, dtype=dtype) for size in (rows, matrices, columns)]
    return lambda: library.products(*(ctypes.c_void_p(array.data_ptr()) for array in arrays))


if __name__ == "__main__":
    main()
