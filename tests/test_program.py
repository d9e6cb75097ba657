"""Programs and their derivatives, run by the interpreter, against differences and against the plain potential."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from interpreter import Numbers, System, run, totals
from random_potentials import SHAPES, random_potential
from sketches import GRADIENT, SKETCHES, SYSTEM, R, Sketch, from_neighbors, into_gradient, silu
from systems import systems

from ase_segnn.codegen.builder import Builder
from ase_segnn.codegen.derivative import differentiate
from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.potentials import ATOM_ENERGIES, COUNTED, FORCES, program_of
from ase_segnn.codegen.program import Loop, Step
from ase_segnn.graphs.atomic_graph import AtomicGraph


def derivative(b: Builder) -> tuple[list[Step], dict[str, Numbers]]:
    """Return the backward steps and all weights."""
    backward, transposed = differentiate(b.tape, list(b.steps), R, into_gradient)
    weights = {name: x.numpy() for name, x in b.weights.items()}
    return backward, weights | {new: weights[name].T for name, new in transposed.items()}


def assert_is_derivative(b: Builder) -> list[Step]:
    """Compare the backward pass of a program with central differences of its total, and return its steps."""
    backward, weights = derivative(b)
    vectors = np.random.default_rng(1).normal(size=(len(SYSTEM.centers), 3))

    def forward(vectors: Numbers) -> float:
        memory = run(b.tape, b.steps, SYSTEM, weights, {R: vectors})
        return float(totals(b.steps, memory)["energy"][0])

    memory = run(b.tape, [*b.steps, *backward], SYSTEM, weights, {R: vectors, GRADIENT: np.zeros_like(vectors)})
    expected = np.zeros_like(vectors)
    for place in np.ndindex(vectors.shape):
        step = np.zeros_like(vectors)
        step[place] = 1e-5
        expected[place] = (forward(vectors + step) - forward(vectors - step)) / 2e-5
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(memory[GRADIENT], expected, rtol=1e-6, atol=1e-7)
    assert_loops_can_run_in_place(backward)
    return backward


def assert_loops_can_run_in_place(steps: list[Step]) -> None:
    """Check that no turn of a loop along edges reads what another turn writes."""
    for step in steps:
        if isinstance(step, Loop) and step.over == "edges":
            assert not {array for array, _ in step.reads} & {array for array, _ in step.writes}


def arrays_of(steps: list[Step]) -> set[str]:
    return {array.name for step in steps for array, _ in [*step.reads, *step.writes]}


def test_a_chain_of_products_and_loops() -> None:
    b = Sketch()
    x = b.from_edges("x", 3)
    y = b.multiplied("y", x)
    components = [silu(b, component) for component in b.read(y)]
    b.finish(*b.read(b.multiplied("z", b.node("gated", *components))))
    assert_is_derivative(b)


def test_the_gradient_of_a_residual_is_shared_in_place() -> None:
    b = Sketch()
    x = b.from_edges("x")
    added = b.multiplied("added", x)
    y = b.node("y", b.tape.add(b.value(x), silu(b, b.value(added))))
    b.finish(silu(b, b.value(y)))
    backward = assert_is_derivative(b)
    assert "d_y" in arrays_of(backward)
    assert "d_x" not in arrays_of(backward)


def test_the_gradient_of_many_residuals_is_one() -> None:
    b = Sketch()
    x = b.from_edges("x")
    for k in range(3):
        added = b.multiplied(f"added_{k}", x)
        x = b.node(f"y_{k}", b.tape.add(b.value(x), silu(b, b.value(added))))
    b.finish(silu(b, b.value(x)))
    backward = assert_is_derivative(b)
    assert {name for name in arrays_of(backward) if name.startswith(("d_x", "d_y"))} == {"d_y_2"}


@pytest.mark.parametrize("sketch", SKETCHES, ids=lambda sketch: sketch.__name__)
def test_backward_steps_are_the_derivative(sketch: Callable[[Sketch], None]) -> None:
    b = Sketch()
    sketch(b)
    assert_is_derivative(b)


def test_forward_steps_stay_as_they_are() -> None:
    b = Sketch()
    from_neighbors(b)
    steps = list(b.steps)
    derivative(b)
    assert b.steps == steps


def test_matrices_are_transposed_where_they_are_needed() -> None:
    b = Sketch()
    x = b.from_edges("x")
    b.multiplied("unused", x)
    b.finish(b.value(b.multiplied("y", x)))
    _, transposed = differentiate(b.tape, b.steps, R, into_gradient)
    assert transposed == {"_x_to_y": "_x_to_y_transposed"}


@pytest.mark.parametrize("name", SHAPES)
def test_the_program_of_a_potential_is_the_potential(name: str) -> None:
    potential = random_potential(SHAPES[name]).double().requires_grad_(False).eval()
    program = program_of(potential)
    weights = {key: value.double().numpy() for key, value in program.weights.items()}
    assert_loops_can_run_in_place(program.steps)
    for system in ("water", "skewed triclinic", "wire", "lone atom"):
        graph = AtomicGraph.from_atoms(systems()[system], potential.cutoff)
        expected = potential.predict(graph)
        vectors = graph.edge_vectors().requires_grad_()
        [gradient] = torch.autograd.grad(potential(graph, vectors).sum(), vectors)
        virials = (vectors[:, :, None] * gradient[:, None, :]).detach().sum(0)
        atoms = System.of(potential, graph)
        given = {VECTORS: vectors.detach().numpy(), COUNTED: np.ones((graph.n_atoms, 1))}
        memory = run(program.tape, program.steps, atoms, weights, given)
        found = totals(program.steps, memory)
        scale = max(1.0, float(expected.forces.abs().max()))
        tolerance = {"rtol": 1e-9, "atol": 1e-9 * scale}
        np.testing.assert_allclose(memory[ATOM_ENERGIES][:, 0], expected.atom_energies, **tolerance)
        np.testing.assert_allclose(found["energy"], expected.energy, **tolerance)
        np.testing.assert_allclose(memory[FORCES], expected.forces, **tolerance)
        np.testing.assert_allclose(found["virials"].reshape(3, 3), virials, **tolerance)
        assert (len(vectors) > 0) == (system != "lone atom")


def test_energies_need_the_first_steps_alone() -> None:
    potential = random_potential(SHAPES["natural parity"]).double().requires_grad_(False).eval()
    program = program_of(potential)
    graph = AtomicGraph.from_atoms(systems()["water"], potential.cutoff)
    atoms = System.of(potential, graph)
    weights = {key: value.numpy() for key, value in program.weights.items()}
    forward = program.steps[: program.n_forward]
    memory = run(program.tape, forward, atoms, weights, {VECTORS: graph.edge_vectors().numpy()})
    np.testing.assert_allclose(totals(forward, memory)["energy"], potential.predict(graph).energy, rtol=1e-9)
    assert FORCES not in memory
