"""Errors on validation frames after short runs with different optimizers and networks; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/short_runs.py adamw:2e-3 adamw:5e-3 muon:0.012 muon:0.02

Each run is that of potentials/acac-pbe.yaml with a smaller network and fewer epochs; learning rates are those of Muon
or, for "adamw", of AdamW. Nothing is evaluated on test frames.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from ase_segnn.training import Recipe, load_recipe, train

RECIPE = Path(__file__).parents[1] / "potentials" / "acac-pbe.yaml"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="OPTIMIZER:LEARNING_RATE")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--irreps", default="32x0e+16x1o+8x2e")
    parser.add_argument("--l-max", type=int, default=2, help="of the attributes")
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    network = {
        "irreps_hidden": arguments.irreps,
        "l_max_attributes": arguments.l_max,
        "n_layers": arguments.layers,
    }
    print(f"{network}, {arguments.epochs} epochs\n")
    print("| optimizer | learning rate | energy RMSE, meV | forces RMSE, meV/Å | minutes |")
    print("|---|---|---|---|---|", flush=True)
    for run in arguments.runs:
        optimizer, _, learning_rate = run.partition(":")
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_for(optimizer, float(learning_rate), arguments.epochs, network)
            errors = train(recipe, Path(folder)).errors["validation"]
        minutes = (time.perf_counter() - started) / 60
        energy, forces = errors["energy_RMSE_meV"], errors["forces_RMSE_meV_per_A"]
        print(f"| {optimizer} | {learning_rate} | {energy:.2f} | {forces:.2f} | {minutes:.1f} |", flush=True)


def recipe_for(optimizer: str, learning_rate: float, epochs: int, network: dict[str, Any]) -> Recipe:
    """Return the recipe of acac-pbe with these changes."""
    raw = load_recipe(RECIPE).model_dump()
    raw["data"]["test"] = {}
    raw["network"] |= network
    rate = "learning_rate" if optimizer == "adamw" else "muon_learning_rate"
    raw["optimization"] |= {"optimizer": optimizer, rate: learning_rate, "epochs": epochs}
    return Recipe.model_validate(raw)


if __name__ == "__main__":
    main()
