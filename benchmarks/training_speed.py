"""Speed of training on acetylacetone, five frames per step and float32; prints Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/training_speed.py 64x0e+64x1o:2:l_max_attributes=2
    OMP_NUM_THREADS=1 python benchmarks/training_speed.py --mace .venv-mace/bin/mace_run_train

The first command takes networks as `short_runs.py` does. It prints the CPU time of loss and gradient of one step,
without the optimizer, in compiled C++ and in plain torch; medians over the rounds, in each of which all are taken in
turn.

The second command compares frames per second with ``mace_run_train``, in alternation. Ours is the network of
`acac-pbe-fast.yaml`, MACE has 64x0e+64x1o, a cutoff of 5 Å and otherwise its defaults. In each round both run two
epochs. Of ours the second counts, with validation and checkpoint, of MACE the median time of a step after the first
ten.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import ase.io
import torch
from ase import Atoms
from short_runs import network_keys

from ase_segnn import Potential, PotentialConfig
from ase_segnn.engines.learning import CompiledLearning
from ase_segnn.model.config import NetworkConfig
from ase_segnn.training import load_recipe
from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.data.frames import Frame, read_frames
from ase_segnn.training.data.sources import locate
from ase_segnn.training.fit import fit
from ase_segnn.training.fit.potential_module import PotentialModule
from ase_segnn.training.fit.step import PotentialLoss, gradients
from ase_segnn.training.run import settled

RECIPE = load_recipe(Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml")
FRAMES = locate("acac/train_300K.xyz")
ATOMS = locate("acac/isolated_atoms.xyz")
BATCH_SIZE, N_FRAMES, SKIPPED = 5, 450, 10
COEFFICIENTS = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)  # of energies, forces and stresses


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="IRREPS:LAYERS[:KEY=VALUE...]")
    parser.add_argument("--mace", help="path of mace_run_train")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.networks and arguments.mace is None:
        parser.error("name networks, or mace_run_train with --mace")
    if arguments.networks:
        time_steps(arguments.networks, arguments.rounds)
    if arguments.mace is None:
        return
    print("| round | ours, frames/s | MACE, frames/s | ratio |\n|---|---|---|---|", flush=True)
    for index in range(arguments.rounds):
        ours, mace = our_rate(), BATCH_SIZE / mace_step(arguments.mace)
        print(f"| {index + 1} | {ours:.1f} | {mace:.1f} | {ours / mace:.2f} |", flush=True)


def time_steps(networks: list[str], rounds: int) -> None:
    """Print the CPU time of a step of each network."""
    print("| network | weights | compiled C++, ms | plain torch, ms |\n|---|---|---|---|", flush=True)
    steps = [Step(network) for network in networks]
    times = [
        [(step.milliseconds(compiled=True), step.milliseconds(compiled=False)) for step in steps] for _ in range(rounds)
    ]
    for step, row in zip(steps, zip(*times, strict=True), strict=True):
        compiled, plain = (statistics.median(column) for column in zip(*row, strict=True))
        print(f"| {step.name} | {step.n_weights:,} | {compiled:.1f} | {plain:.1f} |", flush=True)


class Step:
    """Loss and gradient of one batch."""

    def __init__(self, name: str) -> None:
        self.name, keys = name, NetworkConfig(**network_keys(name))
        data = TrainingData.read(RECIPE.data, keys.cutoff, RECIPE.seed)
        training = data.training
        config = PotentialConfig(
            elements=tuple(data.reference_energies),
            reference_energies=data.reference_energies,
            average_neighbors=training.average_neighbors(),
            network=keys,
        )
        self._batch = LabeledGraph.batch([training[int(index)] for index in training.indices[:BATCH_SIZE]])
        potential = Potential(config)
        potential.calibrate(self._batch.graph)
        self.n_weights = sum(weight.numel() for weight in potential.parameters())
        self._loss, self._learning = PotentialLoss(potential), CompiledLearning(potential)

    def milliseconds(self, *, compiled: bool, repetitions: int = 10) -> float:
        """CPU time of all threads, the smallest of some."""
        self._loss.learning = self._learning if compiled else None
        times = []
        for _ in range(repetitions):
            before = time.process_time()
            gradients(self._loss, self._batch, COEFFICIENTS)
            times.append(time.process_time() - before)
        return 1e3 * min(times)


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
