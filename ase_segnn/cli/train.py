"""``ase-segnn train``: a potential from a recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import ForceOption


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file that describes data, network and optimization.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default is the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    force: ForceOption = False,
) -> None:
    """Train a potential: potential file, model card, learning curve and checkpoint in one folder."""
    try:
        from ase_segnn.training import load_recipe, run
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("ase_segnn"):
            raise
        raise ImportError(
            f'training needs the extra packages of: pip install "ase-segnn[train]" (missing: {error.name})'
        ) from error
    if not recipe.is_file():
        raise FileNotFoundError(f"there is no recipe '{recipe}'")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    result = run(load_recipe(recipe), output, resume=resume, overwrite=force)
    for data, errors in result.errors.items():
        energy, forces = errors["energy_RMSE_meV"], errors["forces_RMSE_meV_per_A"]
        typer.echo(f"{data}: RMSE {energy:.2f} meV, {forces:.2f} meV/Å")
    typer.echo(f"potential: {result.potential_path}\nmodel card: {result.card_path}")
