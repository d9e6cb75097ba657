"""Printed C++ does what the interpreter does, for programs that are no potentials, on one and on several threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from compiler import needs_compiler
from interpreter import System, run, totals
from random_potentials import NATIVE_CONFIGS, random_potential
from sketches import SKETCHES, Sketch, program_from
from systems import CUTOFF, systems

from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.potentials import ATOM_ENERGIES, FORCES
from ase_segnn.engines import native
from ase_segnn.engines.native import NativeFunction
from ase_segnn.graphs.atomic_graph import AtomicGraph

pytestmark = needs_compiler
POTENTIAL = random_potential(NATIVE_CONFIGS["natural parity"]).double().requires_grad_(False).eval()


@pytest.mark.parametrize(
    "sketch",
    SKETCHES,
    ids=lambda sketch: sketch.__name__,
)
def test_compiled_programs_do_what_interpreted_ones_do(
    sketch: Callable[[Sketch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_from(sketch)
    monkeypatch.setattr(native, "program_of", lambda _: program)
    function = NativeFunction(POTENTIAL)
    for system in ("mixed species", "water", "slab"):
        graph = AtomicGraph.from_atoms(systems()[system], CUTOFF)
        atoms = System.of(POTENTIAL, graph)
        weights = {name: x.numpy() for name, x in program.weights.items()}
        memory = run(program.tape, program.steps, atoms, weights, {VECTORS: graph.edge_vectors().numpy()})
        virials = totals(program.steps, memory)["virials"].reshape(3, 3)
        scale = max(1.0, float(np.abs(memory[FORCES]).max()))
        assert np.abs(memory[FORCES]).max() > 0.01
        for n_threads in (1, 3, 3, 1):  # twice each, since calls leave something for the next
            monkeypatch.setattr(NativeFunction, "_n_threads", lambda *_, n=n_threads: n)
            wrong, results = function(graph, derivatives=True)
            assert wrong == 0
            tolerance = {"rtol": 0, "atol": 1e-11 * scale}
            np.testing.assert_allclose(results["atom_energies"], memory[ATOM_ENERGIES][:, 0], **tolerance)
            np.testing.assert_allclose(results["forces"], memory[FORCES], **tolerance)
            if systems()[system].cell.rank == 3:
                expected = (virials + virials.T) / (2 * graph.volumes().numpy())
                np.testing.assert_allclose(results["stress"][0], expected, **tolerance)
            alone = function(graph, derivatives=False)[1]["atom_energies"]
            np.testing.assert_allclose(alone, results["atom_energies"], **tolerance)
