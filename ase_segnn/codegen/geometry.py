"""Rules of what happens along edges in float64: distances, attributes, repulsion of nuclei, and forces at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ase_segnn.codegen.arrays import Array, At, Leaf
from ase_segnn.codegen.builder import Builder
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.layers import Attribute
from ase_segnn.codegen.program import Store
from ase_segnn.codegen.rules import build, builds
from ase_segnn.model.angular import SphericalHarmonics
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.potential import Potential
from ase_segnn.model.radial import END, START
from ase_segnn.model.zbl import ENVELOPE_POWER, SCREENING_EXPONENTS, SCREENING_FACTORS, ZBLRepulsion

VECTORS = Array("", "vectors", "edge", 3, is_double=True)  # what is given
DISTANCES = Array("", "distances", "edge", 1, is_double=True)
FORCES_OF_PAIRS = Array("", "forces_of_pairs", "node", 3, is_double=True)
VIRIALS = Array("", "virials", "node", 9, is_double=True)

_ZERO = 1e-12  # of couplings of spherical harmonics


class Geometry(NamedTuple):
    """What the network takes from the edges.

    Parameters
    ----------
    attributes, weights, distances : of edges; the distances are those that the network sees
    node_attributes : sums over the edges of an atom
    starts : first component of each copy of an attribute
    """

    attributes: Array
    weights: Array
    distances: Array
    node_attributes: Array
    starts: list[int]

    def attribute(self, b: Builder, array: Array, at: At = "center") -> Attribute:
        """Return the components of each copy of an attribute."""
        components = b.read(array, at=at)
        ends = [*self.starts[1:], array.components]
        return [components[start:end] for start, end in zip(self.starts, ends, strict=True)]


def geometry_of(b: Builder, potential: Potential, overlap: Array) -> Geometry:
    """Write down distances, attributes and weights of edges, and the attributes and overlaps of atoms."""
    tape, network = b.tape, potential.network
    vector = b.read(VECTORS, at="edge")
    distance = tape.sqrt(tape.total([tape.multiply(x, x) for x in vector]))
    inverse = tape.divide(tape.constant(1), distance)
    harmonics = build(b, potential.harmonics, [tape.multiply(x, inverse) for x in vector])
    cutoff = b.setting("cutoff", potential.cutoff)
    average = b.setting("average_neighbors", potential.config.average_neighbors)
    stores = [Store(DISTANCES.leaf(at="edge"), distance)]
    seen, distances = distance, DISTANCES
    if potential.shortest is not None:
        shortest = b.constant(Array("", "shortest", "pair", 1, is_double=True), potential.shortest[..., None])
        seen = seen_distance(tape, distance, b.read(shortest, at="edge")[0])
        distances = Array("", "seen_distances", "edge", 1, is_double=True)
        stores.append(Store(distances.leaf(at="edge"), seen))
    u = envelope(tape, tape.divide(seen, cutoff), potential.config.network.envelope_power)
    attributes = Array("", "edge_attributes", "edge", len(harmonics))
    node_attributes = Array("", "node_attributes", "node", network.irreps_node_attributes.dim)
    weights = Array("", "edge_weights", "edge", 1)
    faded = tape.divide(u, average)
    stores.append(Store(overlap.leaf(), u))
    stores.append(Store(weights.leaf(at="edge"), tape.divide(u, tape.sqrt(average))))
    # the first component of an attribute is 1 and never read
    stores += [Store(attributes.leaf(k, at="edge"), x) for k, x in enumerate(harmonics) if k > 0]
    sums = range(1, node_attributes.components)
    stores += [Store(node_attributes.leaf(k), tape.multiply(faded, harmonics[k])) for k in sums]
    b.edges("geometry", stores)
    return Geometry(attributes, weights, distances, node_attributes, starts_of_copies(network.irreps_edge_attributes))


def starts_of_copies(irreps: Irreps) -> list[int]:
    """Return the first component of each copy of an attribute."""
    dims = [ir.dim for mul, ir in irreps for _ in range(mul)]
    return [sum(dims[:k]) for k in range(len(dims))]


def seen_distance(tape: Tape, distance: int, shortest: int) -> int:
    """Return `ase_segnn.model.radial.seen_distances`."""
    one, width = tape.constant(1), tape.scale(START - END, shortest)
    x = tape.ramp(tape.divide(tape.add(tape.scale(START, shortest), tape.scale(-1, distance)), width))
    over = tape.ramp(tape.add(x, tape.constant(-1)))
    x = tape.add(x, tape.scale(-1, over))
    cubic = tape.multiply(tape.multiply(x, x), tape.multiply(x, tape.add(one, tape.scale(-0.5, x))))
    return tape.add(distance, tape.multiply(width, tape.add(over, cubic)))


def envelope(tape: Tape, x: int, p: int) -> int:
    """Return `ase_segnn.model.radial.polynomial_envelope` at x < 1."""
    power = x
    for _ in range(p - 1):
        power = tape.multiply(power, x)
    inner = tape.add(tape.constant(p * (p + 2)), tape.scale(-0.5 * p * (p + 1), x))
    inner = tape.add(tape.constant(-0.5 * (p + 1) * (p + 2)), tape.multiply(x, inner))
    return tape.add(tape.constant(1), tape.multiply(power, inner))


@builds(SphericalHarmonics)
def spherical_harmonics(b: Builder, module: SphericalHarmonics, direction: list[int]) -> list[int]:
    """All components up to the highest degree, each degree from the one before."""
    tape = b.tape
    degree = [tape.scale(math.sqrt(3), x) for x in direction] if module.l_max > 0 else []
    harmonics = [tape.constant(1), *degree]
    for l_next in range(2, module.l_max + 1):
        products = [tape.multiply(x, y) for x in degree for y in direction]
        degree = [
            tape.total([tape.scale(k, x) for x, k in zip(products, column, strict=True) if abs(k) > _ZERO])
            for column in module.coupling(l_next).T.tolist()
        ]
        harmonics += degree
    return harmonics


@builds(ZBLRepulsion)
def zbl_repulsion(b: Builder, module: ZBLRepulsion, energies: Array) -> None:
    """Half of each pair's repulsion for each of its atoms."""
    tape = b.tape
    pairs = b.constant(Array("", "repulsion", "pair", 3, is_double=True), module.pairs)
    factor, per_length, end = b.read(pairs, at="edge")
    [distance] = b.read(DISTANCES, at="edge")
    reduced = tape.multiply(per_length, distance)
    terms = zip(SCREENING_FACTORS, SCREENING_EXPONENTS, strict=True)
    screening = tape.total([tape.scale(0.5 * c, tape.exp(tape.scale(-k, reduced))) for c, k in terms])
    faded = tape.multiply(screening, envelope(tape, tape.divide(distance, end), ENVELOPE_POWER))
    energy = tape.multiply(tape.divide(factor, distance), faded)
    b.edges("repulsion", [Store(energies.leaf(), energy)], below=(distance, end))


def forces_from(tape: Tape, gradients: Mapping[Leaf, int]) -> list[Store]:
    """Add gradients of vectors to forces on centers, subtract them from forces on neighbors; see `Potential.predict`.

    Parameters
    ----------
    tape : of the expressions
    gradients : of the components of `VECTORS`
    """
    stores = []
    for leaf, gradient in gradients.items():
        k = leaf.component
        stores.append(Store(FORCES_OF_PAIRS.leaf(k), gradient, adds=True))
        stores.append(Store(FORCES_OF_PAIRS.leaf(k, at="neighbor"), tape.scale(-1, gradient), adds=True))
        for m in range(3):
            vector = tape.leaf(VECTORS.leaf(m, at="edge"))
            stores.append(Store(VIRIALS.leaf(3 * m + k), tape.multiply(vector, gradient)))
    return stores
