"""The C++ source of `message_kernels`: three loops along edges, for sums of messages and their derivatives.

All are made from the expressions of one edge (`edge_source`): the sums; with gradients of the sums given, those of what
goes into them; and with gradients of these given, those of all that they are made of.
"""

from __future__ import annotations

from string import Template
from typing import Any

import torch

from ase_segnn.model.edge_layout import Layout, product_offset, row_pointers, slot_offset
from ase_segnn.model.edge_source import EdgeExpressions
from ase_segnn.model.expressions import Tape
from ase_segnn.model.native_templates import prelude

# Arrays of nodes have a row per node and, where they are results, one set of rows per thread; `sent` and `sums` are
# pointers to one array per entry of the hidden irreps.
OF_EDGES = ("attributes", "weights", "added", "factors")
INPUTS = (*OF_EDGES, "sent", "d_sums", *(f"u_{name}" for name in OF_EDGES), "u_sent")
OUTPUTS = ("sums", *(f"g_{name}" for name in OF_EDGES), "g_sent", "g_d_sums")
BY_ENTRY = {"sent", "d_sums", "u_sent", "sums", "g_sent", "g_d_sums"}

_SOURCE = Template(r"""
struct Arguments {
  int64_t n_nodes, n_edges, n_threads;
  const int64_t *centers, *neighbors;
$pointers
};
// functions of an edge: those that are added in the first layer, then the factors of the second
#define function(added, factors, f) ((f) < $n_added ? added + (f) * $channels : factors + ((f) - $n_added) * $channels)
#define radial(f) load(function(added, factors, f) + c)
""")

_LOOP = Template(r"""
// Returns 0, or 1 if an edge joins nodes that are not there; nothing is read or written then.
extern "C" int64_t $name(const Arguments* p) {
  const Arguments& g = *p;
  for (int64_t e = 0; e < g.n_edges; ++e)
    if ((uint64_t)g.centers[e] >= (uint64_t)g.n_nodes || (uint64_t)g.neighbors[e] >= (uint64_t)g.n_nodes) return 1;
  #pragma omp parallel num_threads(g.n_threads)
  {
    const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
    const int64_t last = g.n_edges * (thread + 1) / n_threads, n0 = g.n_nodes * thread;
    (void)n0;
    for (int64_t e = g.n_edges * thread / n_threads; e < last; ++e) {
      const int64_t i = g.centers[e], j = g.neighbors[e];
      const T* a = g.attributes + e * $n_attributes;
      const T* added = g.added + e * $n_added * $channels;
      const T* factors = g.factors + e * $n_factors * $channels;
      const T weight = g.weights[e];
      $rows
      $scalars
      for (int c = 0; c < $channels; c += LANES) {
        $vectors
      }
      $finish
    }
  }
  return 0;
}
""")


def message_source(layout: Layout, dtype: torch.dtype) -> str:
    """Return the C++ of the three loops, whose arguments are a struct of the arrays above."""
    n = len(layout.dims)
    pointers = [
        f"  {'const ' * (name in INPUTS)}T* {name}{f'[{n}]' * (name in BY_ENTRY)};" for name in (*INPUTS, *OUTPUTS)
    ]
    common: dict[str, Any] = {
        "channels": layout.channels,
        "n_attributes": len(layout.degrees),
        "n_added": layout.n_slots[layout.scalars],
        "n_factors": sum(layout.n_products),
    }
    loops = {
        "sum_messages": _values(layout),
        "first_derivatives": _first_derivatives(layout),
        "second_derivatives": _second_derivatives(layout),
    }
    return (
        prelude(dtype, layout.channels)
        + _SOURCE.substitute(common, pointers="\n".join(pointers))
        + "".join(_LOOP.substitute(common | parts, name=name) for name, parts in loops.items())
    )


def _values(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    scalars, vectors = tape.statements(list(edge.sums.values()))
    vectors += [f"add_to({_sum(layout, 's', key)}, V{{}} + {tape.name(x)});" for key, x in edge.sums.items()]
    return _parts(_sent_rows(layout) + _sum_rows(layout, "s", "sums"), scalars, vectors, [])


def _first_derivatives(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    d_sums = _d_sums(layout, tape, edge)
    gradients = tape.backward(list(edge.sums.values()), d_sums, _inputs(layout, edge))
    rows = _sent_rows(layout) + _sum_rows(layout, "ds", "d_sums")
    return _derivatives(layout, tape, edge, rows, gradients, *tape.statements(gradients))


def _second_derivatives(layout: Layout) -> dict[str, str]:
    tape = Tape()
    edge = EdgeExpressions(layout, tape)
    d_sums = _d_sums(layout, tape, edge)
    inputs = _inputs(layout, edge)
    first = tape.backward(list(edge.sums.values()), d_sums, inputs)
    # cotangents in the order of `_inputs`; what center and neighbor send is added, so both have the same gradient
    cotangents = []
    for key in edge.centers:
        at_center, at_neighbor = (
            tape.load(f"load(u{x}{key[0]} + {slot_offset(layout, key, side)} + c)", vector=True)
            for side, x in enumerate("pq")
        )
        cotangents.append(tape.add(at_center, at_neighbor))
    cotangents += [tape.load(f"ua[{k}]", vector=False) for k in _varying(layout)]
    cotangents += [tape.load("g.u_weights[e]", vector=False)]
    cotangents += [
        tape.load(f"load(function(u_added, u_factors, {f}) + c)", vector=True) for f in range(len(edge.radial))
    ]
    both = tape.backward(first, cotangents, [*inputs, *d_sums])
    scalars, vectors = tape.statements(both)
    rows = _sent_rows(layout) + _sum_rows(layout, "ds", "d_sums")
    for name, node in (("up", "i"), ("uq", "j")):
        rows += row_pointers(layout, f"const T* {name}", "g.u_sent", node, layout.n_slots, 2)
    rows += [f"const T* ua = g.u_attributes + e * {len(layout.degrees)};"]
    rows += _function_rows(layout, "const T* u_")
    rows += _sum_rows(layout, "gs", "g_d_sums")
    names = [tape.name(x) for x in both[len(inputs) :]]
    vectors += [
        f"add_to({_sum(layout, 'gs', key)}, V{{}} + {name});" for key, name in zip(edge.sums, names, strict=True)
    ]
    return _derivatives(layout, tape, edge, rows, both[: len(inputs)], scalars, vectors)


def _derivatives(
    layout: Layout,
    tape: Tape,
    edge: EdgeExpressions,
    rows: list[str],
    gradients: list[int],
    scalars: list[str],
    vectors: list[str],
) -> dict[str, str]:
    """Parts of a loop that stores gradients of `_inputs`."""
    names = iter([tape.name(x) for x in gradients])
    rows, vectors, finish = list(rows), list(vectors), []
    for name, node in (("gp", "i"), ("gq", "j")):
        rows += row_pointers(layout, f"T* {name}", "g.g_sent", f"(n0 + {node})", layout.n_slots, 2)
    rows += [f"T* ga = g.g_attributes + e * {len(layout.degrees)};"]
    rows += _function_rows(layout, "T* g_")
    for key in edge.centers:
        gradient = next(names)
        for side, x in enumerate("pq"):
            vectors.append(f"add_to(g{x}{key[0]} + {slot_offset(layout, key, side)} + c, V{{}} + {gradient});")
    for k in _varying(layout):
        rows.append(f"V va{k} = {{}};")
        vectors.append(f"va{k} += {next(names)};")
        finish.append(f"ga[{k}] = sum(va{k});")
    rows.append("V vw = {};")
    vectors.append(f"vw += {next(names)};")
    finish.append("g.g_weights[e] = sum(vw);")
    for f in range(len(edge.radial)):
        vectors.append(f"store(function(g_added, g_factors, {f}) + c, V{{}} + {next(names)});")
    return _parts(rows, scalars, vectors, finish)


def _inputs(layout: Layout, edge: EdgeExpressions) -> list[int]:
    """List what is differentiated by: what is sent, attributes but for the scalar, weight, functions."""
    return [*edge.centers.values(), *(edge.attributes[k] for k in _varying(layout)), edge.weight, *edge.radial]


def _varying(layout: Layout) -> list[int]:
    return [k for k, degree in enumerate(layout.degrees) if degree > 0]


def _d_sums(layout: Layout, tape: Tape, edge: EdgeExpressions) -> list[int]:
    return [tape.load(f"load({_sum(layout, 'ds', key)})", vector=True) for key in edge.sums]


def _sent_rows(layout: Layout) -> list[str]:
    return [
        line
        for name, node in (("p", "i"), ("q", "j"))
        for line in row_pointers(layout, f"const T* {name}", "g.sent", node, layout.n_slots, 2)
    ]


def _sum_rows(layout: Layout, name: str, array: str) -> list[str]:
    is_input = array in INPUTS
    node = "i" if is_input else "(n0 + i)"
    return row_pointers(layout, f"{'const ' * is_input}T* {name}", f"g.{array}", node, layout.n_products, 1)


def _function_rows(layout: Layout, name: str) -> list[str]:
    """Pointers to the rows of an edge in the two arrays of functions."""
    sizes = {"added": layout.n_slots[layout.scalars], "factors": sum(layout.n_products)}
    prefix = name.rsplit(maxsplit=1)[-1]
    return [f"{name}{x} = g.{prefix}{x} + e * {n * layout.channels};" for x, n in sizes.items()]


def _sum(layout: Layout, name: str, key: tuple[int, int, int]) -> str:
    return f"{name}{key[0]} + {product_offset(layout, key)} + c"


def _parts(rows: list[str], scalars: list[str], vectors: list[str], finish: list[str]) -> dict[str, str]:
    indents = {"rows": 6, "scalars": 6, "vectors": 8, "finish": 6}
    lines = {"rows": rows, "scalars": scalars, "vectors": vectors, "finish": finish}
    return {name: ("\n" + " " * indents[name]).join(lines[name]) for name in indents}
