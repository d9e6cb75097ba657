"""Training frames per second on acetylacetone, ours and with ``mace_run_train``, in alternation; a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py --mace .venv-mace/bin/mace_run_train

Ours is the network of `acac-pbe-fast.yaml`, MACE has 64x0e+64x1o, a cutoff of 5 Å and otherwise its defaults; both have
five frames per step and float32. A step is everything from a batch to new weights. In each round both run two epochs;
the first steps, in which ours compiles, are left out, and the median time of a step counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from ase_segnn import Potential, PotentialConfig
from ase_segnn.training import load_recipe
from ase_segnn.training.data import LabeledGraph, isolated_atom_energies, read_frames, training_loader
from ase_segnn.training.module import TrainingModule
from ase_segnn.training.sources import locate

RECIPE = load_recipe(Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml")
FRAMES = locate(RECIPE.data.train)
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
        ours, mace = BATCH_SIZE / our_step(), BATCH_SIZE / mace_step(arguments.mace)
        print(f"| {index + 1} | {ours:.1f} | {mace:.1f} | {ours / mace:.2f} |", flush=True)


class _StepTimes(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []
        self._before = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._before = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter() - self._before)


def our_step() -> float:
    """Median time of a step, in s."""
    frames = read_frames(FRAMES)[:N_FRAMES]
    energies = isolated_atom_energies(ATOMS, ["H", "C", "O"])
    network = RECIPE.network
    potential = Potential(
        PotentialConfig(elements=tuple(energies), reference_energies=energies, average_neighbors=12, network=network)
    )
    graphs = [LabeledGraph.from_atoms(atoms, network.cutoff) for atoms in frames]
    loader = training_loader(graphs, BATCH_SIZE, 0, pad_with_cutoff=network.cutoff)
    times = _StepTimes()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[EMAWeightAveraging(decay=0.99, use_buffers=False), times],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(TrainingModule(potential, RECIPE), loader)
    return statistics.median(times.times[SKIPPED:])


def mace_step(mace_run_train: str) -> float:
    """Median time of a step that mace_run_train reports, in s."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.xyz"
        frames = [*read_frames(ATOMS, labels=["energy"]), *read_frames(FRAMES)[:N_FRAMES]]
        for atoms in frames:
            atoms.info["REF_energy"] = atoms.get_potential_energy()
            if len(atoms) == 1:
                atoms.info["config_type"] = "IsolatedAtom"
            else:
                atoms.arrays["REF_forces"] = atoms.get_forces()
            atoms.calc = None
        ase.io.write(file, frames)
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
