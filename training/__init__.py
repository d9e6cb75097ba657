"""Training of potentials: a recipe in, a potential file and its model card out. Needs the extra ``[train]``."""

from ase_segnn.training.recipe import Recipe, load_recipe
from ase_segnn.training.run import TrainingResult, train

__all__ = ["Recipe", "TrainingResult", "load_recipe", "train"]
