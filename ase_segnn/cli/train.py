"""``ase-segnn train``: a potential from a recipe, or from labeled frames alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import ForceOption, name_of, with_extra_train

if TYPE_CHECKING:
    from ase_segnn.training.particles import ParticleResult


@app.command()
def train(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE]", help="YAML file that describes data, network and optimization; or use --data."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="File of labeled frames to learn from; 'file@:100' selects. Give it once per file."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="File of labeled frames to test on; without it a tenth of --data. Give it once per file."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="How long to fit, such as 10m or 2h30m.")] = None,
    base: Annotated[str | None, typer.Option(help="Potential to fine-tune, instead of random weights.")] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            metavar="REFERENCE",
            help="Learn cheap labels first: gfn2, or FILE.py:FUNCTION that makes an ASE calculator.",
        ),
    ] = None,
    committee: Annotated[int | None, typer.Option(help="Number of potentials to train, for uncertainties.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, such as optimization.epochs=500."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default is the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    force: ForceOption = False,
) -> None:
    """Train a potential; potential file, model card, report, audit of the data and checkpoint go to one folder."""
    with with_extra_train("training"):
        from ase_segnn.training import TrainingResult, read_recipe_file, run_recipe
        from ase_segnn.training.recipe import Recipe, key_and_value, make_recipe, set_key
    recipe = _only_recipe(recipes or [], data or [], test or [])
    if recipe is not None and not recipe.is_file():
        raise FileNotFoundError(f"there is no recipe '{recipe}'")
    raw = _raw_recipe(data or [], test or []) if recipe is None else read_recipe_file(recipe)
    options: dict[str, Any] = {
        "optimization.max_time": time,
        "base": base,
        "pretrain.reference": pretrain,
        "committee": committee,
    }
    for key, value in (
        *(key_and_value(change) for change in changes or []),
        *((key, value) for key, value in options.items() if value is not None),
    ):
        set_key(raw, key, value)
    source = "these options" if recipe is None else f"recipe '{recipe}'"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    result: TrainingResult | ParticleResult
    if "system" in raw:  # simulated particles of the SEGNN paper in place of labeled frames
        from ase_segnn.training.particles import ParticleRecipe, run_particles

        result = run_particles(make_recipe(raw, source, ParticleRecipe), output, resume=resume, overwrite=force)
    else:
        result = run_recipe(make_recipe(raw, source, Recipe), output, resume=resume, overwrite=force)
    for line in result.summary():
        typer.echo(line)
    for what, path in result.files.items():
        typer.echo(f"{what}: {path}")


def _only_recipe(recipes: list[Path], data: list[str], test: list[str]) -> Path | None:
    """Return the only recipe, or None for frames; refuse several recipes, or a recipe beside frames."""
    if data and recipes:
        raise ValueError(
            f"'{recipes[0]}' would be a recipe, which does not go with --data; give --data and --test once per file, "
            f"as in --data {data[0]} --data {recipes[0]}"
        )
    if not data and len(recipes) != 1:
        raise ValueError(
            f"give either one recipe or frames with --data, got {len(recipes) or 'none of them'}; "
            "'ase-segnn train --help' shows both"
        )
    if recipes and test:
        raise ValueError(f"--test goes with --data; the recipe '{recipes[0]}' names its tests itself, under data.test")
    return recipes[0] if recipes else None


def _raw_recipe(data: list[str], test: list[str]) -> dict[str, Any]:
    """Return the recipe of a run from frames alone."""
    section: dict[str, Any] = {"train": data}
    stems = [name_of(name) for name in test]
    names = [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, test, strict=True)]
    section |= {"test": dict(zip(names, test, strict=True))} if test else {"held_out": 0.1}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(data[0])).strip("-._") or "potential"
    return {"name": name, "data": section}
