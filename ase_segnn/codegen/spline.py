r"""Quintic splines on equal intervals, for tables of smooth functions.

On the interval from k h to (k + 1) h, with d = (k + u) h,

.. math:: f(d) = \sum_{m=0}^{5} c_{k+m} B_m(u),

where B are the six pieces of the uniform B-spline of degree five. Such a spline has four continuous derivatives, and
interpolates smooth functions with an error of order h^6 (de Boor, A Practical Guide to Splines, Springer 1978).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

# Coefficients of 1, u, ..., u^5 in each of the six pieces.
BASIS = [
    [power / 120 for power in powers]
    for powers in [
        [1, -5, 10, -10, 5, -1],
        [26, -50, 20, 20, -20, 5],
        [66, 0, -60, 0, 30, -10],
        [26, 50, 20, -20, -20, 10],
        [1, 5, 10, 10, 5, -5],
        [0, 0, 0, 0, 0, 1],
    ]
]
# Knots beyond both ends: what is assumed outside of them fades by 0.43 per knot on the way to the ends.
_MARGIN = 48


def spline_coefficients(
    function: Callable[[Tensor], Tensor], length: float, n_intervals: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Coefficients of the spline that equals functions at the ends of all intervals between 0 and `length`.

    Parameters
    ----------
    function : (n,) float64 -> (n, ...), smooth also a little below 0 and beyond `length`
    length : of all intervals together, positive
    n_intervals : at least 1
    device : of the functions

    Returns
    -------
    (n_intervals + 5, ...), can be differentiated by what the functions depend on; interval k uses those from k to k + 5
    """
    places = torch.arange(n_intervals + 1 + 2 * _MARGIN, dtype=torch.float64, device=device) - _MARGIN
    values = function(places * (length / n_intervals))
    coefficients = _from_values(n_intervals).to(values) @ values.flatten(1)
    return coefficients.reshape(-1, *values.shape[1:])


@cache
def _from_values(n_intervals: int) -> Tensor:
    """Return the matrix from values at all knots to coefficients."""
    n = n_intervals + 1 + 2 * _MARGIN
    # five neighboring coefficients make the value at a knot, so the matrix has five diagonals
    diagonals = np.repeat([[piece[0]] for piece in BASIS[:5]], n, axis=1)
    solved = solve_banded((2, 2), diagonals, np.eye(n))
    return torch.from_numpy(solved[_MARGIN - 2 : _MARGIN + n_intervals + 3])
