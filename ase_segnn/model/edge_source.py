"""The C++ source of the messages along edges in `native`, of which the sum at each atom is taken.

There are two forms of it. In general, what an atom sends is an array. In the first layer, features are only a vector
per species times the atom's attribute, see `SEGNN`: what is sent are rows of a table times the attribute, and the
gradient is that of the attribute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import Template
from typing import Any

from ase_segnn.model.edge_layout import Layout, product_offset, row_pointers, slot_offset
from ase_segnn.model.expressions import Tape
from ase_segnn.model.spline import BASIS
from ase_segnn.model.steerable import Path
from ase_segnn.model.wigner import wigner_3j

_ZERO = 1e-12  # of Wigner 3j symbols


class EdgeExpressions:
    """Expressions of one edge: what is sent and `sums` by (entry, component, slot or product), and `radial`.

    What is sent is `centers` and `neighbors` or, with `of_species`, attributes of both by their components. C++ that
    evaluates them has pointers ``p`` and ``q`` to what center and neighbor send, numbered by entry, the attribute
    ``a``, ``radial(f)``, C channels of a function, and ``weight``, of the edge.
    """

    def __init__(self, layout: Layout, tape: Tape, *, of_species: bool = False) -> None:
        self._layout, self._tape, self._of_species = layout, tape, of_species
        self.centers: dict[tuple[int, int, int], int] = {}
        self.neighbors: dict[tuple[int, int, int], int] = {}
        self.node_attributes: dict[str, int] = {}
        self.radial: list[int] = []
        self.weight = tape.load("weight", vector=False)
        self.attributes = [tape.load(f"a[{k}]", vector=False) for k in range(len(layout.degrees))]
        hidden = self._gated(self._first_layer())
        self.sums: dict[tuple[int, int, int], int] = {}
        for entry, paths in enumerate(layout.second):
            for k, path in enumerate(paths):
                factor = tape.multiply(self.weight, self._next_function())
                product = steer(
                    tape,
                    self.attributes,
                    layout.starts,
                    [tape.multiply(factor, x) for x in hidden[path.entry_in]],
                    path,
                )
                self.sums |= {(entry, m, k): x for m, x in enumerate(product)}

    def _first_layer(self) -> dict[tuple[int, int], list[int]]:
        """Components of each output of the first layer, by entry and part of C channels."""
        layout, tape = self._layout, self._tape
        outputs: dict[tuple[int, int], list[int]] = {}
        for o, (mul, ir) in enumerate(layout.irreps_first):
            if self._of_species:  # not all are reached then
                for part in range(mul // layout.channels):
                    outputs[o, part] = [tape.constant(0)] * ir.dim
        for entry, ways in enumerate(layout.first):
            slot = 0
            if self._of_species and layout.embedded[entry] is None:
                continue
            for o, path in ways:
                for part in range(layout.n_parts(o)):
                    inputs = [self._sent(entry, m, slot) for m in range(layout.dims[entry])]
                    if entry == layout.scalars:
                        inputs = [tape.add(inputs[0], self._next_function())]
                    terms = steer(tape, self.attributes, layout.starts, inputs, path)
                    sums = outputs.get((o, part), [None] * len(terms))
                    outputs[o, part] = [tape.add(x, term) for x, term in zip(sums, terms, strict=True)]
                    slot += 1
        return outputs

    def _sent(self, entry: int, m: int, slot: int) -> int:
        """Add what center and neighbor send."""
        key = (entry, m, slot)
        if self._of_species:
            return self._tape.add(self._of_table("p", "ai", key), self._of_table("q", "aj", key))
        for side, (pointer, loads) in enumerate([("p", self.centers), ("q", self.neighbors)]):
            offset = slot_offset(self._layout, key, side)
            loads[key] = self._tape.load(f"load({pointer}{entry} + {offset} + c)", vector=True)
        return self._tape.add(self.centers[key], self.neighbors[key])

    def _of_table(self, row: str, attribute: str, key: tuple[int, int, int]) -> int:
        entry, m, slot = key
        sent = self._tape.load(f"load({row}{entry} + {slot * self._layout.channels} + c)", vector=True)
        start = self._layout.embedded[entry]
        if not start:  # the scalar
            return sent
        code = f"{attribute}[{start + m}]"
        self.node_attributes[code] = self._tape.load(code, vector=False)
        return self._tape.multiply(sent, self.node_attributes[code])

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

    def _next_function(self) -> int:
        function = self._tape.load(f"radial({len(self.radial)})", vector=True)
        self.radial.append(function)
        return function


def steer(tape: Tape, attributes: Sequence[int], starts: Sequence[int], x: list[int], path: Path) -> list[int]:
    """Clebsch-Gordan product of components with a copy of the attribute; a scalar attribute is 1."""
    if path.l_attribute == 0:
        return x
    symbols = wigner_3j(path.l_in, path.l_attribute, path.l_out) * math.sqrt(2 * path.l_out + 1)
    attribute = attributes[starts[path.copy] :]
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


_EDGES = Template(r"""
// What is kept of the edges to atoms within the cutoff; those of atom i are from rows[i] to ends[i].
struct Edges {
  const int64_t *rows, *ends, *neighbors;
  const T *attributes, *distances, *weights;
  T *d_attributes, *d_distances, *d_weights;
  int64_t n_intervals;
  T per_step;
};
// functions of the distance: quintic splines, and their slopes
#define coefficient(f, k) load(knot + (k) * $stride + (f) * $channels + c)
#define radial(f) (h0 * coefficient(f, 0) + h1 * coefficient(f, 1) + h2 * coefficient(f, 2) \
  + h3 * coefficient(f, 3) + h4 * coefficient(f, 4) + h5 * coefficient(f, 5))
#define radial_slope(f) (k0 * coefficient(f, 0) + k1 * coefficient(f, 1) + k2 * coefficient(f, 2) \
  + k3 * coefficient(f, 3) + k4 * coefficient(f, 4) + k5 * coefficient(f, 5))
#define EDGE \
  const int64_t j = edges.neighbors[e]; \
  const T* a = edges.attributes + e * $n_attributes; \
  const T weight = edges.weights[e]; \
  T x = edges.distances[e] * edges.per_step; \
  if (!(x < edges.n_intervals)) x = edges.n_intervals;  /* at the cutoff, or not a number */ \
  int64_t interval = (int64_t)x; \
  if (interval > edges.n_intervals - 1) interval = edges.n_intervals - 1; \
  const T* knot = table + interval * $stride; \
  const T u = x - (T)interval; \
$basis
""")

_SUMS = Template(r"""
// Sums s of the messages to n atoms from i0 on.
static void sum_messages$suffix(const Edges& edges, const T* table, int64_t i0, int64_t n, $sent, T* const* s) {
  for (int64_t i = i0; i < i0 + n; ++i) {
    $center
    $sums
    $clear
    for (int64_t e = edges.rows[i]; e < edges.ends[i]; ++e) {
      EDGE
      $neighbor
      $scalars
      for (int c = 0; c < $channels; c += LANES) {
        $vectors
      }
    }
  }
}
// Adds gradients of what centers and neighbors send to those of one thread, and of edges to those of all layers.
static void sum_messages${suffix}_backward(const Edges& edges, const T* table, int64_t i0, int64_t n, $sent,
                                           T* const* d_s, $d_sent) {
  for (int64_t i = i0; i < i0 + n; ++i) {
    $d_center
    for (int64_t e = edges.rows[i]; e < edges.ends[i]; ++e) {
      EDGE
      T* da = edges.d_attributes + e * $n_attributes;
      $d_neighbor
      $accumulators
      $d_scalars
      for (int c = 0; c < $channels; c += LANES) {
        $d_vectors
      }
      $finish
    }
  }
}
""")


def edge_source(layout: Layout) -> str:
    """Return the C++ of the sum of messages, and of its derivative, in both forms."""
    sizes: dict[str, Any] = {
        "stride": layout.n_functions * layout.channels,
        "channels": layout.channels,
        "n_attributes": len(layout.degrees),
    }
    array = {"suffix": "", "sent": "T* const* projected", "d_sent": "T* const* d_projected"}
    rows = {
        "suffix": "_of_species",
        "sent": "const T* sent, const int64_t* species, const T* node_attributes",
        "d_sent": "T* d_node_attributes",
    }
    return _EDGES.substitute(sizes, basis=_basis()) + "".join(
        _SUMS.substitute(sizes | form | _forward(layout, of_species) | _backward(layout, of_species))
        for of_species, form in ((False, array), (True, rows))
    )


def _basis() -> str:
    """Statements for the B-splines and their slopes at u, which the macro of an edge ends with."""
    lines = []
    for k, powers in enumerate(BASIS):
        slope = [power * p for p, power in enumerate(powers)][1:]
        lines.append(f"const T h{k} = {_horner(powers)}, k{k} = ({_horner(slope)}) * edges.per_step;")
    return " \\\n".join(f"  {line} (void)h{k}; (void)k{k};" for k, line in enumerate(lines)) + " \\\n  (void)j;"


def _horner(powers: list[float]) -> str:
    code = f"T({powers[-1]!r})"
    for power in powers[-2::-1]:
        code = f"({code} * u + T({power!r}))"
    return code


def _forward(layout: Layout, of_species: bool) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape, of_species=of_species)
    scalars, vectors = tape.statements(list(edge.sums.values()))
    vectors += [
        f"add_to(s{key[0]} + {product_offset(layout, key)} + c, V{{}} + {tape.name(x)});"
        for key, x in edge.sums.items()
    ]
    clear = [
        f"for (int c = 0; c < {dim * size * layout.channels}; c += LANES) store(s{entry} + c, V{{}});"
        for entry, (dim, size) in enumerate(zip(layout.dims, layout.n_products, strict=True))
    ]
    return {
        "center": _lines(_sent_rows(layout, 0, of_species), 4),
        "neighbor": _lines(_sent_rows(layout, 1, of_species), 6),
        "sums": _lines(row_pointers(layout, "T* s", "s", "(i - i0)", layout.n_products, 1), 4),
        "clear": _lines(clear, 4),
        "scalars": _lines(scalars, 6),
        "vectors": _lines(vectors, 8),
    }


def _backward(layout: Layout, of_species: bool) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape, of_species=of_species)
    varying = [k for k, degree in enumerate(layout.degrees) if degree > 0]
    gradients = [tape.load(f"load(s{key[0]} + {product_offset(layout, key)} + c)", vector=True) for key in edge.sums]
    nodes = list(edge.node_attributes.values())
    inputs = [*edge.centers.values(), *nodes, *(edge.attributes[k] for k in varying), edge.weight, *edge.radial]
    adjoints = tape.backward(list(edge.sums.values()), gradients, inputs)
    scalars, vectors = tape.statements(adjoints)
    names = iter([tape.name(x) for x in adjoints])
    for key in edge.centers:  # what center and neighbor send is added, so both have the same gradient
        gradient = next(names)
        vectors += [
            f"add_to({'d' + 'pq'[side]}{key[0]} + {slot_offset(layout, key, side)} + c, {gradient});"
            for side in range(2)
        ]
    vectors += [f"vn{k} += {next(names)};" for k in range(len(nodes))]
    vectors += [f"v{k} += {next(names)};" for k in varying]
    vectors += [f"vw += {next(names)};"]
    vectors += ["vd += " + " + ".join(f"{next(names)} * radial_slope({f})" for f in range(len(edge.radial))) + ";"]
    accumulators = ["V vd = {}, vw = {};", *(f"V v{k} = {{}};" for k in varying)]
    finish = ["edges.d_distances[e] += sum(vd);", "edges.d_weights[e] += sum(vw);"]
    finish += [f"da[{k}] += sum(v{k});" for k in varying]
    at_center, at_neighbor = _sent_rows(layout, 0, of_species), _sent_rows(layout, 1, of_species)
    if of_species:
        at_center.append(f"T* d_ai = d_node_attributes + i * {len(layout.degrees)};")
        at_neighbor.append(f"T* d_aj = d_node_attributes + j * {len(layout.degrees)};")
        accumulators += [f"V vn{k} = {{}};" for k in range(len(nodes))]
        finish += [f"d_{code} += sum(vn{k});" for k, code in enumerate(edge.node_attributes)]
    else:
        at_center += row_pointers(layout, "T* dp", "d_projected", "i", layout.n_slots, 2)
        at_neighbor += row_pointers(layout, "T* dq", "d_projected", "j", layout.n_slots, 2)
    at_center += row_pointers(layout, "const T* s", "d_s", "(i - i0)", layout.n_products, 1)
    return {
        "d_center": _lines(at_center, 4),
        "d_neighbor": _lines(at_neighbor, 6),
        "accumulators": _lines(accumulators, 6),
        "d_scalars": _lines(scalars, 6),
        "d_vectors": _lines(vectors, 8),
        "finish": _lines(finish, 6),
    }


def _sent_rows(layout: Layout, side: int, of_species: bool) -> list[str]:
    """Pointers to what an atom sends as a center or as a neighbor."""
    name, atom = "pq"[side], "ij"[side]
    if not of_species:
        return row_pointers(layout, f"const T* {name}", "projected", atom, layout.n_slots, 2)
    offsets, length = layout.species_offsets
    lines = [f"const T* a{atom} = node_attributes + {atom} * {len(layout.degrees)}; (void)a{atom};"]
    for entry, offset in enumerate(offsets[side]):
        lines.append(f"const T* {name}{entry} = sent + species[{atom}] * {length} + {offset}; (void){name}{entry};")
    return lines


def _lines(lines: list[str], indent: int) -> str:
    return ("\n" + " " * indent).join(lines)
