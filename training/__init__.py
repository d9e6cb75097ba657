"""Training of potentials: a recipe in, a potential file and its model card out. Needs the extra ``[train]``."""

from .recipe import Recipe, load_recipe
from .run import TrainingResult, run

__all__ = ["Recipe", "TrainingResult", "load_recipe", "run"]
