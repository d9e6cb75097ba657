"""
A crystal: lattice, elastic constants, phonons
==============================================

Relax silicon, strain it, and compute its phonons with phonopy.
"""

# %%
# The lattice
# -----------
# Relaxations to tight limits and finite differences want a network in double precision. The cell relaxes with the
# atoms:
from itertools import pairwise

import ase.build
import matplotlib.pyplot as plt
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from ase_segnn import SEGNNCalculator
from ase_segnn.physics.crystals import elastic_constants

calculator = SEGNNCalculator("si-pbe", dtype="float64")
crystal = ase.build.bulk("Si", cubic=True)
crystal.calc = calculator
BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-4)
print(f"lattice constant {crystal.cell.lengths()[0]:.3f} Å")

# %%
# Energy against volume
# ---------------------
factors = np.linspace(0.94, 1.06, 13)
volumes, energies = [], []
for factor in factors:
    scaled = crystal.copy()
    scaled.set_cell(crystal.cell * factor ** (1 / 3), scale_atoms=True)
    volumes.append(scaled.get_volume() / len(scaled))
    energies.append(calculator.get_property("energy", scaled) / len(scaled))
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(volumes, 1000 * (np.array(energies) - min(energies)), "o-")
axis.set(xlabel="volume per atom, Å³", ylabel="energy per atom, meV")
figure.tight_layout()

# %%
# Elastic constants
# -----------------
# Stresses of strained cells give all of them, with atoms relaxed in each:
for name, value in elastic_constants(calculator, crystal).entries.items():
    print(f"{name} {value:.0f} GPa")

# %%
# Phonons
# -------
# phonopy moves atoms of a supercell, the potential gives the forces, and phonopy makes force constants and
# frequencies of them:
primitive = ase.build.bulk("Si", a=crystal.cell.lengths()[0])
cell = PhonopyAtoms(symbols=primitive.symbols, cell=primitive.cell, scaled_positions=primitive.get_scaled_positions())
phonons = Phonopy(cell, supercell_matrix=3 * np.eye(3, dtype=int))
phonons.generate_displacements(distance=0.01)
forces = []
for moved in phonons.supercells_with_displacements:
    supercell = ase.Atoms(moved.symbols, moved.positions, cell=moved.cell, pbc=True)
    forces.append(calculator.get_property("forces", supercell))
phonons.forces = forces
phonons.produce_force_constants()

corners = {"Γ": (0, 0, 0), "X": (0.5, 0, 0.5), "K": (0.375, 0.375, 0.75), "L": (0.5, 0.5, 0.5)}
path = ["Γ", "X", "K", "Γ", "L"]
points = [np.linspace(corners[a], corners[b], 40) for a, b in pairwise(path)]
points[1] = np.linspace((0.5, 0.5, 1.0), corners["K"], 40)  # X in the next zone
phonons.run_band_structure(points)
bands = phonons.band_structure
figure, axis = plt.subplots(figsize=(6, 4))
for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
    axis.plot(distances, frequencies, color="C0")
ticks = [bands.distances[0][0], *(distances[-1] for distances in bands.distances)]
axis.set_xticks(ticks, path)
axis.set(ylabel="frequency, THz", xlim=(ticks[0], ticks[-1]), ylim=(0, None))
figure.tight_layout()

# %%
# The same numbers, with a vacancy and surfaces beside them, come from one command::
#
#     ase-segnn physics si-pbe bulk:Si --skip dynamics
