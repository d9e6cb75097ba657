"""Training of potentials: labeled frames in; potential, model card and report out. Needs the extra ``[train]``."""

from .api import train
from .conclusion import TrainingResult
from .recipe import Recipe, load_recipe, read_recipe_file
from .run import run_recipe

__all__ = ["Recipe", "TrainingResult", "load_recipe", "read_recipe_file", "run_recipe", "train"]
