"""Fits of other potentials on the frames of a recipe, and errors with the same code for all.

For `pareto.py` and `side_by_side.py`.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import ase.io
import numpy as np
from ase import Atoms
from speed import Contestant
from training_speed import frames_for_mace

from ase_segnn.evaluation import Evaluation
from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.frames import Frame
from ase_segnn.training.data.sources import locate
from ase_segnn.training.recipe import Recipe, key_and_value, load_recipe, set_key

_Answer = TypeVar("_Answer")
ACE_WEIGHTS = {"default": {"E": 30, "F": 1, "V": 1}}  # as in the authors' fits of these elements


def recipe_with(path: Path, changes: Iterable[str]) -> Recipe:
    """Return a recipe as ``ase-segnn train PATH --set CHANGES`` takes it."""
    raw = load_recipe(path).model_dump()
    for change in changes:
        set_key(raw, *key_and_value(change))
    return Recipe.model_validate(raw)


def tests_of(recipe: Recipe) -> dict[str, list[Atoms]]:
    """Name of each test -> its frames."""
    return {name: ase.io.read(locate(file), ":") for name, [file] in recipe.data.test.items()}


def kept(folder: Path, fit: Callable[..., _Answer], *arguments: object) -> tuple[_Answer, float]:
    """Run a fit in a folder unless it has been done there; its answer, and the CPU minutes that its programs took."""
    done = folder / "done.json"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a fit that was interrupted
        folder.mkdir(parents=True)
        before = _cpu_seconds()
        answer = fit(folder, *arguments)
        done.write_text(json.dumps([answer, (_cpu_seconds() - before) / 60]), encoding="utf-8")
    answer, minutes = json.loads(done.read_text(encoding="utf-8"))
    return answer, minutes


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: list[str], log: Path) -> None:
    """Run a program with its output in a file."""
    with log.open("w", encoding="utf-8") as out:
        out.write(" ".join(command) + "\n")
        out.flush()
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed, see {log}")


def write_frames(file: Path, frames: Iterable[Frame]) -> None:
    """Write frames with their labels as REF_energy, REF_forces and REF_stress."""
    ase.io.write(file, frames_for_mace(frames))


def fit_ace(folder: Path, python: str, data: TrainingData, order: int, degree: int) -> str:
    """Run `aj fit` of ace-jax on the frames for training and for validation, which it does without; its file."""
    train = folder / "train.xyz"
    write_frames(train, [*data.training.frames(), *data.validation.frames()])
    options = {"train": train, "out": folder / "fit", "order": order, "max-degree": degree, "e0": "prefit"}
    options |= {"energy-key": "REF_energy", "force-key": "REF_forces", "stress-key": "REF_stress"}
    options |= {"weights": json.dumps(ACE_WEIGHTS), "map-polish": "off"}  # it takes most of the time of a large fit
    if "H" in data.training.elements():  # no bond length of hydrogen is known to it, but a mean over the others is
        options |= {"basis-embedding": "identity", "rcut": 5.0}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    run([str(Path(python).with_name("aj")), "fit", *words], folder / "log.txt")
    return str(folder / "fit" / "model.npz")


def fit_pace(folder: Path, python: str, data: TrainingData, n_functions: int) -> str:
    """Run `pace_fit.py` on the same frames; its file."""
    train, output = folder / "train.xyz", folder / "model.yace"
    write_frames(train, [*data.training.frames(), *data.validation.frames()])
    script = str(Path(__file__).with_name("pace_fit.py"))
    run(
        [python, script, "--train", str(train), "--functions", str(n_functions), "--output", str(output)],
        folder / "log.txt",
    )
    return str(output)


def errors_of(contestant: Contestant, frames: list[Atoms], file: Path) -> dict[str, float]:
    """Errors of energies and forces on labeled frames, which go to the contestant without labels in a file."""
    ase.io.write(file, [Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in frames])
    answers = contestant.ask(file=str(file))
    labels = [{"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()} for atoms in frames]
    lengths = np.array([len(atoms) for atoms in frames])

    def values(results: list[dict[str, object]]) -> dict[str, np.ndarray]:
        energies = np.array([result["energy"] for result in results])
        forces = np.concatenate([np.ravel(result["forces"]) for result in results])
        return {"energy": energies, "energy_per_atom": energies / lengths, "forces": forces}

    return Evaluation(values(labels), values(answers), len(frames), {}).errors()


def both_errors(errors: dict[str, float], name: str) -> str:
    """MAE and RMSE of a quantity."""
    return " / ".join(f"{errors[name.format(kind)]:.2f}" for kind in ("MAE", "RMSE"))
