"""Programs: a potential as a list of few kinds of steps over named arrays.

A program holds no loops over atoms and no memory: printers make these from the steps (`ase_segnn.codegen.inference`,
where `ase_segnn.codegen.schedule` says what may run together, and `ase_segnn.codegen.training`). Each array of a
forward program is written by one loop or by products and never changed afterwards, so that every step can be
differentiated from what the arrays hold (`ase_segnn.codegen.derivative`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor

from ase_segnn.codegen.arrays import Array, At, Leaf
from ase_segnn.codegen.expressions import Tape

Access = tuple[Array, At]


class Product(NamedTuple):
    """Multiply all rows and components of an array of atoms with a matrix: target = source @ weight.

    Parameters
    ----------
    source, target : arrays of atoms with as many components
    weight : name of a matrix (width of the source, width of the target)
    adds : to what is there
    """

    source: Array
    weight: str
    target: Array
    adds: bool

    @property
    def reads(self) -> list[Access]:
        """Arrays that are read."""
        return [(self.source, "center")]

    @property
    def writes(self) -> list[Access]:
        """Arrays that are written."""
        return [(self.target, "center")]


class Store(NamedTuple):
    """Put the value of an expression into a place; a vector that goes to a single number is summed over channels.

    In a loop along edges, what goes to the center is summed over its edges. With `adds`, and at neighbors always, the
    value is added to what is there.

    Parameters
    ----------
    leaf, value, adds : see above
    spline : expression of a spline or slope; `leaf` is then a place in a table, and the value times the derivative of
        this expression by each coefficient is added to the coefficients
    """

    leaf: Leaf
    value: int
    adds: bool = False
    spline: int | None = None

    @property
    def needs(self) -> list[int]:
        """Expressions to be evaluated."""
        return [self.value] if self.spline is None else [self.value, self.spline]


class Loop(NamedTuple):
    """Evaluate expressions for each atom, or for each edge of each atom.

    Parameters
    ----------
    name : for readers of what is printed
    over : "nodes" or "edges"
    stores : where the values of expressions go
    leaves : the places that the expressions read
    below : expressions (a, b) of a loop along edges that does nothing for other edges than those with a < b
    """

    name: str
    over: Literal["nodes", "edges"]
    stores: tuple[Store, ...]
    leaves: tuple[Leaf, ...]
    below: tuple[int, int] | None = None

    @property
    def reads(self) -> list[Access]:
        """Arrays that are read, and whose rows of them."""
        return list(dict.fromkeys((leaf.array, leaf.at) for leaf in self.leaves))

    @property
    def writes(self) -> list[Access]:
        """Arrays that are written, and whose rows of them."""
        return list(dict.fromkeys((store.leaf.array, store.leaf.at) for store in self.stores))

    @property
    def values(self) -> list[int]:
        """Expressions that are evaluated."""
        return [*(value for store in self.stores for value in store.needs), *(self.below or ())]

    @property
    def channels(self) -> int:
        """Numbers of a vector; 0 if all are single numbers, which are float64 then."""
        return max(array.channels for array, _ in [*self.reads, *self.writes])


class Total(NamedTuple):
    """Sum numbers of atoms over the atoms of each structure; `target` is what the result is called."""

    source: Array
    target: str

    @property
    def reads(self) -> list[Access]:
        """Arrays that are read."""
        return [(self.source, "center")]

    @property
    def writes(self) -> list[Access]:
        """Arrays that are written: none of atoms."""
        return []


Step = Product | Loop | Total


class Program(NamedTuple):
    """A potential from the vectors of its edges to what it predicts.

    Parameters
    ----------
    tape : all expressions
    steps : in an order in which they can run
    n_forward : how many of them the energies need; the rest is the derivative
    weights : name -> numbers that do not change from call to call; float64 where an array is double
    """

    tape: Tape
    steps: list[Step]
    n_forward: int
    weights: dict[str, Tensor]


def loop_of(
    tape: Tape,
    name: str,
    over: Literal["nodes", "edges"],
    stores: Iterable[Store],
    below: tuple[int, int] | None = None,
) -> Loop:
    """Return a loop, with the places that it reads looked up."""
    stores = tuple(stores)
    loop = Loop(name, over, stores, (), below)
    return loop._replace(leaves=tuple(tape.leaves(loop.values)))
