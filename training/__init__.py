"""Training of potentials: labeled frames in; potential, model card and report out. Needs the extra ``[train]``.

Public names are imported on first use: a process that only labels needs none of the heavy packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase_segnn.training.active_learning.learn import learn
    from ase_segnn.training.active_learning.loop import LabelsNeeded
    from ase_segnn.training.active_learning.outcome import LearnResult
    from ase_segnn.training.api import train
    from ase_segnn.training.conclusion import TrainingResult
    from ase_segnn.training.recipe import Recipe, load_recipe, read_recipe_file
    from ase_segnn.training.run import run_recipe

__all__ = [
    "LabelsNeeded",
    "LearnResult",
    "Recipe",
    "TrainingResult",
    "learn",
    "load_recipe",
    "read_recipe_file",
    "run_recipe",
    "train",
]

_MODULE_OF = {
    "LabelsNeeded": "active_learning.loop",
    "LearnResult": "active_learning.outcome",
    "Recipe": "recipe",
    "TrainingResult": "conclusion",
    "learn": "active_learning.learn",
    "load_recipe": "recipe",
    "read_recipe_file": "recipe",
    "run_recipe": "run",
    "train": "api",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}; public names are {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
