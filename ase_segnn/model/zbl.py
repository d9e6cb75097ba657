"""Screened repulsion of nuclei (ZBL), which keeps atoms apart at distances below the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase import units
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.model.constants import ModuleWithConstants
from ase_segnn.model.radial import polynomial_envelope

SCREENING_FACTORS = (0.18175, 0.50986, 0.28022, 0.02817)
SCREENING_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)
ENVELOPE_POWER = 6
MARGIN = 0.8  # of the shortest distances; networks are good somewhat beyond their data, and hotter frames come closer
_COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi epsilon_0) in eV Å


def pair_name(number: int, other: int) -> str:
    """Return the name of a pair of elements, the lighter one first: "H-C"."""
    return "-".join(chemical_symbols[z] for z in sorted((number, other)))


def usual_end(number: int, other: int) -> float:
    """Sum of the covalent radii of two elements, Å."""
    return float(covalent_radii[number] + covalent_radii[other])


def ends_below(shortest: Mapping[str, float]) -> dict[str, float]:
    """Return the ends of the repulsion, Å, that leave distances alone that are somewhat shorter than some.

    An end is 0.8 of the shortest distance of the pair. Pairs whose usual end is smaller are left out.

    Parameters
    ----------
    shortest : Å, by name of a pair
    """
    usual = {pair: usual_end(*(atomic_numbers[symbol] for symbol in pair.split("-"))) for pair in shortest}
    return {pair: MARGIN * distance for pair, distance in shortest.items() if MARGIN * distance < usual[pair]}


def nearest(lengths: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Return the smaller length of each pair that one or both name."""
    both = {**others, **lengths}
    return {pair: min(length, others.get(pair, length)) for pair, length in both.items()}


def by_pair(numbers: Sequence[int], given: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the lengths of all pairs of some elements, (S, S): what is given by name, else `usual_end`."""
    return np.array([[given.get(pair_name(a, b), usual_end(a, b)) for b in numbers] for a in numbers])


class ZBLRepulsion(ModuleWithConstants):
    r"""Universal potential of Ziegler, Biersack and Littmark, ended smoothly at a distance :math:`r_{ij}` per pair.

    .. math::
        V_{ij}(d) = \frac{e^2}{4 \pi \varepsilon_0} \frac{Z_i Z_j}{d} \sum_k c_k e^{-b_k d / a_{ij}}\,
                    u\!\left(\frac{d}{\min(r_{ij}, r_c)}\right), \quad
        a_{ij} = \frac{0.46850\,\text{Å}}{Z_i^{0.23} + Z_j^{0.23}}

    The envelope u is this project's addition, so that the network alone describes the energy where there are data.

    Parameters
    ----------
    numbers : atomic numbers of the S species
    cutoff : Å, largest distance of a pair
    ends : Å, by name of a pair as of `pair_name`; default: the sum of the covalent radii

    Attributes
    ----------
    pairs : (S, S, 3) float64: factor of 1/d in eV Å, 1/a in 1/Å, end of u in Å

    References
    ----------
    Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Solids", Pergamon, 1985.
    """

    pairs: Tensor

    def __init__(self, numbers: list[int], cutoff: float, ends: Mapping[str, float] | None = None) -> None:
        super().__init__()
        z = np.array(numbers, dtype=np.float64)
        factors = _COULOMB * np.multiply.outer(z, z)
        per_length = np.add.outer(z**0.23, z**0.23) / 0.46850
        pairs = np.stack([factors, per_length, np.minimum(by_pair(numbers, ends or {}), cutoff)], axis=-1)
        self.register_constant("pairs", pairs, always_float64=True)

    def forward(self, distances: Tensor, species_i: Tensor, species_j: Tensor) -> Tensor:
        """Return the energy of each pair, (E,) float64 eV, from distances (E,) float64 Å and species indices (E,)."""
        factor, per_length, end = self.pairs[species_i, species_j].unbind(1)
        reduced = per_length * distances
        screening = sum(
            (c * torch.exp(-b * reduced) for c, b in zip(SCREENING_FACTORS, SCREENING_EXPONENTS, strict=True)),
            start=torch.zeros_like(distances),
        )
        return factor / distances * screening * polynomial_envelope(distances / end, 1.0, ENVELOPE_POWER)
