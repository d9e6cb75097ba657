"""The structures that every physics check runs on, and how exactly the checks must hold."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

ELEMENTS = ("H", "C", "O", "Si", "Cu")
CUTOFF = 4.5  # Å, of a potential for these systems

# Relative to the largest number of the kind, such as the largest force on an atom.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def rattled(atoms: Atoms) -> Atoms:
    """Move the atoms by about 0.1 Å."""
    atoms.positions += np.random.default_rng(1).normal(0, 0.06, (len(atoms), 3))
    return atoms


def systems() -> dict[str, Atoms]:
    """Return the named systems, made anew at each call.

    Forces are zero in the lone atom, the far dimer and the one-atom cell, and not in the others.

    ====================  =====  =======  =====================================================================
    name                  atoms  pbc      what is awkward about it
    ====================  =====  =======  =====================================================================
    lone atom             1      none     no edges, no cell
    dimer                 2      none     all atoms on one line
    short dimer           2      none     0.3 Å apart
    far dimer             2      none     farther apart than the cutoff: no edges
    water                 3      none     no cell
    molecule in a box     9      none     a cell that does not count, atoms outside of it
    one-atom cell         1      x, y, z  cutoff longer than the cell vectors: the atom is its own neighbor
    skewed triclinic      3      x, y, z  angles of 31°, 43° and 50°, cutoff longer than the cell is wide
    wire                  4      z        periodic along one vector, the others are zero
    slab                  16     x, y     atoms drifted by many cells, and out of the cell along z
    unwrapped             8      x, y, z  each atom in another cell
    mixed species         10     x, y, z  five elements in a skewed cell
    bulk                  216    x, y, z  many atoms, three cutoffs wide
    ====================  =====  =======  =====================================================================
    """
    rng = np.random.default_rng(20211006)

    ethanol = molecule("CH3CH2OH", cell=[6.0, 6.0, 6.0])
    ethanol.positions += [5.0, -2.0, 9.0]

    # the angle between a and b is 31°, a and c 43°, b and c 50°
    skewed = Atoms("SiCO", cell=[5.2, 4.4, 4.8, 50, 43, 31], pbc=True)
    skewed.set_scaled_positions([[0.02, 0.05, 0.01], [0.35, 0.41, 0.28], [0.71, 0.66, 0.74]])

    wire = Atoms("CHCH", [[0, 0, 0.1], [1.0, 0.3, 0], [0.1, 0.2, 1.4], [-0.9, 0.3, 1.6]], cell=[0, 0, 2.7])
    wire.pbc = [False, False, True]

    slab = fcc111("Cu", (2, 2, 3), vacuum=3.0)
    slab += Atoms("CO", slab.positions[-1] + [[0.1, 0, 1.9], [0.2, 0.1, 3.1]])
    slab += Atoms("OH", slab.positions[-5] + [[0.2, 0.1, 1.8], [0.9, 0.3, 2.4]])
    slab.positions += rng.integers(-9, 10, (len(slab), 2)) @ slab.cell.array[:2] + [0, 0, 20]
    slab.pbc = [True, True, False]

    unwrapped = bulk("Si", cubic=True)
    unwrapped.positions += rng.integers(-3, 4, (len(unwrapped), 3)) @ unwrapped.cell.array

    mixed = Atoms("CuCuSiSiCCOOHH", cell=[[6.1, 0, 0], [1.4, 5.3, 0], [-1.1, 0.9, 5.7]], pbc=True)
    grid = [[x, y, z] for x in (0.1, 0.6) for y in (0.2, 0.7) for z in (0.05, 0.4, 0.75)]
    mixed.set_scaled_positions(grid[:10])

    table = {
        "lone atom": Atoms("O"),
        "dimer": Atoms("CO", [[0.0, 0.0, 0.0], [0.3, -0.5, 0.96]]),
        "short dimer": Atoms("H2", [[0.0, 0.0, 0.0], [0.1, 0.2, 0.2]]),
        "far dimer": Atoms("OH", [[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]]),
        "water": molecule("H2O"),
        "molecule in a box": ethanol,
        "one-atom cell": Atoms("Cu", [[0.4, -0.2, 0.9]], cell=[[2.5, 0, 0], [0.6, 2.4, 0], [-0.3, 0.8, 2.6]], pbc=True),
        "skewed triclinic": skewed,
        "wire": wire,
        "slab": slab,
        "unwrapped": unwrapped,
        "mixed species": mixed,
        "bulk": bulk("Si", cubic=True).repeat(3),
    }
    for name in ("water", "slab", "unwrapped", "mixed species", "bulk"):
        table[name].positions += rng.normal(0, 0.08, (len(table[name]), 3))
    return table
