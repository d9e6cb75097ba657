"""Ours, ``mace_run_train`` and linear ACE from the same frames in the same time; prints a Markdown table.

    python benchmarks/side_by_side.py acac aspirin si cu --time 30m --threads 2 --output side_by_side \
        --python .venv-mace/bin/python mace --python .venv-ace/bin/python ace

They run one after the other, on as many cores, and are kept in the folder `--output`. Ours are `acac-pbe.yaml`,
`rmd17.yaml` and, for copper too, `si.yaml`, with `max_time`; compiling is counted. MACE gets the same frames for
training and validation, has 64x0e+64x1o, a cutoff of 5 Å, five frames per step, and else the settings of the commands
its authors give: averaged weights (0.99), AMSGrad and, in the last quarter of the epochs, its second stage. One epoch
of it is timed to plan as many as the time allows, rounded up; starting programs, reading frames and that first epoch
are not counted. ACE (`aj fit` of ace-jax) gets all frames to train on and takes the time that it takes. Test frames are
evaluated once, at the end, by the calculator of each: in float32, ACE in float64. A kind that `--python` does not name
is left out.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from datetime import datetime
from pathlib import Path

from peers import both_errors, errors_of, fit_ace, kept, recipe_with, run, tests_of, write_frames
from speed import Contestant, use_threads

from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.frames import read_frames
from ase_segnn.training.data.sources import locate
from ase_segnn.training.recipe import parse_duration

HERE = Path(__file__).parent
COPPER = [
    "name=cu",
    "data.train=[zuo2020/Cu_train.xyz]",
    "data.validation=26",
    "data.test={test: [zuo2020/Cu_test.xyz]}",
    "network.cutoff=4.0",
]
RECIPES: dict[str, tuple[Path, list[str]]] = {
    "acac": (HERE.parent / "potentials" / "acac-pbe.yaml", []),
    "aspirin": (HERE / "rmd17.yaml", []),
    "si": (HERE / "si.yaml", []),
    "cu": (HERE / "si.yaml", COPPER),
}
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
MACE_STRESS = {"loss": "stress", "compute_stress": True, "error_table": "PerAtomRMSEstressvirials"}
ACE = {"acac": (3, 8), "aspirin": (3, 8), "si": (3, 16), "cu": (3, 16)}  # order and degree
COLUMNS = {
    "energy MAE / RMSE, meV/atom": "energy_per_atom_{}_meV",
    "energy, meV": "energy_{}_meV",
    "forces, meV/Å": "forces_{}_meV_per_A",
}


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=RECIPES)
    parser.add_argument("--python", nargs=2, action="append", default=[], metavar=("INTERPRETER", "mace|ace"))
    parser.add_argument("--time", default="30m", help="of each fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("side_by_side"), help="folder for all files")
    arguments = parser.parse_args()
    pythons = {"segnn": sys.executable, **{kind: python for python, kind in arguments.python}}
    if unknown := sorted(set(pythons) - set(FITS)):
        parser.error(f"unknown kind '{unknown[0]}' in --python; there are mace and ace")
    use_threads(arguments.threads)
    seconds = parse_duration(arguments.time)
    print(f"| system | | minutes, epochs | test | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 4)}|", flush=True)
    for system in arguments.systems:
        for kind, (fit, dtype) in FITS.items():
            if kind not in pythons:
                print(f"| {system} | {kind} is left out: no --python INTERPRETER {kind} |" + " |" * (len(COLUMNS) + 2))
                continue
            folder = arguments.output.resolve() / f"{system} {kind} {arguments.time}"
            (effort, file), _ = kept(folder, fit, system, seconds, pythons[kind])
            contestant = Contestant(f"{kind}:{file}", pythons[kind], dtype, folder / "worker.log")
            for test, frames in tests_of(recipe_with(*RECIPES[system])).items():
                errors = errors_of(contestant, frames, folder / "test.xyz")
                cells = [system, contestant.ready["package"], effort, test]
                cells += [both_errors(errors, name) for name in COLUMNS.values()]
                print(f"| {' | '.join(cells)} |", flush=True)
            contestant.end()


def train_ours(folder: Path, system: str, seconds: float, _: str) -> tuple[str, str]:
    """Run `ase-segnn train`; what it took, and its file."""
    path, changes = RECIPES[system]
    changes = [*changes, f"optimization.max_time={seconds:.0f}s", "optimization.epochs=null"]
    command = [sys.executable, "-m", "ase_segnn", "train", str(path), "--output", str(folder / "fit")]
    run([*command, *(word for change in changes for word in ("--set", change))], folder / "log.txt")
    rows = (folder / "fit" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    name = recipe_with(path, changes).name
    return f"{float(last['seconds']) / 60:.1f}, {last['epoch']}", str(folder / "fit" / f"{name}.safetensors")


def train_mace(folder: Path, system: str, seconds: float, python: str) -> tuple[str, str]:
    """Run `mace_run_train` on the same frames; what it took, and its file."""
    recipe = recipe_with(*RECIPES[system])
    data = TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)
    references = recipe.data.reference_energies
    single = list(read_frames(locate(references))) if references.endswith(".xyz") else []
    train, validation = folder / "train.xyz", folder / "validation.xyz"
    write_frames(train, [*single, *data.training.frames()])
    write_frames(validation, data.validation.frames())
    options = {
        **MACE,
        **(MACE_STRESS if data.training.n_labels()["stress"] else {}),
        "E0s": "IsolatedAtom" if single else "average",
        "train_file": train,
        "valid_file": validation,
    }
    program = str(Path(python).with_name("mace_run_train"))
    probe = [program, *words(options, name="probe", max_num_epochs=1, work_dir=folder / "probe"), *MACE_FLAGS]
    run(probe, folder / "probe.txt")
    epochs = math.ceil(seconds / mace_seconds(folder / "probe.txt"))
    output = folder / "mace"
    plan = words(options, name="mace", max_num_epochs=epochs, work_dir=output)
    if second_stage := epochs > 1:
        plan += [f"--start_swa={epochs * 3 // 4}", "--swa"]
    run([program, *plan, *MACE_FLAGS], folder / "log.txt")
    file = output / ("mace_stagetwo.model" if second_stage else "mace.model")
    return f"{mace_seconds(folder / 'log.txt') / 60:.1f}, {epochs}", str(file)


def train_ace(folder: Path, system: str, _: float, python: str) -> tuple[str, str]:
    """Run `aj fit` on the frames for training and validation; what it took, and its file."""
    recipe = recipe_with(*RECIPES[system])
    data = TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)
    started = time.monotonic()
    file = fit_ace(folder, python, data, *ACE[system])
    return f"{(time.monotonic() - started) / 60:.1f}", file


def words(options: dict[str, object], **more: object) -> list[str]:
    """Options of a program of MACE."""
    return [f"--{key}={value}" for key, value in {**options, **more}.items()]


def mace_seconds(log: Path) -> float:
    """Time from the first evaluation to the end of the last epoch, from the log of mace_run_train."""
    times = [
        datetime.fromisoformat(match.group(1))
        for line in log.read_text(encoding="utf-8").splitlines()
        if (match := re.match(r"(\S+ \S+) INFO: (Initial|Epoch \d+):", line))
    ]
    return (times[-1] - times[0]).total_seconds()


# kind -> how to fit it, and the precision of its errors
FITS = {"segnn": (train_ours, "float32"), "mace": (train_mace, "float32"), "ace": (train_ace, "float64")}

if __name__ == "__main__":
    main()
