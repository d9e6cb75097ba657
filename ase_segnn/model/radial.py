"""Functions of the distance: the radial basis of messages, and the envelope that fades messages out at the cutoff."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polynomial_envelope(distances: Tensor, cutoff: float, p: int = 6) -> Tensor:
    r"""Fade from 1 at zero to 0 at the cutoff, with two continuous derivatives there.

    .. math:: u(x) = 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2) x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}, \quad x = d / r_c

    Parameters
    ----------
    distances : (...) Å
    cutoff : Å, positive
    p : at least 3

    Returns
    -------
    (...) dimensionless; exactly 0 at and beyond `cutoff`

    References
    ----------
    Gasteiger, Groß, Günnemann, ICLR 2020, arXiv:2003.03123, eq. 8.
    """
    x = distances / cutoff
    polynomial = 1 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * p * (p + 1) / 2))
    return torch.where(x < 1, polynomial, torch.zeros_like(x))


def bessel_basis(distances: Tensor, cutoff: float, n_basis: int) -> Tensor:
    r"""Spherical Bessel functions of order zero that vanish at the cutoff.

    .. math:: b_n(d) = \sqrt{2 / r_c}\, \sin(n \pi d / r_c) / d, \quad n = 1 \dots n_\text{basis}

    Parameters
    ----------
    distances : (E,) Å, positive
    cutoff : Å, positive
    n_basis : number of functions

    Returns
    -------
    (E, n_basis) in Å^(-3/2), orthonormal between 0 and the cutoff with the weight d²

    References
    ----------
    Gasteiger, Groß, Günnemann, ICLR 2020, arXiv:2003.03123, eq. 7.
    """
    orders = torch.arange(1, n_basis + 1, dtype=distances.dtype, device=distances.device)
    distances = distances[:, None]
    return math.sqrt(2 / cutoff) * torch.sin(orders * (math.pi / cutoff) * distances) / distances
