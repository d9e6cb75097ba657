"""Functions of the distance: the radial basis of messages, their envelope, and what both see of close atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Range in which distances stop to be seen, in shortest distances. Bonds come to 0.95 where dynamics is twice as hot.
START, END = 0.9, 0.6


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


def seen_distances(distances: Tensor, shortest: Tensor) -> Tensor:
    r"""Return the distances that a network sees: the true ones somewhat beyond its training, then hardly less.

    .. math:: s(d) = d + w \left(\max(0, x - 1) + \bar x^3 - \tfrac12 \bar x^4\right), \quad
              x = \frac{0.9\,r - d}{w}, \quad w = 0.3\,r, \quad \bar x = \min(\max(x, 0), 1)

    So s is d from 0.9 r on and 0.75 r up to 0.6 r, with two continuous derivatives. This is the project's own: networks
    extrapolate without bounds, and below 0.6 r nothing of that is left in the force between two atoms.

    Parameters
    ----------
    distances : (E,) Å
    shortest : (E,) Å, the shortest distance r in training, of each pair
    """
    width = (START - END) * shortest
    x = ((START * shortest - distances) / width).clamp(min=0)
    over = (x - 1).clamp(min=0)
    x = x - over
    return distances + width * (over + x**3 * (1 - x / 2))
