"""Programs for training, run by the interpreter: results and gradients of weights, against torch's, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from interpreter import Memory, Numbers, System, outer_products, run
from random_potentials import SHAPES, random_potential
from systems import systems
from torch import Tensor

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.derivative import gradient_array
from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.training import RESULTS, TrainingProgram, training_program
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

SYSTEM = "skewed triclinic"


def graph_of(potential: Potential) -> AtomicGraph:
    return AtomicGraph.from_atoms(systems()[SYSTEM], potential.cutoff)


def evaluated(potential: Potential, graph: AtomicGraph) -> tuple[TrainingProgram, Memory, dict[str, Tensor], float]:
    """Run a program forward, and backward from a sum of squares of the results; return its weights and the sum."""
    program, weights = training_program(potential)
    numbers = {name: weight.detach().double().numpy() for name, weight in weights.items()}
    numbers |= {new: numbers[name].T for name, new in program.transposed.items()}
    system = System.of(potential, graph)
    memory: Memory = {VECTORS: graph.edge_vectors().numpy()}
    run(program.tape, program.forward, system, numbers, memory)
    loss = sum(float((memory[array] ** 2).sum()) for array in RESULTS)
    memory |= {gradient_array(array, "g_"): 2 * memory[array] for array in RESULTS}
    run(program.tape, program.backward, system, numbers, memory, program.cleared[1])
    return program, memory, weights, loss


def gradients_of_weights(program: TrainingProgram, memory: Memory) -> dict[str, Numbers]:
    """Return the gradients of tables and matrices, by name."""
    found = {table.identifier: memory[gradient] for table, gradient in program.gradients.items()}
    for name, product in outer_products(program.outers, memory):
        found[name] = found.get(name, 0) + product
    return found


def plain_loss(potential: Potential, graph: AtomicGraph) -> Tensor:
    """Return the same sum of squares from the plain potential."""
    vectors = graph.edge_vectors().requires_grad_()
    energies = potential(graph, vectors)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    forces = torch.zeros_like(graph.positions).index_add(0, graph.centers, gradient)
    forces = forces.index_add(0, graph.neighbors, gradient, alpha=-1)
    virials = (vectors.detach()[:, :, None] * gradient[:, None, :]).flatten(1)
    virials = torch.zeros(graph.n_atoms, 9, dtype=torch.float64).index_add(0, graph.centers, virials)
    return energies.square().sum() + forces.square().sum() + virials.square().sum()


def assert_gradients_are_right(potential: Potential) -> None:
    graph = graph_of(potential)
    program, memory, weights, value = evaluated(potential, graph)
    learned = {name: parameter for name, parameter in potential.named_parameters() if parameter.requires_grad}
    expected_loss = plain_loss(potential, graph)
    assert value == pytest.approx(float(expected_loss.detach()), rel=1e-9)
    expected = torch.autograd.grad(expected_loss, learned.values(), materialize_grads=True)
    of_weights = gradients_of_weights(program, memory)
    assert of_weights.keys() <= {name for name, weight in weights.items() if weight.requires_grad}
    cotangents = [torch.from_numpy(of_weights[name]).reshape(weights[name].shape) for name in of_weights]
    found = torch.autograd.grad(
        [weights[name] for name in of_weights], list(learned.values()), cotangents, materialize_grads=True
    )
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient.numel())
    assert largest > 1e-2
    for name, one, other in zip(learned, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 * largest, msg=name)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_the_plain_potential(name: str) -> None:
    potential = random_potential(SHAPES[name]).double()
    potential.calibrate(graph_of(potential))
    assert_gradients_are_right(potential)


def names_of(arrays: Iterable[Array]) -> set[str]:
    return {array.identifier for array in arrays}


@pytest.mark.parametrize(
    "frozen",
    [
        ("embedding",),
        ("layers.0",),
        ("layers.0.message", "layers.1.products"),
        ("embedding", "layers"),
        ("readout.linear_2.weights",),
        ("layers.1.message.weights", "layers.1.message.linear_1"),
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("name", ["products", "with ZBL"])
def test_frozen_parts_have_no_gradients(name: str, frozen: tuple[str, ...]) -> None:
    """And the others have the right ones, by a program that is shorter."""
    potential = random_potential(SHAPES[name]).double()
    whole, _ = training_program(potential)
    n_frozen = 0
    for parameter_name, parameter in potential.network.named_parameters():
        if parameter_name.startswith(frozen):
            parameter.requires_grad_(False)
            n_frozen += 1
    assert n_frozen > 0
    program, weights = training_program(potential)
    fixed = {weight for weight in weights if not weights[weight].requires_grad}
    assert fixed.isdisjoint(names_of(program.tables))
    assert fixed.isdisjoint(outer.weight for outer in program.outers)
    assert len(program.outers) + len(program.tables) < len(whole.outers) + len(whole.tables)
    assert_gradients_are_right(potential)


def test_what_leads_to_frozen_weights_alone_is_left_out() -> None:
    """Energies do not depend on the readout by way of the sums of messages, as forces do."""
    potential = random_potential(SHAPES["natural parity"]).double()
    whole, _ = training_program(potential)
    for name, parameter in potential.network.named_parameters():
        parameter.requires_grad_(name.startswith("readout.linear_2"))
    program, _ = training_program(potential)
    written, all_written = (names_of(x for step in p.backward for x, _ in step.writes) for p in (program, whole))
    assert {"layer_0_g_sums_1o", "layer_0_g_d_sums_1o"} <= all_written
    assert "layer_0_g_d_sums_1o" in written
    assert "layer_0_g_sums_1o" not in written
    assert len(program.backward) < 0.6 * len(whole.backward)
    assert_gradients_are_right(potential)


def test_a_frozen_potential_has_no_backward_steps() -> None:
    program, _ = training_program(random_potential(SHAPES["products"]).requires_grad_(False))
    assert not program.backward
    assert not program.outers
    assert not program.tables


def test_forward_results_do_not_depend_on_what_is_frozen() -> None:
    potential = random_potential(SHAPES["products"]).double()
    graph = graph_of(potential)
    _, before, _, _ = evaluated(potential, graph)
    potential.network.embedding.requires_grad_(False)
    _, after, _, _ = evaluated(potential, graph)
    for array in RESULTS:
        np.testing.assert_array_equal(before[array], after[array])
