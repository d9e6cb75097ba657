"""Fine-tuning `acac-pbe` on some frames at 600 K beside training on these alone; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/fine_tuning.py --frames 50 --time 5m

The frames are drawn from acac/train_600K.xyz; a fifth of them watches the errors. Test frames, at 600 K and, as the old
data of the base, at 300 K, are evaluated once at the end of each run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ase.io
import numpy as np

from ase_segnn import SEGNNCalculator
from ase_segnn.evaluation import evaluate
from ase_segnn.model.config import NetworkConfig
from ase_segnn.potential_file import load_potential
from ase_segnn.potentials import path_of
from ase_segnn.training import train
from ase_segnn.training.data.sources import locate
from ase_segnn.training.recipe import parse_duration

TESTS = {"600 K": "acac/test_MD_600K.xyz", "300 K": "acac/test_MD_300K.xyz"}


def main() -> None:
    """Train twice and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="acac-pbe")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--time", default="5m", help="of each fit")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    frames = ase.io.read(locate("acac/train_600K.xyz"), ":")
    chosen = np.random.default_rng(arguments.seed).choice(len(frames), arguments.frames, replace=False)
    frames = [frames[index] for index in sorted(chosen)]
    base = load_potential(path_of(arguments.base))
    same = {"validation": 0.2, "reference_energies": base.config.reference_energies}
    runs = {
        f"{arguments.frames} frames alone": {"network": NetworkConfig.model_validate(base.config.network).model_dump()},
        f"{arguments.base}, fine-tuned": {"base": arguments.base},
    }
    optimization = {
        "batch_edges": 1000,  # five frames
        "epochs": 10000,
        "max_time": parse_duration(arguments.time),
    }
    gentle = {"muon_learning_rate": 0.002, "learning_rate": 4e-4}
    print("| | 600 K test, meV / meV/Å | 300 K test, meV / meV/Å |\n|---|---|---|", flush=True)
    print(row(f"{arguments.base} as it is", SEGNNCalculator(base)), flush=True)
    for name, settings in runs.items():
        rates = gentle if "base" in settings else {}
        with tempfile.TemporaryDirectory() as folder:
            potential = train(
                frames,
                data=same,
                seed=arguments.seed,
                optimization={**optimization, **rates},
                output=Path(folder) / "run",
                **settings,
            )
        print(row(name, SEGNNCalculator(potential)), flush=True)


def row(name: str, calculator: SEGNNCalculator) -> str:
    """Errors of both tests in one line of the table."""
    cells = [name]
    for file in TESTS.values():
        errors = evaluate(calculator, ase.io.read(locate(file), ":")).errors()
        cells.append(f"{errors['energy_RMSE_meV']:.1f} / {errors['forces_RMSE_meV_per_A']:.1f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
