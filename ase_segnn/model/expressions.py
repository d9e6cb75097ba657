"""Expressions of what happens along one edge, their derivatives, and the C++ statements that evaluate them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class _Node(NamedTuple):
    operation: str  # "load", "constant", "add", "multiply" or "sigmoid"
    arguments: tuple[str | float | int, ...]
    is_vector: bool


class Tape:
    """Sums and products of numbers of an edge (scalars) and of its channels (vectors); equal ones are stored once.

    An expression is the index of its node; operands always come before what is made of them.
    """

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._index: dict[_Node, int] = {}

    def load(self, code: str, *, vector: bool) -> int:
        """Return the input that the C++ expression `code` reads."""
        return self._add_node(_Node("load", (code,), vector))

    def constant(self, value: float) -> int:
        """Return a number."""
        return self._add_node(_Node("constant", (float(value),), is_vector=False))

    def add(self, a: int | None, b: int) -> int:
        """Return a + b, or b where there is no a yet."""
        return b if a is None else self._combine("add", a, b)

    def multiply(self, a: int, b: int) -> int:
        """Return a b."""
        one = _Node("constant", (1.0,), is_vector=False)
        if self._nodes[a] == one:
            return b
        return a if self._nodes[b] == one else self._combine("multiply", a, b)

    def sigmoid(self, a: int) -> int:
        """Return 1 / (1 + exp(-a)) of a vector."""
        return self._add_node(_Node("sigmoid", (a,), is_vector=True))

    def backward(self, outputs: Sequence[int], cotangents: Sequence[int], inputs: Sequence[int]) -> list[int]:
        """Return, per input, the sum over outputs of cotangent times derivative; for scalars still per channel.

        Inputs that no output depends on have the derivative 0.
        """
        depends = set(inputs)
        for index, node in enumerate(self._nodes):
            if not depends.isdisjoint(self._operands(node)):
                depends.add(index)
        adjoints: dict[int, int] = {}
        for output, cotangent in zip(outputs, cotangents, strict=True):
            adjoints[output] = self.add(adjoints.get(output), cotangent)
        for index in range(max(adjoints, default=-1), -1, -1):
            if index not in adjoints:
                continue
            adjoint, node = adjoints[index], self._nodes[index]
            operands = self._operands(node)
            for position, operand in enumerate(operands):
                if operand not in depends:
                    continue
                term = adjoint
                if node.operation == "multiply":
                    term = self.multiply(adjoint, operands[1 - position])
                elif node.operation == "sigmoid":
                    falling = self.add(self.constant(1), self.multiply(self.constant(-1), index))
                    term = self.multiply(adjoint, self.multiply(index, falling))
                adjoints[operand] = self.add(adjoints.get(operand), term)
        return [adjoints[index] if index in adjoints else self.constant(0) for index in inputs]

    def statements(self, wanted: Sequence[int]) -> tuple[list[str], list[str]]:
        """C++ statements for `wanted`: those of scalars, then those of vectors."""
        used: set[int] = set()
        stack = list(wanted)
        while stack:
            index = stack.pop()
            if index not in used:
                used.add(index)
                stack.extend(self._operands(self._nodes[index]))
        scalars: list[str] = []
        vectors: list[str] = []
        for index in sorted(used):
            node = self._nodes[index]
            names = [self.name(operand) for operand in self._operands(node)]
            match node.operation:
                case "load":
                    code = str(node.arguments[0])
                case "add":
                    code = " + ".join(names)
                case "multiply":
                    code = " * ".join(names)
                case "sigmoid":
                    code = f"sigmoid({names[0]})"
                case _:
                    continue
            (vectors if node.is_vector else scalars).append(
                f"const {'V' if node.is_vector else 'T'} t{index} = {code};"
            )
        return scalars, vectors

    def name(self, index: int) -> str:
        """Name of an expression in C++."""
        node = self._nodes[index]
        return f"T({node.arguments[0]!r})" if node.operation == "constant" else f"t{index}"

    def _combine(self, operation: str, a: int, b: int) -> int:
        is_vector = self._nodes[a].is_vector or self._nodes[b].is_vector
        return self._add_node(_Node(operation, (min(a, b), max(a, b)), is_vector))

    def _add_node(self, node: _Node) -> int:
        if node not in self._index:
            self._index[node] = len(self._nodes)
            self._nodes.append(node)
        return self._index[node]

    @staticmethod
    def _operands(node: _Node) -> list[int]:
        return [x for x in node.arguments if isinstance(x, int)] if node.operation not in ("load", "constant") else []
