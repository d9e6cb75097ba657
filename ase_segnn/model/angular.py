"""Functions of the direction: real spherical harmonics, the attributes of edges."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.wigner import wigner_3j


class SphericalHarmonics(ModuleWithConstants):
    r"""Real spherical harmonics of unit vectors up to a degree, in e3nn's order, signs and "component" normalization.

    .. math:: Y_0 = 1, \quad Y_1 = \sqrt 3\,\mathbf n, \quad
        Y_{l+1,m_3} = k_l \sum_{m_1 m_2} C^{l\,1\,l+1}_{m_1 m_2 m_3} Y_{l,m_1} n_{m_2}, \quad
        k_l = \sqrt{\frac{2l+3}{2l+1}} \Big/ C^{l\,1\,l+1}_{000}

    Equal to ``e3nn.o3.spherical_harmonics``. Use this module where torch traces with sizes that vary: in some releases
    of e3nn the function is TorchScript and cannot be traced so. The constant k follows from the y axis, the polar axis
    of e3nn, along which only components with m = 0 are not zero.

    Parameters
    ----------
    l_max : highest degree
    """

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        for degree in range(2, l_max + 1):
            symbols = wigner_3j(degree - 1, 1, degree)
            factor = math.sqrt((2 * degree + 1) / (2 * degree - 1)) / symbols[degree - 1, 1, degree]
            self.register_constant(f"coupling_{degree}", factor * symbols.reshape(-1, 2 * degree + 1))

    def forward(self, directions: Tensor) -> Tensor:
        """Map unit vectors (n, 3) to (n, (l_max + 1)²)."""
        harmonics = [torch.ones_like(directions[:, :1]), *[math.sqrt(3) * directions] * (self.l_max > 0)]
        for degree in range(2, self.l_max + 1):
            harmonics.append(_outer(harmonics[-1], directions) @ getattr(self, f"coupling_{degree}"))
        return torch.cat(harmonics, dim=1)

    def coupling(self, degree: int) -> NDArray[np.float64]:
        """Return k C of the step to a degree of 2 or more.

        Returns
        -------
        (3 (2 degree - 1), 2 degree + 1), rows (m1, m2), columns m3
        """
        return self._constants[f"coupling_{degree}"][0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Products of all components: (n, I) and (n, J) give (n, I*J)."""
    return (a[:, :, None] * b[:, None, :]).flatten(1)
