"""Check a general organic potential against its teacher, SO3LR, on molecules that it never learned.

``python benchmarks/organic.py POTENTIAL FOLDER`` needs the extras ``organic`` and ``learn``, and ``unseen.xyz`` in the
folder, which ``python -m ase_segnn.training.organic FOLDER`` writes. Prints errors at 300 K, dynamics that break,
minima and conformers, dimers of S22, and time. What the teacher computed is kept in the folder. ``--checks`` and
``--number`` do less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.calculators.calculator import Calculator
from ase.collections import s22
from ase.optimize import BFGS
from reference_dynamics import labeled_dynamics
from scipy.stats import spearmanr

from ase_segnn import SEGNNCalculator
from ase_segnn.files import written_whole
from ase_segnn.physics.bonds import bonds_of
from ase_segnn.physics.dynamics import langevin_run, timestep_for
from ase_segnn.training.labeling import find_reference
from ase_segnn.training.organic.molecules import molecule_of
from ase_segnn.training.organic.structures import structure_of

TEACHER = "so3lr"
RELAXED = 40  # steps before dynamics, so that heat of the start does not make the temperature
TIMESTEP, EQUILIBRATION = 1.0, 200  # fs, steps
FMAX, MOST_STEPS = 0.02, 400  # eV/Å
PER_MOLECULE = 10  # conformers
STRETCHES = (0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the distance of the centers of two molecules
SIZES = (20, 100, 1000)  # atoms


def kept(path: Path, make: Callable[[], list[Atoms]]) -> list[Atoms]:
    """Read frames, or make and write them first."""
    if not path.exists():
        with written_whole(path) as temporary:
            ase.io.write(temporary, make(), format="extxyz")
    return ase.io.read(path, ":", format="extxyz")


def teacher_frames(teacher: Calculator, starts: Sequence[Atoms], temperature: float) -> list[Atoms]:
    """Return a labeled frame of the teacher's dynamics of each start."""
    frames = []
    for number, start in enumerate(starts):
        atoms = start.copy()
        atoms.calc = teacher
        BFGS(atoms, logfile=None).run(fmax=0.3, steps=RELAXED)
        [frame] = labeled_dynamics(
            atoms, temperature, 1, timestep=TIMESTEP, equilibration=EQUILIBRATION, interval=1, seed=number
        )
        frame.info = {name: start.info[name] for name in ("smiles", "charge", "kind")}
        frames.append(frame)
    return frames


def errors_of(student: Calculator, frames: Sequence[Atoms]) -> None:
    """Print mean absolute errors of all frames and of parts of them."""
    energies, forces = [], []
    for frame in frames:
        energies.append((student.get_property("energy", frame) - frame.get_potential_energy()) / len(frame))
        forces.append(np.abs(student.get_property("forces", frame) - frame.get_forces()))
    de = np.array(energies)
    parts = {"all": np.ones(len(frames), dtype=bool)}
    for element in sorted({symbol for frame in frames for symbol in frame.symbols}):
        parts[element] = np.array([element in frame.symbols for frame in frames])
    for charge in sorted({int(frame.info["charge"]) for frame in frames}):
        parts[f"charge {charge:+d}"] = np.array([frame.info["charge"] == charge for frame in frames])
    for kind in sorted({frame.info["kind"] for frame in frames}):
        parts[kind] = np.array([frame.info["kind"] == kind for frame in frames])
    for least, most in ((2, 15), (16, 30), (31, 60)):
        parts[f"{least} to {most} atoms"] = np.array([least <= len(frame) <= most for frame in frames])
    print("| part | frames | energy MAE, meV per atom | forces MAE, meV/Å | on the element |\n|---|---|---|---|---|")
    for name, chosen in parts.items():
        if chosen.any():
            of_part = [forces[k] for k in np.flatnonzero(chosen)]
            own = [forces[k][frames[k].symbols == name].ravel() for k in np.flatnonzero(chosen)]
            mean_own = f"{1000 * np.concatenate(own).mean():.1f}" if np.concatenate(own).size else ""
            mean = 1000 * np.concatenate([each.ravel() for each in of_part]).mean()
            print(f"| {name} | {chosen.sum()} | {1000 * np.abs(de[chosen]).mean():.2f} | {mean:.1f} | {mean_own} |")


def stability(student: Calculator, starts: Sequence[Atoms], temperatures: Sequence[float], picoseconds: float) -> None:
    """Print how many molecules break in dynamics of the student."""
    for temperature in temperatures:
        broken = []
        for number, start in enumerate(starts):
            relaxed = minimum_of(student, start)
            steps = round(picoseconds * 1000 / timestep_for(relaxed))
            run = langevin_run(student, relaxed, temperature, steps=steps, seed=number)
            if run.verdict.outcome == "failed":
                broken.append(start.info["smiles"])
        print(f"{temperature} K, {picoseconds:g} ps each: {len(broken)} of {len(starts)} broke {' '.join(broken)}")


def minimum_of(calculator: Calculator, start: Atoms) -> Atoms:
    """Return the nearest minimum."""
    atoms = start.copy()
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=FMAX, steps=MOST_STEPS)
    return atoms


def conformers(starts: Sequence[Atoms], n_molecules: int) -> list[Atoms]:
    """Return conformers of flexible neutral molecules."""
    random, found = np.random.default_rng(0), []
    for start in starts:
        molecule = molecule_of(start.info["smiles"])
        if molecule is None or molecule.charge != 0 or not 15 <= molecule.n_atoms <= 40:
            continue
        of_molecule = []
        for _ in range(6 * PER_MOLECULE):
            atoms = structure_of(molecule, random)
            if atoms is not None and atoms.info["kind"] == "conformer":
                of_molecule.append(atoms)
        if len(of_molecule) >= PER_MOLECULE:
            found += of_molecule[:PER_MOLECULE]
        if len(found) >= PER_MOLECULE * n_molecules:
            break
    return found


def compare_minima(student: Calculator, minima: Sequence[Atoms]) -> None:
    """Print how far minima of the student are from the teacher's, and how it ranks the conformers of a molecule."""
    distances, ranks, changed = [], [], 0
    energies: dict[str, list[tuple[float, float]]] = {}
    for of_teacher in minima:
        atoms = minimum_of(student, of_teacher)
        changed += bonds_of(atoms) != bonds_of(of_teacher)
        pair = (of_teacher.get_potential_energy(), atoms.get_potential_energy())
        energies.setdefault(of_teacher.info["smiles"], []).append(pair)
        minimize_rotation_and_translation(of_teacher, atoms)
        distances.append(np.sqrt(((atoms.positions - of_teacher.positions) ** 2).sum(axis=1).mean()))
    for pairs in energies.values():
        values = np.array(pairs)
        if len(values) > 3 and np.ptp(values[:, 0]) > 0.02:  # eV
            ranks.append(float(spearmanr(values[:, 0], values[:, 1]).statistic))
    print(
        f"{len(distances)} minima of {len(energies)} molecules: RMSD median {np.median(distances):.3f} Å, "
        f"90th percentile {np.percentile(distances, 90):.3f} Å, {changed} with other bonds; Spearman of energies, "
        f"median over molecules {np.median(ranks) if ranks else np.nan:.3f}"
    )


def dimers() -> list[Atoms]:
    """Return the dimers of S22 at several distances, the molecules apart last."""
    found = []
    for name in s22.names:
        whole = s22[name]
        first = _first_molecule(whole)
        direction = whole.positions[~first].mean(axis=0) - whole.positions[first].mean(axis=0)
        for factor in (*STRETCHES, 20.0):
            atoms = Atoms(whole.symbols, whole.positions)
            atoms.positions[~first] += (factor - 1) * direction
            atoms.info = {"smiles": name, "charge": 0, "kind": f"{factor:g}"}
            found.append(atoms)
    return found


def _first_molecule(atoms: Atoms) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    bonds = np.array(bonds_of(atoms)).T
    _, piece = connected_components(
        coo_matrix((np.ones(bonds.shape[1]), bonds), shape=(len(atoms),) * 2), directed=False
    )
    return piece == piece[0]


def labeled(teacher: Calculator, structures: Sequence[Atoms]) -> list[Atoms]:
    """Label structures."""
    for atoms in structures:
        atoms.calc = teacher
        energy = atoms.get_potential_energy()
        atoms.calc = None
        atoms.info["teacher"] = energy
    return list(structures)


def compare_dimers(student: Calculator, frames: Sequence[Atoms]) -> None:
    """Print binding energies of the teacher and errors of the student, at each distance."""
    print("| distance / that of S22 | teacher, mean meV | student less teacher, MAE meV | largest |\n|---|---|---|---|")
    n = len(STRETCHES) + 1
    values = np.array([[frame.info["teacher"], student.get_property("energy", frame)] for frame in frames])
    binding = values.reshape(-1, n, 2)
    binding = 1000 * (binding[:, :-1] - binding[:, -1:])
    for k, factor in enumerate(STRETCHES):
        difference = binding[:, k, 1] - binding[:, k, 0]
        worst = s22.names[int(np.abs(difference).argmax())]
        mean = binding[:, k, 0].mean()
        print(f"| {factor} | {mean:.0f} | {np.abs(difference).mean():.0f} | {np.abs(difference).max():.0f} ({worst}) |")


def speed(calculators: dict[str, Calculator]) -> None:
    """Print time per atom of energy and forces, in alternation, atoms displaced each time."""
    water = ase.io.read(Path(__file__).parents[1] / "tests" / "data" / "acetylacetone.xyz")
    print(f"| atoms | {' | '.join(calculators)} |\n|---|{'---|' * len(calculators)}")
    random = np.random.default_rng(0)
    for size in SIZES:
        n = max(1, round(size / len(water)))
        shifts = [np.array([k % 4, k // 4 % 4, k // 16]) * 7.5 for k in range(n)]
        atoms = Atoms(list(water.symbols) * n, np.concatenate([water.positions + shift for shift in shifts]))
        times: dict[str, list[float]] = {name: [] for name in calculators}
        for turn in range(4):
            for name, calculator in calculators.items():
                if name == "gfn2" and size > SIZES[1]:
                    continue
                repetitions = 20 if name == "student" else 1
                elapsed = 0.0
                for _ in range(repetitions):
                    atoms.positions += random.normal(0, 0.002, atoms.positions.shape)
                    before = time.perf_counter()
                    calculator.get_property("forces", atoms)
                    elapsed += time.perf_counter() - before
                if turn:
                    times[name].append(1e6 * elapsed / repetitions / len(atoms))
        shown = [f"{statistics.median(each):.0f}" if each else "" for each in times.values()]
        print(f"| {len(atoms)} | {' | '.join(shown)} |")


def main() -> None:
    """Run the checks."""
    checks = ("errors", "stability", "minima", "dimers", "speed")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("potential")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checks", nargs="+", choices=checks, default=checks)
    parser.add_argument("--number", type=int, default=200, help="unseen structures; dynamics and minima take fewer")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    starts = ase.io.read(folder / "unseen.xyz", ":")
    teacher = find_reference(TEACHER).calculator(starts[0])
    student = SEGNNCalculator(arguments.potential)
    alone = [atoms for atoms in starts if "." not in atoms.info["smiles"]]
    if "errors" in arguments.checks:
        chosen = starts[: arguments.number]
        errors_of(student, kept(folder / "unseen-300K.xyz", lambda: teacher_frames(teacher, chosen, 300)))
    if "stability" in arguments.checks:
        stability(student, alone[: arguments.number // 4], (300, 500), arguments.picoseconds)
    if "minima" in arguments.checks:
        n_molecules = max(1, arguments.number // PER_MOLECULE)

        def minima() -> list[Atoms]:
            return [minimum_of(teacher, atoms) for atoms in conformers(alone, n_molecules)]

        compare_minima(student, kept(folder / "unseen-minima.xyz", minima))
    if "dimers" in arguments.checks:
        compare_dimers(student, kept(folder / "s22.xyz", lambda: labeled(teacher, dimers())))
    if "speed" in arguments.checks:
        gfn2 = find_reference("gfn2").calculator(starts[0])
        speed({"student": student, "teacher": teacher, "gfn2": gfn2})


if __name__ == "__main__":
    main()
