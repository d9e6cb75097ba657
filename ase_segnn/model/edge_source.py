"""The C++ source of the loops in `edge_kernels`: the layout of their arrays, the message of an edge, and templates."""

from __future__ import annotations

import math
from string import Template
from typing import Any

import torch
from torch import Tensor

from ase_segnn._e3nn import wigner_3j
from ase_segnn.model.expressions import Tape
from ase_segnn.model.segnn import MessageNetwork
from ase_segnn.model.spline import BASIS
from ase_segnn.model.steerable import Path

_VECTOR_BYTES = 64


def lanes(channels: int, dtype: torch.dtype) -> int:
    """Numbers per vector: as many as fit, and divide the channels."""
    return min(_VECTOR_BYTES // dtype.itemsize, channels & -channels)


class Layout:
    """Where everything is: the products of both layers, their slots and their functions of the distance.

    The functions of the distance are, C channels each: what the message scalars add to the slots of the even scalars,
    then one factor per product of the second layer.
    """

    def __init__(self, messages: MessageNetwork) -> None:
        self._linear_1 = messages.linear_1
        self.hidden = messages.linear_2.irreps_in
        self.channels: int = self.hidden[0].mul
        self.dims = [ir.dim for _, ir in self.hidden]
        self.scalars = [str(ir) for _, ir in self.hidden].index("0e")
        self.first = [self.ways(entry) for entry in range(len(self.hidden))]
        self.n_slots = [sum(self.n_parts(o) for o, _ in ways) for ways in self.first]
        self.second = messages.linear_2.paths
        self.n_products = [len(paths) for paths in self.second]
        self.n_functions = self.n_slots[self.scalars] + sum(self.n_products)
        copies = [ir for mul, ir in self._linear_1.irreps_attributes for _ in range(mul)]
        self.starts = [sum(ir.dim for ir in copies[:k]) for k in range(len(copies))]
        self.degrees = [ir.l for ir in copies for _ in range(ir.dim)]  # of each component of the attribute

    def ways(self, entry_in: int) -> list[tuple[int, Path]]:
        """Products of the first layer that start from an entry of its input, with the entries that they lead to."""
        paths = enumerate(self._linear_1.paths)
        return [(o, path) for o, to_one in paths for path in to_one if path.entry_in == entry_in]

    def n_parts(self, entry_out: int) -> int:
        """Slots of a product that leads to an entry of the first layer's output."""
        n_channels: int = self._linear_1.irreps_out[entry_out].mul
        return n_channels // self.channels

    def first_weights(self, entry_in: int) -> Tensor:
        """Weights of all products that start from an entry of the first layer's input, side by side."""
        return torch.cat([self._linear_1.weights[o][path.rows] for o, path in self.ways(entry_in)], dim=1)


class _Edge:
    """Expressions of one edge: `inputs` and `sums` by (entry, component, slot or product), and `radial`."""

    def __init__(self, layout: Layout, tape: Tape) -> None:
        self._layout, self._tape = layout, tape
        self.centers: dict[tuple[int, int, int], int] = {}
        self.neighbors: dict[tuple[int, int, int], int] = {}
        self.radial: list[int] = []
        self.weight = tape.load("message_weights[e]", vector=False)
        self.attributes = [tape.load(f"a[{k}]", vector=False) for k in range(len(layout.degrees))]
        hidden = self._gated(self._first_layer())
        self.sums: dict[tuple[int, int, int], int] = {}
        for entry, paths in enumerate(layout.second):
            for k, path in enumerate(paths):
                factor = tape.multiply(self.weight, self._next_function())
                product = self._steer([tape.multiply(factor, x) for x in hidden[path.entry_in]], path)
                self.sums |= {(entry, m, k): x for m, x in enumerate(product)}

    def _first_layer(self) -> dict[tuple[int, int], list[int]]:
        """Components of each output of the first layer, by entry and part of C channels."""
        layout, tape = self._layout, self._tape
        outputs: dict[tuple[int, int], list[int]] = {}
        for entry, ways in enumerate(layout.first):
            slot = 0
            for o, path in ways:
                for part in range(layout.n_parts(o)):
                    inputs = [self._sent(entry, m, slot) for m in range(layout.dims[entry])]
                    if entry == layout.scalars:
                        inputs = [tape.add(inputs[0], self._next_function())]
                    terms = self._steer(inputs, path)
                    sums = outputs.get((o, part), [None] * len(terms))
                    outputs[o, part] = [tape.add(x, term) for x, term in zip(sums, terms, strict=True)]
                    slot += 1
        return outputs

    def _sent(self, entry: int, m: int, slot: int) -> int:
        """Add what center and neighbor send."""
        key = (entry, m, slot)
        n_slots, channels = self._layout.n_slots[entry], self._layout.channels
        for side, (pointer, loads) in enumerate([("p", self.centers), ("q", self.neighbors)]):
            offset = ((2 * m + side) * n_slots + slot) * channels
            loads[key] = self._tape.load(f"load({pointer}{entry} + {offset} + c)", vector=True)
        return self._tape.add(self.centers[key], self.neighbors[key])

    def _gated(self, outputs: dict[tuple[int, int], list[int]]) -> list[list[int]]:
        """Hidden features, as `ase_segnn.model.steerable.Gate` makes them but for its constants."""
        tape, layout = self._tape, self._layout
        hidden, gate = [], 0
        for entry in range(len(layout.hidden)):
            if entry == layout.scalars:
                [x] = outputs[0, 0]
                hidden.append([tape.multiply(x, tape.sigmoid(x))])
            else:
                gate += 1  # the first output holds the scalars and one gate for each of the others
                [x] = outputs[0, gate]
                hidden.append([tape.multiply(y, tape.sigmoid(x)) for y in outputs[gate, 0]])
        return hidden

    def _steer(self, x: list[int], path: Path) -> list[int]:
        """Clebsch-Gordan product with the attribute; a scalar attribute is 1."""
        tape = self._tape
        if path.l_attribute == 0:
            return x
        symbols = wigner_3j(path.l_in, path.l_attribute, path.l_out) * math.sqrt(2 * path.l_out + 1)
        attribute = self.attributes[self._layout.starts[path.copy] :]
        product: list[int | None] = [None] * (2 * path.l_out + 1)
        for m_out in range(2 * path.l_out + 1):
            for m_in in range(2 * path.l_in + 1):
                matrix = None
                for m in range(2 * path.l_attribute + 1):
                    symbol = symbols[m_in, m, m_out].item()
                    if abs(symbol) > _ZERO:
                        matrix = tape.add(matrix, tape.multiply(tape.constant(symbol), attribute[m]))
                if matrix is not None:
                    product[m_out] = tape.add(product[m_out], tape.multiply(x[m_in], matrix))
        assert None not in product
        return [y for y in product if y is not None]

    def _next_function(self) -> int:
        function = self._tape.load(f"radial({len(self.radial)})", vector=True)
        self.radial.append(function)
        return function


_PRELUDE = Template(r"""
#include <cstdint>
#include <cstring>
typedef $real T;
typedef $integer I;
typedef T V __attribute__((vector_size($bytes), may_alias));
typedef I VI __attribute__((vector_size($bytes)));
static inline V load(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
static inline void add_to(T* p, V v) { store(p, load(p) + v); }
static inline T sum(V v) { T s = 0; for (int k = 0; k < $lanes; ++k) s += v[k]; return s; }
// exp by x = n log 2 + r, |r| <= log(2)/2, and the power series of exp(r)
static inline V exponential(V x) {
  x = x < T($lowest) ? V{} + T($lowest) : x;
  x = x > T($highest) ? V{} + T($highest) : x;
  const V n = (x * T(1.4426950408889634) + T($rounding)) - T($rounding);
  const V r = (x - n * T($log2_high)) - n * T($log2_low);
  V y = V{} + T($first);
$series
  const VI power = (__builtin_convertvector(n, VI) + $bias) << $mantissa;
  V scale; std::memcpy(&scale, &power, sizeof scale);
  return y * scale;
}
static inline V sigmoid(V x) { return T(1) / (T(1) + exponential(-x)); }
// functions of the distance: quintic splines, and their slopes
#define coefficient(f, k) load(knot + (k) * $stride + (f) * $channels + c)
#define radial(f) (h0 * coefficient(f, 0) + h1 * coefficient(f, 1) + h2 * coefficient(f, 2) \
  + h3 * coefficient(f, 3) + h4 * coefficient(f, 4) + h5 * coefficient(f, 5))
#define radial_slope(f) (k0 * coefficient(f, 0) + k1 * coefficient(f, 1) + k2 * coefficient(f, 2) \
  + k3 * coefficient(f, 3) + k4 * coefficient(f, 4) + k5 * coefficient(f, 5))
#define EDGE \
  const int64_t j = neighbors[e], n_intervals = n_rows - 5; \
  T x = distances[e] * per_step; \
  if (!(x < n_intervals)) x = n_intervals;  /* at the cutoff, or not a number */ \
  int64_t interval = (int64_t)x; \
  if (interval > n_intervals - 1) interval = n_intervals - 1; \
  const T* knot = table + interval * $stride; \
  const T u = x - (T)interval; \
$basis
#define GRAPH int64_t n_atoms, const int64_t* rows, const int64_t* neighbors, const T* attributes, \
  const T* distances, const T* message_weights, const T* table, int64_t n_rows, T per_step, const T* const* projected
""")

_FORWARD = Template(r"""
extern "C" void forward(GRAPH, T* const* sums, int n_threads) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(n_threads)
  for (int64_t i = 0; i < n_atoms; ++i) {
    $center
    $sums
    for (int64_t e = rows[i]; e < rows[i + 1]; ++e) {
      EDGE
      const T* a = attributes + e * $n_attributes;
      $neighbor
      $scalars
      for (int c = 0; c < $channels; c += $lanes) {
        $vectors
      }
    }
  }
}
""")

_BACKWARD = Template(r"""
extern "C" void backward(GRAPH, const T* const* gradients, T* const* d_projected, T* d_attributes, T* d_distances,
                         T* d_weights, int n_threads) {
  // d_projected has one array per hidden entry for each thread, set to zero
#pragma omp parallel for schedule(static) num_threads(n_threads)
  for (int thread = 0; thread < n_threads; ++thread) {
    T* const* mine = d_projected + thread * $n_entries;
    for (int64_t i = n_atoms * thread / n_threads; i < n_atoms * (thread + 1) / n_threads; ++i) {
      $center
      for (int64_t e = rows[i]; e < rows[i + 1]; ++e) {
        EDGE
        const T* a = attributes + e * $n_attributes;
        T* da = d_attributes + e * $n_attributes;
        $neighbor
        $accumulators
        $scalars
        for (int c = 0; c < $channels; c += $lanes) {
          $vectors
        }
        $finish
      }
    }
  }
}
""")

_ZERO = 1e-12  # of Wigner 3j symbols
_FLOATS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {
        "real": "float",
        "integer": "int32_t",
        "lowest": "-87.0",
        "highest": "88.0",
        "rounding": "12582912.0",  # 1.5 * 2^23: adding it rounds to an integer
        "log2_high": "0.693359375",
        "log2_low": "-2.12194440e-4",
        "bias": 127,
        "mantissa": 23,
    },
    torch.float64: {
        "real": "double",
        "integer": "int64_t",
        "lowest": "-708.0",
        "highest": "709.0",
        "rounding": "6755399441055744.0",  # 1.5 * 2^52
        "log2_high": "0.6931471803691238",
        "log2_low": "1.9082149292705877e-10",
        "bias": 1023,
        "mantissa": 52,
    },
}
_SERIES = {torch.float32: 7, torch.float64: 13}  # highest power


def edge_source(layout: Layout, dtype: torch.dtype) -> str:
    """Return the C++ of both functions, ``forward`` and ``backward``."""
    channels = layout.channels
    n_lanes = lanes(channels, dtype)
    powers = [1 / math.factorial(k) for k in range(_SERIES[dtype] + 1)]
    sizes = {
        "channels": channels,
        "lanes": n_lanes,
        "n_attributes": len(layout.degrees),
        "stride": layout.n_functions * channels,
    }
    prelude = _PRELUDE.substitute(
        sizes | _FLOATS[dtype],
        bytes=n_lanes * dtype.itemsize,
        first=repr(powers[-1]),
        basis=_basis(),
        series="\n".join(f"  y = y * r + T({power!r});" for power in powers[-2::-1]),
    )
    return prelude + _forward(layout, sizes) + _backward(layout, sizes)


def _basis() -> str:
    """Statements for the B-splines and their slopes at u, which the macro of an edge ends with."""
    lines = []
    for k, powers in enumerate(BASIS):
        slope = [power * p for p, power in enumerate(powers)][1:]
        lines.append(f"const T h{k} = {_horner(powers)}, k{k} = ({_horner(slope)}) * per_step;")
    return " \\\n".join(f"  {line} (void)h{k}; (void)k{k};" for k, line in enumerate(lines)) + " \\\n  (void)j;"


def _horner(powers: list[float]) -> str:
    code = f"T({powers[-1]!r})"
    for power in powers[-2::-1]:
        code = f"({code} * u + T({power!r}))"
    return code


def _forward(layout: Layout, sizes: dict[str, int]) -> str:
    tape = Tape()
    edge = _Edge(layout, tape)
    scalars, vectors = tape.statements(list(edge.sums.values()))
    vectors += [f"add_to({_product(layout, key)}, {tape.name(x)});" for key, x in edge.sums.items()]
    return _FORWARD.substitute(
        sizes,
        center=_lines(_rows(layout, "const T* p", "projected", "i", layout.n_slots, 2), 4),
        neighbor=_lines(_rows(layout, "const T* q", "projected", "j", layout.n_slots, 2), 6),
        sums=_lines(_rows(layout, "T* s", "sums", "i", layout.n_products, 1), 4),
        scalars=_lines(scalars, 6),
        vectors=_lines(vectors, 8),
    )


def _backward(layout: Layout, sizes: dict[str, int]) -> str:
    tape = Tape()
    edge = _Edge(layout, tape)
    varying = [k for k, degree in enumerate(layout.degrees) if degree > 0]
    gradients = [tape.load(f"load({_product(layout, key)})", vector=True) for key in edge.sums]
    inputs = [*edge.centers.values(), *(edge.attributes[k] for k in varying), edge.weight, *edge.radial]
    adjoints = tape.backward(list(edge.sums.values()), gradients, inputs)
    scalars, vectors = tape.statements(adjoints)
    names = iter([tape.name(x) for x in adjoints])
    for key in edge.centers:  # what center and neighbor send is added, so both have the same gradient
        gradient = next(names)
        vectors += [f"add_to({_slot(layout, key, side)}, {gradient});" for side in range(2)]
    vectors += [f"v{k} += {next(names)};" for k in varying]
    vectors += [f"vw += {next(names)};"]
    vectors += ["vd += " + " + ".join(f"{next(names)} * radial_slope({f})" for f in range(len(edge.radial))) + ";"]
    constant = [k for k, degree in enumerate(layout.degrees) if degree == 0]
    at_center = _rows(layout, "const T* p", "projected", "i", layout.n_slots, 2)
    at_center += _rows(layout, "T* dp", "mine", "i", layout.n_slots, 2)
    at_center += _rows(layout, "const T* s", "gradients", "i", layout.n_products, 1)
    at_neighbor = _rows(layout, "const T* q", "projected", "j", layout.n_slots, 2)
    at_neighbor += _rows(layout, "T* dq", "mine", "j", layout.n_slots, 2)
    return _BACKWARD.substitute(
        sizes,
        n_entries=len(layout.hidden),
        center=_lines(at_center, 6),
        neighbor=_lines(at_neighbor, 8),
        accumulators=_lines(["V vd = {}, vw = {};", *(f"V v{k} = {{}};" for k in varying)], 8),
        scalars=_lines(scalars, 8),
        vectors=_lines(vectors, 10),
        finish=_lines(
            ["d_distances[e] = sum(vd);", "d_weights[e] = sum(vw);"]
            + [f"da[{k}] = sum(v{k});" for k in varying]
            + [f"da[{k}] = 0;" for k in constant],
            8,
        ),
    )


def _slot(layout: Layout, key: tuple[int, int, int], side: int) -> str:
    entry, m, slot = key
    return f"d{'pq'[side]}{entry} + {((2 * m + side) * layout.n_slots[entry] + slot) * layout.channels} + c"


def _product(layout: Layout, key: tuple[int, int, int]) -> str:
    entry, m, product = key
    return f"s{entry} + {(m * layout.n_products[entry] + product) * layout.channels} + c"


def _rows(layout: Layout, name: str, array: str, row: str, sizes: list[int], factor: int) -> list[str]:
    """Pointers to the row of an atom in each of the arrays of hidden entries."""
    return [
        f"{name}{entry} = {array}[{entry}] + {row} * {dim * factor * size * layout.channels};"
        for entry, (dim, size) in enumerate(zip(layout.dims, sizes, strict=True))
    ]


def _lines(lines: list[str], indent: int) -> str:
    return ("\n" + " " * indent).join(lines)
