"""What `ase-segnn learn` makes of copper with ASE's EMT as the reference, beside EMT itself.

``python benchmarks/learn_crystal.py FOLDER`` learns from cells of a crystal, one with a vacancy, and slabs, at 50 to
1800 K, unless the run in the folder is finished. Then it computes with both: lattice and elastic constants, energies of
the vacancy and of surfaces, and the radial distribution function of a melt at the same density.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from ase_segnn import SEGNNCalculator
from ase_segnn.physics.crystals import elastic_constants, relax
from ase_segnn.physics.defects import surface_energy, vacancy_energy
from ase_segnn.physics.fluids import radial_distributions

LATTICE = 3.6  # Å, about that of EMT
SURFACES = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
HOT, MELT, EXPANSION = 3000.0, 1800.0, 1.03  # K to melt, K of the melt, of its cell vectors
TIMESTEP, MELTING, EQUILIBRATION, INTERVAL, N_FRAMES = 2.0, 1500, 1000, 20, 100  # fs, steps


def structures() -> list[Atoms]:
    """Return what a user would begin with."""
    cells = [bulk("Cu", a=factor * LATTICE, cubic=True).repeat(2) for factor in (0.96, 1.0, 1.05)]
    vacancy = cells[1].copy()
    del vacancy[0]
    sizes = {"size": (2, 2, 5), "a": LATTICE, "vacuum": 6.0, "periodic": True}
    return [*cells, vacancy, *(build("Cu", **sizes) for build in (fcc100, fcc110, fcc111))]


def numbers_of(calculator: Calculator) -> dict[str, float]:
    """Lattice constant (Å), elastic constants (GPa), energies of vacancy (eV) and surfaces (J/m²)."""
    crystal = relax(calculator, bulk("Cu", a=LATTICE, cubic=True), cell=True)
    elastic = elastic_constants(calculator, crystal)
    surfaces = {f"surface {''.join(map(str, h))}, J/m²": surface_energy(calculator, crystal, h) for h in SURFACES}
    return {
        "lattice constant, Å": crystal.cell.lengths()[0],
        **{f"{name}, GPa": elastic.entries[name] for name in ("C11", "C12", "C44")},
        "vacancy, eV": vacancy_energy(calculator, crystal),
        **surfaces,
    }


def melt(calculator: Calculator, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances (Å) and g(r) of 108 atoms at `MELT`, from a crystal that was melted at `HOT`."""
    atoms = bulk("Cu", a=EXPANSION * LATTICE, cubic=True).repeat(3)
    atoms.calc = calculator
    random = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=HOT, rng=random)
    dynamics = Langevin(
        atoms, TIMESTEP * units.fs, temperature_K=HOT, friction=0.02 / units.fs, fixcm=False, rng=random
    )
    dynamics.run(MELTING)
    dynamics.set_temperature(temperature_K=MELT)
    dynamics.run(EQUILIBRATION)
    frames = []
    for _ in range(N_FRAMES):
        dynamics.run(INTERVAL)
        frames.append(atoms.copy())
    [found] = radial_distributions(frames).values()
    return found.distances, found.values


def main() -> None:
    """Learn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--time", default="15m")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)
    ase.io.write(folder / "copper.xyz", structures())
    if not (folder / "copper" / "report.html").exists():
        command = ["ase-segnn", "learn", "copper.xyz", "--reference", "emt", "--temperature", "50:1800"]
        command += ["--labels", str(arguments.labels), "--time", arguments.time, "--seed", str(arguments.seed)]
        print("$", *command, flush=True)
        subprocess.run([*command, "--output", "copper"], cwd=folder, check=True)
    [file] = (folder / "copper").glob("*.safetensors")
    found, expected = numbers_of(SEGNNCalculator(file, dtype="float64")), numbers_of(EMT())
    print("\n| | learned | EMT | difference |\n|---|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.4g} | {expected[name]:.4g} | {100 * (value / expected[name] - 1):+.1f} % |")
    distances, g = melt(SEGNNCalculator(file))
    _, exact = melt(EMT())
    _, again = melt(EMT(), seed=1)
    peak, exact_peak = (f"{distances[values.argmax()]:.2f} Å, {values.max():.2f}" for values in (g, exact))
    print(f"| g(r) of the melt, first peak | {peak} | {exact_peak} | |")
    shown = [f"{np.sqrt(np.mean((values - exact) ** 2)):.3f}" for values in (g, again)]
    print(f"\nRoot mean square difference of g(r): {shown[0]}; of two runs of EMT: {shown[1]}")


if __name__ == "__main__":
    main()
