"""Splines of smooth functions: how close they are, and how fast they get closer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ase_segnn.codegen.spline import BASIS, spline_coefficients
from ase_segnn.model.radial import bessel_basis

LENGTH = 5.0


def functions(x: Tensor) -> Tensor:
    return torch.cat([bessel_basis(x.where(x.detach() != 0, 1e-9), LENGTH, 8), torch.exp(-x)[:, None]], dim=1)


def evaluate(coefficients: Tensor, x: Tensor) -> Tensor:
    """Value by the formula of the module's docstring."""
    n_intervals = len(coefficients) - 5
    position = x / LENGTH * n_intervals
    k = position.long().clamp(max=n_intervals - 1)
    u = position - k
    powers = torch.stack([u**p for p in range(6)], dim=1)
    pieces = powers @ torch.tensor(BASIS, dtype=torch.float64).T  # (n, 6)
    return torch.einsum("nm,nmf->nf", pieces, coefficients[k[:, None] + torch.arange(6)])


def error(n_intervals: int, *, slope: bool = False) -> float:
    x = torch.linspace(0, LENGTH, 997, dtype=torch.float64, requires_grad=True)
    coefficients = spline_coefficients(functions, LENGTH, n_intervals)
    difference = evaluate(coefficients, x) - functions(x)
    if slope:
        slopes = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0][1:] for column in difference.T]
        difference = torch.stack(slopes)
    return difference.abs().max().item()


def test_shape_and_sum_of_the_pieces() -> None:
    assert spline_coefficients(functions, LENGTH, 10).shape == (15, 9)
    torch.testing.assert_close(torch.tensor(BASIS, dtype=torch.float64).sum(0), torch.eye(6, dtype=torch.float64)[0])


@pytest.mark.parametrize(("n_intervals", "bound"), [(128, 1e-7), (1024, 1e-12)])
def test_errors_are_below_rounding(n_intervals: int, bound: float) -> None:
    """Of eight Bessel functions up to 10 Å^(-3/2), with the intervals of float32 and float64."""
    assert error(n_intervals) < bound
    assert error(n_intervals, slope=True) < 100 * bound


def test_errors_fall_as_the_sixth_power() -> None:
    assert error(64) / error(128) == pytest.approx(2**6, rel=0.3)
