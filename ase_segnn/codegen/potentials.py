"""The rule of a whole potential, and the program of its energies and forces."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ase_segnn.codegen import networks  # noqa: F401  # its rules are registered
from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.builder import Builder
from ase_segnn.codegen.derivative import differentiate
from ase_segnn.codegen.geometry import FORCES_OF_PAIRS, VECTORS, VIRIALS, forces_from, geometry_of
from ase_segnn.codegen.messages import MessageShape
from ase_segnn.codegen.program import Loop, Program, Store, Total, loop_of
from ase_segnn.codegen.rules import build, builds
from ase_segnn.model.potential import Potential

# Results, in memory of the caller.
ATOM_ENERGIES = Array("", "atom_energies", "node", 1, is_double=True)
FORCES = Array("", "forces", "node", 3, is_double=True)
COUNTED = Array("", "counted", "node", 1, is_double=True)  # 1 for atoms whose energies are differentiated, 0 for others


def program_of(potential: Potential) -> Program:
    """Return the program of energies and forces of a potential on the CPU.

    Parameters
    ----------
    potential : its network has no `unsupported` part
    """
    with torch.no_grad():
        b = forward_of(potential)
        steps = list(b.steps)
        [seed] = b.read(COUNTED)
        backward, transposed = differentiate(b.tape, steps, VECTORS, partial(forces_from, b.tape), seed=seed)
        weights = b.weights | {new: b.weights[name].T for name, new in transposed.items()}
    backward += [store_forces(b), Total(VIRIALS, "virials")]
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    return Program(b.tape, [*steps, *backward], len(steps), contiguous)


def forward_of(potential: Potential) -> Builder:
    """Write down the energies of a potential."""
    b = Builder(MessageShape(potential.network.rounds[0].message).channels)
    build(b, potential)
    return b


def store_forces(b: Builder) -> Loop:
    """Return the loop that hands over forces, after their derivative."""
    result = [Store(FORCES.leaf(m), x) for m, x in enumerate(b.read(FORCES_OF_PAIRS))]
    return loop_of(b.tape, "forces", "nodes", result)


@builds(Potential)
def potential_rule(b: Builder, potential: Potential) -> None:
    """Energies of atoms from the vectors of edges, see `ase_segnn.model.potential.Potential`."""
    overlap = Array("", "overlap", "node", 1, is_double=True)
    repulsion = Array("", "repulsion_energies", "node", 1, is_double=True)
    geometry = geometry_of(b, potential, overlap)
    if potential.zbl is not None:
        build(b, potential.zbl, repulsion)
    output, bias = build(b, potential.network, potential, geometry)

    def of_species(name: str, values: Tensor) -> int:
        return b.read(b.constant(Array("", name, "species", 1, is_double=True), values))[0]

    tape = b.tape
    bonded = tape.scale(-1, tape.expm1(tape.scale(-1, b.read(overlap)[0])))
    network = tape.add(b.read(output)[0], b.read(bias)[0])
    learned = tape.multiply(b.setting("energy_scale", potential.config.energy_scale), network)
    learned = tape.add(of_species("energy_shifts", potential.energy_shifts), learned)
    energy = tape.add(of_species("reference_energies", potential.reference_energies), tape.multiply(bonded, learned))
    if potential.zbl is not None:
        energy = tape.add(energy, b.read(repulsion)[0])
    b.write(ATOM_ENERGIES, 0, [energy])
    b.flush()
    b.steps.append(Total(ATOM_ENERGIES, "energy"))
