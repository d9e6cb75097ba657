"""Expressions and their derivatives, evaluated here as the C++ that they stand for."""

from __future__ import annotations

import numpy as np

from ase_segnn.model.expressions import Tape


def evaluate(tape: Tape, wanted: list[int], inputs: dict[str, object]) -> list[object]:
    """Run the statements as Python."""
    scalars, vectors = tape.statements(wanted)
    names: dict[str, object] = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "T": float, **inputs}
    for statement in (*scalars, *vectors):
        exec(statement.removeprefix("const T ").removeprefix("const V ").rstrip(";"), names)
    return [eval(tape.name(index), names) for index in wanted]


def example(tape: Tape) -> tuple[list[int], list[int], list[int]]:
    """Return outputs, cotangents and inputs of something that uses every operation."""
    x, y = (tape.load(name, vector=True) for name in "xy")
    s = tape.load("s", vector=False)
    product = tape.multiply(tape.add(x, tape.multiply(s, y)), tape.sigmoid(tape.multiply(tape.constant(0.7), y)))
    outputs = [product, tape.multiply(tape.multiply(s, s), product), tape.add(None, y)]
    cotangents = [tape.load(name, vector=True) for name in ("g0", "g1", "g2")]
    return outputs, cotangents, [x, y, s]


def numbers() -> dict[str, np.ndarray | float]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=4) for name in ("x", "y", "g0", "g1", "g2")} | {"s": 1.3}


def test_backward_is_the_derivative() -> None:
    tape = Tape()
    outputs, cotangents, inputs = example(tape)
    values = numbers()
    gradients = evaluate(tape, tape.backward(outputs, cotangents, inputs), values)

    def total(changed: dict[str, object]) -> np.ndarray:
        results = evaluate(tape, outputs, changed)
        return sum(values[f"g{k}"] * result for k, result in enumerate(results))

    for name, gradient in zip("xys", gradients, strict=True):
        up, down = (total(values | {name: values[name] + step}) for step in (1e-6, -1e-6))
        assert np.abs(gradient).max() > 0.1
        np.testing.assert_allclose(gradient, (up - down) / 2e-6, rtol=1e-7, atol=1e-8)


def test_equal_expressions_are_stored_once() -> None:
    tape = Tape()
    x, y = (tape.load(name, vector=True) for name in "xy")
    assert tape.multiply(x, y) == tape.multiply(y, x)
    assert tape.add(x, y) == tape.add(y, x)
    assert tape.load("x", vector=True) == x
    assert tape.multiply(tape.constant(1), y) == y


def test_only_what_is_wanted_is_computed() -> None:
    tape = Tape()
    outputs, _, _ = example(tape)
    assert tape.statements([outputs[2]]) == ([], ["const V t1 = y;"])
