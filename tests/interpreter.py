"""Programs run as numpy in float64: a second printer, with a table of its own, that needs no compiler.

Each step runs for all atoms or edges at once. Memory that no step has written is nan, which shows a step that reads too
early; what neighbors add to is zero before a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ase_segnn.codegen.arrays import Array, At, Leaf
from ase_segnn.codegen.derivative import Outer
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.program import Loop, Product, Step, Store, Total
from ase_segnn.codegen.spline import BASIS
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Memory = dict[Array, Numbers]  # (rows, numbers of a row)

OPERATIONS: dict[str, Callable[..., Numbers]] = {
    "add": np.add,
    "multiply": np.multiply,
    "divide": np.divide,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt": np.sqrt,
    "exp": np.exp,
    "expm1": np.expm1,
    "ramp": lambda x: np.maximum(x, 0),
    "step": lambda x: (x > 0).astype(float),
}


class System(NamedTuple):
    """Atoms and edges; `length` of all intervals of splines together."""

    species: Indices
    centers: Indices
    neighbors: Indices
    n_species: int
    length: float = 1.0

    @classmethod
    def of(cls, potential: Potential, graph: AtomicGraph) -> System:
        """Return the atoms and edges of a graph, with splines up to the cutoff."""
        return cls(
            species=potential.species_of_number[graph.atomic_numbers].numpy(),
            centers=graph.centers.numpy(),
            neighbors=graph.neighbors.numpy(),
            n_species=len(potential.elements),
            length=potential.cutoff,
        )


def evaluate(
    tape: Tape,
    wanted: Sequence[int],
    load: Callable[[Leaf], Numbers],
    table: Callable[[Leaf], Numbers],
    length: float = 1.0,
) -> list[Numbers]:
    """Return expressions, (turns, channels) each, or (turns, 1) for scalars.

    Parameters
    ----------
    tape, wanted : what to evaluate
    load : place -> what it holds, (turns, channels) or (turns, 1)
    table : place in a table of splines -> their coefficients (knots, channels)
    length : of all intervals of splines together
    """
    values: dict[int, Numbers] = {}
    for index in tape.needed(wanted):
        node = tape.nodes[index]
        operands = [values[operand] for operand in node.operands]
        if node.operation == "constant":
            values[index] = np.full((1, 1), node.value)
        elif node.operation == "leaf":
            values[index] = load(node.value)
        elif node.operation in ("spline", "slope"):
            values[index] = spline(table(node.value), operands[0][:, 0], length, slope=node.operation == "slope")
        else:
            values[index] = OPERATIONS[node.operation](*operands)
    return [values[index] for index in wanted]


def spline(coefficients: Numbers, distances: Numbers, length: float, *, slope: bool = False) -> Numbers:
    """Return splines (n, functions), or their slopes, by the formula in `ase_segnn.codegen.spline`."""
    first, pieces = _pieces(len(coefficients) - 5, distances, length, slope=slope)
    return np.einsum("nm,nmf->nf", pieces, coefficients[first[:, None] + np.arange(6)])


def spread(numbers: Numbers, gradients: Numbers, distances: Numbers, length: float, *, slope: bool = False) -> None:
    """Add numbers (n, functions) times the derivatives of `spline` by the coefficients to gradients of the latter."""
    first, pieces = _pieces(len(gradients) - 5, distances, length, slope=slope)
    np.add.at(gradients, first[:, None] + np.arange(6), pieces[:, :, None] * numbers[:, None, :])


def _pieces(n_intervals: int, distances: Numbers, length: float, *, slope: bool) -> tuple[Indices, Numbers]:
    """Return the first coefficient that matters at each distance, and factors (n, 6) of this and the next five."""
    position = distances * n_intervals / length
    k = np.minimum(position.astype(np.int64), n_intervals - 1)
    powers = np.arange(6)
    u = (position - k)[:, None]
    slopes = powers * u ** np.maximum(powers - 1, 0) * n_intervals / length
    monomials = slopes if slope else u**powers
    return k, monomials @ np.array(BASIS).T


def run(
    tape: Tape,
    steps: Sequence[Step],
    system: System,
    weights: Mapping[str, Numbers],
    memory: Memory,
    cleared: Iterable[Array] = (),
) -> Memory:
    """Run steps.

    Parameters
    ----------
    tape, steps : of a program
    system : atoms and edges
    weights : name -> what does not change
    memory : what is given; all other arrays are added
    cleared : arrays that are zero before, besides those to which a neighbor adds and gradients of tables
    """
    sizes = {"node": len(system.species), "edge": len(system.centers)}
    zero = {array for step in steps for array, at in step.writes if at == "neighbor"} | set(cleared)
    for array in dict.fromkeys(array for step in steps for array, _ in [*step.reads, *step.writes]):
        if array.rows in sizes and array not in memory:
            memory[array] = np.full((sizes[array.rows], array.stride), 0.0 if array in zero else np.nan)
        elif array.identifier in weights:
            memory[array] = np.asarray(weights[array.identifier], np.float64).reshape(-1, array.stride)
    for array in {array for step in steps for array, _ in step.writes if array.rows not in sizes}:
        table = array._replace(name=array.name.removeprefix("g_"))
        memory[array] = np.zeros((weights[table.identifier].size // array.stride, array.stride))
    for step in steps:
        if isinstance(step, Product):
            source = memory[step.source].reshape(-1, step.source.width)
            result = (source @ weights[step.weight]).reshape(memory[step.target].shape)
            memory[step.target] = memory[step.target] + result if step.adds else result
        elif isinstance(step, Loop):
            _run_loop(tape, step, system, memory)
    return memory


def outer_products(outers: Iterable[Outer], memory: Memory) -> Iterator[tuple[str, Numbers]]:
    """Return what is added to the gradients of matrices, with their names."""
    for source, target, name in outers:
        x, y = (memory[array].reshape(-1, array.width) for array in (source, target))
        yield name, x.T @ y


def totals(steps: Sequence[Step], memory: Memory) -> dict[str, Numbers]:
    """Return the sums over all atoms that steps ask for."""
    return {step.target: memory[step.source].sum(0) for step in steps if isinstance(step, Total)}


def _run_loop(tape: Tape, loop: Loop, system: System, memory: Memory) -> None:
    is_along_edges = loop.over == "edges"
    turns = np.arange(len(system.centers if is_along_edges else system.species))
    if loop.below is not None:
        a, b = (
            np.broadcast_to(x, (len(turns), 1))[:, 0] for x in _values(tape, loop, loop.below, turns, system, memory)
        )
        turns = turns[a < b]
    found = _values(tape, loop, [store.value for store in loop.stores], turns, system, memory)
    for store in loop.stores:
        if is_along_edges and store.leaf.at == "center" and not store.adds:
            memory[store.leaf.array][...] = 0
    for store, value in zip(loop.stores, found, strict=True):
        leaf = store.leaf
        if store.spline is not None:
            _spread(tape, loop, store, value, system, memory)
            continue
        is_summed = not leaf.array.channels and tape.nodes[store.value].is_vector
        place = _rows(leaf.array, leaf.at, loop, turns, system), _columns(leaf)
        if not store.adds and not (is_along_edges and leaf.at != "edge"):
            memory[leaf.array][place] = 0
        np.add.at(memory[leaf.array], place, value.sum(1, keepdims=True) if is_summed else value)


def _spread(tape: Tape, loop: Loop, store: Store, value: Numbers, system: System, memory: Memory) -> None:
    """Add to the gradients of coefficients."""
    assert store.spline is not None
    node, turns = tape.nodes[store.spline], np.arange(len(system.centers))
    [distances] = _values(tape, loop, node.operands, turns, system, memory)
    numbers = np.broadcast_to(value, (len(turns), store.leaf.array.channels))
    gradients = memory[store.leaf.array][:, _columns(store.leaf)]
    spread(numbers, gradients, distances[:, 0], system.length, slope=node.operation == "slope")


def _values(
    tape: Tape, loop: Loop, wanted: Sequence[int], turns: Indices, system: System, memory: Memory
) -> list[Numbers]:
    return evaluate(
        tape,
        wanted,
        lambda leaf: memory[leaf.array][_rows(leaf.array, leaf.at, loop, turns, system), _columns(leaf)],
        lambda leaf: memory[leaf.array][:, _columns(leaf)],
        system.length,
    )


def _columns(leaf: Leaf) -> slice:
    return slice(leaf.offset, leaf.offset + max(leaf.array.channels, 1))


def _rows(array: Array, at: At, loop: Loop, turns: Indices, system: System) -> Indices:
    """Return which row of an array each turn takes."""
    center = turns if loop.over == "nodes" else system.centers[turns]
    atom = system.neighbors[turns] if at == "neighbor" else center
    match array.rows:
        case "node":
            return atom
        case "edge":
            return turns
        case "species":
            return system.species[atom]
        case "pair":
            return system.species[center] * system.n_species + system.species[system.neighbors[turns]]
        case _:
            return np.zeros_like(turns)
