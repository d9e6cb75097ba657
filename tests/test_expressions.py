"""Expressions and their derivatives, evaluated by the table of the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from interpreter import OPERATIONS, Numbers, evaluate

from ase_segnn.codegen import cpp
from ase_segnn.codegen.arrays import Array, Leaf
from ase_segnn.codegen.expressions import _DERIVATIVES, Tape

C, N_KNOTS = 4, 12
X, Y = (Array("", name, "node", 1, C, C) for name in "xy")
S, T = (Array("", name, "node", 1) for name in "st")
TABLE = Array("", "table", "knot", 1, C, C)
COTANGENTS = Array("", "cotangents", "node", 1, 3 * C, C)
# Each operation, of vectors where they may be and of scalars where they may be.
CASES: dict[str, Callable[[Tape, int, int, int, int], list[int]]] = {
    "add": lambda tape, x, y, s, t: [tape.add(x, y), tape.add(x, s), tape.multiply(x, tape.add(s, t))],
    "multiply": lambda tape, x, y, s, t: [
        tape.multiply(x, y),
        tape.multiply(s, x),
        tape.multiply(x, tape.multiply(s, t)),
    ],
    "divide": lambda tape, x, _y, s, t: [tape.multiply(x, tape.divide(s, t)), tape.multiply(x, tape.divide(t, s))],
    "sigmoid": lambda tape, x, y, _s, _t: [tape.sigmoid(x), tape.sigmoid(tape.multiply(x, y))],
    "sqrt": lambda tape, x, _y, s, _t: [tape.multiply(x, tape.sqrt(s))],
    "exp": lambda tape, x, _y, s, _t: [tape.multiply(x, tape.exp(tape.scale(-0.7, s)))],
    "expm1": lambda tape, x, _y, s, _t: [tape.multiply(x, tape.expm1(tape.scale(-0.7, s)))],
    "ramp": lambda tape, x, _y, s, t: [
        tape.multiply(x, tape.ramp(tape.add(s, tape.scale(k, t)))) for k in (-1, -0.5, -2)
    ],
    "spline": lambda tape, x, _y, s, _t: [tape.multiply(x, tape.spline(TABLE.leaf(), tape.scale(0.4, s)))],
}


def numbers() -> dict[Array, Numbers]:
    rng = np.random.default_rng(0)
    values = {array: rng.normal(size=(3, array.stride)) for array in (X, Y, COTANGENTS)}
    values |= {array: rng.uniform(0.5, 2, (3, 1)) for array in (S, T)}
    return values | {TABLE: rng.normal(size=(N_KNOTS, C))}


def run(tape: Tape, wanted: list[int], values: dict[Array, Numbers]) -> list[Numbers]:
    def load(leaf: Leaf) -> Numbers:
        return values[leaf.array][:, leaf.offset : leaf.offset + max(leaf.array.channels, 1)]

    return evaluate(tape, wanted, load, load)


def assert_is_derivative(tape: Tape, outputs: list[int], arrays: list[Array]) -> None:
    """Compare the sum over outputs of cotangent times derivative with central differences."""
    values = numbers()
    cotangents = [tape.leaf(COTANGENTS.leaf(slot=k)) for k in range(len(outputs))]
    gradients = run(tape, tape.backward(outputs, cotangents, [tape.leaf(x.leaf()) for x in arrays]), values)

    def total(changed: dict[Array, Numbers]) -> Numbers:
        products = [g * y for g, y in zip(run(tape, cotangents, values), run(tape, outputs, changed), strict=True)]
        return np.sum([np.broadcast_to(x, (3, C)) for x in products], axis=0)

    for array, gradient in zip(arrays, gradients, strict=True):
        up, down = (total(values | {array: values[array] + step}) for step in (1e-5, -1e-5))
        expected = (up - down) / 2e-5
        assert np.abs(expected).max() > 0.1
        # a scalar has its derivative per channel, to be summed
        np.testing.assert_allclose(np.broadcast_to(gradient, (3, C)), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("operation", CASES)
def test_every_operation_has_its_derivative(operation: str) -> None:
    tape = Tape()
    places = [tape.leaf(array.leaf()) for array in (X, Y, S, T)]
    outputs = CASES[operation](tape, *places)
    used = tape.needed(outputs)
    assert any(tape.nodes[index].operation == operation for index in used)
    arrays = [array for array, place in zip((X, Y, S, T), places, strict=True) if place in used]
    assert_is_derivative(tape, outputs, arrays)


def test_a_new_operation_needs_an_entry_in_every_table() -> None:
    assert CASES.keys() == _DERIVATIVES.keys()
    assert {*_DERIVATIVES, "slope", "step"} == cpp._OPERATIONS.keys()  # slopes are in backward passes alone
    assert {*OPERATIONS, "spline", "slope"} == cpp._OPERATIONS.keys()
    makes = {name for name in cpp._OPERATIONS if name != "slope"}
    assert all(callable(getattr(Tape, name)) for name in makes)


def test_sums_of_many_ways_from_an_input() -> None:
    """An input that is used again and again, in one output and in several, and an output that another is made of."""
    tape = Tape()
    x, y, s = (tape.leaf(array.leaf()) for array in (X, Y, S))
    product = tape.multiply(tape.add(x, tape.multiply(s, y)), tape.sigmoid(tape.scale(0.7, y)))
    assert_is_derivative(tape, [product, tape.multiply(tape.multiply(s, s), product), tape.add(None, y)], [X, Y, S])


def test_an_output_that_is_wanted_twice_counts_twice() -> None:
    tape = Tape()
    x = tape.leaf(X.leaf())
    assert_is_derivative(tape, [x, tape.multiply(x, x), tape.multiply(x, x)], [X])


def test_of_what_nothing_depends_on_the_derivative_is_zero() -> None:
    tape = Tape()
    x, y, s = (tape.leaf(array.leaf()) for array in (X, Y, S))
    [gradient] = tape.backward([tape.sigmoid(x)], [y], [s])
    assert tape.number(gradient) == 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda tape, x: tape.add(x, tape.constant(0)), "x"),
        (lambda tape, x: tape.add(tape.constant(0), x), "x"),
        (lambda tape, x: tape.add(None, x), "x"),
        (lambda tape, x: tape.multiply(x, tape.constant(1)), "x"),
        (lambda tape, x: tape.multiply(tape.constant(1), x), "x"),
        (lambda tape, x: tape.multiply(x, tape.constant(0)), 0),
        (lambda tape, x: tape.multiply(tape.constant(0), x), 0),
        (lambda tape, x: tape.scale(0, x), 0),
        (lambda tape, _: tape.total([]), 0),
        (lambda tape, x: tape.total([x]), "x"),
        (lambda tape, _: tape.sqrt(tape.constant(4)), 2),
        (lambda tape, _: tape.exp(tape.constant(0.5)), np.exp(0.5)),
        (lambda tape, _: tape.expm1(tape.constant(0.5)), np.expm1(0.5)),
        (lambda tape, _: tape.ramp(tape.constant(0.5)), 0.5),
        (lambda tape, _: tape.ramp(tape.constant(-0.5)), 0),
        (lambda tape, _: tape.step(tape.constant(0.5)), 1),
        (lambda tape, _: tape.step(tape.constant(-0.5)), 0),
        (lambda tape, _: tape.sigmoid(tape.constant(0.5)), 1 / (1 + np.exp(-0.5))),
    ],
)
def test_constants_are_folded(make: Callable[[Tape, int], int], expected: float | str) -> None:
    tape = Tape()
    x = tape.leaf(X.leaf())
    made = make(tape, x)
    if expected == "x":
        assert made == x
    else:
        assert tape.number(made) == pytest.approx(expected)


@pytest.mark.parametrize("x", [-700.0, -30.0, 800.0])
def test_a_sigmoid_of_a_constant_far_from_zero(x: float) -> None:
    tape = Tape()
    assert tape.number(tape.sigmoid(tape.constant(x))) == pytest.approx(float(np.exp(-np.logaddexp(0, -x))))


def test_equal_expressions_are_stored_once() -> None:
    tape = Tape()
    x, y, s = (tape.leaf(array.leaf()) for array in (X, Y, S))
    assert tape.multiply(x, y) == tape.multiply(y, x)
    assert tape.add(x, y) == tape.add(y, x)
    assert tape.leaf(X.leaf()) == x
    assert tape.spline(TABLE.leaf(), s) == tape.spline(TABLE.leaf(), s)
    assert tape.constant(2) == tape.constant(2.0)
    n_nodes = len(tape.nodes)
    tape.sigmoid(tape.add(y, x))
    assert len(tape.nodes) == n_nodes + 1


def test_what_differs_is_stored_apart() -> None:
    tape = Tape()
    two = Array("", "two", "node", 2, 2 * C, C)
    leaves = [two.leaf(k, slot, at) for k in (0, 1) for slot in (0, 1) for at in ("center", "neighbor")]
    assert len({tape.leaf(leaf) for leaf in [*leaves, two._replace(scope="layer_1").leaf()]}) == 9
    s, t = (tape.leaf(array.leaf()) for array in (S, T))
    assert tape.divide(s, t) != tape.divide(t, s)
    assert tape.spline(TABLE.leaf(), s) != tape.spline(TABLE.leaf(), s, slope=True)


def test_vectors_are_what_depends_on_channels() -> None:
    tape = Tape()
    x, s, t = (tape.leaf(array.leaf()) for array in (X, S, T))
    vectors = [x, tape.multiply(x, s), tape.sigmoid(x), tape.spline(TABLE.leaf(), s)]
    scalars = [s, tape.add(s, t), tape.divide(s, t), tape.exp(s), tape.constant(3)]
    assert [tape.nodes[index].is_vector for index in (*vectors, *scalars)] == [True] * 4 + [False] * 5


def test_only_what_is_wanted_is_computed() -> None:
    tape = Tape()
    x, y, s = (tape.leaf(array.leaf()) for array in (X, Y, S))
    product = tape.multiply(x, s)
    tape.sigmoid(product)
    assert tape.needed([product]) == [s, x, product]  # scalars first
    assert set(tape.leaves([product])) == {X.leaf(), S.leaf()}
    assert set(tape.leaves([tape.multiply(y, tape.spline(TABLE.leaf(), s))])) == {Y.leaf(), S.leaf(), TABLE.leaf()}
