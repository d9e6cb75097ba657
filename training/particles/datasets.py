"""Data sets of simulated trajectories, cached in files, and the neighbors that link their particles."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ase_segnn.caches import Cache
from ase_segnn.files import written_whole

from .simulators import (
    N_FRAMES,
    ChargedSystem,
    ChargedTrajectories,
    GravitySystem,
    GravityTrajectories,
    Trajectories,
)

INPUT_FRAME = 30
FRAMES_AHEAD = 10  # 1000 time steps
TARGET_FRAME = INPUT_FRAME + FRAMES_AHEAD

_RULES = 1  # version of the simulations: a change of their numbers needs a new one, so that old files are not taken
_SPLITS = ("train", "validation", "test")
_logger = logging.getLogger(__name__)
_Kind = TypeVar("_Kind", bound=Trajectories)


def charged_dataset(
    folder: Path,
    *,
    seed: int,
    n_train: int = 3000,
    n_validation: int = 2000,
    n_test: int = 2000,
    frames: Sequence[int] = range(N_FRAMES),
    system: ChargedSystem | None = None,
) -> dict[str, ChargedTrajectories]:
    """Trajectories of charged particles, by default those of the SEGNN paper, simulated once and then read.

    What is learned is the position in `TARGET_FRAME` from positions, velocities and charges in `INPUT_FRAME`.

    Parameters
    ----------
    folder : of the files, one for each split, whose names depend on everything that decides their numbers
    seed : not negative, the splits of all seeds are independent of each other; 0 for a `PublishedChargedSystem`
    n_train, n_validation, n_test : trajectories; more of them keep the first ones, and the other splits
    frames : numbers of the frames to store, ascending
    system : what is simulated, by default a `ChargedSystem` as in the paper

    Returns
    -------
    train, validation and test

    Raises
    ------
    ValueError
        If a file is broken or of another size than its name says, or there is nothing to simulate.
    """
    system = system or ChargedSystem()
    return {
        split: _cached(folder, split, size, seed, frames, system, ChargedTrajectories)
        for split, size in zip(_SPLITS, (n_train, n_validation, n_test), strict=True)
    }


def gravity_dataset(
    folder: Path,
    *,
    seed: int,
    n_train: int = 10000,
    n_validation: int = 2000,
    n_test: int = 2000,
    frames: Sequence[int] = (INPUT_FRAME, TARGET_FRAME),
    system: GravitySystem | None = None,
) -> dict[str, GravityTrajectories]:
    """Trajectories of gravitating particles, by default those of the SEGNN paper, simulated once and then read.

    What is learned is the position or the force in `TARGET_FRAME` from positions and velocities in `INPUT_FRAME`. Only
    these two frames are stored by default, since all would take 5 GB. Parameters, results and errors are those of
    `charged_dataset`.
    """
    system = system or GravitySystem()
    return {
        split: _cached(folder, split, size, seed, frames, system, GravityTrajectories)
        for split, size in zip(_SPLITS, (n_train, n_validation, n_test), strict=True)
    }


def save(path: Path, trajectories: Trajectories) -> None:
    """Write all arrays to an ``.npz`` file, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(trajectories))


def load(path: Path, kind: type[_Kind]) -> _Kind:
    """Read what `save` has written; nothing in the file is executed.

    Raises
    ------
    ValueError
        If the file is no ``.npz`` file, or does not hold the arrays of this kind of trajectories.
    """
    names = {field.name for field in fields(kind)}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is broken: {error}; delete it to have it simulated again") from error
    if set(arrays) != names:
        raise ValueError(f"'{path}' holds {sorted(arrays)}, expected {sorted(names)}: {kind.__name__} are needed")
    return kind(**arrays)


def nearest_neighbor_edges(
    positions: NDArray[np.float64], n_neighbors: int = 6
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Link each particle to its nearest neighbors; a particle may be a neighbor of one that is no neighbor of its own.

    Parameters
    ----------
    positions : (T, n, 3), T structures of n particles; edges link particles of one structure only
    n_neighbors : k, less than n

    Returns
    -------
    center, neighbor : (T n k,) each; particle i of structure t has the number ``t * n + i``; the edges of a center are
        consecutive, the nearest neighbor first

    Raises
    ------
    ValueError
        If a structure has too few particles.
    """
    n_structures, n_particles, _ = positions.shape
    if not 1 <= n_neighbors < n_particles:
        raise ValueError(f"{n_neighbors} neighbors of each of {n_particles} particles: give 1 to {n_particles - 1}")
    centers = np.arange(n_particles)[:, None]
    neighbors = np.empty((n_structures, n_particles, n_neighbors), dtype=np.int64)
    for i, structure in enumerate(positions):
        _, found = cKDTree(structure).query(structure, k=n_neighbors + 1)
        is_center = found == centers  # not always the first: there may be others at the same place
        is_center[~is_center.any(axis=1), -1] = True
        neighbors[i] = found[~is_center].reshape(n_particles, n_neighbors)
    neighbors += n_particles * np.arange(n_structures)[:, None, None]
    return np.repeat(np.arange(n_structures * n_particles), n_neighbors), neighbors.ravel()


def _cached(
    folder: Path,
    split: str,
    size: int,
    seed: int,
    frames: Sequence[int],
    system: ChargedSystem | GravitySystem,
    kind: type[_Kind],
) -> _Kind:
    """Read the trajectories of a split; simulate and write them first if there is no file."""
    parameters = {**asdict(system), "frames": list(frames), "rules": _RULES}
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    name = type(system).__name__.removesuffix("System").lower()
    path = folder / f"{name}-{split}-{size}-seed{seed}-{digest}.npz"
    if not path.exists():
        _logger.info("simulating %d trajectories for '%s'", size, path)
        folder.mkdir(parents=True, exist_ok=True)
        save(path, system.simulate(size, len(_SPLITS) * seed + _SPLITS.index(split), frames))
    trajectories = load(path, kind)
    Cache.touch(path)
    expected = (size, len(frames), system.n_particles, 3)
    if trajectories.positions.shape != expected:
        raise ValueError(
            f"'{path}' holds positions of shape {trajectories.positions.shape}, expected {expected}; "
            "delete it to have it simulated again"
        )
    return trajectories
