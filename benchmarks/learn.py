"""Errors of `ase-segnn learn` beside those of `ase-segnn train` on as many frames of dynamics, in the same time.

The reference is GFN2-xTB, the structure acetylacetone. ``python benchmarks/learn.py FOLDER --seeds 1 2 3`` takes an
hour for each seed; what is in the folder already is passed over. Test frames are made for this alone.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import ase.io
from reference_dynamics import labeled_dynamics

from ase_segnn import SEGNNCalculator, evaluate
from ase_segnn.training.labeling import find_reference

STRUCTURE = Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz"
TIMESTEP, EQUILIBRATION = 0.5, 2000  # fs, steps


def reference_dynamics(path: Path, temperature: float, number: int, interval: int, seed: int) -> None:
    """Write frames of Langevin dynamics of the reference, `interval` steps apart, unless they are there."""
    if path.exists():
        return
    atoms = ase.io.read(STRUCTURE)
    atoms.calc = find_reference("gfn2").calculator(atoms)
    frames = labeled_dynamics(
        atoms, temperature, number, timestep=TIMESTEP, equilibration=EQUILIBRATION, interval=interval, seed=seed
    )
    ase.io.write(path, frames, format="extxyz")


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder and show it."""
    print("$", *command, flush=True)
    subprocess.run(command, cwd=folder, check=True)


def main() -> None:
    """Make frames, train, and print errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--time", default="30m")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)
    reference_dynamics(folder / "md-300K.xyz", 300, arguments.labels, 40, seed=0)
    tests = {temperature: folder / f"test-{temperature}K.xyz" for temperature in (300, 600)}
    for temperature, path in tests.items():
        reference_dynamics(path, temperature, 100, 200, seed=temperature)
    for seed in arguments.seeds:
        made = {
            f"learn-{seed}": ["learn", str(STRUCTURE), "--reference", "gfn2", "--labels", str(arguments.labels)],
            f"train-{seed}": ["train", "--data", "md-300K.xyz", "--set", "data.held_out=null"],
        }
        made[f"learn-{seed}"] += ["--seed", str(seed)]
        made[f"train-{seed}"] += ["--set", f"seed={seed}"]
        for name, command in made.items():
            if not (folder / name / "report.html").exists():
                run(["ase-segnn", *command, "--time", arguments.time, "--output", name], folder)
            (potential,) = (folder / name).glob("*.safetensors")
            calculator = SEGNNCalculator(potential)
            for temperature, path in tests.items():
                errors = evaluate(calculator, ase.io.read(path, ":")).errors()
                energy, forces = errors["energy_RMSE_meV"], errors["forces_RMSE_meV_per_A"]
                print(f"{name}: {temperature} K, RMSE {energy:.2f} meV, {forces:.2f} meV/Å", flush=True)


if __name__ == "__main__":
    main()
