"""How rules write down the steps of a program, see `ase_segnn.codegen.rules`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ase_segnn.codegen.arrays import Array, At, Rows
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.program import Product, Step, Store, loop_of
from ase_segnn.model.steerable import Path
from ase_segnn.model.wigner import wigner_3j

_ZERO = 1e-12  # of Wigner 3j symbols


class Feature(NamedTuple):
    """One entry of steerable features.

    Parameters
    ----------
    parts : per part of up to C channels, the expressions of its 2 l + 1 components
    numbers : of channels of each part; what is missing to C is filled up with channels that are zero
    mix : (n C, channels of the entry), a matrix that is still to be applied to the channels of the n parts; None if
        they are the channels of the entry
    """

    parts: list[list[int]]
    numbers: Sequence[int]
    mix: Tensor | None = None


Features = list[Feature]


def channels_of(numbers: Sequence[int]) -> int:
    """Return the C channels of all parts: the number of channels if all are equal and a multiple of 4.

    Otherwise C is the largest number, rounded up to a multiple of 8, so that vectors are long.
    """
    largest = max(numbers)
    return largest if min(numbers) == largest and largest % 4 == 0 else -(-largest // 8) * 8


def filled(matrix: Tensor, numbers: Sequence[int], channels: int) -> Tensor:
    """Fill each part of the columns (..., sum of numbers) up to C channels with zeros: (..., n C)."""
    if set(numbers) == {channels}:
        return matrix
    parts = matrix.split(list(numbers), dim=-1)
    return torch.cat([functional.pad(part, (0, channels - part.shape[-1])) for part in parts], dim=-1)


class Builder:
    """Collects steps of a program.

    What is written one after another becomes one loop over atoms, until a product or a loop along edges needs the
    result.

    Parameters
    ----------
    channels : C, of all vectors
    tape : of the expressions
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.tape = Tape()
        self.steps: list[Step] = []
        self.weights: dict[str, Tensor] = {}
        self._scope = ""
        self._pending: list[Store] = []
        self._stored: dict[tuple[tuple[int, ...], ...], Array] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Within the context, names of arrays and weights start with one more word."""
        outer, self._scope = self._scope, f"{self._scope}_{name}" if self._scope else name
        try:
            yield
        finally:
            self._scope = outer

    def numbers(self, name: str, rows: Rows, components: int = 1, *, is_double: bool = False) -> Array:
        """Return a new array of single numbers."""
        return Array(self._scope, name, rows, components, is_double=is_double)

    def vectors(self, name: str, rows: Rows, components: int, slots: int) -> Array:
        """Return a new array of some parts of C channels."""
        return Array(self._scope, name, rows, components, slots * self.channels, self.channels)

    def constant(self, array: Array, values: Tensor) -> Array:
        """Give an array of elements or of one row the numbers that it always has."""
        self.weights[array.identifier] = values
        return array

    def read(self, array: Array, slot: int = 0, at: At = "center") -> list[int]:
        """Return the components of a part."""
        return [self.tape.leaf(array.leaf(m, slot, at)) for m in range(array.components)]

    def setting(self, name: str, value: float) -> int:
        """Return a number that potentials of one shape differ in."""
        array = Array("", name, "once", 1, is_double=True)
        return self.read(self.constant(array, torch.tensor([value], dtype=torch.float64)))[0]

    def write(self, array: Array, slot: int, components: Sequence[int]) -> None:
        """Have the components of a part stored."""
        self._pending += [Store(array.leaf(m, slot), x) for m, x in enumerate(components)]

    def product(self, source: Array, name: str, matrix: Tensor, target: Array) -> None:
        """Add the product of an array with a matrix to another one."""
        self.flush()
        assert matrix.shape == (source.width, target.width)
        weight = f"{self._scope}_{name}"
        assert weight not in self.weights
        self.weights[weight] = matrix
        self.steps.append(
            Product(source, weight, target, any((target, "center") in step.writes for step in self.steps))
        )

    def edges(self, name: str, stores: Sequence[Store], below: tuple[int, int] | None = None) -> None:
        """Add a loop along edges."""
        self.flush()
        self.steps.append(loop_of(self.tape, name, "edges", stores, below))

    def flush(self) -> None:
        """Make a loop over atoms of what was written."""
        if self._pending:
            name = f"make_{self._pending[0].leaf.array.name}"
            self.steps.append(loop_of(self.tape, name, "nodes", self._pending))
            self._pending = []

    def stored(self, name: str, feature: Feature) -> Array:
        """Return an array that holds the parts of a feature; it is written if there is none."""
        key = tuple(map(tuple, feature.parts))
        if key not in self._stored:
            found = self._array_of(feature)
            if found is None:
                found = self.vectors(name, "node", len(feature.parts[0]), len(feature.parts))
                for slot, components in enumerate(feature.parts):
                    self.write(found, slot, components)
            self._stored[key] = found
        return self._stored[key]

    def rows(self, feature: Feature, weight: Tensor) -> Tensor:
        """Return the matrix that acts on the channels of the parts, from one that acts on those of the entry."""
        return filled(weight.T, feature.numbers, self.channels).T if feature.mix is None else feature.mix @ weight

    def mixed(self, name: str, feature: Feature) -> Feature:
        """Apply the matrix that is still to be applied to a feature."""
        if feature.mix is None:
            return feature
        numbers = [feature.mix.shape[1]]
        target = self.vectors(name, "node", len(feature.parts[0]), 1)
        self.product(
            self.stored(f"{name}_from", feature), f"{name}_weights", filled(feature.mix, numbers, self.channels), target
        )
        return Feature([self.read(target)], numbers)

    def add(self, a: Sequence[int], b: Sequence[int]) -> list[int]:
        """Return the sums of components."""
        return [self.tape.add(x, y) for x, y in zip(a, b, strict=True)]

    def couple(self, x: Sequence[int], y: Sequence[int], l_out: int) -> list[int]:
        r"""Return the components of a Clebsch-Gordan product.

        .. math:: z_{m_3} = \sqrt{2 l_3 + 1} \sum_{m_1 m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} x_{m_1} y_{m_2}
        """
        tape = self.tape
        symbols = wigner_3j(len(x) // 2, len(y) // 2, l_out) * math.sqrt(2 * l_out + 1)
        product = []
        for m_out in range(2 * l_out + 1):
            terms = []
            for m_in, value in enumerate(x):
                factors = [
                    tape.scale(symbol, y[m])
                    for m, symbol in enumerate(symbols[m_in, :, m_out].tolist())
                    if abs(symbol) > _ZERO
                ]
                if factors:
                    terms.append(tape.multiply(value, tape.total(factors)))
            product.append(tape.total(terms))
        return product

    def steer(self, x: Sequence[int], attribute: Sequence[Sequence[int]], path: Path) -> list[int]:
        """Return the product with a copy of the attribute; a scalar attribute is 1."""
        return list(x) if path.l_attribute == 0 else self.couple(x, attribute[path.copy], path.l_out)

    def _array_of(self, feature: Feature) -> Array | None:
        """Return the array whose row of an atom the feature is, None if it is something else."""
        leaf = self.tape.nodes[feature.parts[0][0]].value
        if not isinstance(leaf, tuple):
            return None
        array, parts = leaf.array, feature.parts
        fits = array.rows == "node" and (array.components, array.width) == (len(parts[0]), len(parts) * self.channels)
        return array if fits and all(self.read(array, k) == list(part) for k, part in enumerate(parts)) else None
