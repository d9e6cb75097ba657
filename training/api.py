"""Training from Python: frames in memory or in files in, a potential out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms

from ase_segnn.labels import choose_labels
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential

from .base import Base
from .data import LABEL_OPTIONS, Frame, FrameStore, TrainingData, tell_labels
from .folder import RunFiles
from .pretraining import Pretraining
from .recipe import Recipe, make_recipe
from .run import fit_on, run_on, settled

_IN_MEMORY = "frames in memory"


def train(
    frames: Sequence[Atoms],
    *,
    name: str = "potential",
    validation: Sequence[Atoms] | None = None,
    test: dict[str, Sequence[Atoms]] | None = None,
    max_time: str | float | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Potential | Committee:
    """Train a potential on labeled frames.

    Parameters
    ----------
    frames : with labels as results of a calculator or under their names in ``info`` and ``arrays``, as in files; see
        `ase_segnn.labels`. The log tells which are taken
    name : of the potential and its files
    validation : frames to watch the errors of the run with; by default a tenth of `frames`, drawn at random
    test : name -> frames to evaluate at the end, for the report in `output`
    max_time : such as "10m", or seconds; by default the run has a fixed number of epochs
    output : folder that keeps potential, card, report and checkpoint; None makes nothing but what is returned
    overwrite : start anew in a folder that holds a run already
    settings : any other key of a recipe, such as ``network={"cutoff": 4.5}``; see `ase_segnn.training.recipe`

    Returns
    -------
    the potential, on the CPU, in evaluation mode; a committee if `settings` ask for one

    Raises
    ------
    FileExistsError
        If `output` holds a run and `overwrite` is not set.
    ValueError
        If the data cannot be learned from, a setting is unknown or not allowed, or there are `test` frames without an
        `output` that tells the errors on them.

    Examples
    --------
    .. code-block:: python

        potential = train(frames, max_time="10m", optimization={"stress_weight": 1.0})
        atoms.calc = SEGNNCalculator(potential)
    """
    if test and output is None:
        raise ValueError(
            f"test frames ({', '.join(test)}) are for the report of a run, and nothing is reported without a folder; "
            "give output, or leave out test"
        )
    sets = {"train": frames, **{f"test {key}": given for key, given in (test or {}).items()}}
    data: dict[str, Any] = {**settings.pop("data", {}), "train": _IN_MEMORY}
    data["test"] = dict.fromkeys(test or {}, _IN_MEMORY)
    if validation is not None:
        sets["validation"] = validation
        data["validation"] = [_IN_MEMORY]
    raw = {**settings, "name": name, "data": data}
    if max_time is not None:
        raw["optimization"] = {**raw.get("optimization", {}), "max_time": max_time}
    recipe = make_recipe(raw, "these settings", Recipe)
    choices = {
        use: choose_labels(_named(use, given), recipe.data.label_keys, required=use == "train", options=LABEL_OPTIONS)
        for use, given in sets.items()
    }
    with TemporaryDirectory() as temporary:
        files = RunFiles(Path(temporary) / "run" if output is None else Path(output), name, recipe.committee)
        files.check(resume=False, overwrite=overwrite)
        base = None if recipe.base is None else Base.load(recipe.base)
        network = recipe.network if base is None else base.potential.config.network
        stores = {
            use: FrameStore.build(
                Path(temporary) / f"{number}.frames",
                (Frame.from_atoms(atoms, source, choice) for source, atoms in _named(use, sets[use])),
                network.cutoff,
                choice.report,
            )
            for number, (use, choice) in enumerate(choices.items())
        }
        for use, store in stores.items():
            tell_labels(use, store.labels)
            store.stress_offset = recipe.data.stress_offset
        known = () if base is None else base.potential.elements
        read = TrainingData.divide(stores, recipe.data, recipe.seed, checksums={}, known_elements=known)
        if output is not None:
            return run_on(read, recipe, files, base, overwrite=overwrite).potential
        files.folder.mkdir()
        recipe = settled(recipe, read)
        pretraining = None if recipe.pretrain is None else Pretraining(recipe, read)
        return fit_on(read, recipe, files, base, pretraining)[0]


def _named(use: str, frames: Sequence[Atoms]) -> Iterator[tuple[str, Atoms]]:
    return ((f"{use}@{index}", atoms) for index, atoms in enumerate(frames))
