"""Time per atom of the ASE calculator on a molecule and on bulk silicon; prints a Markdown table.

    python benchmarks/calculator.py --threads 1 --dtype float32

Atoms are displaced anew before each evaluation of energy and forces, as in a trajectory. "reused" keeps the neighbor
list while the skin allows it, "rebuilt" makes a new one at every evaluation. Weights are random, in the shape of the
shipped potential acac-pbe, since the time does not depend on their values.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import torch
from ase import Atoms

from ase_segnn import AtomicGraph, Potential, PotentialConfig, SEGNNCalculator
from ase_segnn.potential_file import read_header
from ase_segnn.potentials import path_of

MOLECULE = Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--evaluations", type=int, default=30, help="timed per system, after 5 to warm up")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    silicon = ase.build.bulk("Si", cubic=True) * (3, 3, 3)
    silicon.rattle(0.05, seed=0)
    potential = random_potential(("H", "C", "O", "Si"))
    print(f"{platform.platform()}, {arguments.threads} threads, {arguments.dtype}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in ("ase-segnn", "torch", "ase", "e3nn", "matscipy", "numpy")))
    network = potential.config.network
    print(f"{network.irreps_hidden}, {network.n_layers} layers, cutoff {network.cutoff:g} Å\n")
    print("| system | atoms | edges per atom | reused, µs/atom | rebuilt, µs/atom |")
    print("|---|---|---|---|---|")
    for name, atoms in {"acetylacetone": ase.io.read(MOLECULE), "si216": silicon}.items():
        edges = AtomicGraph.from_atoms(atoms, potential.cutoff).n_edges
        columns = []
        for skin in (1.0, 0.0):
            calculator = SEGNNCalculator(potential, device="cpu", dtype=arguments.dtype, skin=skin)
            columns.append(f"{time_per_atom(calculator, atoms, arguments.evaluations) * 1e6:.0f}")
        print(f"| {name} | {len(atoms)} | {edges / len(atoms):.1f} | {' | '.join(columns)} |")


def random_potential(elements: tuple[str, ...]) -> Potential:
    """Return a potential of the shape of acac-pbe that knows `elements`."""
    network = read_header(path_of("acac-pbe")).config.network
    torch.manual_seed(0)
    return Potential(
        PotentialConfig(
            elements=elements,
            reference_energies=dict.fromkeys(elements, 0.0),
            energy_scale=1e-3,
            average_neighbors=20,
            network=network,
        )
    )


def time_per_atom(calculator: SEGNNCalculator, atoms: Atoms, n_evaluations: int, n_warm_up: int = 5) -> float:
    """Return the median time of energy and forces over the number of atoms, in seconds."""
    rng = np.random.default_rng(1)
    start = atoms.positions
    atoms = atoms.copy()
    atoms.calc = calculator
    times = []
    for step in range(n_warm_up + n_evaluations):
        atoms.positions = start + rng.normal(0, 0.01, start.shape)
        before = time.perf_counter()
        atoms.get_forces()
        atoms.get_potential_energy()
        if step >= n_warm_up:
            times.append(time.perf_counter() - before)
    return statistics.median(times) / len(atoms)


if __name__ == "__main__":
    main()
