"""The data of a run: frames with labels, their graphs on disk, and how they are divided and batched."""

from .frames import LABEL_OPTIONS, Frame, tell_labels
from .reference_energies import least_squares_energies
from .store import FrameStore
from .subset import Subset, whole
from .training_data import TrainingData, read_store

__all__ = [
    "LABEL_OPTIONS",
    "Frame",
    "FrameStore",
    "Subset",
    "TrainingData",
    "least_squares_energies",
    "read_store",
    "tell_labels",
    "whole",
]
