"""Labels that a run makes itself: references, structures around known ones, and the file of their labels."""

from .labeling import LabelFile, NoLabelError, label
from .references import Reference, find_reference
from .walkers import Walkers

__all__ = ["LabelFile", "NoLabelError", "Reference", "Walkers", "find_reference", "label"]
