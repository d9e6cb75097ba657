"""Irreducible representations of O(3), written as e3nn writes them, such as 64x0e+64x1o.

A network is built from these alone. The classes of e3nn equal them, but to import `e3nn.o3` takes seconds, in which
torch's compiler and sympy are imported.
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
        """Whether the product of this irrep with another one holds a third."""
        return abs(self.l - other.l) <= product.l <= self.l + other.l and product.p == self.p * other.p

    def __repr__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


class MulIrrep(NamedTuple):
    """Channels of one irrep."""

    mul: int
    ir: Irrep

    def __repr__(self) -> str:
        return f"{self.mul}x{self.ir}"


class Irreps(tuple[MulIrrep, ...]):
    """Channels of several irreps, in an order.

    Parameters
    ----------
    irreps : text, pairs of a number of channels and an irrep (itself text or degree and parity), or irreps of e3nn

    Raises
    ------
    ValueError
        If they are none of that.

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
        """Those of the spherical harmonics up to a degree.

        >>> Irreps.spherical_harmonics(2)
        1x0e+1x1o+1x2e
        """
        return cls([(1, (degree, (-1) ** degree)) for degree in range(l_max + 1)])

    @property
    def dim(self) -> int:
        """Number of components of all channels."""
        return sum(mul * ir.dim for mul, ir in self)

    def slices(self) -> list[slice]:
        """Where the components of each entry are in e3nn's flat layout."""
        ends, end = [], 0
        for mul, ir in self:
            end += mul * ir.dim
            ends.append(slice(end - mul * ir.dim, end))
        return ends

    def merged(self) -> Irreps:
        """Sort by degree and parity, join equal irreps, leave out those without a channel."""
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
