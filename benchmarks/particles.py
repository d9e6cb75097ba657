"""Mean squared errors on simulated particles over several seeds, as a row of a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/particles.py charged --seeds 0 1 2 --set network.physics=false

runs `training/particles/charged.yaml`, with these keys changed, once for each seed, as `ase-segnn train` does, and
keeps the folders of the runs. The seed is that of weights and batches; trajectories stay the same. A run that is there
already is not repeated but resumed, and says what it found.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import statistics
from pathlib import Path

from ase_segnn.training import read_recipe_file
from ase_segnn.training.particles import ParticleRecipe, run_particles
from ase_segnn.training.recipe import key_and_value, make_recipe, set_key

FOLDER = Path(__file__).parents[1] / "training" / "particles"
LONGEST = 100  # letters of the name of a folder
COLUMNS = [
    "recipe",
    "changes",
    "test MSE",
    "of the seeds",
    "without the worst tenth",
    "validation MSE",
    "straight motion",
    "s/epoch",
]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(path.stem for path in FOLDER.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", dest="changes", metavar="KEY=VALUE", nargs="*", default=[], help="as of ase-segnn train"
    )
    parser.add_argument("--output", type=Path, default=Path("particles"), help="folder of the folders of the runs")
    arguments = parser.parse_args()
    raw = read_recipe_file(FOLDER / f"{arguments.recipe}.yaml")
    for change in arguments.changes:
        set_key(raw, *key_and_value(change))
    results = []
    for seed in arguments.seeds:
        recipe = make_recipe({**raw, "seed": seed}, "the recipe", ParticleRecipe)
        folder = arguments.output / folder_name(arguments.recipe, arguments.changes, seed)
        results.append(run_particles(recipe, folder, resume=(folder / "last.ckpt").is_file()))
    errors = [result.errors["test MSE"] for result in results]
    mean_of = {name: statistics.mean(result.errors[name] for result in results) for name in results[0].errors}
    spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
    cells = [
        arguments.recipe,
        ", ".join(arguments.changes) or "none",
        f"{statistics.mean(errors):.5f} ± {spread:.5f}",
        ", ".join(f"{error:.5f}" for error in errors),
        f"{mean_of['test MSE without the worst tenth']:.5f}",
        f"{mean_of['validation MSE']:.5f}",
        f"{list(mean_of.values())[-1]:.4f}",
        f"{statistics.median(result.seconds_per_epoch for result in results):.2f}",
    ]
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n| {' | '.join(cells)} |", flush=True)


def folder_name(recipe: str, changes: list[str], seed: int) -> str:
    """Name the folder of a run after what it is, in as many letters as file systems take."""
    name = re.sub(r"[^\w.=-]+", "-", "-".join([recipe, *changes]))
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}-seed={seed}"


if __name__ == "__main__":
    main()
