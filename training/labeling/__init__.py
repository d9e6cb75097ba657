"""Labels that a run makes itself: references, processes that label, files of labels, structures around known ones."""

from .collection import Collection, collect
from .frames import LabeledFrames, LabelOutputs, label_frames
from .labeling import LabelFile, NoLabelError, label
from .queue import label_queue
from .references import Reference, find_reference
from .walkers import Walkers
from .workers import Attempt, Labelers

__all__ = [
    "Attempt",
    "Collection",
    "LabelFile",
    "LabelOutputs",
    "LabeledFrames",
    "Labelers",
    "NoLabelError",
    "Reference",
    "Walkers",
    "collect",
    "find_reference",
    "label",
    "label_frames",
    "label_queue",
]
