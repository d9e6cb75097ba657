"""Labels that a run makes itself: references, structures around known ones, and the file of their labels."""

from .collection import Collection, collect
from .labeling import LabelFile, NoLabelError, label
from .references import Reference, find_reference
from .walkers import Walkers

__all__ = ["Collection", "LabelFile", "NoLabelError", "Reference", "Walkers", "collect", "find_reference", "label"]
