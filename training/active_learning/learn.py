"""Active learning from Python: structures and a reference in, a potential and an honest test out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_segnn.checks import check_numbers
from ase_segnn.configuration import checked

from ..labeling import find_reference
from .fits import recipe_of
from .folder import LearnFolder
from .loop import Loop
from .outcome import LearnResult
from .settings import LearnSettings
from .walks import check_walk


def learn(
    structures: Sequence[Atoms] | None = None,
    reference: str | None = None,
    *,
    output: str | Path = "learned",
    resume: bool = False,
    labels_from: Sequence[Atoms] | None = None,
    on_change: Callable[[str, float], object] = lambda _, __: None,
    **settings: Any,
) -> LearnResult:
    """Learn a potential from structures and a reference that labels frames, such as a DFT code.

    The structures are rattled and labeled, a committee learns them, and its dynamics at a ladder of temperatures finds
    frames on which members disagree. These are labeled and learned in the next round, until nothing new is found in two
    rounds, or labels or time are spent. Then the final potential is fitted, and the reference labels frames of its own
    dynamics as a test.

    A run that ended at any moment can be resumed, and loses at most the labels in flight.

    Parameters
    ----------
    structures : to start from, with constraints that hold throughout; None to resume
    reference : see `ase_segnn.training.labeling.find_reference`; None if labels are made elsewhere: `LabelsNeeded` is
        raised with the frames to label, and the run resumed with `labels_from`
    output : folder of the run
    resume : go on with the run in `output`
    labels_from : frames that were labeled elsewhere, in any order
    on_change : called with what goes on and the seconds of the run so far, several times a second
    settings : see `ase_segnn.training.active_learning.settings.LearnSettings`, such as ``labels=300, max_time="2h"``

    Returns
    -------
    potential, files and errors

    Raises
    ------
    FileExistsError
        If `output` holds a run and `resume` is not set, or another run is using it.
    FileNotFoundError
        If there is no run to resume.
    ImportError, ValueError
        If there is no such reference, it cannot compute the structures, or a setting is not allowed or does not fit
        the run that is resumed; before any work.
    ValueError
        If the reference fails for almost all structures, the run to resume is finished, or `labels_from` has none of
        the frames that need labels.
    LabelsNeeded
        See `reference`.

    Examples
    --------
    .. code-block:: python

        result = learn([molecule], "gfn2", labels=300, max_time="30m", output="molecule")
        atoms.calc = SEGNNCalculator(result.potential)
    """
    folder = LearnFolder(Path(output))
    if resume:
        changes = {**settings, **({} if reference is None else {"reference": reference})}
        _, structures = folder.resumed({})  # which fails early if there is none
    else:
        given = {"name": Path(output).name, "reference": reference, **settings}
        chosen = checked(LearnSettings, given, "these settings")
        chosen = chosen.model_copy(update={"members": chosen.n_members})  # also where a run is resumed with other cores
        structures = list(structures or [])
        _check(structures, chosen)
        if folder.settings_file.exists():
            folder.begin(chosen, structures)  # which raises
    with folder.reserved():
        if resume:
            if folder.is_finished:
                raise ValueError(f"the run in '{folder.path}' came to its end; start another one in another folder")
            chosen, structures = folder.resumed(changes)
            _check(structures, chosen)
        else:
            folder.begin(chosen, structures)
        return Loop(folder, chosen, structures, labels_from, on_change).perform()


def _check(structures: Sequence[Atoms], settings: LearnSettings) -> None:
    """Refuse structures and references that cannot be, before any work."""
    if not structures:
        raise ValueError("there is no structure to start from")
    for index, atoms in enumerate(structures):
        name = f"structure {index}"
        check_numbers(atoms)
        if len(atoms) < 2:
            raise ValueError(f"{name} has {len(atoms)} atom; learning starts from structures of two atoms or more")
        check_walk(atoms, name, settings.pressures)
    recipe_of(settings, Path("labels.xyz"))
    if settings.reference is None:
        return
    reference = find_reference(settings.reference, settings.charge, settings.multiplicity)
    reference.check((f"structure {index}", atoms) for index, atoms in enumerate(structures))
