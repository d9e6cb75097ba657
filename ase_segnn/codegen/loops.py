"""The C++ of loops over atoms and along their edges: one function per form of loop.

A function gets the edges of all atoms, the first atom and their number, then pointers to arrays: to the row of the
first atom where rows belong to the center, to all rows elsewhere.
"""

from __future__ import annotations

from itertools import chain, count

from ase_segnn.codegen.arrays import Array, At
from ase_segnn.codegen.cpp import c_type, statements, unique_names
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.program import Access, Loop


class Functions:
    """The loops of a program as functions; loops of the same form are one function."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._names: dict[tuple[str, str], str] = {}  # (parameters, body) -> name

    def name(self, loop: Loop) -> str:
        """Return the name of the function of a loop."""
        key = _function(self._tape, loop)
        if key not in self._names:
            taken = self._names.values()
            numbered = (f"{loop.name}_{k}" for k in count(2))
            self._names[key] = next(name for name in chain([loop.name], numbered) if name not in taken)
        return self._names[key]

    def texts(self) -> list[str]:
        """Return the functions."""
        return [f"static void {name}({parameters}) {{\n{body}}}\n" for (parameters, body), name in self._names.items()]


def parameters_of(loop: Loop) -> list[Access]:
    """Return the arrays that a loop takes, in the order of its arguments."""
    return list(dict.fromkeys([*loop.reads, *loop.writes]))


def _function(tape: Tape, loop: Loop) -> tuple[str, str]:
    """Return the parameters and the body of the function of a loop."""
    accesses = parameters_of(loop)
    names = unique_names(accesses)
    written = set(loop.writes)
    parameters = ["[[maybe_unused]] const Edges& edges", "int64_t i0", "int64_t n"]
    rows: dict[bool, list[str]] = {True: [], False: []}  # by whether they change from edge to edge
    for access in accesses:
        kind = f"{'' if access in written else 'const '}{c_type(access[0])}*"
        parameters.append(f"{kind} all_{names[access]}")
        place = _row(*access, is_written=access in written)
        rows[access[1] != "center"].append(f"{kind} const {names[access]} = all_{names[access]}{place};")
    inner = statements(tape, loop, names)
    turn = [*inner.scalars]
    if inner.vectors:
        turn += ["for (int c = 0; c < CHANNELS; c += LANES) {", *(f"  {line}" for line in inner.vectors), "}"]
    turn += inner.finish
    if loop.over == "nodes":
        turn = [*rows[False], *rows[True], *turn]
    else:
        edge = ["[[maybe_unused]] const int64_t j = edges.neighbors[e];", *rows[True], *turn]
        head = "for (int64_t e = edges.rows[i]; e < edges.ends[i]; ++e) {"
        turn = [*rows[False], *_clears(loop, names), head, *(f"  {line}" for line in edge), "}"]
    lines = ["for (int64_t i = i0; i < i0 + n; ++i) {", *(f"  {line}" for line in turn), "}"]
    return ", ".join(parameters), "".join(f"  {line}\n" for line in lines)


def _row(array: Array, at: At, *, is_written: bool) -> str:
    """Return what is added to the pointer to an array to get to a row."""
    atom = "j" if at == "neighbor" else "i"
    match array.rows:
        case "node":
            row = "(i - i0)" if at == "center" else "edges.targets[e]" if is_written else "j"
        case "edge":
            row = "e"
        case "species":
            row = f"edges.species[{atom}]"
        case "pair":
            row = "(edges.species[i] * edges.n_species + edges.species[j])"
        case _:
            return ""
    return f" + {row} * {array.stride}"


def _clears(loop: Loop, names: dict[Access, str]) -> list[str]:
    """Return statements that clear sums over the edges of an atom."""
    summed = {store.leaf.array: None for store in loop.stores if store.leaf.at == "center" and not store.adds}
    return [f"clear({names[array, 'center']}, {array.stride});" for array in summed]
