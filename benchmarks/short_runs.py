"""Errors on validation frames after short runs of different networks and optimizers; prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/short_runs.py 64x0e+64x1o:2 64x0e+64x1o:2:gated_messages=true 64x0e+64x1o:3

Each run is that of a recipe, by default potentials/acac-pbe-fast.yaml, with another network, given as IRREPS:LAYERS and
any keys of a recipe's network, fewer epochs and an average of the weights over fewer steps; attributes have the degrees
of the irreps if not given. Learning rates are those of Muon or, for the optimizer "adamw", of AdamW. `--set` changes
any other key for all runs; with `--plain-activations`, SiLU and sigmoid are not normalized to unit variance. Nothing is
evaluated on test frames.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from ase_segnn.training import Recipe, load_recipe, run_recipe
from ase_segnn.training.recipe import key_and_value, set_key

ACAC = Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="IRREPS:LAYERS[:KEY=VALUE...]")
    parser.add_argument("--optimizers", nargs="+", default=["muon:0.012"], metavar="OPTIMIZER:LEARNING_RATE")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--weight-decay", type=float, default=1e-8)
    parser.add_argument("--plain-activations", action="store_true")
    parser.add_argument("--recipe", type=Path, default=ACAC)
    parser.add_argument("--set", dest="changes", metavar="KEY=VALUE", nargs="*", default=[], help="of the recipe")
    arguments = parser.parse_args()
    base = load_recipe(arguments.recipe)
    settings = [f"{arguments.epochs} epochs", *arguments.changes]
    if arguments.plain_activations:
        use_plain_activations()
        settings.append("plain activations")
    print(f"{base.name}, {', '.join(settings)}\n")
    print("| irreps | layers | else | optimizer | energy RMSE, meV | forces RMSE, meV/Å | minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for network in arguments.networks:
        irreps, layers, *others = network.split(":")
        keys = network_keys(network)
        for run in arguments.optimizers:
            optimizer, rate = run.split(":")
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                optimization = {
                    "optimizer": optimizer,
                    "learning_rate" if optimizer == "adamw" else "muon_learning_rate": float(rate),
                    "weight_decay": arguments.weight_decay,
                    "epochs": arguments.epochs,
                }
                recipe = recipe_for(base, keys, optimization, arguments.changes)
                errors = run_recipe(recipe, Path(folder)).errors["validation"]
            minutes = (time.perf_counter() - started) / 60
            energy, forces = errors["energy_RMSE_meV"], errors["forces_RMSE_meV_per_A"]
            row = [
                irreps,
                layers,
                ", ".join(others),
                run,
                f"{energy:.2f}",
                f"{forces:.2f}",
                f"{minutes:.1f}",
            ]
            print("| " + " | ".join(row) + " |", flush=True)


def use_plain_activations() -> None:
    """Set the constants that normalize activations to 1 in all modules that have them."""
    for module in [module for name, module in sys.modules.items() if name.startswith("ase_segnn")]:
        for constant in ("SILU_NORM", "SIGMOID_NORM"):
            if hasattr(module, constant):
                setattr(module, constant, 1.0)


def network_keys(network: str) -> dict[str, Any]:
    """Keys of a recipe's network from IRREPS:LAYERS[:KEY=VALUE...], without products of sums by default."""
    irreps, layers, *others = network.split(":")
    return {
        "irreps_hidden": irreps,
        "l_max_attributes": max(int(term.rstrip("eo").split("x")[1]) for term in irreps.split("+")),
        "n_layers": int(layers),
        "correlation": 1,
        **{key: yaml.safe_load(value) for key, value in (other.split("=") for other in others)},
    }


def recipe_for(base: Recipe, network: dict[str, Any], optimization: dict[str, Any], changes: list[str]) -> Recipe:
    """Return a recipe with these changes, the last ones on top."""
    raw: dict[str, Any] = base.model_dump()
    raw["data"]["test"] = {}
    raw["validate_every"] = optimization["epochs"]
    raw["network"] |= network
    raw["optimization"] |= optimization | {"ema_decay": 0.99}
    for change in changes:
        set_key(raw, *key_and_value(change))
    return Recipe.model_validate(raw)


if __name__ == "__main__":
    main()
