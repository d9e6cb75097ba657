"""Expressions of what one turn of a loop computes, from typed leaves by a table of operations and derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from ase_segnn.codegen.arrays import Array, Leaf


class Node(NamedTuple):
    """One operation; operands are indices of nodes. A leaf, a number or the place of a spline's table is its value."""

    operation: str
    operands: tuple[int, ...] = ()
    value: Leaf | float | None = None
    is_vector: bool = False


class Tape:
    """All expressions of a program; equal ones are stored once.

    An expression is the index of its node, and operands come before what is made of them. Expressions of single numbers
    are scalars; those that depend on channels are vectors, with one number per channel.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}

    def leaf(self, leaf: Leaf) -> int:
        """Return what a place holds."""
        return self._add_node(Node("leaf", value=leaf, is_vector=leaf.array.channels > 0))

    def constant(self, value: float) -> int:
        """Return a number."""
        return self._add_node(Node("constant", value=float(value)))

    def spline(self, table: Leaf, distance: int, *, slope: bool = False) -> int:
        """Return functions of the distance, one per channel, or their slopes."""
        return self._add_node(Node("slope" if slope else "spline", (distance,), table, is_vector=True))

    def add(self, a: int | None, b: int) -> int:
        """Return a + b, or b where there is no a yet."""
        if a is None or self.number(a) == 0:
            return b
        return a if self.number(b) == 0 else self._combine("add", *sorted((a, b), key=self._rank))

    def multiply(self, a: int, b: int) -> int:
        """Return a b."""
        for x, other in ((a, b), (b, a)):
            if self.number(x) in (0, 1):
                return x if self.number(x) == 0 else other
        return self._combine("multiply", *sorted((a, b), key=self._rank))

    def divide(self, a: int, b: int) -> int:
        """Return a / b of scalars."""
        return self._combine("divide", a, b)

    def sigmoid(self, a: int) -> int:
        """Return 1 / (1 + exp(-a)) of a vector."""
        return self._function("sigmoid", a, lambda x: 1 / (1 + math.exp(-x)))

    def sqrt(self, a: int) -> int:
        """Return the square root of a scalar."""
        return self._function("sqrt", a, math.sqrt)

    def exp(self, a: int) -> int:
        """Return exp(a) of a scalar."""
        return self._function("exp", a, math.exp)

    def expm1(self, a: int) -> int:
        """Return exp(a) - 1 of a scalar."""
        return self._function("expm1", a, math.expm1)

    def ramp(self, a: int) -> int:
        """Return the larger of a scalar and 0; its derivative is `step`."""
        return self._function("ramp", a, lambda x: max(x, 0.0))

    def step(self, a: int) -> int:
        """Return 1 where a scalar is positive, else 0."""
        return self._function("step", a, lambda x: float(x > 0))

    def scale(self, factor: float, a: int) -> int:
        """Return a times a number."""
        return self.multiply(self.constant(factor), a)

    def total(self, terms: Sequence[int]) -> int:
        """Return the sum of some terms."""
        total = None
        for term in terms:
            total = self.add(total, term)
        return self.constant(0) if total is None else total

    def number(self, index: int) -> float | None:
        """Return the value of a constant, None for anything else."""
        node = self.nodes[index]
        return node.value if isinstance(node.value, float) else None

    def needed(self, wanted: Sequence[int]) -> list[int]:
        """Return the indices of all that some expressions are made of: scalars, then vectors, operands first.

        In this order, loops of one form are printed alike wherever they are in a program.
        """
        found: set[int] = set()
        stack = list(wanted)
        while stack:
            index = stack.pop()
            if index not in found:
                found.add(index)
                stack.extend(self.nodes[index].operands)
        return sorted(found, key=self._rank)

    def leaves(self, wanted: Sequence[int]) -> list[Leaf]:
        """Return the places that some expressions read, tables of splines among them."""
        values = (self.nodes[index].value for index in self.needed(wanted))
        return list(dict.fromkeys(value for value in values if isinstance(value, Leaf)))

    def splines(self, wanted: Sequence[int], tables: Container[Array]) -> list[int]:
        """Return the splines of some tables, and their slopes, that some expressions are made of."""
        found = []
        for index in self.needed(wanted):
            value = self.nodes[index].value
            if self.nodes[index].operation != "leaf" and isinstance(value, Leaf) and value.array in tables:
                found.append(index)
        return found

    def backward(self, outputs: Sequence[int], cotangents: Sequence[int], inputs: Sequence[int]) -> list[int]:
        """Return, per input, the sum over outputs of cotangent times derivative; for scalars still per channel.

        Inputs that no output depends on have the derivative 0.
        """
        order = self.needed(outputs)
        depends = set(inputs)
        for index in order:
            if not depends.isdisjoint(self.nodes[index].operands):
                depends.add(index)
        adjoints: dict[int, int] = {}
        for output, cotangent in zip(outputs, cotangents, strict=True):
            adjoints[output] = self.add(adjoints.get(output), cotangent)
        for index in reversed(order):
            adjoint, node = adjoints.get(index), self.nodes[index]
            if adjoint is None or depends.isdisjoint(node.operands):
                continue
            factors = _DERIVATIVES[node.operation](self, index, node)
            for operand, factor in zip(node.operands, factors, strict=True):
                if operand in depends:
                    term = adjoint if factor is None else self.multiply(adjoint, factor)
                    adjoints[operand] = self.add(adjoints.get(operand), term)
        return [adjoints.get(index, self.constant(0)) for index in inputs]

    def _rank(self, index: int) -> tuple[bool, int]:
        return self.nodes[index].is_vector, index

    def _function(self, name: str, a: int, of_number: Callable[[float], float]) -> int:
        number = self.number(a)
        if number is not None:
            return self.constant(of_number(number))
        return self._combine(name, a)

    def _combine(self, operation: str, *operands: int) -> int:
        is_vector = any(self.nodes[operand].is_vector for operand in operands)
        return self._add_node(Node(operation, operands, is_vector=is_vector))

    def _add_node(self, node: Node) -> int:
        if node not in self._index:
            self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return self._index[node]


def _sigmoid_slope(tape: Tape, y: int, _: Node) -> tuple[int]:
    return (tape.multiply(y, tape.add(tape.constant(1), tape.scale(-1, y))),)


def _quotient_slopes(tape: Tape, y: int, node: Node) -> tuple[int, int]:
    inverse = tape.divide(tape.constant(1), node.operands[1])
    return inverse, tape.scale(-1, tape.multiply(y, inverse))


def _spline_slope(tape: Tape, _: int, node: Node) -> tuple[int]:
    assert isinstance(node.value, Leaf)
    return (tape.spline(node.value, node.operands[0], slope=True),)


# Derivatives of a result y by its operands, None for 1. A printer has a table of how each operation is written.
_DERIVATIVES: dict[str, Callable[[Tape, int, Node], tuple[int | None, ...]]] = {
    "add": lambda _tape, _y, _node: (None, None),
    "multiply": lambda _tape, _y, node: (node.operands[1], node.operands[0]),
    "divide": _quotient_slopes,
    "sigmoid": _sigmoid_slope,
    "sqrt": lambda tape, y, _node: (tape.divide(tape.constant(0.5), y),),
    "exp": lambda _tape, y, _node: (y,),
    "expm1": lambda tape, y, _node: (tape.add(y, tape.constant(1)),),
    "ramp": lambda tape, _y, node: (tape.step(node.operands[0]),),
    "spline": _spline_slope,
}
