"""Small programs, each with something awkward for derivatives, memory or threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from interpreter import System
from systems import CUTOFF, ELEMENTS

from ase_segnn.codegen.arrays import Array, Leaf
from ase_segnn.codegen.builder import Builder
from ase_segnn.codegen.derivative import differentiate
from ase_segnn.codegen.geometry import FORCES_OF_PAIRS, VECTORS, VIRIALS, forces_from
from ase_segnn.codegen.networks import INTERVALS
from ase_segnn.codegen.potentials import ATOM_ENERGIES, FORCES
from ase_segnn.codegen.program import Program, Store, Total, loop_of
from ase_segnn.codegen.spline import spline_coefficients

C = 4
R = VECTORS
GRADIENT = Array("", "gradient", "edge", 3, is_double=True)
SYSTEM = System(
    species=np.array([0, 1, 4, 0, 2]),
    centers=np.array([0, 0, 1, 1, 1, 2, 3]),  # the last atom has no edges
    neighbors=np.array([1, 2, 0, 3, 1, 0, 1]),
    n_species=len(ELEMENTS),
    length=CUTOFF,
)


class Sketch(Builder):
    """A builder with what small programs begin and end with."""

    def __init__(self) -> None:
        super().__init__(C)
        self.random = torch.Generator().manual_seed(0)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def of_species(self, name: str) -> int:
        return self.read(self.constant(self.vectors(name, "species", 1, 1), self.matrix(len(ELEMENTS), C)))[0]

    def from_edges(self, name: str, n: int = 1) -> Array:
        """Return sums over the edges of an atom of nonlinear functions of their vectors, in n components."""
        tape, r = self.tape, self.read(R, at="edge")
        squared = tape.total([tape.multiply(x, x) for x in r])
        distance = tape.sqrt(squared)
        factor = tape.exp(tape.scale(-0.3, tape.divide(squared, distance)))
        array = self.vectors(name, "node", n, 1)
        values = [tape.multiply(self.of_species(f"{name}_{m}"), tape.multiply(factor, r[m])) for m in range(n)]
        self.edges(f"make_{name}", [Store(array.leaf(m), x) for m, x in enumerate(values)])
        return array

    def node(self, name: str, *components: int) -> Array:
        """Write an array in a loop over atoms of its own."""
        array = self.vectors(name, "node", len(components), 1)
        self.write(array, 0, components)
        self.flush()
        return array

    def multiplied(self, name: str, *sources: Array) -> Array:
        """Return the sum of products of arrays with matrices."""
        target = self.vectors(name, "node", sources[0].components, 1)
        for source in sources:
            self.product(source, f"{source.name}_to_{name}", self.matrix(C, C), target)
        return target

    def value(self, array: Array, component: int = 0, at: Any = "center") -> int:
        return self.read(array, at=at)[component]

    def finish(self, *vectors: int) -> None:
        """Write the energies: sums over channels of some vectors."""
        self.write(ATOM_ENERGIES, 0, [self.tape.total(vectors)])
        self.flush()
        self.steps.append(Total(ATOM_ENERGIES, "energy"))


def into_gradient(gradients: Mapping[Leaf, int]) -> list[Store]:
    return [Store(leaf._replace(array=GRADIENT), x, adds=True) for leaf, x in gradients.items()]


def silu(b: Sketch, x: int) -> int:
    return b.tape.multiply(x, b.tape.sigmoid(x))


def residual_read_later(b: Sketch) -> None:
    """Read what a residual adds to once more afterwards."""
    x = b.from_edges("x")
    y = b.node("y", b.tape.add(b.value(x), silu(b, b.value(b.multiplied("added", x)))))
    b.finish(silu(b, b.value(y)), b.tape.multiply(b.value(x), b.value(b.multiplied("later", x))))


def sum_of_two(b: Sketch) -> None:
    """Add two arrays, of which one is made from the other."""
    x = b.from_edges("x")
    added = b.multiplied("added", x)
    b.finish(silu(b, b.value(b.node("y", b.tape.add(b.value(x), b.value(added))))))


def sum_of_two_loops(b: Sketch) -> None:
    """Add two arrays, of which one is made from the other in a loop that reads its gradient."""
    x = b.from_edges("x")
    z = b.node("z", silu(b, b.value(x)))
    b.finish(silu(b, b.value(b.node("y", b.tape.add(b.value(x), b.value(z))))))


def sum_of_independent(b: Sketch) -> None:
    """Add two arrays that do not depend on each other."""
    x, z = b.from_edges("x"), b.from_edges("z")
    y = b.node("y", b.tape.add(b.value(x), b.value(z)))
    b.finish(silu(b, b.value(b.multiplied("last", y))))


def two_readers(b: Sketch) -> None:
    """Add twice to the same array, in one loop."""
    x = b.from_edges("x")
    added = b.multiplied("added", x)
    y, z = b.vectors("y", "node", 1, 1), b.vectors("z", "node", 1, 1)
    b.write(y, 0, [b.tape.add(b.value(x), silu(b, b.value(added)))])
    b.write(z, 0, [b.tape.add(b.value(x), b.tape.sigmoid(b.value(added)))])
    b.flush()
    b.finish(silu(b, b.value(y)), b.tape.multiply(b.value(z), b.value(z)))


def two_residuals(b: Sketch) -> None:
    """Add twice to the same array, in two loops."""
    x = b.from_edges("x")
    added = b.multiplied("added", x)
    y = b.node("y", b.tape.add(b.value(x), silu(b, b.value(added))))
    z = b.node("z", b.tape.add(b.value(x), b.tape.sigmoid(b.value(added))))
    b.finish(silu(b, b.value(y)), b.tape.multiply(b.value(z), b.value(z)))


def scaled_residual(b: Sketch) -> None:
    """Scale the residual, whose gradient is not handed on as it is."""
    x = b.from_edges("x")
    added = b.multiplied("added", x)
    b.finish(silu(b, b.value(b.node("y", b.tape.add(b.tape.scale(2, b.value(x)), silu(b, b.value(added)))))))


def other_order(b: Sketch) -> None:
    """Change places of components in a residual."""
    x = b.from_edges("x", 2)
    added = b.read(b.multiplied("added", x))
    y = b.node("y", *(b.tape.add(*pair) for pair in zip(b.read(x)[::-1], added, strict=True)))
    b.finish(silu(b, b.value(y, 0)), b.tape.multiply(b.value(y, 0), b.value(y, 1)))


def part_of_an_array(b: Sketch) -> None:
    """Read one component of an array, whose gradient a product then takes as a whole."""
    x = b.multiplied("x", b.from_edges("from_edges", 3))
    b.finish(silu(b, b.value(x, 1)))


def slot_of_an_array(b: Sketch) -> None:
    """Read one slot of an array, another one in a later loop, and the third one never."""
    source = b.from_edges("source")
    x = b.vectors("x", "node", 1, 3)
    b.product(source, "wide", b.matrix(C, 3 * C), x)
    y = b.node("y", silu(b, b.read(x, 2)[0]))
    b.finish(b.value(y), b.tape.sigmoid(b.read(x, 0)[0]))


def parts_in_turn(b: Sketch) -> None:
    """Read components of an array in one loop each."""
    x = b.multiplied("x", b.from_edges("from_edges", 3))
    b.finish(*(b.value(b.node(f"y_{m}", silu(b, b.value(x, m)))) for m in range(3)))


def nothing_goes_back(b: Sketch) -> None:
    """Make an array that no energy depends on, and one that depends on no edge."""
    x = b.from_edges("x")
    b.node("unused", silu(b, b.value(b.multiplied("y", x))))
    constant = b.node("constant", b.of_species("table"))
    b.finish(silu(b, b.value(x)), b.value(constant))


def summed_products(b: Sketch) -> None:
    """Make one array by several products."""
    x, z = b.from_edges("x"), b.from_edges("z")
    y = b.multiplied("y", x, z)
    b.finish(silu(b, b.value(y)), silu(b, b.value(x)))


def from_neighbors(b: Sketch) -> None:
    """Read at both ends of edges what atoms send."""
    tape, sent = b.tape, b.multiplied("sent", b.from_edges("x", 2))
    array = b.vectors("sums", "node", 2, 1)
    r = b.read(R, at="edge")
    both = [tape.add(b.value(sent, m), b.value(sent, m, "neighbor")) for m in range(2)]
    values = [tape.multiply(silu(b, x), r[m]) for m, x in enumerate(both)]
    b.edges("messages", [Store(array.leaf(m), x) for m, x in enumerate(values)])
    b.finish(*(silu(b, x) for x in b.read(array)))


def read_here_and_there(b: Sketch) -> None:
    """Read what neighbors read at its own atom as well, before and afterwards."""
    tape, x = b.tape, b.from_edges("x")
    array = b.vectors("sums", "node", 1, 1)
    own = b.node("own", silu(b, b.value(x)))
    value = tape.multiply(tape.multiply(b.value(x, at="neighbor"), b.value(own)), b.read(R, at="edge")[0])
    b.edges("messages", [Store(array.leaf(), value)])
    b.finish(silu(b, b.value(array)), silu(b, b.value(x)), b.value(own))


def unused_at_neighbors(b: Sketch) -> None:
    """Read at neighbors in vain, so that nothing but the atom itself adds to a gradient."""
    x = b.from_edges("x")
    sums = b.vectors("sums", "node", 1, 1)
    b.edges("messages", [Store(sums.leaf(), silu(b, b.value(x, at="neighbor")))])
    b.finish(silu(b, b.value(x)))


def numbers_of_edges(b: Sketch) -> None:
    """Store numbers of edges in one loop and read them in another; sum over channels."""
    tape, r = b.tape, b.read(R, at="edge")
    lengths = Array("", "lengths", "edge", 2)
    stores = [tape.multiply(r[0], r[0]), tape.add(tape.multiply(r[1], r[2]), tape.constant(2))]
    b.edges("lengths", [Store(lengths.leaf(k, at="edge"), x) for k, x in enumerate(stores)])
    array, number = b.vectors("sums", "node", 1, 1), Array("", "numbers", "node", 1)
    length, other = b.read(lengths, at="edge")
    value = tape.multiply(b.of_species("table"), tape.multiply(length, other))
    b.edges("sums", [Store(array.leaf(), value), Store(number.leaf(), tape.sigmoid(value))])
    b.finish(tape.multiply(b.value(array), b.value(number)))


def edges_below(b: Sketch) -> None:
    """Leave out the edges that are longer than something."""
    tape, r = b.tape, b.read(R, at="edge")
    distance = tape.sqrt(tape.total([tape.multiply(x, x) for x in r]))
    pair = b.constant(Array("", "ends", "pair", 1, is_double=True), b.matrix(len(ELEMENTS), len(ELEMENTS)).abs() + 1)
    repelled = Array("", "repelled", "node", 1, is_double=True)
    [end] = b.read(pair, at="edge")
    energy = tape.exp(tape.divide(tape.scale(-1, distance), end))
    b.edges("repelled", [Store(repelled.leaf(), energy)], below=(distance, end))
    b.finish(tape.multiply(b.of_species("table"), b.read(repelled)[0]), b.value(b.from_edges("x")))


def table_of(b: Sketch, name: str, n: int) -> Array:
    """Return a table of splines: n times C smooth functions of the distance."""
    frequencies = b.matrix(n * C)

    def functions(distances: torch.Tensor) -> torch.Tensor:
        return torch.sin(distances[:, None] * frequencies + 1)

    coefficients = spline_coefficients(functions, CUTOFF, INTERVALS[torch.float64])
    return b.constant(b.vectors(name, "knot", 1, n), coefficients)


def splines_of_edges(b: Sketch) -> None:
    """Take functions of the distance from a table."""
    tape, r = b.tape, b.read(R, at="edge")
    table = table_of(b, "table", 2)
    distance = tape.sqrt(tape.total([tape.multiply(x, x) for x in r]))
    first, second = (tape.spline(table.leaf(slot=k, at="edge"), distance) for k in range(2))
    array = b.vectors("sums", "node", 1, 1)
    b.edges("sums", [Store(array.leaf(), tape.multiply(first, tape.sigmoid(second)))])
    b.finish(silu(b, b.value(array)))


def splines_of_two_tables(b: Sketch) -> None:
    """Take functions of two distances from two tables, in one loop."""
    tape, r = b.tape, b.read(R, at="edge")
    tables = [table_of(b, "few", 1), table_of(b, "many", 3)]
    distance = tape.sqrt(tape.total([tape.multiply(x, x) for x in r]))
    values = [
        tape.spline(tables[0].leaf(at="edge"), distance),
        tape.spline(tables[1].leaf(slot=2, at="edge"), distance),
        tape.spline(tables[1].leaf(slot=2, at="edge"), tape.scale(0.5, distance)),
    ]
    array = b.vectors("sums", "node", 1, 3)
    b.edges("sums", [Store(array.leaf(slot=k), x) for k, x in enumerate(values)])
    b.finish(*(silu(b, b.read(array, k)[0]) for k in range(3)))


def residual_that_neighbors_read(b: Sketch) -> None:
    """Read at neighbors what a residual has made, whose gradient the residual hands on as it is."""
    x = b.from_edges("x")
    sums, sent = b.vectors("sums", "node", 1, 1), b.multiplied("sent", x)
    value = b.tape.multiply(b.value(sent, at="neighbor"), b.read(R, at="edge")[0])
    b.edges("messages", [Store(sums.leaf(), value)])
    y = b.node("y", b.tape.add(b.value(x), silu(b, b.value(sums))))
    last = b.vectors("last", "node", 1, 1)
    value = b.tape.multiply(b.tape.sigmoid(b.value(y, at="neighbor")), b.read(R, at="edge")[1])
    b.edges("last", [Store(last.leaf(), value)])
    b.finish(silu(b, b.value(last)))


def words_of_the_language(b: Sketch) -> None:
    """Name arrays by words that the language or the headers have."""
    tape, x = b.tape, b.from_edges("x")
    for name in (
        "short",
        "i",
        "n",
        "c",
        "e",
        "T",
        "V",
        "t0",
        "edges",
        "splines",
        "in",
        "space",
        "rows",
        "near",
        "ends",
    ):
        x = b.node(name, tape.add(b.value(x), tape.scale(0.1, tape.sigmoid(b.value(x)))))
    sums = b.vectors("targets", "node", 1, 1)
    factor = tape.multiply(b.of_species("species"), b.read(R, at="edge")[0])
    b.edges("messages", [Store(sums.leaf(), tape.multiply(factor, b.value(x, at="neighbor")))])
    b.finish(silu(b, b.value(sums)), b.of_species("n_species"))


SKETCHES = [
    residual_read_later,
    sum_of_two,
    sum_of_two_loops,
    sum_of_independent,
    two_readers,
    two_residuals,
    scaled_residual,
    other_order,
    part_of_an_array,
    slot_of_an_array,
    parts_in_turn,
    nothing_goes_back,
    summed_products,
    from_neighbors,
    read_here_and_there,
    numbers_of_edges,
    edges_below,
    splines_of_edges,
    splines_of_two_tables,
    residual_that_neighbors_read,
    unused_at_neighbors,
    words_of_the_language,
]


def program_from(sketch: Callable[[Sketch], None]) -> Program:
    """Return the program of energies, forces and virials."""
    b = Sketch()
    sketch(b)
    b.setting("cutoff", CUTOFF)
    steps = list(b.steps)
    backward, transposed = differentiate(b.tape, steps, VECTORS, partial(forces_from, b.tape))
    result = [Store(FORCES.leaf(m), x) for m, x in enumerate(b.read(FORCES_OF_PAIRS))]
    backward += [loop_of(b.tape, "forces", "nodes", result), Total(VIRIALS, "virials")]
    weights = b.weights | {new: b.weights[name].T for name, new in transposed.items()}
    weights = {name: x.double().contiguous() for name, x in weights.items()}
    return Program(b.tape, [*steps, *backward], len(steps), weights)
