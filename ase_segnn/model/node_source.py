"""The C++ source of what happens at nodes in `native`: updates, readout and embedding, and their derivatives.

A steerable layer is a plan: some of its inputs are steered first, then products with matrices follow, then some of the
results are steered. What is not a product of matrices works channel by channel, like the messages along edges, and is
made from expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ase_segnn.model.edge_source import steer
from ase_segnn.model.expressions import Tape
from ase_segnn.model.irreps import Irrep
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Path, SteerableLinear


class Array(NamedTuple):
    """Numbers of nodes: one block (n, dim, width) per entry."""

    name: str
    shapes: list[tuple[int, int]]

    @property
    def pointers(self) -> str:
        """Declaration of the pointers to its entries."""
        return f"T* {self.name}[{max(1, len(self.shapes))}]"


class _Product(NamedTuple):
    source: str  # name of the array
    source_entry: int
    target: str
    target_entry: int
    matrix: Callable[[SteerableLinear], Tensor]  # (K, N)


class LinearPlan:
    """How a `SteerableLinear` acts on nodes, with arrays `u` of steered inputs, `o` and `z` of products.

    Parameters
    ----------
    linear : the layer; only its shape matters
    inputs : the arrays that hold the entries of its input, one after the other
    suffix : of the names of the arrays u, o, z
    """

    def __init__(self, linear: SteerableLinear, inputs: Sequence[Array], suffix: str) -> None:
        self.linear = linear
        self.sources = [(array, entry) for array in inputs for entry in range(len(array.shapes))]
        self.steered: list[tuple[int, Path]] = []  # (entry of the output, path), those steered before the product
        self.groups: dict[Irrep, list[int]] = {}  # irrep -> entries of the input
        for entry, (_, ir) in enumerate(linear.irreps_in):
            self.groups.setdefault(ir, []).append(entry)
        self.late = {
            ir: [(o, p) for o, p in self._ways(entries[0]) if p.l_in < p.l_out] for ir, entries in self.groups.items()
        }
        self.late = {ir: ways for ir, ways in self.late.items() if ways}
        self.products: list[_Product] = []
        u_shapes: list[tuple[int, int]] = []
        z_shapes: list[tuple[int, int]] = []
        o_name, u_name, z_name = f"o{suffix}", f"u{suffix}", f"z{suffix}"
        for o, paths in enumerate(linear.paths):
            for path in paths:
                if path.l_in >= path.l_out and path.l_attribute == 0:
                    array, entry = self.sources[path.entry_in]
                    self.products.append(_Product(array.name, entry, o_name, o, _rows(o, [path])))
            early = [path for path in paths if path.l_in >= path.l_out and path.l_attribute > 0]
            if early:
                width = sum(linear.irreps_in[path.entry_in].mul for path in early)
                self.products.append(_Product(u_name, len(u_shapes), o_name, o, _rows(o, early)))
                u_shapes.append((2 * early[0].l_out + 1, width))
                self.steered += [(o, path) for path in early]
        for ir, ways in self.late.items():
            for entry_in in self.groups[ir]:
                array, entry = self.sources[entry_in]
                same = [(o, p) for o, p in self._ways(entry_in) if p.l_in < p.l_out]
                self.products.append(_Product(array.name, entry, z_name, len(z_shapes), _columns(same)))
            z_shapes.append((2 * ways[0][1].l_in + 1, sum(linear.irreps_out[o].mul for o, _ in ways)))
        self.u, self.z = Array(u_name, u_shapes), Array(z_name, z_shapes)
        self.o = Array(o_name, [(ir.dim, mul) for mul, ir in linear.irreps_out])
        reached = {product.target_entry for product in self.products if product.target == o_name}
        assert len(reached) == len(linear.irreps_out)

    def _ways(self, entry_in: int) -> list[tuple[int, Path]]:
        return [(o, path) for o, paths in enumerate(self.linear.paths) for path in paths if path.entry_in == entry_in]

    def forward(self, first: int) -> list[str]:
        """Statements of the products, by the matrices numbered from `first`."""
        steps = [((p.source, p.source_entry), (p.target, p.target_entry)) for p in self.products]
        return self._statements(steps, first, prefix="", added_to="")

    def backward(self, first: int, added_to: str = "") -> list[str]:
        """Statements of the gradients of the products' inputs, by the transposed matrices numbered from `first`.

        They overwrite what is in these arrays, but for that of the array `added_to`.
        """
        steps = [((p.target, p.target_entry), (p.source, p.source_entry)) for p in self.products]
        return self._statements(steps, first, prefix="d_", added_to=added_to)

    def _statements(
        self, steps: Sequence[tuple[tuple[str, int], tuple[str, int]]], first: int, *, prefix: str, added_to: str
    ) -> list[str]:
        """Statements for products from one (array, entry) to another; the first one to each of them overwrites it."""
        written: set[tuple[str, int]] = set()
        lines = []
        for k, (source, target) in enumerate(steps):
            (rows, n_in), (_, n_out) = self._shape(*source), self._shape(*target)
            adds = target in written or target[0] == added_to
            lines.append(
                f"multiply(n * {rows}, {n_in}, {n_out}, {prefix}{source[0]}[{source[1]}], w[{first + k}], "
                f"{prefix}{target[0]}[{target[1]}], {int(adds)});"
            )
            written.add(target)
        return lines

    def matrices(self, linear: SteerableLinear) -> list[Tensor]:
        """Return the matrices of the products of one layer of this shape."""
        return [product.matrix(linear).detach().contiguous() for product in self.products]

    def _shape(self, name: str, entry: int) -> tuple[int, int]:
        arrays = {array.name: array for array in (self.u, self.o, self.z, *(array for array, _ in self.sources))}
        return arrays[name].shapes[entry]


def _rows(o: int, paths: list[Path]) -> Callable[[SteerableLinear], Tensor]:
    def matrix(linear: SteerableLinear) -> Tensor:
        return torch.cat([linear.weights[o][path.rows] for path in paths])

    return matrix


def _columns(ways: list[tuple[int, Path]]) -> Callable[[SteerableLinear], Tensor]:
    def matrix(linear: SteerableLinear) -> Tensor:
        return torch.cat([linear.weights[o][path.rows] for o, path in ways], dim=1)

    return matrix


class Stage:
    """A function of nodes that works channel by channel, and its derivative.

    Parameters
    ----------
    name : of the C++ function
    channels : C
    starts : first component of each copy of the attribute
    n_attributes : components of the attribute
    """

    def __init__(self, name: str, channels: int, starts: list[int], n_attributes: int) -> None:
        self.name, self.channels = name, channels
        self.tape = Tape()
        self._starts = starts
        self._n_attributes = n_attributes
        self.attributes = [self.tape.load(f"a[{k}]", vector=False) for k in range(n_attributes)]
        self.arrays: dict[str, Array] = {}  # all that are read or written
        self.inputs: dict[tuple[str, int, int, int], int] = {}  # (array, entry, component, part) -> expression
        self.outputs: dict[tuple[str, int, int, int], int] = {}
        self.calls: dict[str, list[str]] = {}  # function -> names of the arrays that it takes

    def read(self, array: Array, entry: int, part: int) -> list[int]:
        """Components of a part of C channels."""
        self.arrays[array.name] = array
        components = []
        for m in range(array.shapes[entry][0]):
            x = self.tape.load(f"load({self._place(array, entry, m, part)})", vector=True)
            self.inputs[array.name, entry, m, part] = x
            components.append(x)
        return components

    def write(self, array: Array, entry: int, part: int, components: Sequence[int]) -> None:
        """Have these components stored."""
        self.arrays[array.name] = array
        self.outputs |= {(array.name, entry, m, part): x for m, x in enumerate(components)}

    def parameter(self, code: str) -> int:
        """C channels of a bias or another vector that is the same for all nodes."""
        return self.tape.load(f"load({code} + c)", vector=True)

    def steer(self, x: list[int], path: Path) -> list[int]:
        """Clebsch-Gordan product with the attribute."""
        return steer(self.tape, self.attributes, self._starts, x, path)

    def steered_inputs(self, plan: LinearPlan, inputs: Sequence[list[list[int]]] | None = None) -> None:
        """Write the array u of a plan, from parts of its inputs or, if there are none, from its sources."""
        slots: dict[int, int] = {}
        order = list(dict.fromkeys(o for o, _ in plan.steered))
        for o, path in plan.steered:
            if inputs is None:
                array, entry = plan.sources[path.entry_in]
                parts = [self.read(array, entry, k) for k in range(array.shapes[entry][1] // self.channels)]
            else:
                parts = inputs[path.entry_in]
            for x in parts:
                slot = slots.get(o, 0)
                self.write(plan.u, order.index(o), slot, self.steer(x, path))
                slots[o] = slot + 1

    def results(self, plan: LinearPlan, bias: str) -> dict[tuple[int, int], list[int]]:
        """Components of a plan's output by entry and part: its products o, what is steered of z, and the bias."""
        outputs: dict[tuple[int, int], list[int]] = {}
        for o, (_, width) in enumerate(plan.o.shapes):
            for part in range(width // self.channels):
                x = self.read(plan.o, o, part)
                if str(o) in plan.linear.biases:
                    x = [self.tape.add(x[0], self.parameter(f"{bias} + {part * self.channels}"))]
                outputs[o, part] = x
        for group, ways in enumerate(plan.late.values()):
            slot = 0
            for o, path in ways:
                for part in range(plan.o.shapes[o][1] // self.channels):
                    terms = self.steer(self.read(plan.z, group, slot), path)
                    outputs[o, part] = [self.tape.add(x, y) for x, y in zip(outputs[o, part], terms, strict=True)]
                    slot += 1
        return outputs

    def gated(self, outputs: dict[tuple[int, int], list[int]], dims: Sequence[int], scalars: int) -> list[list[int]]:
        """Hidden features, as `ase_segnn.model.steerable.Gate` makes them."""
        tape, hidden, gate = self.tape, [], 0
        for entry in range(len(dims)):
            if entry == scalars:
                [x] = outputs[0, 0]
                hidden.append([tape.multiply(tape.constant(SILU_NORM), tape.multiply(x, tape.sigmoid(x)))])
            else:
                gate += 1
                [x] = outputs[0, gate]
                factor = tape.multiply(tape.constant(SIGMOID_NORM), tape.sigmoid(x))
                hidden.append([tape.multiply(y, factor) for y in outputs[gate, 0]])
        return hidden

    def forward_source(self, parameters: str = "") -> str:
        """C++ of the function."""
        scalars, vectors = self.tape.statements(list(self.outputs.values()))
        for (name, entry, m, part), x in self.outputs.items():
            vectors.append(f"store({self._place(self.arrays[name], entry, m, part)}, V{{}} + {self.tape.name(x)});")
        return self._function(self.name, self._used(vectors), parameters, scalars, vectors)

    def sum_source(self, total: int, bias: str, parameters: str) -> str:
        """C++ of a function that stores the sum over channels, plus a number, in `e`; see `native_source`."""
        scalars, vectors = self.tape.statements([total])
        vectors.append(f"sum_of_channels += {self.tape.name(total)};")
        after = [f"e[i] = sum(sum_of_channels) + {bias};"]
        return self._function(
            self.name, self._used(vectors), parameters, [*scalars, "V sum_of_channels = {};"], vectors, after
        )

    def backward_source(
        self, differentiated: dict[str, bool], parameters: str = "", cotangents: dict[int, int] | None = None
    ) -> str:
        """C++ of the derivative with respect to attributes and some inputs, whose gradients are added (True) or stored.

        `cotangents` are those of expressions, by default read from arrays with ``d_`` before their names.
        """
        tape = self.tape
        arrays = dict(self.arrays)
        if cotangents is None:
            cotangents = {}
            for (name, entry, m, part), x in self.outputs.items():
                derivative = Array(f"d_{name}", self.arrays[name].shapes)
                arrays[derivative.name] = derivative
                load = tape.load(f"load({self._place(derivative, entry, m, part)})", vector=True)
                cotangents[x] = load if x not in cotangents else tape.add(cotangents[x], load)
        wanted = {key: x for key, x in self.inputs.items() if key[0] in differentiated}
        varying = range(1, self._n_attributes)
        targets = [*wanted.values(), *(self.attributes[k] for k in varying)]
        adjoints = tape.backward(list(cotangents), list(cotangents.values()), targets)
        scalars, vectors = tape.statements(adjoints)
        names = iter(tape.name(x) for x in adjoints)
        for name, entry, m, part in wanted:
            derivative = Array(f"d_{name}", self.arrays[name].shapes)
            arrays[derivative.name] = derivative
            act = "add_to" if differentiated[name] else "store"
            vectors.append(f"{act}({self._place(derivative, entry, m, part)}, V{{}} + {next(names)});")
        vectors += [f"v{k} += {next(names)};" for k in varying]
        before = [f"V v{k} = {{}};" for k in varying]
        after = [f"d_a[{k}] += sum(v{k});" for k in varying]
        self.arrays = arrays
        name, parameters = f"{self.name}_backward", ", T* d_attributes" + parameters
        after = [f"T* const d_a = d_attributes + i * {self._n_attributes};", *after]
        return self._function(name, self._used(vectors), parameters, scalars + before, vectors, after)

    def _used(self, lines: Sequence[str]) -> list[Array]:
        return [array for array in self.arrays.values() if any(f"r_{array.name}_" in line for line in lines)]

    def _place(self, array: Array, entry: int, m: int, part: int) -> str:
        return f"r_{array.name}_{entry} + {m * array.shapes[entry][1] + part * self.channels} + c"

    def _function(
        self,
        name: str,
        arrays: Sequence[Array],
        parameters: str,
        scalars: Sequence[str],
        vectors: Sequence[str],
        after: Sequence[str] = (),
    ) -> str:
        arguments = "".join(f", T* const* {array.name}" for array in arrays)
        lines = [f"static void {name}(int64_t n, const T* attributes{parameters}{arguments}) {{"]
        lines += [
            "  for (int64_t i = 0; i < n; ++i) {",
            f"    const T* a = attributes + i * {self._n_attributes}; (void)a;",
        ]
        for array in arrays:
            for entry, (dim, width) in enumerate(array.shapes):
                row = f"r_{array.name}_{entry}"
                if any(row + " " in line for line in (*scalars, *vectors)):
                    lines.append(f"    T* const {row} = {array.name}[{entry}] + i * {dim * width};")
        lines += [f"    {line}" for line in scalars]
        lines.append(f"    for (int c = 0; c < {self.channels}; c += LANES) {{")
        lines += [f"      {line}" for line in vectors]
        lines += ["    }", *(f"    {line}" for line in after), "  }", "}", ""]
        self.calls[name] = [array.name for array in arrays]
        return "\n".join(lines)
