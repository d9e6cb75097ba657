"""Labels of frames: what energies, forces and stresses are called, which are taken, and what is told about the rest.

`names` is the table, `survey` counts what is in the frames of a data set, `choice` decides, `report` tells.
"""

from ase_segnn.quantities import LABELS

from .choice import FrameLabels, LabelChoice, choose_labels
from .names import LabelKeys
from .report import LabelReport, Remark

__all__ = ["LABELS", "FrameLabels", "LabelChoice", "LabelKeys", "LabelReport", "Remark", "choose_labels"]
