"""Particle systems of the SEGNN paper: a network predicts the motion of charged or gravitating particles."""

from .datasets import INPUT_FRAME, TARGET_FRAME, charged_dataset, gravity_dataset, nearest_neighbor_edges
from .network import ParticleNetwork, load_network
from .recipe import ParticleRecipe
from .run import ParticleResult, run_particles
from .simulators import ChargedSystem, ChargedTrajectories, GravitySystem, GravityTrajectories, PublishedChargedSystem

__all__ = [
    "INPUT_FRAME",
    "TARGET_FRAME",
    "ChargedSystem",
    "ChargedTrajectories",
    "GravitySystem",
    "GravityTrajectories",
    "ParticleNetwork",
    "ParticleRecipe",
    "ParticleResult",
    "PublishedChargedSystem",
    "charged_dataset",
    "gravity_dataset",
    "load_network",
    "nearest_neighbor_edges",
    "run_particles",
]
