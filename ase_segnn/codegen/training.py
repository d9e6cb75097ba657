"""Programs for training: energies, forces and virials, then the gradients of the weights, as two functions in C++.

The program of inference (`ase_segnn.codegen.potentials`) is differentiated once more, by all weights that are learned.
A thread has structures of its own, so that no two threads write the same rows; gradients of tables are kept per thread.
Gradients of matrices are products of two arrays of the program, `TrainingProgram.outers`, and left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ase_segnn.codegen.arrays import Array, At
from ase_segnn.codegen.cpp import c_type, preamble
from ase_segnn.codegen.derivative import Outer, differentiate, differentiate_by_weights, gradient_array
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.geometry import VECTORS, VIRIALS, forces_from
from ase_segnn.codegen.interface import struct
from ase_segnn.codegen.loops import Functions, parameters_of
from ase_segnn.codegen.potentials import ATOM_ENERGIES, FORCES, forward_of, store_forces
from ase_segnn.codegen.program import Access, Loop, Product, Step, Total
from ase_segnn.model.potential import Potential

# What the functions get besides arrays and weights. The atoms of thread t are those from first_atoms[t] to
# first_atoms[t + 1]; the edges of atom i those from rows[i] to rows[i + 1].
SIZES = {"n_species": "int64_t", "n_intervals": "int64_t", "n_threads": "int64_t", "per_length": "double"}
INDICES = dict.fromkeys(("first_atoms", "rows", "neighbors", "species"), "const int64_t*")
RESULTS: dict[Array, tuple[int, ...]] = {ATOM_ENERGIES: (), FORCES: (3,), VIRIALS: (9,)}  # and their shapes per atom


class TrainingProgram(NamedTuple):
    """A program that predicts, and one that finds gradients.

    Parameters
    ----------
    tape : of all expressions
    forward, backward : steps
    outers : gradients of matrices, after the backward steps
    tables : learned weights that are no matrices
    cleared : arrays to which neighbors add, in the forward and in the backward steps
    transposed : name of a matrix -> name of the transposed one
    """

    tape: Tape
    forward: list[Step]
    backward: list[Step]
    outers: list[Outer]
    tables: list[Array]
    cleared: tuple[list[Array], list[Array]]
    transposed: dict[str, str]

    @property
    def arrays(self) -> list[Array]:
        """Arrays of atoms and edges."""
        return [array for array in _arrays([*self.forward, *self.backward]) if array.rows in ("node", "edge")]

    @property
    def constants(self) -> list[Array]:
        """Arrays of weights."""
        arrays = _arrays([*self.forward, *self.backward])
        return [x for x in arrays if x.rows not in ("node", "edge") and x not in self.gradients.values()]

    @property
    def gradients(self) -> dict[Array, Array]:
        """Table -> the array of its gradients."""
        return {table: gradient_array(table, "g_") for table in self.tables}

    @property
    def matrices(self) -> list[str]:
        """Names of the matrices of all products."""
        steps = [*self.forward, *self.backward]
        return list(dict.fromkeys(step.weight for step in steps if isinstance(step, Product)))

    @property
    def fields(self) -> dict[str, str]:
        """Fields of the struct that both functions take."""
        arrays = [*self.arrays, *self.constants, *self.gradients.values()]
        pointers = {array.identifier: f"{c_type(array)}*" for array in arrays}
        assert pointers.keys().isdisjoint(self.matrices)
        return SIZES | INDICES | pointers | dict.fromkeys(self.matrices, "T*")


def training_program(potential: Potential) -> tuple[TrainingProgram, dict[str, Tensor]]:
    """Return the program of a potential, and its weights, which can be differentiated by the parameters."""
    with torch.enable_grad():
        b = forward_of(potential)
    tape, steps = b.tape, [step for step in b.steps if not isinstance(step, Total)]
    backward, transposed = differentiate(tape, b.steps, VECTORS, partial(forces_from, tape), in_place=False)
    forward: list[Step] = [*steps, *backward, store_forces(b)]
    names = [name for name, weight in b.weights.items() if weight.requires_grad]
    learned = [array for array in _arrays(forward) if array.identifier in names]
    found = differentiate_by_weights(tape, forward, RESULTS, learned, names, transposed)
    reached = {store.leaf.array for step in found.steps if isinstance(step, Loop) for store in step.stores}
    tables = [array for array in learned if gradient_array(array, "g_") in reached]
    scattered = [array for step in forward for array, at in step.writes if at == "neighbor"]
    program = TrainingProgram(
        tape,
        forward,
        found.steps,
        found.outers,
        tables,
        (list(dict.fromkeys(scattered)), found.gathered),
        found.transposed,
    )
    return program, b.weights


def weights_of(potential: Potential) -> dict[str, Tensor]:
    """Return the weights of the program alone."""
    with torch.enable_grad():
        return forward_of(potential).weights


def _arrays(steps: Iterable[Step]) -> list[Array]:
    return list(dict.fromkeys(array for step in steps for array, _ in [*step.reads, *step.writes]))


def training_source(program: TrainingProgram, dtype: torch.dtype) -> str:
    """Return C++ of the functions `predict` and `differentiate`, whose argument is a struct with the `fields`."""
    steps = [*program.forward, *program.backward]
    channels = max(step.channels for step in steps if isinstance(step, Loop))
    functions = Functions(program.tape)
    bodies = [
        _function(functions, name, cleared, steps)
        for name, cleared, steps in zip(
            ("predict", "differentiate"), program.cleared, (program.forward, program.backward), strict=True
        )
    ]
    headers = "".join(f'#include "{name}.hpp"\n' for name in ("edges", "products", "splines", "threads"))
    return "\n".join(
        [preamble(dtype, channels), struct("Arguments", program.fields), headers, *functions.texts(), *bodies]
    )


def _function(functions: Functions, name: str, cleared: Iterable[Array], steps: Iterable[Step]) -> str:
    lines = [
        "const int64_t i0 = in.first_atoms[thread], n = in.first_atoms[thread + 1] - i0;",
        "const Edges edges = {in.rows, in.rows + 1, in.neighbors, in.neighbors, in.species, in.n_species,",
        "                     in.n_intervals, (T)in.per_length};",
        *(f"clear({_pointer(array, 'center')}, n * {array.stride});" for array in cleared),
        *(_call(functions, step) for step in steps),
    ]
    body = "".join(f"    {line}\n" for line in lines)
    # fewer threads may run than are asked for
    turns = "for (int64_t thread = omp_get_thread_num(); thread < in.n_threads; thread += omp_get_num_threads())"
    return (
        f'extern "C" void {name}(const Arguments* arguments) {{\n  const Arguments& in = *arguments;\n'
        f"#pragma omp parallel num_threads(in.n_threads)\n  {turns} {{\n{body}  }}\n}}\n"
    )


def _call(functions: Functions, step: Step) -> str:
    if isinstance(step, Product):
        source, target = (_pointer(array, "center") for array in (step.source, step.target))
        sizes = f"n * {step.source.components}, {step.source.width}, {step.target.width}"
        return f"multiply({sizes}, {source}, in.{step.weight}, {target}, {int(step.adds)});"
    assert isinstance(step, Loop)
    written = set(step.writes)
    arguments = [_argument(access, is_written=access in written) for access in parameters_of(step)]
    return f"{functions.name(step)}(edges, i0, n, {', '.join(arguments)});"


def _argument(access: Access, *, is_written: bool) -> str:
    array, at = access
    if is_written and array.rows not in ("node", "edge"):  # gradients of a table: each thread has its own
        return f"in.{array.identifier} + thread * {_rows(array)} * {array.stride}"
    return _pointer(array, at)


def _rows(array: Array) -> str:
    return {"species": "in.n_species", "knot": "(in.n_intervals + 5)"}.get(array.rows, "1")


def _pointer(array: Array, at: At) -> str:
    is_own = array.rows == "node" and at == "center"
    return f"in.{array.identifier}" + f" + i0 * {array.stride}" * is_own
