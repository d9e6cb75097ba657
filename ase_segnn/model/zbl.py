"""Screened repulsion of two nuclei, which keeps atoms apart where no training data reach."""

from __future__ import annotations

import numpy as np
import torch
from ase import units
from ase.data import covalent_radii
from torch import Tensor

from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.radial import polynomial_envelope

_COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi epsilon_0) in eV Å
_COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)


class ZBLRepulsion(ModuleWithConstants):
    r"""Universal potential of Ziegler, Biersack and Littmark, ended smoothly at the sum of the covalent radii.

    .. math::
        V_{ij}(d) = \frac{e^2}{4 \pi \varepsilon_0} \frac{Z_i Z_j}{d} \sum_k c_k e^{-b_k d / a_{ij}}\,
                    u\!\left(\frac{d}{\min(R_i + R_j, r_c)}\right), \quad
        a_{ij} = \frac{0.46850\,\text{Å}}{Z_i^{0.23} + Z_j^{0.23}}

    The envelope u is this project's addition: at bond lengths the network alone describes the energy.

    Parameters
    ----------
    numbers : atomic numbers of the species
    cutoff : Å, beyond which there are no pairs

    References
    ----------
    Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Solids", Pergamon, 1985.
    """

    numbers: Tensor
    radii: Tensor

    def __init__(self, numbers: list[int], cutoff: float) -> None:
        super().__init__()
        self._cutoff = cutoff
        self.register_constant("numbers", np.array(numbers, dtype=np.float64), always_float64=True)
        self.register_constant("radii", covalent_radii[numbers], always_float64=True)

    def forward(self, distances: Tensor, species_i: Tensor, species_j: Tensor) -> Tensor:
        """Energy per pair, (E,) float64 eV, for distances (E,) float64 Å and indices (E,) into `numbers`."""
        z_i, z_j = self.numbers[species_i], self.numbers[species_j]
        reduced = distances * (z_i**0.23 + z_j**0.23) / 0.46850
        screening = sum(
            (c * torch.exp(-b * reduced) for c, b in zip(_COEFFICIENTS, _EXPONENTS, strict=True)),
            start=torch.zeros_like(distances),
        )
        end = (self.radii[species_i] + self.radii[species_j]).clamp(max=self._cutoff)
        return _COULOMB * z_i * z_j / distances * screening * polynomial_envelope(distances / end, 1.0)
