"""The printer of C++: the statements of a loop, from its expressions and a table of operations.

`ase_segnn.codegen.loops` puts these statements into functions, one per form of loop. The functions are called by the
passes of an evaluation (`ase_segnn.codegen.inference`) and by the steps of training (`ase_segnn.codegen.training`). All
else is in the headers of the folder cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ase_segnn.codegen.arrays import Array, Leaf
from ase_segnn.codegen.expressions import Node, Tape
from ase_segnn.codegen.program import Access, Loop, Store

HEADERS = Path(__file__).parent / "cpp"
_REAL = {torch.float32: "float", torch.float64: "double"}

_OPERATIONS = {
    "add": "{} + {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "sigmoid": "sigmoid({})",
    "sqrt": "square_root({})",
    "exp": "std::exp({})",
    "expm1": "std::expm1({})",
    "ramp": "{0} > 0 ? {0} : 0",
    "step": "{} > 0 ? 1 : 0",
    "spline": "{splines}.value({place} + c)",
    "slope": "{splines}.slope({place} + c)",
}


def preamble(dtype: torch.dtype, channels: int) -> str:
    """Return what a source begins with: the type of numbers, and the channels of a slot."""
    return f"#include <cstdint>\ntypedef {_REAL[dtype]} T;\nenum {{ CHANNELS = {channels} }};\n"


def c_type(array: Array) -> str:
    """Return the type of the numbers of an array."""
    return "double" if array.is_double else "T"


def unique_names(accesses: Iterable[Access]) -> dict[Access, str]:
    """Name the rows that a loop takes by what they hold, and number those that are called alike."""
    names: dict[Access, str] = {}
    taken: set[str] = set()
    for array, at in accesses:
        base = f"{array.name}_of_j" if at == "neighbor" else array.name
        name, k = f"{base}_", 2
        while name in taken:
            name, k = f"{base}_{k}_", k + 1
        taken.add(name)
        names[array, at] = name
    return names


class Statements(NamedTuple):
    """The body of a loop, in this order: of one turn, of the channels of a turn, and of the end of a turn."""

    scalars: list[str]
    vectors: list[str]
    finish: list[str]


def statements(tape: Tape, loop: Loop, names: Mapping[Access, str]) -> Statements:
    """Return what a loop does in one turn, with pointers to the rows of arrays named as given."""
    writer = _Writer(tape, loop, names)
    writer.expressions(loop.below or ())
    if loop.below is not None:
        writer.scalars.append("if (!({} < {})) continue;".format(*map(writer.name, loop.below)))
    writer.expressions(loop.values)
    for number, store in enumerate(loop.stores):
        writer.store(number, store)
    return Statements(writer.scalars, writer.vectors, writer.finish)


class _Writer:
    """Collects statements; names of expressions are numbered in the order in which they come."""

    def __init__(self, tape: Tape, loop: Loop, names: Mapping[Access, str]) -> None:
        self.scalars: list[str] = []
        self.vectors: list[str] = []
        self.finish: list[str] = []
        self._tape, self._names, self._over = tape, names, loop.over
        self._real = "T" if loop.channels else "double"
        self._numbers: dict[int, int] = {}
        self._splines: dict[tuple[str, str], str] = {}  # (table, distance) -> what its splines are called

    def expressions(self, wanted: Sequence[int]) -> None:
        """Evaluate expressions that have not been evaluated yet."""
        for index in self._tape.needed(wanted):
            node = self._tape.nodes[index]
            if index in self._numbers or node.operation == "constant":
                continue
            code = self._code(node)
            self._numbers[index] = len(self._numbers)
            target, kind = (self.vectors, "V") if node.is_vector else (self.scalars, self._real)
            target.append(f"const {kind} {self.name(index)} = {code};")

    def name(self, index: int) -> str:
        """Return what an expression is called."""
        number = self._tape.number(index)
        return f"t{self._numbers[index]}" if number is None else f"{self._real}({number!r})"

    def store(self, number: int, store: Store) -> None:
        """Put the value of an expression where it belongs."""
        leaf = store.leaf
        if store.spline is not None:
            self._spread(store)
            return
        adds = store.adds or (self._over == "edges" and leaf.at != "edge")
        row, name = self._names[leaf.array, leaf.at], self.name(store.value)
        if leaf.array.channels:
            act = "add_to" if adds else "store"
            self.vectors.append(f"{act}({row} + {leaf.offset} + c, V{{}} + {name});")
            return
        if self._tape.nodes[store.value].is_vector:
            self.scalars.append(f"V total_{number} = {{}};")
            self.vectors.append(f"total_{number} += {name};")
            name = f"sum(total_{number})"
        act = "+=" if adds else "="
        self.finish.append(f"{row}[{leaf.offset}] {act} {name};")

    def _spread(self, store: Store) -> None:
        """Add to the coefficients of a spline."""
        assert store.spline is not None
        node = self._tape.nodes[store.spline]
        gradient, table = self._names[store.leaf.array, store.leaf.at], self._spline(node)
        what = {"spline": "values", "slope": "slopes"}[node.operation]
        self.vectors.append(
            f"{table}.spread({table}.{what}, {gradient}, {store.leaf.offset} + c, V{{}} + {self.name(store.value)});"
        )

    def _spline(self, node: Node) -> str:
        """Return what the splines of a table at a distance are called."""
        assert isinstance(node.value, Leaf)
        table, distance = node.value.array, self.name(node.operands[0])
        key = self._names[table, node.value.at], distance
        if key not in self._splines:
            self._splines[key] = name = f"splines{len(self._splines) or ''}"
            arguments = f"{key[0]}, edges.n_intervals, edges.per_length, {distance}"
            self.scalars.append(f"const Splines<{table.stride}> {name}({arguments});")
        return self._splines[key]

    def _code(self, node: Node) -> str:
        if node.operation == "leaf":
            assert isinstance(node.value, Leaf)
            row, offset = self._names[node.value.array, node.value.at], node.value.offset
            return f"load({row} + {offset} + c)" if node.is_vector else f"{self._real}({row}[{offset}])"
        operands = [self.name(operand) for operand in node.operands]
        if not isinstance(node.value, Leaf):
            return _OPERATIONS[node.operation].format(*operands)
        return _OPERATIONS[node.operation].format(splines=self._spline(node), place=node.value.offset)
