"""Rotations, reflections and the inversion, and what they make of numbers of given irreps."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_segnn._e3nn import o3

ROTATIONS = ["rotation", "reflection", "inversion"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal_matrix(kind: str) -> Tensor:
    """Random matrix of the kind asked for, (3, 3) float64."""
    if kind == "inversion":
        return -torch.eye(3, dtype=torch.float64)
    matrix, _ = torch.linalg.qr(randn(3, 3, seed=11))
    wanted = 1.0 if kind == "rotation" else -1.0
    return matrix * (wanted * torch.linalg.det(matrix).sign())


def transform(flat: Tensor, irreps: o3.Irreps, matrix: Tensor) -> Tensor:
    """Rotate or reflect numbers of given irreps; exact, while e3nn's own matrices are so to 1e-8 only."""
    sign = torch.linalg.det(matrix).sign()
    points = randn(50, 3, seed=12)
    blocks = []
    for mul, ir in irreps:
        harmonics, rotated = (
            o3.spherical_harmonics(ir.l, x, normalize=True) for x in (points, points @ matrix.T * sign)
        )
        block = torch.linalg.lstsq(harmonics, rotated).solution
        blocks += [block if ir.p == 1 else block * sign] * mul
    return flat @ torch.block_diag(*blocks)
