"""
A reaction path
===============

The barrier that an atom of copper crosses when it jumps into a vacancy, by the nudged elastic band of ASE.
"""

# %%
# Both ends
# ---------
# A vacancy in 107 atoms of copper, and the same with a neighbor moved into it:
import ase.build
import matplotlib.pyplot as plt
import numpy as np
from ase.mep import NEB
from ase.optimize import FIRE, LBFGS

from ase_segnn import SEGNNCalculator

calculator = SEGNNCalculator("cu-pbe")
crystal = ase.build.bulk("Cu", cubic=True, a=3.634) * 3
hole = crystal.positions[0].copy()
distances = crystal.get_distances(0, range(len(crystal)), mic=True)
neighbor = int(np.argsort(distances)[1])

start = crystal.copy()
end = crystal.copy()
end.positions[neighbor] = hole
ends = []
for atoms in (start, end):
    del atoms[0]
    atoms.calc = calculator
    LBFGS(atoms, logfile=None).run(fmax=0.01)
    ends.append(atoms.get_potential_energy())
print(f"the ends differ by {abs(ends[1] - ends[0]):.4f} eV")

# %%
# The path
# --------
# Three images in between share the calculator:
images = [start, *(start.copy() for _ in range(3)), end]
for image in images[1:-1]:
    image.calc = calculator
band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
band.interpolate(mic=True)
FIRE(band, logfile=None).run(fmax=0.05, steps=100)

energies = np.array([image.get_potential_energy() for image in images]) - ends[0]
print(f"barrier {energies.max():.2f} eV")
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(np.linspace(0, 1, len(images)), energies, "o-")
axis.set(xlabel="along the path", ylabel="energy, eV")
figure.tight_layout()

# %%
# Experiments give a barrier of about 0.7 eV for vacancies in copper. Whether a potential knows a path is told by its
# reference: label the images, and ``ase-segnn evaluate`` them.
