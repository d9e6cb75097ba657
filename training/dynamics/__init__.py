"""Dynamical systems of the SEGNN paper: charged and gravitating particles, of which a network predicts the future."""

from .datasets import INPUT_FRAME, TARGET_FRAME, charged_dataset, gravity_dataset, nearest_neighbor_edges
from .network import ParticleNetwork, load_network
from .recipe import DynamicsRecipe
from .run import DynamicsResult, run_dynamics
from .simulators import ChargedSystem, ChargedTrajectories, GravitySystem, GravityTrajectories, PublishedChargedSystem

__all__ = [
    "INPUT_FRAME",
    "TARGET_FRAME",
    "ChargedSystem",
    "ChargedTrajectories",
    "DynamicsRecipe",
    "DynamicsResult",
    "GravitySystem",
    "GravityTrajectories",
    "ParticleNetwork",
    "PublishedChargedSystem",
    "charged_dataset",
    "gravity_dataset",
    "load_network",
    "nearest_neighbor_edges",
    "run_dynamics",
]
