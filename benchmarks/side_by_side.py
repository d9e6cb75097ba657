"""A potential of ours and one of ``mace_run_train`` from the same frames in the same time; prints a Markdown table.

    python benchmarks/side_by_side.py acac --mace .venv-mace/bin --time 30m --threads 2 --output side_by_side

They run one after the other, ours first; or both at once with `--together`, each with its own threads. Both get the
same frames for training and validation and float32. Ours is `acac-pbe-fast.yaml` or `si.yaml` with `max_time`. MACE has
64x0e+64x1o, a cutoff of 5 Å, five frames per step, and else the settings of the commands its authors give: averaged
weights (0.99), AMSGrad and, in the last quarter of the epochs, its second stage. One epoch of it is timed to plan as
many as the time allows, rounded up. Starting programs, reading frames and that first epoch are not counted for MACE;
compiling is counted for ours. Test frames are evaluated once, at the end, in float32 with both.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from training_speed import frames_for_mace

from ase_segnn import SEGNNCalculator
from ase_segnn.evaluation import Evaluation, evaluate
from ase_segnn.training import load_recipe
from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.frames import Frame, read_frames
from ase_segnn.training.data.sources import locate
from ase_segnn.training.recipe import Recipe, parse_duration

HERE = Path(__file__).parent
RECIPES = {"acac": HERE.parent / "potentials" / "acac-pbe-fast.yaml", "si": HERE / "si.yaml"}
ISOLATED_ATOMS = {"acac": "acac/isolated_atoms.xyz"}
MACE = {
    "hidden_irreps": "64x0e+64x1o",
    "r_max": 5.0,
    "batch_size": 5,
    "valid_batch_size": 5,
    "ema_decay": 0.99,
    "default_dtype": "float32",
    "device": "cpu",
    "seed": 1,
}
MACE_FLAGS = ["--ema", "--amsgrad"]
WITH_STRESS = {"loss": "stress", "compute_stress": True, "error_table": "PerAtomRMSEstressvirials"}
COLUMNS = {
    "energy, meV/atom": "energy_per_atom_RMSE_meV",
    "energy, meV": "energy_RMSE_meV",
    "forces, meV/Å": "forces_RMSE_meV_per_A",
    "stress, meV/Å³": "stress_RMSE_meV_per_A3",
}


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=RECIPES)
    parser.add_argument("--mace", type=Path, required=True, help="folder of mace_run_train and mace_eval_configs")
    parser.add_argument("--time", default="30m", help="of each fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--together", action="store_true", help="run both at once")
    parser.add_argument("--output", type=Path, default=Path("side_by_side"), help="new folder for all files")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    seconds = parse_duration(arguments.time)
    recipe = load_recipe(RECIPES[arguments.system])
    print(f"| | minutes, epochs | test | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 3)}", flush=True)

    def train(name: str) -> tuple[str, dict[str, Evaluation]]:
        folder = arguments.output.resolve() / f"{arguments.system}-{name}"
        folder.mkdir(parents=True)
        return CONTESTANTS[name](arguments.system, recipe, seconds, folder, arguments.mace.resolve())

    with ThreadPoolExecutor(max_workers=2 if arguments.together else 1) as pool:
        results = list(zip(CONTESTANTS, pool.map(train, CONTESTANTS), strict=True))
    for name, (effort, evaluations) in results:
        for test, evaluation in evaluations.items():
            errors = evaluation.errors()
            cells = [f"{errors[key]:.1f}" if key in errors else "" for key in COLUMNS.values()]
            print(f"| {name} | {effort} | {test} | {' | '.join(cells)} |", flush=True)


def train_ours(system: str, recipe: Recipe, seconds: float, folder: Path, _: Path) -> tuple[str, dict[str, Evaluation]]:
    """Run `ase-segnn train`; what it took, and its errors by test."""
    output = folder / "ours"
    settings = [f"optimization.max_time={seconds:.0f}s", "optimization.epochs=null", "zbl=true", "compile=true"]
    command = [sys.executable, "-m", "ase_segnn", "train", str(RECIPES[system]), "--output", str(output)]
    run([*command, *(word for setting in settings for word in ("--set", setting))], folder / "ours.log")
    calculator = SEGNNCalculator(output / f"{recipe.name}.safetensors", device="cpu")
    rows = (output / "metrics.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    effort = f"{float(last['seconds']) / 60:.1f}, {last['epoch']}"
    return effort, {test: evaluate(calculator, frames) for test, frames in tests_of(recipe).items()}


def train_mace(
    system: str, recipe: Recipe, seconds: float, folder: Path, programs: Path
) -> tuple[str, dict[str, Evaluation]]:
    """Run `mace_run_train` on the same frames; what it took, and its errors by test."""
    data = TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)
    single = list(read_frames(locate(ISOLATED_ATOMS[system]))) if system in ISOLATED_ATOMS else []
    train, validation = folder / "train.xyz", folder / "validation.xyz"
    write_frames(train, [*single, *data.training.frames()])
    write_frames(validation, data.validation.frames())
    with_stress = data.training.n_labels()["stress"] > 0
    options = {
        **MACE,
        **(WITH_STRESS if with_stress else {}),
        "E0s": "IsolatedAtom" if single else "average",
        "train_file": train,
        "valid_file": validation,
    }
    program = str(programs / "mace_run_train")
    probe = [program, *words(options, name="probe", max_num_epochs=1, work_dir=folder / "probe"), *MACE_FLAGS]
    run(probe, folder / "probe.log")
    epochs = math.ceil(seconds / mace_seconds(folder / "probe.log"))
    output = folder / "mace"
    plan = words(options, name="mace", max_num_epochs=epochs, start_swa=epochs * 3 // 4, work_dir=output)
    run([program, *plan, *MACE_FLAGS, "--swa"], folder / "mace.log")
    evaluations = {}
    for test, frames in tests_of(recipe).items():
        given, predicted = folder / f"{test}.xyz", folder / f"{test} predicted.xyz"
        ase.io.write(given, [atoms_only(atoms) for atoms in frames])
        command = [str(programs / "mace_eval_configs"), *words({"configs": given, "output": predicted})]
        command += words({"model": output / "mace_stagetwo.model", "default_dtype": "float32", "batch_size": 5})
        run([*command, *(["--compute_stress"] if with_stress else [])], folder / f"{test}.log")
        evaluations[test] = evaluate(Given(ase.io.read(predicted, ":")), frames)
    return f"{mace_seconds(folder / 'mace.log') / 60:.1f}, {epochs}", evaluations


class Given(Calculator):
    """What `mace_eval_configs` wrote, frame by frame in the order in which it wrote it."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, frames: Iterable[ase.Atoms]) -> None:
        super().__init__()
        self.frames = iter(frames)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:  # noqa: ARG002
        """Take the next frame."""
        frame = next(self.frames)
        assert np.allclose(frame.positions, atoms.positions, atol=1e-6)
        self.results = {"energy": frame.info["MACE_energy"], "forces": frame.arrays["MACE_forces"]}
        if "MACE_stress" in frame.info:
            stress = np.reshape(frame.info["MACE_stress"], (3, 3))
            self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def tests_of(recipe: Recipe) -> dict[str, list[ase.Atoms]]:
    """Name of each test -> its frames."""
    return {name: ase.io.read(locate(file), ":") for name, [file] in recipe.data.test.items()}


def atoms_only(atoms: ase.Atoms) -> ase.Atoms:
    """Take labels off."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def write_frames(file: Path, frames: Iterable[Frame]) -> None:
    """Write frames with their labels under MACE's names."""
    ase.io.write(file, frames_for_mace(frames))


def words(options: dict[str, object], **more: object) -> list[str]:
    """Options of a program of MACE."""
    return [f"--{key}={value}" for key, value in {**options, **more}.items()]


def run(command: list[str], log: Path) -> None:
    """Run a program with its output in a file."""
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        out.write(" ".join(command) + "\n")
        out.flush()
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
        out.write(f"ended after {time.monotonic() - started:.0f} s\n")
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed, see {log}")


def mace_seconds(log: Path) -> float:
    """Time from the first evaluation to the end of the last epoch, from the log of mace_run_train."""
    times = [
        datetime.fromisoformat(match.group(1))
        for line in log.read_text(encoding="utf-8").splitlines()
        if (match := re.match(r"(\S+ \S+) INFO: (Initial|Epoch \d+):", line))
    ]
    return (times[-1] - times[0]).total_seconds()


CONTESTANTS = {"ase-segnn": train_ours, "mace_run_train": train_mace}

if __name__ == "__main__":
    main()
