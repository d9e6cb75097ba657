"""Training of potentials: labeled frames in; potential, model card and report out. Needs the extra ``[train]``."""

from .api import train
from .recipe import Recipe, load_recipe, read_recipe_file
from .run import TrainingResult, run_recipe

__all__ = ["Recipe", "TrainingResult", "load_recipe", "read_recipe_file", "run_recipe", "train"]
