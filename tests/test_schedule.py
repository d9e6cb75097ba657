"""Passes of programs: what runs together, what waits, and who has which memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from random_potentials import SHAPES, random_potential
from sketches import SKETCHES, R, Sketch, into_gradient, silu

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.derivative import differentiate
from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.inference import _GIVEN
from ase_segnn.codegen.potentials import ATOM_ENERGIES, program_of
from ase_segnn.codegen.program import Loop, Product, Program, Step, Total
from ase_segnn.codegen.schedule import Pass, Schedule, schedule, size_of


def program_from(sketch: Callable[[Sketch], None]) -> Program:
    b = Sketch()
    sketch(b)
    steps = list(b.steps)
    backward, transposed = differentiate(b.tape, steps, R, into_gradient)
    weights = b.weights | {new: b.weights[name].T for name, new in transposed.items()}
    return Program(b.tape, [*steps, *backward], len(steps), weights)


PROGRAMS: dict[str, Callable[[], tuple[Program, set[Array]]]] = {
    **{sketch.__name__: (lambda sketch=sketch: (program_from(sketch), {R, ATOM_ENERGIES})) for sketch in SKETCHES},
    **{
        name: (lambda config=config: (program_of(random_potential(config).eval()), set(_GIVEN)))
        for name, config in SHAPES.items()
    },
}


@pytest.fixture(scope="module", params=PROGRAMS)
def planned(request: pytest.FixtureRequest) -> tuple[Program, Schedule, set[Array]]:
    program, given = PROGRAMS[request.param]()
    return program, schedule(program, given), given


def accesses(step: Step) -> list[Array]:
    return [array for array, _ in [*step.reads, *step.writes]]


def arrays_of(one: Pass) -> set[Array]:
    return {array for step in one.steps for array in accesses(step)}


def assert_neighbors_are_waited_for(one: Pass) -> None:
    """Blocks of a pass follow each other in any order, and so must not hand anything to one another."""
    for number, step in enumerate(one.steps):
        before = [access for other in one.steps[:number] for access in other.writes]
        after = [access for other in one.steps[number:] for access in other.writes]
        for array, at in step.reads:
            assert (array, "neighbor") not in before, f"{array.identifier} is read before all have added"
            if at == "neighbor":
                assert (array, "center") not in [*before, *after], f"{array.identifier} may change at neighbors"


def test_no_step_reads_at_neighbors_what_its_pass_writes(planned: tuple[Program, Schedule, set[Array]]) -> None:
    for one in planned[1].passes:
        assert_neighbors_are_waited_for(one)


def test_all_steps_run_once_and_in_order(planned: tuple[Program, Schedule, set[Array]]) -> None:
    program, plan, _ = planned
    steps = [step for step in program.steps if not isinstance(step, Total)]
    assert [step for one in plan.passes for step in one.steps] == steps
    forward = [step for step in program.steps[: program.n_forward] if not isinstance(step, Total)]
    assert [step for one in plan.passes for step in one.forward] == forward
    assert plan.totals == [step for step in program.steps if isinstance(step, Total)]


def test_passes_are_as_few_as_can_be(planned: tuple[Program, Schedule, set[Array]]) -> None:
    """The first step of a pass that is not a product put off has to wait for the pass before."""
    passes = planned[1].passes
    for before, after in pairwise(passes):
        waiting = [k for k, step in enumerate(after.steps, start=1) if not isinstance(step, Product)]
        n = min([*waiting, len(after.steps)])
        together = Pass([*before.steps, *after.steps[:n]], [], [], {})
        with pytest.raises(AssertionError, match=r"is read before|may change"):
            assert_neighbors_are_waited_for(together)


def test_arrays_in_scratch_are_in_one_pass_only(planned: tuple[Program, Schedule, set[Array]]) -> None:
    _, plan, given = planned
    lasting = {*plan.lasting, *plan.lasting_backward}
    for one in plan.passes:
        others = set().union(*(arrays_of(other) for other in plan.passes if other is not one))
        assert not set(one.scratch) & (others | lasting | given | {total.source for total in plan.totals})
        for array in arrays_of(one):
            if array.rows in ("node", "edge"):
                assert (array in one.scratch) + (array in lasting) + (array in given) == 1, array.identifier
        assert all(array.rows == "node" for array in one.scratch)


def test_arrays_in_scratch_are_not_read_by_neighbors(planned: tuple[Program, Schedule, set[Array]]) -> None:
    for one in planned[1].passes:
        there = {array for step in one.steps for array, at in [*step.reads, *step.writes] if at == "neighbor"}
        assert not there & one.scratch.keys()


def test_arrays_that_are_there_at_a_time_have_places_of_their_own(
    planned: tuple[Program, Schedule, set[Array]],
) -> None:
    n_shared = 0
    for one in planned[1].passes:
        used = {x: [k for k, step in enumerate(one.steps) if x in accesses(step)] for x in one.scratch}
        for x in one.scratch:
            for y in one.scratch:
                overlaps = one.scratch[x] < one.scratch[y] + size_of(y) and one.scratch[y] < one.scratch[x] + size_of(x)
                if x != y and overlaps:
                    n_shared += 1
                    assert used[x][-1] < used[y][0] or used[y][-1] < used[x][0], (x.identifier, y.identifier)
            first = one.steps[used[x][0]]
            assert (x, "center") in first.writes, f"{x.identifier} is read before it is written"
            assert (x, "center") not in first.reads, f"{x.identifier} is read before it is written"
            adds = first.adds if isinstance(first, Product) else any(s.adds for s in first.stores if s.leaf.array == x)
            assert not adds, f"{x.identifier} is added to what others left there"
    if len(planned[0].steps) > 30:
        assert n_shared > 0


def test_energies_need_no_array_of_the_backward_pass(planned: tuple[Program, Schedule, set[Array]]) -> None:
    program, plan, _ = planned
    forward = {array for step in program.steps[: program.n_forward] for array in accesses(step)}
    assert not set(plan.lasting_backward) & forward
    assert set(plan.lasting) <= forward


def assert_sums_are_taken_once(plan: Schedule) -> None:
    """Check that one pass alone gathers what neighbors have added, and that nothing is added afterwards."""
    for array in plan.scattered:
        touching = [k for k, one in enumerate(plan.passes) if array in arrays_of(one)]
        gathering = [k for k, one in enumerate(plan.passes) if array in one.gathered]
        assert gathering == touching[-1:], f"{array.identifier} is gathered in {gathering} of {touching}"


def test_sums_over_neighbors_are_gathered_in_one_pass_and_then_cleared(
    planned: tuple[Program, Schedule, set[Array]],
) -> None:
    _, plan, _ = planned
    for one in plan.passes:
        scattered = {array for step in one.steps for array, at in step.writes if at == "neighbor"}
        assert scattered <= set(plan.scattered) <= {*plan.lasting, *plan.lasting_backward}
        assert not scattered & set(one.gathered)
    assert_sums_are_taken_once(plan)


def test_a_program_without_edges_is_one_pass() -> None:
    b = Sketch()
    table = b.of_species("table")
    y = b.multiplied("y", b.node("x", silu(b, table)))
    b.finish(b.value(y))
    plan = schedule(Program(b.tape, b.steps, len(b.steps), b.weights), set())
    assert len(plan.passes) == 1
    assert not plan.scattered


def test_loops_of_potentials_along_edges_come_in_pairs() -> None:
    """One pass per layer and direction, but where the last loop forward and the first one backward are one."""
    program = program_of(random_potential(SHAPES["three layers"]).eval())
    plan = schedule(program, set(_GIVEN))
    names = [
        [step.name for step in one.steps if isinstance(step, Loop) and step.over == "edges"] for one in plan.passes
    ]
    along = [name for group in names for name in group]
    assert along.count("messages") == along.count("messages_backward") == 3
    assert all(len(group) <= 4 for group in names)


def test_rows_that_passes_for_fewer_atoms_leave_out_are_zero_or_not_read(
    planned: tuple[Program, Schedule, set[Array]],
) -> None:
    """On a line of atoms of which one counts, all that a pass reads was written, is zero at first, or is given."""
    _, plan, given = planned
    last = max(number for number, one in enumerate(plan.passes) if one.forward)
    free = {*given, *plan.scattered, *plan.partial, VECTORS, R}
    rows: dict[Array, int] = {}  # array -> up to which atom it has rows
    for number, one in enumerate(plan.passes):
        n = abs(number - last)
        for step in one.steps:
            for array, at in step.reads:
                if array.rows in ("node", "edge") and array not in free:
                    assert rows[array] >= n + (at == "neighbor"), array.identifier
            for array, _ in step.writes:
                rows[array] = max(n, rows.get(array, 0))
    assert not {*plan.partial} & {*plan.lasting}
