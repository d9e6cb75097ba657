"""Labels of frames: their names in files, the choice among several, and the report on everything not used.

`names` is the table of names, `survey` counts them in the frames of a data set, `choice` chooses, `report` tells.
Units and shapes are in `ase_segnn.quantities`.
"""

from ase_segnn.quantities import LABELS

from .choice import FrameLabels, LabelChoice, choose_labels
from .names import LabelKeys
from .report import LabelReport, Remark
from .values import without_labels

__all__ = [
    "LABELS",
    "FrameLabels",
    "LabelChoice",
    "LabelKeys",
    "LabelReport",
    "Remark",
    "choose_labels",
    "without_labels",
]
