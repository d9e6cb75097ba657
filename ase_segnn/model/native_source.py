"""The C++ source of a whole potential for `native`: energies, forces and virials from positions and pairs.

Atoms are taken in blocks that fit into a cache. One pass over the blocks per layer goes from the features of the
neighbors to those of the next layer; one pass per layer goes back. Threads share the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ase_segnn.checks import SMALLEST_VOLUME
from ase_segnn.model.edge_layout import Layout
from ase_segnn.model.edge_source import edge_source
from ase_segnn.model.expressions import Tape
from ase_segnn.model.native_templates import DRIVER, prelude
from ase_segnn.model.node_source import Array, LinearPlan, Stage
from ase_segnn.model.potential import Potential
from ase_segnn.model.segnn import SEGNNLayer
from ase_segnn.model.zbl import ENVELOPE_POWER, SCREENING_EXPONENTS, SCREENING_FACTORS

# What the function takes, in this order; the names are those of `native`.
ARGUMENTS = {
    "n_atoms": "int64_t",
    "n_edges": "int64_t",
    "n_threads": "int64_t",
    "forces_wanted": "int64_t",
    "n_intervals": "int64_t",
    "n_species": "int64_t",
    "n_numbers": "int64_t",
    "n_structures": "int64_t",
    "workspace_is_clean": "int64_t",
    "cutoff": "double",
    "average_neighbors": "double",
    "energy_scale": "double",
    "positions": "const double*",
    "cells": "const double*",
    "cell_shifts": "const double*",
    "centers": "const int64_t*",
    "neighbors": "const int64_t*",
    "structure": "const int64_t*",
    "atomic_numbers": "const int64_t*",
    "species_of_number": "const int64_t*",
    "reference_energies": "const double*",
    "energy_shifts": "const double*",
    "repulsion": "const double*",
    "learned": "const T*",
    "starts_of_weights": "const int64_t*",
    "starts_of_tables": "const int64_t*",
    "workspace": "char*",
    "energy": "double*",
    "atom_energies": "double*",
    "forces": "double*",
    "stress": "double*",
}


class NativeSource:
    """C++ source for all potentials of one shape, and the order of the matrices and vectors that it takes.

    Parameters
    ----------
    potential : of the shape
    updates : the updates of its layers, with the second layer of the messages merged into the first
    """

    def __init__(self, potential: Potential, updates: Sequence[SEGNNLayer], dtype: torch.dtype) -> None:
        network = potential.network
        self._layout = layout = Layout(network.rounds[0].message, network.embedding)
        self._dtype = dtype
        channels, n_attributes = layout.channels, len(layout.degrees)
        hidden = [(dim, channels) for dim in layout.dims]
        self._f = Array("f", hidden)
        self._s = Array("s", [(dim, n * channels) for dim, n in zip(layout.dims, layout.n_products, strict=True)])
        self._p = Array("p", [(dim, 2 * n * channels) for dim, n in zip(layout.dims, layout.n_slots, strict=True)])
        next_f, h = Array("next_f", hidden), Array("h", hidden)
        update, readout, embedding = updates[0].update, network.readout, network.embedding
        self._plans = {
            "1": LinearPlan(update.linear_1, [self._f, self._s], "1"),
            "2": LinearPlan(update.linear_2, [h], "2"),
            "3": LinearPlan(readout.linear_1, [self._f], "3"),
        }
        one, two, three = self._plans.values()

        def stage(name: str) -> Stage:
            return Stage(name, channels, layout.starts, n_attributes)

        steer = stage("steer_features_and_sums")
        steer.steered_inputs(one)
        gate = stage("gate_update")
        gated = gate.gated(gate.results(one, "bias_1"), layout.dims, layout.scalars)
        for entry, x in enumerate(gated):
            gate.write(h, entry, 0, x)
        gate.steered_inputs(two, [[x] for x in gated])
        finish = stage("finish_update")
        for (entry, part), update_of in finish.results(two, "bias_2").items():
            old = finish.read(self._f, entry, part)
            finish.write(next_f, entry, part, [finish.tape.add(x, y) for x, y in zip(old, update_of, strict=True)])
        steer_readout = stage("steer_features")
        steer_readout.steered_inputs(three)
        last = stage("finish_readout")
        gated = last.gated(last.results(three, "bias_3"), layout.dims, layout.scalars)
        energy: int | None = None
        [paths] = readout.linear_2.paths
        for k, path in enumerate(paths):
            [scalar] = last.steer(gated[path.entry_in], path)
            energy = last.tape.add(energy, last.tape.multiply(scalar, last.parameter(f"last + {k * channels}")))
        assert energy is not None
        embed = stage("embed")
        slots = [(o, path) for o, ways in enumerate(embedding.paths) for path in ways]
        sums: dict[int, list[int]] = {}
        for k, (o, path) in enumerate(slots):
            row = embed.parameter(f"embedding + species[i] * {len(slots) * channels} + {k * channels}")
            terms = embed.steer([row], path)
            sums[o] = terms if o not in sums else [embed.tape.add(x, y) for x, y in zip(sums[o], terms, strict=True)]
        for entry, (dim, _) in enumerate(hidden):
            embed.write(self._f, entry, 0, sums.get(entry, [embed.tape.constant(0)] * dim))

        functions = [
            embed.forward_source(", const T* embedding, const int64_t* species"),
            embed.backward_source({}, ", const T* embedding, const int64_t* species"),
            steer.forward_source(),
            steer.backward_source({"f": True, "s": True}),
            gate.forward_source(", const T* bias_1"),
            gate.backward_source({"o1": False, "z1": False}, ", const T* bias_1"),
            finish.forward_source(", const T* bias_2"),
            finish.backward_source({"z2": False}),
            steer_readout.forward_source(),
            steer_readout.backward_source({"f": True}),
            last.sum_source(
                energy, f"last[{len(readout.linear_2.weights[0])}]", ", const T* bias_3, const T* last, T* e"
            ),
            last.backward_source(
                {"o3": False, "z3": False},
                ", const T* bias_3, const T* last, const T* seed",
                {energy: last.tape.load("seed[i]", vector=False)},
            ),
        ]
        calls: dict[str, list[str]] = {}
        for one_stage in (embed, steer, gate, finish, steer_readout, last):
            calls |= one_stage.calls
        self.source = self._substitute(potential, functions, calls)

    def weights(self, potential: Potential, updates: Sequence[SEGNNLayer]) -> list[Tensor]:
        """Matrices and vectors of a potential of this shape, as the source takes them."""
        layout, network = self._layout, potential.network
        n = len(layout.hidden)
        tensors: list[Tensor] = []
        for layer, merged in zip(network.rounds, updates, strict=True):
            of_layer = Layout(layer.message, network.embedding)
            projections = [
                torch.cat([of_layer.first_weights(entry), of_layer.first_weights(entry + n)], dim=1)
                for entry in range(n)
            ]
            if layer is network.rounds[0]:  # which takes the table of species instead
                projections = [projection[:0] for projection in projections]
            linear_1, linear_2 = merged.update.linear_1, merged.update.linear_2
            for matrices in (projections, self._plans["1"].matrices(linear_1), self._plans["2"].matrices(linear_2)):
                tensors += matrices
                tensors += [matrix.T for matrix in matrices]
            tensors += [linear_1.biases["0"], linear_2.biases[str(layout.scalars)]]
        readout = network.readout
        matrices = self._plans["3"].matrices(readout.linear_1)
        tensors += [*matrices, *(matrix.T for matrix in matrices)]
        embedding = network.embedding
        rows: dict[int, Tensor] = {}  # of the table of species, per entry of the features that it reaches
        for o, (paths, weight) in enumerate(zip(embedding.paths, embedding.weights, strict=True)):
            if paths:
                row = potential.one_hot @ weight
                rows[o] = row + embedding.biases[str(o)] if str(o) in embedding.biases else row
        first = Layout(network.rounds[0].message, embedding)
        sent = [row @ first.first_weights(entry + side * n) for side in range(2) for entry, row in rows.items()]
        tensors += [torch.cat(list(rows.values()), dim=1), readout.linear_1.biases["0"]]
        tensors.append(torch.cat([readout.linear_2.weights[0].flatten(), readout.linear_2.biases["0"]]))
        tensors.append(torch.cat(sent, dim=1))
        return [tensor.detach().contiguous() for tensor in tensors]

    def _substitute(self, potential: Potential, functions: list[str], calls: dict[str, list[str]]) -> str:
        layout, plans = self._layout, self._plans
        n, sizes = len(layout.hidden), {name: len(plan.products) for name, plan in plans.items()}
        first = {"p": 0, "1": 2 * n, "2": 2 * n + 2 * sizes["1"]}
        biases = first["2"] + 2 * sizes["2"]
        per_layer = biases + 2
        n_layers = len(potential.network.rounds)
        channels = layout.channels
        saved = [self._f, self._p, self._s, plans["1"].o, plans["1"].z, plans["2"].z]
        derivative_of = {
            name: Array(f"d_{name}", array.shapes)
            for name, array in {
                "s": self._s,
                "h": self._f,
                "o1": plans["1"].o,
                "z1": plans["1"].z,
                "u1": plans["1"].u,
                "z2": plans["2"].z,
                "u2": plans["2"].u,
                "o3": plans["3"].o,
                "z3": plans["3"].z,
                "u3": plans["3"].u,
            }.items()
        }
        scratch = [
            plans["1"].u,
            Array("h", self._f.shapes),
            plans["2"].u,
            plans["2"].o,
            plans["3"].u,
            plans["3"].o,
            plans["3"].z,
            *derivative_of.values(),
        ]

        def call(function: str, parameters: str = "") -> str:
            arguments = "".join(f", {'d_f' if name == 'd_next_f' else name}" for name in calls[function])
            d_attributes = ", d_a" if function.endswith("_backward") else ""
            return f"{function}(n, a{d_attributes}{parameters}{arguments});"

        project = [
            f"multiply(n * {dim}, {channels}, {width}, f[{k}], w[{k}], p[{k}], 0);"
            for k, (dim, width) in enumerate(self._p.shapes)
        ]
        project_backward = [
            f"multiply(n * {dim}, {width}, {channels}, dp[{k}], w[{n + k}], d_f[{k}], 1);"
            for k, (dim, width) in enumerate(self._p.shapes)
        ]
        update = [
            call("steer_features_and_sums"),
            *plans["1"].forward(first["1"]),
            call("gate_update", f", w[{biases}]"),
            *plans["2"].forward(first["2"]),
            call("finish_update", f", w[{biases + 1}]"),
        ]
        update_backward = [
            call("finish_update_backward"),
            *(line.replace("d_o2", "d_f") for line in plans["2"].backward(first["2"] + sizes["2"])),
            call("gate_update_backward", f", w[{biases}]"),
            *plans["1"].backward(first["1"] + sizes["1"], added_to="f"),
            call("steer_features_and_sums_backward"),
        ]
        r = 2 * sizes["3"]
        readout = [
            call("steer_features"),
            *plans["3"].forward(0),
            call("finish_readout", f", w[{r + 1}], w[{r + 2}], e"),
        ]
        readout_backward = [
            call("finish_readout_backward", f", w[{r + 1}], w[{r + 2}], seed"),
            *plans["3"].backward(sizes["3"]),
            call("steer_features_backward"),
        ]
        harmonics, harmonics_backward = _harmonics(potential)
        driver = DRIVER.substitute(
            input="\n".join(f"  {kind} {name};" for name, kind in ARGUMENTS.items()),
            n_layers=n_layers,
            n_attributes=len(layout.degrees),
            per_layer=per_layer,
            n_weights=n_layers * per_layer + r + 4,
            n_entries=n,
            power=potential.config.network.envelope_power,
            repulsion_power=ENVELOPE_POWER,
            smallest_volume=SMALLEST_VOLUME,
            screening_factors=", ".join(map(repr, SCREENING_FACTORS)),
            screening_exponents=", ".join(map(repr, SCREENING_EXPONENTS)),
            widths=", ".join(str(dim * width) for dim, width in self._p.shapes),
            f_widths=", ".join(str(dim * width) for dim, width in self._f.shapes),
            saved="\n".join(f"  {array.pointers.replace('[', '[N_LAYERS + 1][', 1)};" for array in saved),
            take_saved="\n".join(
                f"    for (int t = {int(array.name == 'p')}; t < N_LAYERS{' + 1' if array.name == 'f' else ''}; ++t) "
                f"{array.name}[t][{k}] = take<T>(next, n_atoms * {dim * width});"
                for array in saved
                for k, (dim, width) in enumerate(array.shapes)
            ),
            take_gradients="\n".join(
                f"      d_f[{k}] = take<T>(next, n_atoms * {dim * width});"
                for k, (dim, width) in enumerate(self._f.shapes)
            ),
            scratch="\n".join(f"  {array.pointers};" for array in scratch),
            take_scratch="\n".join(
                f"    {array.name}[{k}] = take<T>(next, BLOCK * {dim * width});"
                for array in scratch
                for k, (dim, width) in enumerate(array.shapes)
            ),
            pointers="\n".join(_shifted(array, f"space.{array.name}[t]") for array in saved if array.name != "f"),
            f=_shifted(self._f, "space.f[t]"),
            next_f=_shifted(Array("next_f", self._f.shapes), "space.f[t + 1]"),
            d_f=_shifted(Array("d_f", self._f.shapes), "space.d_f"),
            scratch_pointers="\n".join(
                f"  T** const {array.name} = scratch.{array.name}; (void){array.name};" for array in scratch
            ),
            embed=call("embed", ", w[0], species"),
            embed_backward=call("embed_backward", ", w[0], species"),
            project=_lines(project),
            project_backward=_lines(project_backward),
            update=_lines(update),
            update_backward=_lines(update_backward),
            readout=_lines(readout),
            readout_backward=_lines(readout_backward),
            readout_first=n_layers * per_layer,
            embedding=n_layers * per_layer + r,
            sent=n_layers * per_layer + r + 3,
            harmonics="\n".join(f"      {line}" for line in harmonics),
            harmonics_backward="\n".join(f"      {line}" for line in harmonics_backward),
        )
        return "\n".join([prelude(self._dtype, channels), edge_source(layout), *functions, driver])


def _shifted(array: Array, base: str) -> str:
    """Statements for pointers to the rows of a block."""
    places = ", ".join(f"{base}[{k}] + i0 * {dim * width}" for k, (dim, width) in enumerate(array.shapes))
    return f"  T* const {array.name}[] = {{{places or 'nullptr'}}}; (void){array.name};"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _harmonics(potential: Potential) -> tuple[list[str], list[str]]:
    """Statements for the attribute `y` of an edge along (n0, n1, n2), and for its gradient g0, g1, g2 from gy."""
    tape = Tape()
    direction = [tape.load(f"n{axis}", vector=False) for axis in range(3)]
    degree = [tape.multiply(tape.constant(math.sqrt(3)), x) for x in direction]
    harmonics = list(degree)
    for l_next in range(2, potential.harmonics.l_max + 1):
        coupling = potential.harmonics.coupling(l_next)
        products = [tape.multiply(x, y) for x in degree for y in direction]
        degree = []
        for column in coupling.T.tolist():
            total = None
            for product, factor in zip(products, column, strict=True):
                if abs(factor) > _ZERO:
                    total = tape.add(total, tape.multiply(tape.constant(factor), product))
            assert total is not None
            degree.append(total)
        harmonics += degree
    forward, _ = tape.statements(harmonics)
    forward += [f"y[{k}] = {tape.name(x)};" for k, x in enumerate(harmonics, start=1)]
    gradients = [tape.load(f"gy[{k}]", vector=False) for k in range(1, len(harmonics) + 1)]
    adjoints = tape.backward(harmonics, gradients, direction)
    backward, _ = tape.statements(adjoints)
    backward += [f"const double g{axis} = {tape.name(x)};" for axis, x in enumerate(adjoints)]
    return forward, backward


_ZERO = 1e-12  # of couplings of spherical harmonics
