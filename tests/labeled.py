"""Labeled structures, stores and recipes for the tests of training; labels come from a pair potential."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.training import Recipe
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.data.frames import Frame
from ase_segnn.training.data.store import FrameStore

NETWORK = NetworkConfig(
    cutoff=4.0, irreps_hidden="6x0e+3x1o", l_max_attributes=1, n_layers=1, n_radial=4, correlation=1
)


def labeled_clusters(n_frames: int = 12, seed: int = 0) -> list[Atoms]:
    """Small clusters of argon and neon of several sizes, labeled by a Lennard-Jones potential."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(n_frames):
        n_atoms = 3 + index % 3
        grid = np.array([[0, 0, 0], [2.6, 0, 0], [0, 2.6, 0], [0, 0, 2.6], [2.6, 2.6, 0]])[:n_atoms]
        atoms = Atoms(["Ar", "Ne"] * 3, np.zeros((6, 3)))[:n_atoms]
        atoms.positions = grid + rng.normal(0, 0.1, (n_atoms, 3))
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        atoms.get_forces()
        frames.append(atoms)
    return frames


def labeled_crystals(n_frames: int = 8) -> list[Atoms]:
    """Strained crystals of argon and neon in cells of two sizes, labeled with stresses as well."""
    rng = np.random.default_rng(3)
    frames = []
    for index in range(n_frames):
        atoms = bulk("Ar", "fcc", a=3.6, cubic=True) * (1 + index % 2, 1, 1)
        atoms.symbols[::2] = "Ne"
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        atoms.get_stress()
        frames.append(atoms)
    return frames


def write_frames(path: Path, frames: Sequence[Atoms]) -> Path:
    """Write an extended-xyz file and return its path."""
    ase.io.write(path, frames)
    return path


def store_of(frames: Sequence[Atoms], folder: Path) -> FrameStore:
    """Store frames with graphs of the cutoff of `NETWORK`."""
    named = (Frame.from_atoms(atoms, f"frame {index}") for index, atoms in enumerate(frames))
    return FrameStore.build(folder / f"{len(frames)}-{len(frames[0])}.frames", named, NETWORK.cutoff)


def graphs_of(frames: Sequence[Atoms], folder: Path) -> list[LabeledGraph]:
    """Graphs of frames with their labels."""
    store = store_of(frames, folder)
    return [store.labeled_graph(index) for index in range(len(store))]


def tiny_potential(seed: int = 0, network: NetworkConfig = NETWORK) -> Potential:
    """Potential of neon and argon in float64 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(
            PotentialConfig(
                elements=("Ne", "Ar"), reference_energies={"Ne": -1.0, "Ar": -2.0}, average_neighbors=3, network=network
            )
        ).double()


def recipe_for(path: Path, **changes: Any) -> Recipe:
    """Recipe of a short run on the frames of a file; sections of `changes` change only what they name."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "data": {
            "train": path.name,
            "folder": str(path.parent),
            "cache": str(path.parent / "cache"),
            "validation": 3,
            "test": {"all": path.name},
        },
        "network": NETWORK.model_dump(),
        "optimization": {
            "epochs": 4,
            "batch_edges": 50,  # about four clusters
            "muon_learning_rate": 0.02,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "weight_decay": 0.0,
            "ema_decay": 0.5,
        },
        "validate_every": 1,
        "device": "cpu",
        "compile": False,
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    return Recipe.model_validate(raw)
