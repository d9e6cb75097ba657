"""Spherical harmonics against e3nn's."""

from __future__ import annotations

import pytest
import torch

from ase_segnn._e3nn import o3
from ase_segnn.model.angular import SphericalHarmonics


def directions(n: int = 40) -> torch.Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([vectors, torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("l_max", range(7))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_harmonics_equal_those_of_e3nn(l_max: int, dtype: torch.dtype, tolerance: float) -> None:
    irreps = o3.Irreps.spherical_harmonics(l_max)
    expected = o3.spherical_harmonics(irreps, directions(), normalize=False, normalization="component")
    result = SphericalHarmonics(l_max).to(dtype)(directions().to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.to(torch.float64), expected, rtol=0, atol=tolerance)


def test_harmonics_differentiate_twice() -> None:
    harmonics = SphericalHarmonics(3).double()
    points = directions(4)[:4].requires_grad_()
    assert torch.autograd.gradcheck(harmonics, points)
    assert torch.autograd.gradgradcheck(harmonics, points)
