"""Memory of a process along a run of molecular dynamics: ``python benchmarks/memory.py`` prints how it grows."""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import ase.io
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet

from ase_segnn import SEGNNCalculator

MOLECULE = Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz"


def main() -> None:
    """Run acetylacetone at constant energy and print the peak memory ten times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potential", nargs="?", default="acac-pbe", help="that knows H, C and O: name or file")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--compile", action="store_true", help="compile=True instead of 'auto'")
    arguments = parser.parse_args()
    atoms = ase.io.read(MOLECULE)
    atoms.calc = SEGNNCalculator(arguments.potential, device="cpu", compile=True if arguments.compile else "auto")
    spread = np.sqrt(atoms.get_masses() * units.kB * 300)
    atoms.set_momenta(spread[:, None] * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    for done in range(0, arguments.steps, arguments.steps // 10):
        dynamics.run(arguments.steps // 10)
        peak_MiB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        energy = atoms.get_total_energy()
        print(f"{done + arguments.steps // 10} steps: {peak_MiB:.1f} MiB, {energy:.6f} eV", flush=True)


if __name__ == "__main__":
    main()
