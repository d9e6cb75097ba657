"""The printer of Triton: loops over atoms and along their edges as kernels for a GPU, one per form of loop.

A loop with channels has one program per atom, whose lanes are the channels; along edges it goes through those of the
atom one after another. A loop along edges without channels has one program per atom as well, whose lanes are edges. A
loop over atoms without channels has lanes that are atoms. So nothing that has both edges and channels is ever stored.

What is added to atoms of which other programs may add to at the same time, is added atomically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, count

import torch

from ase_segnn.codegen.arrays import Array, At, Leaf
from ase_segnn.codegen.cpp import unique_names
from ase_segnn.codegen.expressions import Node, Tape
from ase_segnn.codegen.program import Loop, Store
from ase_segnn.codegen.spline import BASIS

# What each kernel takes before its arrays: the first edge of each atom and the end of its edges, the neighbor of each
# edge, the species of each atom, the numbers of atoms, species and intervals, and intervals per length.
HEAD = ("rows", "ends", "neighbors", "species", "n_atoms", "n_species", "n_intervals", "per_length")
PREAMBLE = "import triton\nimport triton.language as tl\n\n"
_REAL = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
_DOUBLE = "tl.float64"
_ATOMS, _EDGES = 128, 32  # lanes of programs without channels
_CHANNELS_OF_WARP = 32

_OPERATIONS = {
    "add": "{} + {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "sigmoid": "1 / (1 + tl.exp(-{}))",
    "sqrt": "tl.sqrt({})",
    "exp": "tl.exp({})",
    "expm1": "expm1({})",
    "ramp": "tl.where({0} > 0, {0}, 0.0)",
    "step": "tl.where({} > 0, 1.0, 0.0)",
}
# exp(x) - 1 where Triton has no function of its own: Kahan's way, see Higham, Accuracy and Stability of Numerical
# Algorithms, SIAM 2002, section 1.14.1.
_FUNCTIONS = '''
@triton.jit
def expm1(x):
    y = tl.exp(x)
    between = (y != 1) & (y > 0)
    exact = (y - 1) * (x / tl.log(tl.where(between, y, 2.0)))
    return tl.where(between, exact, tl.where(y > 0, x, -1.0))


@triton.jit
def select_pairs(
    rows, all_neighbors, structures, positions, cells, cell_shifts, cutoff, ends, neighbors, vectors,
    LANES: tl.constexpr,
):
    """Put the pairs of an atom that are closer than the cutoff first, or whose distance is not a number."""
    i = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    first, end = tl.load(rows + i), tl.load(rows + i + 1)
    cell = cells + tl.load(structures + i) * 9
    longest = tl.load(cutoff)
    found = first
    for e0 in range(first, end, LANES):
        e = e0 + lane
        here = e < end
        j = tl.load(all_neighbors + e, here, 0)
        a = tl.load(cell_shifts + e * 3, here, 0.0)
        b = tl.load(cell_shifts + e * 3 + 1, here, 0.0)
        c = tl.load(cell_shifts + e * 3 + 2, here, 0.0)
        x = tl.load(positions + j * 3, here, 0.0) - tl.load(positions + i * 3)
        y = tl.load(positions + j * 3 + 1, here, 0.0) - tl.load(positions + i * 3 + 1)
        z = tl.load(positions + j * 3 + 2, here, 0.0) - tl.load(positions + i * 3 + 2)
        x += a * tl.load(cell) + b * tl.load(cell + 3) + c * tl.load(cell + 6)
        y += a * tl.load(cell + 1) + b * tl.load(cell + 4) + c * tl.load(cell + 7)
        z += a * tl.load(cell + 2) + b * tl.load(cell + 5) + c * tl.load(cell + 8)
        near = here & ~(x * x + y * y + z * z >= longest * longest)
        chosen = near.to(tl.int32)
        place = found + tl.cumsum(chosen, 0) - 1
        tl.store(neighbors + place, j, near)
        tl.store(vectors + place * 3, x, near)
        tl.store(vectors + place * 3 + 1, y, near)
        tl.store(vectors + place * 3 + 2, z, near)
        found += tl.sum(chosen, 0)
    tl.store(ends + i, found)
'''


class Kernels:
    """The loops of a program as kernels; loops of the same form are one kernel.

    Parameters
    ----------
    tape : of the program
    dtype : of its network
    """

    def __init__(self, tape: Tape, dtype: torch.dtype) -> None:
        self._tape, self._dtype = tape, dtype
        self._names: dict[tuple[str, str], str] = {}  # (parameters, body) -> name

    def name(self, loop: Loop) -> str:
        """Return the name of the kernel of a loop."""
        key = _Writer(self._tape, loop, self._dtype).kernel()
        if key not in self._names:
            taken = self._names.values()
            numbered = (f"{loop.name}_{k}" for k in count(2))
            self._names[key] = next(name for name in chain([loop.name], numbered) if name not in taken)
        return self._names[key]

    def source(self) -> str:
        """Return a module of Python with all kernels, and `select_pairs`."""
        kernels = [
            f"\n\n@triton.jit\ndef {name}({parameters}):\n{body}" for (parameters, body), name in self._names.items()
        ]
        return PREAMBLE + _FUNCTIONS.lstrip("\n") + "".join(kernels)


def arrays_of(loop: Loop) -> list[Array]:
    """Return the arrays that a kernel takes, in the order of its arguments."""
    return list(dict.fromkeys(array for array, _ in [*loop.reads, *loop.writes]))


def n_programs(loop: Loop, n_atoms: int) -> int:
    """Return how many programs a kernel is launched for."""
    return n_atoms if loop.over == "edges" or loop.channels else -(-n_atoms // _ATOMS)


def n_warps(loop: Loop) -> int:
    """Return how many warps a program has: each lane has a channel of its own, or one of four atoms."""
    return max(1, _power_of_2(loop.channels) // _CHANNELS_OF_WARP) if loop.channels else 1


def _power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is not less than n."""
    return 1 << (n - 1).bit_length()


class _Writer:
    """Collects statements: before the loop along edges, in it, and after it.

    Names of expressions are numbered in the order in which they come.
    """

    def __init__(self, tape: Tape, loop: Loop, dtype: torch.dtype) -> None:
        self._tape, self._loop = tape, loop
        self._arrays = {
            array: name for (array, _), name in unique_names((x, "center") for x in arrays_of(loop)).items()
        }
        self._network = _REAL[dtype]
        self._real = self._network if loop.channels else _DOUBLE
        self._along_edges = loop.over == "edges"
        self._before: list[str] = []
        self._inside: list[str] = []
        self._after: list[str] = []
        self._names: dict[int, str] = {}
        self._varying: set[int] = set()  # expressions that change from edge to edge
        self._rows: dict[tuple[Array, At], str] = {}
        self._splines: dict[tuple[str, int], str] = {}  # (table, distance) -> what its splines are called
        self._evaluated: set[str] = set()  # pieces and coefficients of splines
        self._at_neighbors = {array for array, at in loop.writes if at == "neighbor"}
        assert loop.below is None or not loop.channels
        lanes = _power_of_2(loop.channels)
        self._is_filled = lanes > loop.channels > 0  # with lanes that have no channel
        self._lanes = lanes if loop.channels else _EDGES if self._along_edges else _ATOMS

    def kernel(self) -> tuple[str, str]:
        """Return the parameters and the body of the kernel."""
        loop = self._loop
        self._expressions(loop.below or ())
        if loop.below is not None:
            a, b = map(self._name, loop.below)
            self._inside.append(f"here = here & ({a} < {b})")
        self._expressions(loop.values)
        for number, store in enumerate(loop.stores):
            self._store(number, store)
        parameters = ", ".join([*HEAD, *self._arrays.values()])
        lines = [*self._head(), *self._before]
        if self._along_edges:
            lines += self._loop_head()
            lines += [f"    {line}" for line in self._inside]
        lines += self._after
        return parameters, "".join(f"    {line}\n" for line in lines)

    def _head(self) -> list[str]:
        lane = f"tl.arange(0, {self._lanes})"
        if not self._along_edges and not self._loop.channels:
            return [f"i = tl.program_id(0).to(tl.int64) * {self._lanes} + {lane}", "here = i < n_atoms"]
        lines = ["i = tl.program_id(0).to(tl.int64)", f"c = {lane}"]
        if self._is_filled:
            lines.append(f"inside = c < {self._loop.channels}")
        return lines

    def _loop_head(self) -> list[str]:
        lines = ["first, end = tl.load(rows + i), tl.load(ends + i)"]
        if self._loop.channels:
            return [*lines, "for e in range(first, end):", "    j = tl.load(neighbors + e)"]
        return [
            *lines,
            f"for e0 in range(first, end, {self._lanes}):",
            "    e = e0 + c",
            "    here = e < end",
            "    j = tl.load(neighbors + e, here, 0)",
        ]

    def _expressions(self, wanted: Sequence[int]) -> None:
        """Evaluate expressions that have not been evaluated yet."""
        for index in self._tape.needed(wanted):
            node = self._tape.nodes[index]
            if index in self._names or node.operation == "constant":
                continue
            if self._varies(node):
                self._varying.add(index)
            code = self._code(node)
            self._names[index] = f"t{len(self._names)}"
            place = self._inside if index in self._varying else self._before
            place.append(f"{self._names[index]} = {code}")

    def _varies(self, node: Node) -> bool:
        """Whether the value of an expression changes from edge to edge."""
        if any(operand in self._varying for operand in node.operands):
            return True
        return isinstance(node.value, Leaf) and self._row_varies(node.value.array, node.value.at)

    def _row_varies(self, array: Array, at: At) -> bool:
        return self._along_edges and (array.rows in ("edge", "pair") or (at == "neighbor" and array.rows != "once"))

    def _name(self, index: int) -> str:
        """Return what an expression is called; a number has the precision of what it is combined with."""
        number = self._tape.number(index)
        return self._names[index] if number is None else repr(number)

    def _value(self, index: int) -> str:
        """Return the value of an expression in full precision, whatever it is combined with."""
        number = self._tape.number(index)
        return self._names[index] if number is None else f"tl.full((), {number!r}, {self._real})"

    def _row(self, array: Array, at: At) -> str:
        """Return what points to the row of an array, to all channels of the first slot if it has any."""
        name = f"{self._arrays[array]}{' + c' * (array.channels > 0)}"
        if array.rows in ("once", "knot"):
            return name
        if (array, at) not in self._rows:
            atom = "j" if at == "neighbor" else "i"
            masked = self._masked_load(varies=self._row_varies(array, at))
            match array.rows:
                case "node":
                    row = atom
                case "edge":
                    row = "e"
                case "species":
                    row = masked(f"species + {atom}")
                case "pair":
                    center = "tl.load(species + i)"
                    row = f"({center} * n_species + {masked('species + j')})"
                case _:
                    raise AssertionError(array.rows)
            self._rows[array, at] = variable = f"row{len(self._rows)}"
            place = self._inside if self._row_varies(array, at) else self._before
            place.append(f"{variable} = {name} + {row} * {array.stride}")
        return self._rows[array, at]

    def _masked_load(self, *, varies: bool) -> Callable[[str], str]:
        """Return what loads numbers of all lanes that count."""
        has_lanes = not self._loop.channels and (varies or not self._along_edges)
        return (lambda place: f"tl.load({place}, here, 0)") if has_lanes else (lambda place: f"tl.load({place})")

    def _code(self, node: Node) -> str:
        operands = [self._name(operand) for operand in node.operands]
        if node.operation == "leaf":
            assert isinstance(node.value, Leaf)
            return self._load(node.value, is_vector=node.is_vector)
        if isinstance(node.value, Leaf):
            return self._sum_of_pieces(node)
        return _OPERATIONS[node.operation].format(*operands)

    def _load(self, leaf: Leaf, *, is_vector: bool) -> str:
        array = leaf.array
        place = f"{self._row(array, leaf.at)} + {leaf.offset}"
        if is_vector:
            code = f"tl.load({place}, inside, 0.0)" if self._is_filled else f"tl.load({place})"
        elif array.rows in ("once", "knot"):
            code = f"tl.load({place})"
        else:
            code = self._masked_load(varies=self._row_varies(array, leaf.at))(place)
        return code if self._type(array) == self._real else f"{code}.to({self._real})"

    def _type(self, array: Array) -> str:
        return _DOUBLE if array.is_double else self._network

    def _spline(self, node: Node) -> str:
        """Return what the splines of a table at a distance are called."""
        assert isinstance(node.value, Leaf)
        table, distance = node.value.array, node.operands[0]
        key = self._arrays[table], distance
        if key not in self._splines:
            self._splines[key] = s = f"s{len(self._splines)}"
            if not self._splines.keys() - {key}:
                self._before.append("per = tl.load(per_length)")
            self._inside += [
                f"{s}_x = {self._name(distance)} * per",
                f"{s}_x = tl.where({s}_x < n_intervals, {s}_x, n_intervals.to({self._real}))",
                f"{s}_k = tl.minimum({s}_x.to(tl.int64), n_intervals - 1)",
                f"{s}_u = {s}_x - {s}_k.to({self._real})",
                f"{s}_row = {self._row(table, 'edge')} + {s}_k * {table.stride}",
            ]
        return self._splines[key]

    def _pieces(self, node: Node) -> list[str]:
        """Return what the six pieces of the spline are called, or their slopes."""
        s, kind = self._spline(node), {"spline": "v", "slope": "d"}[node.operation]
        if f"{s}_{kind}" not in self._evaluated:
            self._evaluated.add(f"{s}_{kind}")
            for m, powers in enumerate(BASIS):
                if kind == "v":
                    code = _horner(powers, f"{s}_u")
                else:
                    slopes = [k * power for k, power in enumerate(powers)][1:]
                    code = f"({_horner(slopes, f'{s}_u')}) * per"
                self._inside.append(f"{s}_{kind}{m} = {code}")
        return [f"{s}_{kind}{m}" for m in range(6)]

    def _sum_of_pieces(self, node: Node) -> str:
        assert isinstance(node.value, Leaf)
        pieces, leaf = self._pieces(node), node.value
        s = self._spline(node)
        name = f"{s}_c{leaf.offset}"
        if name not in self._evaluated:
            self._evaluated.add(name)
            for m in range(len(pieces)):
                place = f"{s}_row + {m * leaf.array.stride + leaf.offset}"
                self._inside.append(f"{name}_{m} = tl.load({place}{', inside, 0.0' * self._is_filled})")
        return " + ".join(f"{piece} * {name}_{m}" for m, piece in enumerate(pieces))

    def _store(self, number: int, store: Store) -> None:
        """Put the value of an expression where it belongs."""
        leaf, array = store.leaf, store.leaf.array
        if store.spline is not None:
            self._spread(store)
            return
        value, is_vector = self._value(store.value), self._tape.nodes[store.value].is_vector
        is_of_center = self._along_edges and not self._row_varies(array, leaf.at)
        if is_of_center:
            value = self._summed(f"sum{number}", store, value)
        target, mask = f"{self._row(array, leaf.at)} + {leaf.offset}", ""
        if array.channels:
            mask = ", inside" * self._is_filled
        elif is_vector:
            value = self._total(value, "inside" * self._is_filled)
        elif not self._loop.channels and is_of_center:
            value = self._total(value)
        elif not self._loop.channels and array.rows == "once":
            value = self._total(value, "here")
        elif not self._loop.channels:
            mask = ", here"
        place = self._inside if self._along_edges and not is_of_center else self._after
        is_shared = array in self._at_neighbors or array.rows not in ("node", "edge")
        if is_shared:
            assert store.adds or leaf.at == "neighbor"
            place.append(f"tl.atomic_add({target}, ({value}).to({self._type(array)}){mask}, sem='relaxed')")
        else:
            before = f"tl.load({target}{mask}) + " * store.adds
            place.append(f"tl.store({target}, {before}{value}{mask})")

    @staticmethod
    def _total(value: str, counted: str = "") -> str:
        """Return the sum over lanes, or over those that count."""
        return f"tl.sum(tl.where({counted}, {value}, 0.0), 0)" if counted else f"tl.sum({value}, 0)"

    def _summed(self, name: str, store: Store, value: str) -> str:
        """Add a value to a sum over the edges of an atom, and return what the sum is called."""
        is_vector = self._tape.nodes[store.value].is_vector or store.leaf.array.channels > 0
        shape = f"({self._lanes},)" if is_vector or not self._loop.channels else "()"
        self._before.append(f"{name} = tl.zeros({shape}, {self._real})")
        self._inside.append(f"{name} += {value}" if self._loop.channels else f"{name} += tl.where(here, {value}, 0.0)")
        return name

    def _spread(self, store: Store) -> None:
        """Add to the coefficients of a spline."""
        assert store.spline is not None
        node, leaf = self._tape.nodes[store.spline], store.leaf
        pieces, s = self._pieces(node), self._spline(node)
        zero = f"tl.zeros(({self._lanes},), {self._real})"
        for m, piece in enumerate(pieces):
            row = f"{s}_k * {leaf.array.stride}"
            target = f"{self._row(leaf.array, leaf.at)} + {row} + {m * leaf.array.stride + leaf.offset}"
            value = f"{piece} * ({zero} + {self._value(store.value)})"
            self._inside.append(f"tl.atomic_add({target}, {value}{', inside' * self._is_filled}, sem='relaxed')")


def _horner(powers: Sequence[float], u: str) -> str:
    """Return a polynomial of u."""
    code = repr(float(powers[-1]))
    for power in reversed(powers[:-1]):
        code = f"{float(power)!r} + {u} * ({code})"
    return code
