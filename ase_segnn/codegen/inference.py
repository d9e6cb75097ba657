"""The C++ of a potential for inference: the passes of its program over blocks of atoms, see the header `driver.hpp`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ase_segnn.checks import SMALLEST_VOLUME
from ase_segnn.codegen.arrays import Array, At
from ase_segnn.codegen.cpp import c_type, preamble
from ase_segnn.codegen.interface import INPUT, NUMBERS, struct
from ase_segnn.codegen.loops import Functions, parameters_of
from ase_segnn.codegen.potentials import ATOM_ENERGIES, FORCES
from ase_segnn.codegen.program import Loop, Product, Program, Step
from ase_segnn.codegen.schedule import Pass, Schedule, schedule, size_of

_GIVEN = {ATOM_ENERGIES, FORCES}
_SURROUNDINGS = "const Input& in, const Constants& constants, const Space& space, const Edges& edges"
_PASS = f"{_SURROUNDINGS}, const Block& block, T* scratch"
_NUMBER_OF = {"node": "in.n_atoms", "edge": "in.n_edges"}
_SUMS = {"energy": "sum_energy(in, {});", "virials": "if (in.forces_wanted) sum_virials(in, {});"}


def constants_of(program: Program) -> dict[str, str]:
    """Return the fields of the struct of what does not change from call to call."""
    arrays = {array for step in program.steps for array, _ in [*step.reads, *step.writes]}
    double = {array.identifier for array in arrays if array.is_double}
    return NUMBERS | {name: f"const {'double' if name in double else 'T'}*" for name in program.weights}


def source_of(program: Program, dtype: torch.dtype) -> str:
    """Return C++ that evaluates all potentials whose programs have this form.

    Parameters
    ----------
    program : of one of these potentials
    dtype : of its network
    """
    channels = max(step.channels for step in program.steps if isinstance(step, Loop))
    plan = schedule(program, _GIVEN)
    functions = Functions(program.tape)
    passes = [_pass_function(functions, plan, number) for number in range(len(plan.passes))]
    n_forward = sum(bool(one.forward) for one in plan.passes)
    parts = [
        preamble(dtype, channels),
        struct("Input", INPUT),
        struct("Constants", constants_of(program)),
        f"enum {{ N_PASSES = {len(passes)}, N_FORWARD_PASSES = {n_forward} }};",
        f"enum {{ SCRATCH_SIZE = {_scratch_size(plan)} }};  // numbers per atom of a block",
        f"static const double SMALLEST_VOLUME = {SMALLEST_VOLUME!r};",
        '#include "frame.hpp"\n#include "products.hpp"\n#include "splines.hpp"\n',
        _space(plan),
        *functions.texts(),
        *passes,
        _run_pass(len(passes)),
        _clear_scattered(plan),
        _sum_totals(plan),
        '#include "driver.hpp"\n',
    ]
    return "\n".join(parts)


def _pass_function(functions: Functions, plan: Schedule, number: int) -> str:
    """Return the function of a pass: what it does for a block of atoms."""
    one = plan.passes[number]
    backward = [_call(functions, one, step) for step in one.backward]
    if one.forward and one.backward:
        backward = ["if (!in.forces_wanted) return;", *backward]
    lines = [
        "const int64_t i0 = block.first, n = block.n;",
        "(void)scratch, (void)space, (void)constants, (void)in, (void)edges;",
        *(f"gather(in, space, block, space.{array.identifier}, {array.stride});" for array in one.gathered),
        *(_call(functions, one, step) for step in one.forward),
        *backward,
        *(f"clear(space.{array.identifier} + i0 * {array.stride}, n * {array.stride});" for array in one.gathered),
    ]
    body = "".join(f"  {line}\n" for line in lines)
    return f"static void pass_{number}({_PASS}) {{\n{body}}}\n"


def _call(functions: Functions, one: Pass, step: Step) -> str:
    if isinstance(step, Product):
        source, target = (_pointer(one, array, "center") for array in (step.source, step.target))
        sizes = f"n * {step.source.components}, {step.source.width}, {step.target.width}"
        return f"multiply({sizes}, {source}, constants.{step.weight}, {target}, {int(step.adds)});"
    assert isinstance(step, Loop)
    arguments = [_pointer(one, *access) for access in parameters_of(step)]
    return f"{functions.name(step)}(edges, i0, n, {', '.join(arguments)});"


def _pointer(one: Pass, array: Array, at: At) -> str:
    """Return a pointer to the rows of a block, or to all rows where a loop looks them up."""
    if array.rows not in ("node", "edge"):
        return f"constants.{array.identifier}"
    if array in one.scratch:
        return f"({c_type(array)}*)(scratch + BLOCK * {one.scratch[array]})"
    place = f"in.{array.name}" if array in _GIVEN else f"space.{array.identifier}"
    return f"{place} + i0 * {array.stride}" if array.rows == "node" and at == "center" else place


def _space(plan: Schedule) -> str:
    """Return the struct of all arrays that last, in the workspace."""
    scattered = [array for array in plan.lasting_backward if array in plan.scattered]
    assert len(scattered) == len(plan.scattered)
    backward = [array for array in plan.lasting_backward if array not in plan.scattered]
    fields = [f"{c_type(array)}* {array.identifier} = nullptr;" for array in [*plan.lasting, *plan.lasting_backward]]

    def take(array: Array, n: str) -> str:
        return f"{array.identifier} = cutter.take<{c_type(array)}>({n} * {array.stride});"

    lines = [
        *fields,
        "void lay_out_scattered(Cutter& cutter, const Input& in) {",
        "  if (!in.forces_wanted) return;",
        "  const int64_t n_rows = in.n_atoms + in.n_threads * in.halo_capacity;",
        *(f"  {take(array, 'n_rows')}" for array in scattered),
        "}",
        "void lay_out(Cutter& cutter, const Input& in) {",
        *(f"  {take(array, _NUMBER_OF[array.rows])}" for array in plan.lasting),
        "  if (!in.forces_wanted) return;",
        *(f"  {take(array, _NUMBER_OF[array.rows])}" for array in backward),
        "}",
    ]
    text = "".join(f"  {line}\n" for line in lines)
    return f"struct Space : Frame {{\n  using Frame::lay_out;\n{text}}};\n"


def _scratch_size(plan: Schedule) -> int:
    """Return how many numbers per atom of a block the passes need."""
    return max((start + size_of(array) for one in plan.passes for array, start in one.scratch.items()), default=1)


def _run_pass(n_passes: int) -> str:
    cases = [f"case {k}: return pass_{k}(in, constants, space, edges, block, scratch);" for k in range(n_passes)]
    body = "".join(f"    {case}\n" for case in cases)
    return f"static void run_pass(int pass, {_PASS}) {{\n  switch (pass) {{\n{body}  }}\n}}\n"


def _clear_scattered(plan: Schedule) -> str:
    lines = [f"  clear(space.{x.identifier} + row * {x.stride}, n * {x.stride});\n" for x in plan.scattered]
    return f"static void clear_scattered(const Space& space, int64_t row, int64_t n) {{\n{''.join(lines)}}}\n"


def _sum_totals(plan: Schedule) -> str:
    lines: Sequence[str] = [
        _SUMS[total.target].format(
            f"in.{total.source.name}" if total.source in _GIVEN else f"space.{total.source.identifier}"
        )
        for total in plan.totals
    ]
    body = "".join(f"  {line}\n" for line in lines)
    return f"static void sum_totals(const Input& in, const Space& space) {{\n  (void)space;\n{body}}}\n"
