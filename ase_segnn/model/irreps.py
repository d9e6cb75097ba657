"""Irreducible representations of O(3) in the notation of e3nn, such as 64x0e+64x1o.

The classes equal those of e3nn. Networks use these, because importing `e3nn.o3` also imports torch's compiler and
sympy, which takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_ENTRY = re.compile(r"(?:(\d+)\s*x\s*)?(\d+)([eo])")


class Irrep(NamedTuple):
    """One irreducible representation, of degree l and parity p.

    >>> Irrep(1, -1), Irrep(1, -1).dim
    (1o, 3)
    """

    l: int  # noqa: E741  # its name in every formula
    p: int

    @property
    def dim(self) -> int:
        """Number of components, 2 l + 1."""
        return 2 * self.l + 1

    def couples(self, other: Irrep, product: Irrep) -> bool:
        """Whether the product of this irrep with `other` contains `product`."""
        return abs(self.l - other.l) <= product.l <= self.l + other.l and product.p == self.p * other.p

    def __repr__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


class MulIrrep(NamedTuple):
    """Channels of one irrep: 64 of 1o are 64x1o."""

    mul: int
    ir: Irrep

    def __repr__(self) -> str:
        return f"{self.mul}x{self.ir}"


class Irreps(tuple[MulIrrep, ...]):
    """Channels of several irreps, in order, such as those of a feature.

    Parameters
    ----------
    irreps : text; or pairs of a number of channels and an irrep, which is text or a degree and a parity; or irreps of
        e3nn

    Raises
    ------
    ValueError
        If a text is no list of irreps.

    Examples
    --------
    >>> irreps = Irreps("2x1o + 4x0e")
    >>> irreps, irreps.dim, irreps.slices(), irreps.merged()
    (2x1o+4x0e, 10, [slice(0, 6, None), slice(6, 10, None)], 4x0e+2x1o)
    """

    __slots__ = ()

    def __new__(cls, irreps: str | Iterable[tuple[int, str | tuple[int, int]]] = ()) -> Irreps:
        """Parse text, or convert pairs."""
        if isinstance(irreps, str):
            return super().__new__(cls, [_entry(part, irreps) for part in irreps.split("+")] if irreps.strip() else [])
        return super().__new__(cls, [MulIrrep(mul, _irrep(ir)) for mul, ir in irreps])

    @classmethod
    def spherical_harmonics(cls, l_max: int) -> Irreps:
        """Irreps of the spherical harmonics up to a degree.

        >>> Irreps.spherical_harmonics(2)
        1x0e+1x1o+1x2e
        """
        return cls([(1, (degree, (-1) ** degree)) for degree in range(l_max + 1)])

    @property
    def dim(self) -> int:
        """Number of components of all channels."""
        return sum(mul * ir.dim for mul, ir in self)

    def slices(self) -> list[slice]:
        """Return the slice of each entry in e3nn's flat layout."""
        ends, end = [], 0
        for mul, ir in self:
            end += mul * ir.dim
            ends.append(slice(end - mul * ir.dim, end))
        return ends

    def merged(self) -> Irreps:
        """Return irreps sorted by degree and parity, with equal ones joined and empty ones left out."""
        kinds = sorted({ir for mul, ir in self if mul > 0})
        return Irreps([(sum(mul for mul, other in self if other == ir), ir) for ir in kinds])

    def __add__(self, other: tuple[MulIrrep, ...]) -> Irreps:  # type: ignore[override]
        return Irreps([*self, *other])

    def __repr__(self) -> str:
        return "+".join(map(repr, self))


def _entry(part: str, text: str) -> MulIrrep:
    match = _ENTRY.fullmatch(part.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a list of irreps, such as '64x0e+32x1o'")
    mul, degree, parity = match.groups(default="1")
    return MulIrrep(int(mul), Irrep(int(degree), 1 if parity == "e" else -1))


def _irrep(irrep: str | tuple[int, int]) -> Irrep:
    if isinstance(irrep, str):
        return _entry(irrep, irrep).ir
    degree, parity = irrep
    return Irrep(degree, parity)
