"""Dynamical systems of the SEGNN paper: charged and gravitating particles, of which a network predicts the future."""

from .datasets import INPUT_FRAME, TARGET_FRAME, charged_dataset, gravity_dataset, nearest_neighbor_edges
from .simulators import ChargedSystem, ChargedTrajectories, GravitySystem, GravityTrajectories

__all__ = [
    "INPUT_FRAME",
    "TARGET_FRAME",
    "ChargedSystem",
    "ChargedTrajectories",
    "GravitySystem",
    "GravityTrajectories",
    "charged_dataset",
    "gravity_dataset",
    "nearest_neighbor_edges",
]
