"""The C++ of a potential for inference: the passes of its program over blocks of atoms, see the header `driver.hpp`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ase_segnn.checks import SMALLEST_VOLUME
from ase_segnn.codegen.arrays import Array, At
from ase_segnn.codegen.cpp import c_type, preamble
from ase_segnn.codegen.interface import INPUT, NUMBERS, struct
from ase_segnn.codegen.loops import Functions, parameters_of
from ase_segnn.codegen.potentials import ATOM_ENERGIES, COUNTED, FORCES
from ase_segnn.codegen.program import Loop, Product, Program, Step
from ase_segnn.codegen.schedule import Schedule, schedule, size_of

# Arrays that are not of the program alone, and where they are.
_GIVEN = {ATOM_ENERGIES: "in.atom_energies", FORCES: "in.forces", COUNTED: "space.counted"}
_SURROUNDINGS = "const Input& in, const Constants& constants, const Space& space, const Edges& edges"
_PASS = f"{_SURROUNDINGS}, const Block& block, T* scratch"
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
    plan = schedule(program, set(_GIVEN))
    functions = Functions(program.tape)
    kept = _kept(plan)
    passes = [_pass_function(functions, plan, number, kept) for number in range(len(plan.passes))]
    ghosts = [_ghost_function(functions, plan, number, kept) for number in range(len(plan.passes))]
    n_forward = sum(bool(one.forward) for one in plan.passes)
    parts = [
        preamble(dtype, channels),
        '#include "exchange.hpp"\n',
        struct("Input", INPUT),
        struct("Constants", constants_of(program)),
        f"enum {{ N_PASSES = {len(passes)}, N_FORWARD_PASSES = {n_forward} }};",
        f"enum {{ SCRATCH_SIZE = {_scratch_size(plan)} }};  // numbers per atom of a block",
        _sizes_of_exchanges(plan, dtype),
        f"static const double SMALLEST_VOLUME = {SMALLEST_VOLUME!r};",
        '#include "frame.hpp"\n#include "products.hpp"\n#include "splines.hpp"\n',
        _space(plan, kept),
        *functions.texts(),
        *passes,
        *ghosts,
        _run("run_pass", "pass", len(passes)),
        _run("run_ghosts", "ghosts", len(passes)),
        _rows("rows_to_fetch", [exchange.fetched for exchange in plan.exchanges]),
        _rows("rows_to_return", [exchange.returned for exchange in plan.exchanges]),
        _rows("rows_to_clear", [exchange.cleared for exchange in plan.exchanges]),
        _clear_scattered(plan),
        _clear_partial(plan),
        _sum_totals(plan),
        '#include "driver.hpp"\n',
    ]
    return "\n".join(parts)


def _kept(plan: Schedule) -> list[Array]:
    """Return arrays that would be in scratch, and that last where atoms are exchanged."""
    fetched = [array for exchange in plan.exchanges for array in exchange.fetched]
    return [array for array in fetched if any(array in one.scratch for one in plan.passes)]


def _pass_function(functions: Functions, plan: Schedule, number: int, kept: Sequence[Array]) -> str:
    """Return the function of a pass: what it does for a block of atoms."""
    one = plan.passes[number]
    scratch = {array: _in_scratch(array, start, kept) for array, start in one.scratch.items()}
    backward = [_call(functions, scratch, step) for step in one.backward]
    if one.forward and one.backward:
        backward = ["if (!in.forces_wanted) return;", *backward]
    lines = [
        *_gathers(one.gathered),
        *(_call(functions, scratch, step) for step in one.forward),
        *backward,
        *_clears(one.gathered),
    ]
    return _function_of_block(f"pass_{number}", lines)


def _ghost_function(functions: Functions, plan: Schedule, number: int, kept: Sequence[Array]) -> str:
    """Return the function of what is done for a block of ghosts before a pass."""
    exchange = plan.exchanges[number]
    kept_in_space = {array: f"space.{array.identifier} + i0 * {array.stride}" for array in kept}
    lines = [
        *(_call(functions, kept_in_space, step) for step in exchange.forward),
        *(["if (!in.forces_wanted) return;"] if exchange.gathered else []),
        *_gathers(exchange.gathered),
        *(_call(functions, kept_in_space, step) for step in exchange.backward),
        *_clears([array for array in exchange.gathered if array not in exchange.cleared]),
    ]
    return _function_of_block(f"ghosts_{number}", lines)


def _function_of_block(name: str, lines: Sequence[str]) -> str:
    first = [
        "const int64_t i0 = block.first, n = block.n;",
        "(void)i0, (void)n, (void)scratch, (void)space, (void)constants, (void)in, (void)edges;",
    ]
    body = "".join(f"  {line}\n" for line in [*first, *lines])
    return f"static void {name}({_PASS}) {{\n{body}}}\n"


def _gathers(arrays: Sequence[Array]) -> list[str]:
    return [f"gather(in, space, block, space.{array.identifier}, {array.stride});" for array in arrays]


def _clears(arrays: Sequence[Array]) -> list[str]:
    return [f"clear(space.{array.identifier} + i0 * {array.stride}, n * {array.stride});" for array in arrays]


def _call(functions: Functions, places: Mapping[Array, str], step: Step) -> str:
    if isinstance(step, Product):
        source, target = (_pointer(places, array, "center") for array in (step.source, step.target))
        sizes = f"n * {step.source.components}, {step.source.width}, {step.target.width}"
        return f"multiply({sizes}, {source}, constants.{step.weight}, {target}, {int(step.adds)});"
    assert isinstance(step, Loop)
    arguments = [_pointer(places, *access) for access in parameters_of(step)]
    return f"{functions.name(step)}(edges, i0, n, {', '.join(arguments)});"


def _pointer(places: Mapping[Array, str], array: Array, at: At) -> str:
    """Return a pointer to the rows of a block, or to all rows where a loop looks them up.

    Parameters
    ----------
    places : of arrays whose rows are elsewhere than in the workspace or in memory of the caller
    array, at : to be pointed to
    """
    if array.rows not in ("node", "edge"):
        return f"constants.{array.identifier}"
    if array in places:
        return places[array]
    place = _GIVEN.get(array, f"space.{array.identifier}")
    return f"{place} + i0 * {array.stride}" if array.rows == "node" and at == "center" else place


def _in_scratch(array: Array, start: int, kept: Sequence[Array]) -> str:
    """Return a pointer to the rows of a block in scratch, unless they last."""
    place = f"({c_type(array)}*)(scratch + BLOCK * {start})"
    lasting = f"space.{array.identifier}"
    return f"({lasting} ? {lasting} + i0 * {array.stride} : {place})" if array in kept else place


def _space(plan: Schedule, kept: Sequence[Array]) -> str:
    """Return the struct of all arrays that last, in the workspace."""
    scattered = [array for array in plan.lasting_backward if array in plan.scattered]
    assert len(scattered) == len(plan.scattered)
    backward = [array for array in plan.lasting_backward if array not in plan.scattered]
    arrays = [*plan.lasting, *plan.lasting_backward, *kept]
    of_ghosts = plan.of_ghosts

    def take(array: Array) -> str:
        if array.rows == "edge":
            n = "in.n_edges"
        elif array in scattered:
            n = "n_rows"
        else:
            n = "n_all" if array in of_ghosts else "in.n_atoms"
        return f"{array.identifier} = cutter.take<{c_type(array)}>({n} * {array.stride});"

    lines = [
        *(f"{c_type(array)}* {array.identifier} = nullptr;" for array in arrays),
        "void lay_out_scattered(Cutter& cutter, const Input& in) {",
        "  if (!in.forces_wanted) return;",
        "  const int64_t n_rows = number_of_rows(in);",
        *(f"  {take(array)}" for array in scattered),
        "}",
        "void lay_out(Cutter& cutter, const Input& in) {",
        "  [[maybe_unused]] const int64_t n_all = in.n_atoms + in.n_ghosts;",
        *(f"  {take(array)}" for array in plan.lasting),
        "  if (in.exchange) {",
        *(f"    {take(array)}" for array in kept),
        "  }",
        "  if (!in.forces_wanted) return;",
        *(f"  {take(array)}" for array in backward),
        "}",
    ]
    text = "".join(f"  {line}\n" for line in lines)
    return f"struct Space : Frame {{\n  using Frame::lay_out;\n{text}}};\n"


def _scratch_size(plan: Schedule) -> int:
    """Return how many numbers per atom of a block the passes need."""
    return max((start + size_of(array) for one in plan.passes for array, start in one.scratch.items()), default=1)


def _run(name: str, prefix: str, n: int) -> str:
    """Return a function that calls the one of a pass."""
    cases = [f"case {k}: return {prefix}_{k}(in, constants, space, edges, block, scratch);" for k in range(n)]
    body = "".join(f"    {case}\n" for case in cases)
    return f"static void {name}(int pass, {_PASS}) {{\n  switch (pass) {{\n{body}  }}\n}}\n"


def _sizes_of_exchanges(plan: Schedule, dtype: torch.dtype) -> str:
    """Return how many arrays are exchanged at once, and how many bytes of an atom, at most."""
    lists = [arrays for exchange in plan.exchanges for arrays in (exchange.fetched, exchange.returned)]
    bytes_of = [sum(array.stride * (8 if array.is_double else dtype.itemsize) for array in arrays) for arrays in lists]
    return f"enum {{ MOST_EXCHANGED = {max(1, *map(len, lists))}, MOST_EXCHANGED_BYTES = {max(bytes_of)} }};"


def _rows(name: str, of_passes: Sequence[Sequence[Array]]) -> str:
    """Return a function that lists the arrays of a pass, and how many there are."""
    cases = ""
    for number, arrays in enumerate(of_passes):
        if arrays:
            lines = [
                f"rows[{k}] = {{space.{array.identifier}, {array.stride}, sizeof({c_type(array)})}};"
                for k, array in enumerate(arrays)
            ]
            body = "".join(f"      {line}\n" for line in [*lines, f"return {len(arrays)};"])
            cases += f"    case {number}:\n{body}"
    unused = "(void)pass, (void)space, (void)rows;"
    head = f"static int {name}(int pass, const Space& space, Rows* rows) {{\n  {unused}\n"
    return f"{head}  switch (pass) {{\n{cases}    default:\n      return 0;\n  }}\n}}\n"


def _clear_scattered(plan: Schedule) -> str:
    lines = [f"  clear(space.{x.identifier} + row * {x.stride}, n * {x.stride});\n" for x in plan.scattered]
    return f"static void clear_scattered(const Space& space, int64_t row, int64_t n) {{\n{''.join(lines)}}}\n"


def _clear_partial(plan: Schedule) -> str:
    lines = []
    for array in plan.partial:
        of_edges = array.rows == "edge"
        first, end = ("space.rows[first]", "space.rows[end]") if of_edges else ("first", "end")
        lines.append(
            f"  clear(space.{array.identifier} + {first} * {array.stride}, ({end} - {first}) * {array.stride});\n"
        )
    lines.insert(0, "  (void)space, (void)first, (void)end;\n")
    return f"static void clear_partial(const Space& space, int64_t first, int64_t end) {{\n{''.join(lines)}}}\n"


def _sum_totals(plan: Schedule) -> str:
    lines: Sequence[str] = [
        _SUMS[total.target].format(_GIVEN.get(total.source, f"space.{total.source.identifier}"))
        for total in plan.totals
    ]
    body = "".join(f"  {line}\n" for line in lines)
    return f"static void sum_totals(const Input& in, const Space& space) {{\n  (void)space;\n{body}}}\n"
