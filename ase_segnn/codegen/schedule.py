"""Which steps of a program may run together for a block of atoms, and how long each array is needed.

Threads have atoms of their own and take them in blocks that fit into a cache. The steps of a pass run for one block
after another. Between passes all threads wait.

Some atoms may be ghosts: neighbors that another process has. What they hand to their neighbors is fetched from their
owners, and what their neighbors add to their gradients is returned. Features are much smaller than what atoms send
along edges, which is features times matrices. So features and their gradients are exchanged, and the products with
matrices are repeated for ghosts.

Or the energies of some atoms alone count, and the others are there for their sake. Then a pass is run for those that it
takes, which are fewer from pass to pass on the way to the energies, and more again on the way back to forces.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.geometry import VECTORS
from ase_segnn.codegen.program import Access, Loop, Product, Program, Step, Total


class Pass(NamedTuple):
    """Steps that run together.

    Parameters
    ----------
    forward, backward : steps; the latter for forces alone
    gathered : arrays to which neighbors have added before. What other threads have for the atoms of a block is added
        first, and the rows of the block are zero again afterwards
    scratch : arrays of atoms that no other pass needs -> where they begin in memory for a block, in numbers of the
        network's precision per atom. Arrays that are not needed at the same time share memory, so that it fits into a
        cache
    """

    forward: list[Step]
    backward: list[Step]
    gathered: list[Array]
    scratch: dict[Array, int]

    @property
    def steps(self) -> list[Step]:
        """All steps in their order."""
        return [*self.forward, *self.backward]


class Exchange(NamedTuple):
    """What ghosts need before a pass, in this order.

    Parameters
    ----------
    fetched : arrays whose rows of ghosts become those of their owners
    forward, backward : steps of the program that are repeated for ghosts; the latter for forces alone
    gathered : arrays to which neighbors have added, and which `backward` reads; zero again afterwards
    returned : arrays whose rows of ghosts are added to those of their owners, for forces alone
    cleared : those of them that have to be zero again afterwards
    """

    fetched: list[Array]
    forward: list[Step]
    backward: list[Step]
    gathered: list[Array]
    returned: list[Array]
    cleared: list[Array]

    @property
    def steps(self) -> list[Step]:
        """All steps in their order."""
        return [*self.forward, *self.backward]


class Schedule(NamedTuple):
    """A program in passes.

    Parameters
    ----------
    passes : one after another
    lasting : arrays of atoms and edges that are needed from pass to pass, and for energies alone
    lasting_backward : the same, needed for forces alone
    scattered : those of them to which neighbors add
    totals : sums over structures, at the end
    exchanges : one per pass
    partial : of the arrays needed for forces, those that are read, or added to, for more atoms than have rows, if the
        energies of some atoms alone count; the rest of the rows has to be zero before
    """

    passes: list[Pass]
    lasting: list[Array]
    lasting_backward: list[Array]
    scattered: list[Array]
    totals: list[Total]
    exchanges: list[Exchange]
    partial: list[Array]

    @property
    def of_ghosts(self) -> set[Array]:
        """Arrays that have rows of ghosts."""
        found = set(self.scattered)
        for exchange in self.exchanges:
            found.update([*exchange.fetched, *exchange.returned])
            found.update(array for step in exchange.steps for array, _ in _accesses(step) if array.rows == "node")
        return found


def schedule(program: Program, given: set[Array]) -> Schedule:
    """Put the steps of a program into passes.

    Parameters
    ----------
    program : in an order in which its steps can run
    given : arrays in memory of the caller
    """
    cut = _cut(program)
    used_in: dict[Array, set[int]] = {}
    neighbors: set[Array] = set()
    forward: set[Array] = set()
    for number, steps in enumerate(cut):
        for k, step in steps:
            for array, at in _accesses(step):
                used_in.setdefault(array, set()).add(number)
                if at == "neighbor":
                    neighbors.add(array)
                if k < program.n_forward:
                    forward.add(array)
    totals = [step for step in program.steps if isinstance(step, Total)]
    kept = neighbors | {total.source for total in totals}
    own = [array for array in used_in if array.rows in ("node", "edge") and array not in given]
    lasting = [array for array in own if array.rows == "edge" or len(used_in[array]) > 1 or array in kept]
    scattered = _scattered(program.steps)
    passes = [
        Pass(
            [step for k, step in steps if k < program.n_forward],
            [step for k, step in steps if k >= program.n_forward],
            _gathered(steps, scattered),
            places([step for _, step in steps], {array for array in own if array not in lasting}),
        )
        for number, steps in enumerate(cut)
    ]
    lasting_backward = [array for array in lasting if array not in forward]
    of_forces = [total for total in totals if total.source not in forward]
    partial = _partial(passes, of_forces, given | set(scattered))
    assert partial <= set(lasting_backward)
    return Schedule(
        passes,
        [array for array in lasting if array in forward],
        lasting_backward,
        [array for array in lasting if array in scattered],
        totals,
        _exchanges(program, passes, given, lasting),
        [array for array in lasting_backward if array in partial],
    )


def _partial(passes: list[Pass], totals: list[Total], complete: set[Array]) -> set[Array]:
    """Return the arrays that are read, or added to, for more atoms than have rows.

    A pass is run for atoms that are so many pairs away from those that count, as there are passes between it and the
    last one that energies need: what happens farther away has no effect on these energies.

    Parameters
    ----------
    passes : of the schedule
    totals : of what forces need, over all atoms
    complete : arrays that have rows of all atoms
    """
    last = max(number for number, one in enumerate(passes) if one.forward)
    reach_of = {VECTORS: last}
    found = set()

    def use(array: Array, reach: int) -> None:
        if array.rows in ("node", "edge") and array not in complete and reach_of.get(array, -1) < reach:
            found.add(array)

    for number, one in enumerate(passes):
        reach = abs(number - last)
        for step in one.steps:
            for array, at in step.reads:
                use(array, reach + (at == "neighbor"))
            for array in _added_to(step):
                use(array, reach)
            for array, _ in step.writes:
                reach_of[array] = max(reach, reach_of.get(array, -1))
    for total in totals:
        use(total.source, len(passes))
    return found


def _added_to(step: Step) -> list[Array]:
    """Return the arrays in which a step changes what is there."""
    if isinstance(step, Product):
        return [step.target] if step.adds else []
    return [store.leaf.array for store in step.stores if store.adds] if isinstance(step, Loop) else []


def _exchanges(program: Program, passes: list[Pass], given: set[Array], lasting: list[Array]) -> list[Exchange]:
    """Return what ghosts need before each pass."""
    exchanges = []
    known: set[Array] = set()
    made: set[Array] = set()  # in earlier passes
    for one in passes:
        exchange = Exchange([], [], [], one.gathered, [], [])
        for array in _read_at_neighbors(one.steps):
            if array in known:
                continue
            writers = [step for step in program.steps if (array, "center") in step.writes]
            products = [step for step in writers if isinstance(step, Product)]
            if len(products) == len(writers):
                exchange.forward.extend(products)
                sources = [step.source for step in products]
            else:
                sources = [array]
            exchange.fetched.extend(source for source in sources if source not in known)
            known.update([array, *sources])
        for array in one.gathered:
            readers = [step for step in one.steps if any(array == read for read, _ in step.reads)]
            products = [step for step in readers if isinstance(step, Product)]
            if all({written for written, _ in step.writes} <= given for step in readers):
                exchange.backward.extend(readers)  # the caller adds what ghosts have to their owners
            elif len(products) == len(readers) and all(step.target in made for step in products):
                for step in products:
                    is_first = step.target not in exchange.returned
                    exchange.backward.append(step._replace(adds=not is_first))
                    exchange.returned.extend([step.target] if is_first else [])
            else:
                exchange.returned.append(array)
                exchange.cleared.append(array)
        made.update(array for step in one.steps for array, _ in step.writes if array in lasting)
        exchanges.append(exchange)
    return exchanges


def _read_at_neighbors(steps: list[Step]) -> dict[Array, None]:
    """Return the arrays of atoms that steps read at neighbors."""
    reads = [access for step in steps for access in step.reads]
    return {array: None for array, at in reads if at == "neighbor" and array.rows == "node"}


def _cut(program: Program) -> list[list[tuple[int, Step]]]:
    """Cut the steps where one needs what other threads have done in the same pass."""
    cut: list[list[tuple[int, Step]]] = [[]]
    written: set[Access] = set()
    for k, step in enumerate(program.steps):
        if isinstance(step, Total):
            continue
        waits = any((array, "neighbor") in written for array, _ in step.reads)
        waits |= any(at == "neighbor" and (array, "center") in written for array, at in step.reads)
        if waits:
            late = _late(cut[-1], program.steps[k:])
            cut[-1] = cut[-1][: len(cut[-1]) - len(late)]
            cut.append(late)
            written = {access for _, one in late for access in one.writes}
        cut[-1].append((k, step))
        written.update(step.writes)
    return cut


def _late(steps: list[tuple[int, Step]], later: list[Step]) -> list[tuple[int, Step]]:
    """Return the last products of a pass that can wait for the next: of what lasts anyway, for the same atoms alone."""
    lasting = {array for step in later for array, _ in step.reads}
    gathered = {array for step in later for array, at in step.reads if at == "neighbor"}
    n = len(steps)
    while n > 0:
        step = steps[n - 1][1]
        if not isinstance(step, Product) or step.source not in lasting or step.target in gathered:
            break
        n -= 1
    return steps[n:]


def size_of(array: Array) -> int:
    """Return the numbers of the network's precision that a row takes at most."""
    return array.stride * (2 if array.is_double else 1)


def places(
    steps: Sequence[Step], arrays: Container[Array], size_of: Callable[[Array], int] = size_of
) -> dict[Array, int]:
    """Return where arrays begin that are needed from the first to the last step that has them.

    Parameters
    ----------
    steps : in their order
    arrays : that get a place
    size_of : what a row of an array takes
    """
    used: dict[Array, list[int]] = {}
    for k, step in enumerate(steps):
        for array, _ in _accesses(step):
            if array in arrays:
                used.setdefault(array, []).append(k)
    places: dict[Array, int] = {}
    for array in sorted(used, key=lambda x: (used[x][0], x.identifier)):
        others = [x for x in places if used[x][0] <= used[array][-1] and used[x][-1] >= used[array][0]]
        start = 0
        for other in sorted(others, key=places.__getitem__):
            if places[other] < start + size_of(array):
                start = max(start, places[other] + size_of(other))
        places[array] = start
    return places


def _accesses(step: Step) -> list[Access]:
    return [*step.reads, *step.writes]


def _scattered(steps: list[Step]) -> dict[Array, None]:
    """Return the arrays to which neighbors add."""
    loops = [step for step in steps if isinstance(step, Loop)]
    return {array: None for step in loops for array, at in step.writes if at == "neighbor"}


def _gathered(steps: list[tuple[int, Step]], scattered: dict[Array, None]) -> list[Array]:
    """Return the arrays to which neighbors have added before these steps, which read them."""
    return list(dict.fromkeys(array for _, step in steps for array, _ in step.reads if array in scattered))
