"""Distill SevenNet-0 into a potential of one crystal by `ase-segnn learn`, and time both.

``python benchmarks/distill.py FOLDER`` needs ``pip install sevenn``. The crystal is gallium arsenide, 64 atoms, at 300
to 900 K and in a moving cell. Prints labels, time, errors on fresh frames and on dynamics of the teacher, lattice and
elastic constants by both, and time per atom and step in alternation.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from reference_dynamics import labeled_dynamics

from ase_segnn import SEGNNCalculator, evaluate
from ase_segnn.physics.crystals import elastic_constants, relax
from ase_segnn.training.labeling import find_reference

TEACHER = "sevennet:7net-0"
LATTICE = 5.75  # Å
TEMPERATURES = (300, 900)
TIMESTEP, EQUILIBRATION, INTERVAL, N_FRAMES = 3.0, 150, 10, 15  # fs, steps


def crystal() -> Atoms:
    """Return the conventional cell."""
    return bulk("GaAs", "zincblende", a=LATTICE, cubic=True)


def dynamics_of_teacher(teacher: Calculator, temperature: float) -> list[Atoms]:
    """Return labeled frames that nothing has learned."""
    atoms = crystal().repeat(2)
    atoms.calc = teacher
    return labeled_dynamics(
        atoms,
        temperature,
        N_FRAMES,
        timestep=TIMESTEP,
        equilibration=EQUILIBRATION,
        interval=INTERVAL,
        seed=int(temperature),
        friction=0.02,
    )


def microseconds(calculators: dict[str, Calculator], rounds: int = 5) -> dict[str, float]:
    """Median time per atom of energy and forces, in alternation, with all atoms displaced each time."""
    times: dict[str, list[float]] = {name: [] for name in calculators}
    random = np.random.default_rng(0)
    for turn in range(rounds + 1):
        for name, calculator in calculators.items():
            atoms = crystal().repeat(2)
            repetitions = 1 if name == "teacher" else 50
            elapsed = 0.0
            for _ in range(repetitions):
                atoms.positions += random.normal(0, 0.01, atoms.positions.shape)
                before = time.perf_counter()
                calculator.get_property("forces", atoms)
                elapsed += time.perf_counter() - before
            if turn > 0:  # the first is a warm-up
                times[name].append(1e6 * elapsed / repetitions / len(atoms))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Distill and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--time", default="20m")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(exist_ok=True)
    ase.io.write(folder / "GaAs.xyz", crystal().repeat(2))
    if not (folder / "GaAs" / "report.html").exists():
        command = ["ase-segnn", "learn", "GaAs.xyz", "--reference", TEACHER, "--temperature", "300:900"]
        command += ["--pressure=-1:5", "--labels", str(arguments.labels), "--time", arguments.time]
        print("$", *command, flush=True)
        subprocess.run([*command, "--output", "GaAs"], cwd=folder, check=True)
    [file] = (folder / "GaAs").glob("*.safetensors")
    teacher = find_reference(TEACHER).calculator(crystal())
    student = SEGNNCalculator(file, dtype="float64")
    for temperature in TEMPERATURES:
        found = evaluate(student, dynamics_of_teacher(teacher, temperature)).errors()
        errors = [found[f"{name}_RMSE_{unit}"] for name, unit in (("energy_per_atom", "meV"), ("forces", "meV_per_A"))]
        print(f"dynamics of the teacher at {temperature} K: RMSE {errors[0]:.2f} meV/atom, {errors[1]:.1f} meV/Å")
    print("\n| | learned | teacher |\n|---|---|---|")
    rows = []
    for calculator in (student, teacher):
        relaxed = relax(calculator, crystal(), cell=True, fmax=1e-3)
        elastic = elastic_constants(calculator, relaxed).entries
        rows.append({"lattice constant, Å": relaxed.cell.lengths()[0]} | {f"{k}, GPa": v for k, v in elastic.items()})
    for name, value in rows[0].items():
        print(f"| {name} | {value:.4g} | {rows[1].get(name, float('nan')):.4g} |")
    times = microseconds({"student": SEGNNCalculator(file), "teacher": teacher})
    print(f"| time per atom and step, µs | {times['student']:.1f} | {times['teacher']:.0f} |")
    print(f"\n{times['teacher'] / times['student']:.0f} times as fast")


if __name__ == "__main__":
    main()
