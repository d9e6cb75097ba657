"""The derivative of a program: the steps of its backward pass, from the last one to the first."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ase_segnn.codegen.arrays import Array, Leaf
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.program import Loop, Product, Step, Store, Total, loop_of

K = TypeVar("K")
V = TypeVar("V")

# What is done with the gradients of the places of an array instead of storing them.
Into = Callable[[Mapping[Leaf, int]], list[Store]]


def differentiate(
    tape: Tape,
    steps: Sequence[Step],
    by: Array,
    into: Into,
    *,
    in_place: bool = True,
    seed: int | None = None,
) -> tuple[list[Step], dict[str, str]]:
    """Return the steps that differentiate the sum of all totals, or of what they add up times a factor per atom.

    Parameters
    ----------
    tape : all expressions; those of the derivative are added
    steps : forward
    by : array that nothing writes
    into : what the gradients of `by` are made into, in the loops that have them
    in_place : let arrays have one gradient where that saves memory; what is to be differentiated again must not
    seed : expression of that factor; 1 by default

    Returns
    -------
    steps : backward
    transposed : name of each matrix that is used transposed -> name of the transposed one
    """
    backward = _Backward(tape, steps, _depending(tape, steps, {by}), _read_at_neighbors(tape, steps))
    backward.into[by], backward.in_place = into, in_place
    for number, step in reversed(list(enumerate(steps))):
        if isinstance(step, Total):
            backward.seeds[step.source] = tape.constant(1) if seed is None else seed
        elif isinstance(step, Product):
            backward.product(step)
        else:
            backward.loop(number, step)
    return backward.steps, backward.transposed


class Outer(NamedTuple):
    """Add the products of all rows and components of two arrays of atoms to the gradient of a matrix.

    Parameters
    ----------
    source, target : (..., rows of the matrix) and (..., columns); one of them is a gradient
    weight : name of the matrix
    """

    source: Array
    target: Array
    weight: str


class Learning(NamedTuple):
    """The steps that find the gradients of weights.

    Parameters
    ----------
    steps : which add to arrays of gradients
    outers : for matrices
    transposed : as of `differentiate`
    gathered : arrays to which neighbors add, and which are zero before
    """

    steps: list[Step]
    outers: list[Outer]
    transposed: dict[str, str]
    gathered: list[Array]


def differentiate_by_weights(
    tape: Tape,
    steps: Sequence[Step],
    results: Iterable[Array],
    learned: Iterable[Array],
    matrices: Iterable[str],
    transposed: Mapping[str, str],
) -> Learning:
    """Return the steps that differentiate results by weights.

    Gradients have the prefix g_; those of the results are given.

    Parameters
    ----------
    tape : all expressions; those of the derivative are added
    steps : in which no array is changed after it was read
    results : arrays
    learned : arrays of weights
    matrices : names of matrices that are learned
    transposed : name of a matrix -> name of the transposed one, if both are among the matrices of the steps
    """
    learned, matrices = set(learned), set(matrices)
    matrices |= {new for name, new in transposed.items() if name in matrices}
    loops = [step for step in steps if isinstance(step, Loop)]
    gathered = {array for loop in loops for array, at in loop.reads if at == "neighbor" and array.rows == "node"}
    backward = _Backward(tape, steps, _depending(tape, steps, learned, matrices), gathered, "g_")
    backward.learned, backward.in_place = learned, False
    backward.transposed |= transposed
    backward.gradient |= {array: gradient_array(array, "g_") for array in results}
    backward.matrices = matrices
    for number, step in reversed(list(enumerate(steps))):
        if isinstance(step, Product):
            backward.product(step)
        elif isinstance(step, Loop):
            backward.loop(number, step)
    zero = [gradient_array(array, "g_") for array in gathered if array in backward.gradient]
    return Learning(backward.steps, backward.outers, backward.transposed, zero)


def gradients_of(
    tape: Tape, loop: Loop, cotangent: Callable[[Leaf], int | None], wanted: Callable[[Array], bool]
) -> dict[Leaf, int]:
    """Return the gradient of each wanted place that a loop reads, from the gradients of those that it writes.

    Parameters
    ----------
    tape : of the loop
    loop : to be differentiated
    cotangent : place that is written -> expression of its gradient, None for 0
    wanted : which arrays to differentiate by; none of them holds splines
    """
    leaves = [leaf for leaf in loop.leaves if wanted(leaf.array)]
    return dict(zip(leaves, _adjoints(tape, loop, cotangent, [tape.leaf(leaf) for leaf in leaves]), strict=True))


def _adjoints(tape: Tape, loop: Loop, cotangent: Callable[[Leaf], int | None], inputs: Sequence[int]) -> list[int]:
    known = [(store.value, cotangent(store.leaf)) for store in loop.stores]
    values, cotangents = [], []
    for value, expression in known:
        if expression is not None:
            values.append(value)
            cotangents.append(expression)
    return tape.backward(values, cotangents, inputs)


def gradient_array(array: Array, prefix: str = "d_") -> Array:
    """Return an array for the gradients of another one."""
    return array._replace(name=prefix + array.name)


class _Backward:
    """Collects steps, and knows which array holds the gradient of which.

    Parameters
    ----------
    tape, steps : to be differentiated
    depending : arrays whose gradients are wanted
    gathered : those among them whose gradients neighbors add to
    prefix : of the names of gradients
    """

    def __init__(
        self, tape: Tape, steps: Sequence[Step], depending: set[Array], gathered: set[Array], prefix: str = "d_"
    ) -> None:
        self.steps: list[Step] = []
        self.transposed: dict[str, str] = {}
        self.seeds: dict[Array, int] = {}  # gradients that are one expression
        self.into: dict[Array, Into] = {}
        self.in_place = True
        self.learned: set[Array] = set()
        self.matrices: set[str] = set()  # which are learned
        self.outers: list[Outer] = []
        self.gradient: dict[Array, Array] = {}
        self._tape, self._forward, self._prefix = tape, steps, prefix
        self._depending, self._gathered = depending, gathered
        self._written: set[Array] = set()  # gradients that hold something

    def product(self, step: Product) -> None:
        """Add the steps for the gradients of the source and of the matrix of a product."""
        gradient = self.gradient.get(step.target)
        if gradient is None:
            return
        originals = {new: name for name, new in self.transposed.items()}
        original = originals.get(step.weight)
        if step.weight in self.matrices:
            source, target = (step.source, gradient) if original is None else (gradient, step.source)
            self.outers.append(Outer(source, target, original or step.weight))
        if step.source in self._depending:
            transposed = original or self.transposed.setdefault(step.weight, f"{step.weight}_transposed")
            target, adds = self._to_write(step.source)
            self.steps.append(Product(gradient, transposed, target, adds))

    def loop(self, number: int, step: Loop) -> None:
        """Add the loop for the gradients of what a loop reads."""
        leaves = [leaf for leaf in step.leaves if leaf.array in self._depending and leaf.array.rows != "knot"]
        splines = self._tape.splines(step.values, self.learned)
        inputs = [*map(self._tape.leaf, leaves), *splines]
        adjoints = _adjoints(self._tape, step, self._cotangent, inputs)
        found = dict(zip(leaves, adjoints, strict=False))
        stores: list[Store] = []
        for array, group in _grouped((leaf.array, leaf) for leaf in found).items():
            of_array = {leaf: found[leaf] for leaf in group}
            if all(self._tape.number(adjoint) == 0 for adjoint in of_array.values()):
                continue
            if array in self.into:
                stores += self.into[array](of_array)
            elif array in self.learned:
                gradient = self.gradient.setdefault(array, gradient_array(array, self._prefix))
                stores += [Store(leaf._replace(array=gradient), x, adds=True) for leaf, x in of_array.items()]
            elif not self._share(number, step, array, of_array):
                stores += self._stores(step, array, of_array)
        for spline, adjoint in zip(splines, adjoints[len(leaves) :], strict=True):
            if self._tape.number(adjoint) != 0:
                leaf = self._tape.nodes[spline].value
                assert isinstance(leaf, Leaf)
                gradient = self.gradient.setdefault(leaf.array, gradient_array(leaf.array, self._prefix))
                stores.append(Store(leaf._replace(array=gradient), adjoint, adds=True, spline=spline))
        if stores:
            self.steps.append(loop_of(self._tape, f"{step.name}_backward", step.over, stores, step.below))

    def _stores(self, step: Loop, array: Array, adjoints: Mapping[Leaf, int]) -> list[Store]:
        """Store or add gradients; the first who writes an array writes all of it."""
        gradient, adds = self._to_write(array)
        at = next(iter(adjoints)).at
        zero = self._tape.constant(0)
        if not adds and step.below is not None:  # edges that the loop passes over have a gradient of zero
            cleared = [Store(leaf._replace(array=gradient, at=at), zero) for leaf in array.leaves()]
            self.steps.append(loop_of(self._tape, f"clear_{gradient.name}", step.over, cleared))
            adds = True
        stores = [Store(leaf._replace(array=gradient), adjoint, adds) for leaf, adjoint in adjoints.items()]
        if not adds:
            missing = [leaf._replace(at=at) for leaf in array.leaves() if leaf._replace(at=at) not in adjoints]
            stores += [Store(leaf._replace(array=gradient), zero) for leaf in missing]
        return stores

    def _to_write(self, array: Array) -> tuple[Array, bool]:
        """Return the array of a gradient, and whether to add to what is there.

        What neighbors add to is zero before a call, and always added to.
        """
        gradient = self.gradient.setdefault(array, gradient_array(array, self._prefix))
        adds = array in self._gathered or gradient in self._written
        self._written.add(gradient)
        return gradient, adds

    def _cotangent(self, leaf: Leaf) -> int | None:
        if leaf.array in self.seeds:
            return self.seeds[leaf.array]
        gradient = self.gradient.get(leaf.array)
        return None if gradient is None else self._tape.leaf(leaf._replace(array=gradient))

    def _share(self, number: int, step: Loop, array: Array, adjoints: Mapping[Leaf, int]) -> bool:
        """Let two arrays have one gradient where a loop hands it on as it is, as a residual does.

        What comes later adds to it in place, so that no other array that shares it may be needed by then.
        """
        if not self.in_place or step.over == "edges" or array in self.gradient or array in self._gathered:
            return False
        sources = {self._tape.nodes[adjoint].value for adjoint in adjoints.values()}
        gradients = {leaf.array for leaf in sources if isinstance(leaf, Leaf)}
        if len(gradients) != 1:
            return False
        [gradient] = gradients
        same = {leaf: self._tape.leaf(leaf._replace(array=gradient)) for leaf in array.leaves()}
        if same != adjoints or gradient not in self._written:
            return False
        if gradient in map(gradient_array, self._gathered):  # the pass that reads it leaves zeros behind
            return False
        sharing = [other for other, one in self.gradient.items() if one == gradient and self._made(other) < number]
        sharing.append(array)
        for x in sharing:
            later = [k for y in sharing if y != x for k in self._readers(y) if k != number]
            if any(k >= self._made(x) for k in later):
                return False
        self.gradient[array] = gradient
        return True

    def _readers(self, array: Array) -> list[int]:
        return [k for k, step in enumerate(self._forward) if any(array == read for read, _ in step.reads)]

    def _made(self, array: Array) -> int:
        """Return the number of the first step that writes an array."""
        return next(k for k, step in enumerate(self._forward) if any(array == one for one, _ in step.writes))


def _depending(tape: Tape, steps: Sequence[Step], on: set[Array], matrices: Container[str] = frozenset()) -> set[Array]:
    """Return all arrays whose values depend on some, or on some matrices."""
    found = set(on)
    for step in steps:
        if isinstance(step, Loop):
            made = [(store.leaf.array, tape.leaves([store.value])) for store in step.stores]
            found.update(array for array, leaves in made if any(leaf.array in found for leaf in leaves))
        elif any(array in found for array, _ in step.reads) or (isinstance(step, Product) and step.weight in matrices):
            found.update(array for array, _ in step.writes)
    return found


def _read_at_neighbors(tape: Tape, steps: Sequence[Step]) -> set[Array]:
    """Return the arrays that are read at neighbors on the way to a total."""
    needed: set[Array] = set()
    found: set[Array] = set()
    for step in reversed(steps):
        if isinstance(step, Total):
            needed.add(step.source)
        elif isinstance(step, Product):
            needed.update([step.source] if step.target in needed else [])
        else:
            leaves = tape.leaves([store.value for store in step.stores if store.leaf.array in needed])
            needed.update(leaf.array for leaf in leaves)
            found.update(leaf.array for leaf in leaves if leaf.at == "neighbor")
    return found


def _grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
