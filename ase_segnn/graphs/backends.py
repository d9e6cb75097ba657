"""One function for each backend of the neighbor search; `ase_segnn.graphs.neighbors` says which to use when.

Each returns centers, neighbors and cell shifts in any order, and may find pairs somewhat farther apart than the cutoff.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ase_segnn.graphs.cells import Bools, Floats, Integers, cell_inverse, in_box, round_shifts

BACKENDS = ("matscipy", "vesin", "torch-cluster", "brute-force")

# matscipy makes bins as wide as the cutoff, which in a large vacuum would be slow and fill the memory.
_MAX_BINS = 1_000_000
# torch-cluster takes memory for this many neighbors of every atom, more if it turns out that they do not suffice.
CLUSTER_NEIGHBORS = 64


def matscipy_pairs(x: Floats, h: Floats, periodic: Bools, cutoff: float) -> tuple[Integers, Integers, Integers]:
    """Wrap the atoms into a box, periodic where the structure is and around all atoms elsewhere, and ask matscipy."""
    from matscipy.neighbours import neighbour_list

    if len(x) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    inside, box, outside = in_box(x, h, periodic)
    # a wider search needs fewer bins, and what is too far is dropped later
    widths = (1 / np.linalg.norm(np.linalg.inv(box), axis=0)).tolist()
    while math.prod(max(width / cutoff, 1.0) for width in widths) > _MAX_BINS:
        cutoff *= 1.5
    i, j, s = neighbour_list("ijS", positions=inside, cell=box, pbc=periodic, cutoff=cutoff)
    return i.astype(np.int64), j.astype(np.int64), s + outside[i] - outside[j]


def vesin_pairs(
    x: Floats, h: Floats, periodic: Bools, cutoff: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Wrap the atoms into the same box, and ask vesin, on the device.

    Raises
    ------
    ImportError
        If vesin is not installed.
    """
    try:
        from vesin import NeighborList
    except ImportError as error:
        raise ImportError(
            "the backend 'vesin' needs the package vesin: pip install \"ase-segnn[vesin]\"; or use the backend "
            "'matscipy'"
        ) from error
    if len(x) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty, empty.new_zeros(0, 3)
    inside, box, outside = in_box(x, h, periodic)
    points, vectors, wrapped = (torch.tensor(array, device=device) for array in (inside, box, outside))
    search = NeighborList(cutoff=cutoff, full_list=True)
    i, j, s = search.compute(points, vectors, torch.tensor(periodic, device=device), "ijS")
    i, j, s = i.to(torch.int64), j.to(torch.int64), s.to(torch.int64)
    return i, j, s + wrapped[i] - wrapped[j]


def brute_force_pairs(x: Floats, h: Floats, periodic: Bools, cutoff: float) -> tuple[Integers, Integers, Integers]:
    """Try, for each pair, every cell shift near the one that brings the two atoms next to each other.

    With b the reciprocal vectors (columns of the pseudo-inverse of h), a pair vector r of length below the cutoff has
    ``|r · b_k| <= cutoff · |b_k|``, and r · b_k differs from S_k by the fractional coordinates of the two atoms.
    """
    nearest = round_shifts(np.rint, x[:, None] - x[None, :], h, periodic)  # (N, N, 3)
    reach = np.ceil(cutoff * np.linalg.norm(cell_inverse(h, periodic), axis=0) + 0.5).astype(int)
    ranges = [range(-n, n + 1) if is_periodic else range(1) for n, is_periodic in zip(reach, periodic, strict=True)]
    found = []
    for step in itertools.product(*ranges):
        shifts = nearest + np.array(step)
        close = np.linalg.norm(x[None, :] - x[:, None] + shifts @ h, axis=-1) < cutoff
        if step == (0, 0, 0):
            np.fill_diagonal(close, val=False)
        i, j = np.nonzero(close)
        found.append((i, j, shifts[i, j]))
    centers, neighbors, cell_shifts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return centers, neighbors, cell_shifts


def torch_cluster_pairs(x: Floats, cutoff: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Search without periodicity, on the device.

    torch-cluster leaves out neighbors, without a word, of atoms that have more than it was told to keep. So the search
    is repeated with room for more until no atom fills it.

    Raises
    ------
    ImportError
        If torch-cluster is not installed.
    """
    try:
        from torch_cluster import radius
    except ImportError as error:
        raise ImportError(
            "the backend 'torch-cluster' needs the package torch-cluster, which is compiled during installation: "
            "pip install --no-build-isolation \"ase-segnn[cluster]\"; or use the backend 'matscipy'"
        ) from error
    n_atoms = len(x)
    if n_atoms == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty
    points = torch.tensor(x, device=device)
    room = min(CLUSTER_NEIGHBORS, n_atoms)
    while True:
        centers, neighbors = radius(points, points, cutoff, max_num_neighbors=room)  # each atom finds itself, too
        if room == n_atoms or int(torch.bincount(centers).max()) < room:
            break
        room = min(4 * room, n_atoms)
    distinct = centers != neighbors
    return centers[distinct], neighbors[distinct]
