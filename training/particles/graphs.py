"""Trajectories as graphs, with the targets of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .datasets import FRAMES_AHEAD, INPUT_FRAME, nearest_neighbor_edges
from .simulators import ChargedTrajectories, GravityTrajectories, Trajectories


@dataclass(frozen=True, eq=False)
class ParticleGraphs:
    """B graphs of n particles each, with k neighbors of each particle; all in float32.

    Parameters
    ----------
    positions, velocities : (B, n, 3)
    strengths : (B, n), charges or masses
    neighbors : (B, n, k) int64, numbers of particles of the same graph
    targets : (B, n, 3), displacements or forces
    frames : (B,) int64, indices of the trajectories
    """

    positions: Tensor
    velocities: Tensor
    strengths: Tensor
    neighbors: Tensor
    targets: Tensor
    frames: Tensor

    def n_labels(self) -> Tensor:
        """Return the number of components of the targets, (1,) float64."""
        return torch.tensor([self.targets.numel()], dtype=torch.float64, device=self.targets.device)

    def to(self, device: torch.device | str) -> ParticleGraphs:
        """Return the same graphs on a device."""
        return ParticleGraphs(*(tensor.to(device) for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return list(vars(self).values())

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> ParticleGraphs:
        """Make graphs of the tensors that `tensors` returned."""
        return cls(*tensors)


class ParticleSet(Dataset[ParticleGraphs]):
    """All graphs of a set of trajectories.

    Parameters
    ----------
    trajectories : with the frames that are needed
    target : "positions" for the displacement from an input frame to the one `FRAMES_AHEAD`; of gravity also "forces" in
        the former or "later_forces" in the latter
    n_neighbors : link each particle to its nearest ones; None links all
    input_frames : each trajectory is as many graphs
    both_ways : add each trajectory once more as it looks backwards in time, from the second frame with velocities
        turned around to the first; the laws of motion are the same
    """

    def __init__(
        self,
        trajectories: Trajectories,
        target: str,
        n_neighbors: int | None,
        *,
        input_frames: Sequence[int] = (INPUT_FRAME,),
        both_ways: bool = False,
    ) -> None:
        spans = [(trajectories.index(frame), trajectories.index(frame + FRAMES_AHEAD)) for frame in input_frames]
        ways = [(now, then, 1.0) for now, then in spans]
        if both_ways:
            ways += [(then, now, -1.0) for now, then in spans]
        positions = np.concatenate([trajectories.positions[:, start] for start, _, _ in ways])
        velocities = np.concatenate([sign * trajectories.velocities[:, start] for start, _, sign in ways])
        n_graphs, n_particles, _ = positions.shape
        if target == "positions":
            targets = np.concatenate([trajectories.positions[:, end] for _, end, _ in ways]) - positions
        else:
            assert isinstance(trajectories, GravityTrajectories)
            frames = [start if target == "forces" else end for start, end, _ in ways]
            targets = np.concatenate([trajectories.forces[:, frame] for frame in frames])
        if isinstance(trajectories, ChargedTrajectories):
            strengths = np.concatenate([trajectories.charges for _ in ways])
        else:
            strengths = np.ones((n_graphs, n_particles))
        if n_neighbors is None:
            others = np.nonzero(~np.eye(n_particles, dtype=bool))[1].reshape(n_particles, n_particles - 1)
            neighbors: NDArray[np.int64] = np.broadcast_to(others, (n_graphs, *others.shape))
        else:
            _, edges = nearest_neighbor_edges(positions, n_neighbors)
            first = n_particles * np.arange(n_graphs)[:, None, None]
            neighbors = edges.reshape(n_graphs, n_particles, n_neighbors) - first
        self._graphs = ParticleGraphs(
            positions=_tensor(positions),
            velocities=_tensor(velocities),
            strengths=_tensor(strengths),
            neighbors=torch.from_numpy(neighbors.copy()),
            targets=_tensor(targets),
            frames=torch.arange(n_graphs),
        )

    def __len__(self) -> int:
        return len(self._graphs.frames)

    def __getitem__(self, indices: Sequence[int]) -> ParticleGraphs:
        """Return some of the graphs."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ParticleGraphs(*(tensor[chosen] for tensor in self._graphs.tensors()))

    @property
    def targets_rms(self) -> float:
        """Root mean square of the components of all targets."""
        return float(self._graphs.targets.double().square().mean().sqrt())

    def in_parts(self, size: int) -> Iterator[ParticleGraphs]:
        """Go through all graphs, some at a time."""
        return (self[range(first, min(first + size, len(self)))] for first in range(0, len(self), size))


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).to(torch.float32)
