"""Training frames per second on acetylacetone, ours and with ``mace_run_train``, in alternation; a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py --mace .venv-mace/bin/mace_run_train

Ours is the network of `acac-pbe-fast.yaml`, MACE has 64x0e+64x1o, a cutoff of 5 Å and otherwise its defaults; both have
five frames per step and float32. In each round both run two epochs. Of ours the second counts, with validation and
checkpoint, of MACE the median time of a step after the first ten.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import ase.io
from ase import Atoms

from ase_segnn import Potential, PotentialConfig
from ase_segnn.training import load_recipe
from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.frames import Frame, read_frames
from ase_segnn.training.data.sources import locate
from ase_segnn.training.fit import fit
from ase_segnn.training.fit.potential_module import PotentialModule
from ase_segnn.training.run import settled

RECIPE = load_recipe(Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml")
FRAMES = locate("acac/train_300K.xyz")
ATOMS = locate("acac/isolated_atoms.xyz")
BATCH_SIZE, N_FRAMES, SKIPPED = 5, 450, 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace", required=True, help="path of mace_run_train")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| round | ours, frames/s | MACE, frames/s | ratio |\n|---|---|---|---|", flush=True)
    for index in range(arguments.rounds):
        ours, mace = our_rate(), BATCH_SIZE / mace_step(arguments.mace)
        print(f"| {index + 1} | {ours:.1f} | {mace:.1f} | {ours / mace:.2f} |", flush=True)


def our_rate() -> float:
    """Frames per second of the second of two epochs, checkpoint and validation included."""
    data = TrainingData.read(RECIPE.data, RECIPE.network.cutoff, RECIPE.seed)
    optimization = RECIPE.optimization.model_copy(update={"epochs": 2})
    recipe = settled(RECIPE.model_copy(update={"optimization": optimization}), data)
    config = PotentialConfig(
        elements=tuple(data.reference_energies),
        reference_energies=data.reference_energies,
        average_neighbors=12,
        network=RECIPE.network,
    )
    with tempfile.TemporaryDirectory() as folder:
        module = PotentialModule(Potential(config), data.training, data.validation, recipe)
        result = fit(module, recipe, Path(folder), resume=False)
    first, second = (row["seconds"] for row in result.history)
    return len(data.training) / (second - first)


def frames_for_mace(frames: Iterable[Frame]) -> list[Atoms]:
    """Labels under the names that mace_run_train looks for."""
    written = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.info["REF_energy"] = frame.energy
        if len(atoms) == 1:
            atoms.info["config_type"] = "IsolatedAtom"
        elif frame.forces is not None:
            atoms.arrays["REF_forces"] = frame.forces
        if frame.stress is not None:
            atoms.info["REF_stress"] = frame.stress
        written.append(atoms)
    return written


def mace_step(mace_run_train: str) -> float:
    """Median time of a step that mace_run_train reports, in s."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.xyz"
        ase.io.write(file, frames_for_mace([*read_frames(ATOMS), *list(read_frames(FRAMES))[:N_FRAMES]]))
        options = {
            "name": "mace",
            "train_file": str(file),
            "valid_fraction": 0.01,
            "E0s": "IsolatedAtom",
            "hidden_irreps": "64x0e+64x1o",
            "r_max": 5.0,
            "batch_size": BATCH_SIZE,
            "max_num_epochs": 2,
            "default_dtype": "float32",
            "device": "cpu",
            "ema_decay": 0.99,
        }
        command = [mace_run_train, *(f"--{key}={value}" for key, value in options.items()), "--ema"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        files = list(Path(folder).glob("results/*_train.txt"))
        if done.returncode != 0 or not files:
            raise SystemExit(f"mace_run_train failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        records = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    return statistics.median([record["time"] for record in records if record["mode"] == "opt"][SKIPPED:])


if __name__ == "__main__":
    main()
