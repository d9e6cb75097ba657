"""Fit of one member of the committee to all labels so far, from random weights or from its weights before."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import torch
from ase import Atoms

from ase_segnn.files import written_whole
from ase_segnn.labels import choose_labels
from ase_segnn.model.committee import Committee
from ase_segnn.potential_file import Provenance, load_potential, save_potential
from ase_segnn.quantities import QUANTITIES

from ..data import Frame, FrameStore, TrainingData
from ..fit import CHECKPOINT, PotentialModule, fit, start_from
from ..recipe import Recipe, make_recipe
from ..run import new_potential, settled
from .settings import LearnSettings

logger = logging.getLogger(__name__)

_VALIDATED, _FIRST = 10, 4  # each tenth label is for validation, from which place on
# In the same time, steps of a single frame learn less.
_FRAMES, _MOST_EDGES = 5, 1000  # of a step
_LEAST_SHARE = 0.5  # of the time of the fit before, for another fit
_OF_ERRORS = "validation_"


def read_labels(path: Path) -> list[Atoms]:
    """Read labeled frames, in the order of their ids."""
    return sorted(ase.io.iread(path, ":", format="extxyz"), key=lambda atoms: int(atoms.info["id"]))


def raw_recipe(settings: LearnSettings) -> dict[str, Any]:
    """Return the recipe of all fits as plain data, without its data."""
    return {"name": settings.name, "seed": settings.seed, **settings.recipe}


def recipe_of(settings: LearnSettings, labels: Path) -> Recipe:
    """Return the recipe that fits a file of labels anew."""
    return _recipe(raw_recipe(settings), labels)


def _recipe(raw: dict[str, Any], labels: Path) -> Recipe:
    return make_recipe({**raw, "data": {"train": [str(labels.resolve())]}}, "the recipe of the run", Recipe)


def data_of(labels: Sequence[Atoms], recipe: Recipe, cutoff: float, folder: Path) -> TrainingData:
    """Divide labels for a fit, with graphs in a folder.

    The same frames are for validation in all rounds, so that no member ever learns them.

    Parameters
    ----------
    labels : in the order of their ids
    recipe : of the fit
    cutoff : Å
    folder : for the graphs

    Raises
    ------
    ValueError
        If too few frames are left to learn or to validate.
    """
    elements = {int(number) for atoms in labels for number in atoms.numbers}
    alone = [atoms for atoms in labels if len(atoms) == 1]
    if {int(atoms.numbers[0]) for atoms in alone} != elements:
        alone = []  # reference energies of a part of the elements are worse than none
    together = [atoms for atoms in labels if len(atoms) > 1]
    watched = together[_FIRST::_VALIDATED]
    learned = [atoms for place, atoms in enumerate(together) if place % _VALIDATED != _FIRST]
    named = {
        use: [(f"label {atoms.info['id']}", atoms) for atoms in frames]
        for use, frames in {
            "train": [*learned, *alone],
            "validation": watched,
        }.items()
    }
    choice = choose_labels([*named["train"], *named["validation"]], required=True)
    stores = {
        use: FrameStore.build(
            folder / f"{use}.frames",
            (Frame.from_atoms(atoms, source, choice) for source, atoms in part),
            cutoff,
            choice.report,
        )
        for use, part in named.items()
    }
    settings = recipe.data.model_copy(update={"validation": ["labels"]})
    return TrainingData.divide(stores, settings, recipe.seed, checksums={})


def fit_member(labels: Path, raw: dict[str, Any], start: Path | None, folder: Path, output: Path) -> None:
    """Fit a potential to a file of labels, and write it with the course of the fit.

    Parameters
    ----------
    labels : file of labels, all with an "id"
    raw : recipe as plain data, without its data
    start : potential to start from; None for random weights
    folder : of the checkpoint; a fit that was interrupted goes on from there
    output : potential file; a JSON file of the same stem gets "history" and "seconds"
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _recipe(raw, labels)
    frames = read_labels(labels)
    data = data_of(frames, recipe, recipe.network.cutoff, folder)
    if recipe.optimization.batch_edges is None:
        subset = data.training
        edges = round(_FRAMES * float(subset.store.n_edges[subset.indices].mean()))
        optimization = recipe.optimization.model_copy(update={"batch_edges": max(1, min(_MOST_EDGES, edges))})
        recipe = recipe.model_copy(update={"optimization": optimization})
    recipe = settled(recipe, data)
    torch.manual_seed(recipe.seed)
    if start is None:
        potential = new_potential(recipe, data)
    else:
        before = load_potential(start)
        assert not isinstance(before, Committee)
        shortest = data.training.shortest_distances()
        potential = start_from(before, (), {}, shortest_distances=shortest).requires_grad_(True)
    module = PotentialModule(potential, data.training, data.validation, recipe)
    result = fit(module, recipe, folder, resume=(folder / CHECKPOINT).is_file())
    with written_whole(output.with_suffix(".json")) as path:
        path.write_text(json.dumps({"history": result.history, "seconds": result.seconds}), encoding="utf-8")
    save_potential(potential.requires_grad_(False).eval(), output, provenance=Provenance(), overwrite=True)


class Fit(NamedTuple):
    """What is known of a fit: its history, the best errors on validation frames, and its duration in seconds."""

    history: list[dict[str, float]]
    errors: dict[str, float]
    seconds: float


def fitted(output: Path) -> Fit:
    """Return what is known of the fit that `fit_member` wrote."""
    known = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    name = _OF_ERRORS + QUANTITIES["forces"].error_name("RMSE")
    history = known["history"]
    best = min((entry for entry in history if entry.get(name) is not None), key=lambda entry: entry[name])
    errors = {key.removeprefix(_OF_ERRORS): value for key, value in best.items() if key.startswith(_OF_ERRORS)}
    return Fit(history, errors, known["seconds"])


def is_kept(before: Path, output: Path, seconds: float) -> bool:
    """Take the fit of the round before as that of this one, if there is one and much less time now; tell whether so.

    A fit that is broken off soon forgets more than it learns.
    """
    if not before.is_file() or seconds >= _LEAST_SHARE * fitted(before).seconds:
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".safetensors"):  # the potential last, since it stands for all
        with written_whole(output.with_suffix(suffix)) as temporary:
            shutil.copyfile(before.with_suffix(suffix), temporary)
    return True
