"""
A committee, and which frames to label next
===========================================

Several potentials of different seeds disagree where they have not learned. Their disagreement stops a run before it
leaves what is known, and selects frames to label.
"""

# %%
# A committee of a reference that is cheap
# ----------------------------------------
# Argon atoms with the Lennard-Jones potential of ASE, near their minimum:
import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cluster import Icosahedron
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from ase_segnn import SEGNNCalculator, select_frames
from ase_segnn.training import train

reference = LennardJones(sigma=3.4, epsilon=0.0104, rc=12.0, smooth=True)
cluster = Icosahedron("Ar", 2, latticeconstant=5.3)
cluster.calc = reference
BFGS(cluster, logfile=None).run(fmax=1e-3)

random = np.random.default_rng(0)
frames = []
for _ in range(60):
    frame = cluster.copy()
    frame.positions += random.normal(0, 0.15, frame.positions.shape)
    results = {name: reference.get_property(name, frame) for name in ("energy", "forces")}
    frame.calc = SinglePointCalculator(frame, **results)
    frames.append(frame)

small = {"irreps_hidden": "8x0e+8x1o", "cutoff": 6.0, "n_layers": 1}
committee = train(frames, committee=3, max_time="30s", network=small, zbl=False)
calculator = SEGNNCalculator(committee)

# %%
# Disagreement along a hot trajectory
# -----------------------------------
# At 60 K the cluster melts, which none of the frames has seen:
atoms = cluster.copy()
atoms.calc = calculator
atoms.set_constraint(FixCom())
thermalize_momenta(atoms, 60, rng=random)
dynamics = Langevin(atoms, 5 * units.fs, temperature_K=60, friction=0.01 / units.fs, fixcm=False, rng=random)
visited, deviations, errors = [], [], []


def look() -> None:
    """Keep the frame, the largest deviation of a force, and the largest error."""
    forces = atoms.get_forces(apply_constraint=False)
    visited.append(atoms.copy())
    deviations.append(atoms.calc.results["forces_std"].max())
    errors.append(np.linalg.norm(forces - reference.get_property("forces", atoms), axis=1).max())


dynamics.attach(look, interval=20)
dynamics.run(4000)
figure, axis = plt.subplots(figsize=(7, 3))
time = 0.1 * np.arange(len(deviations))
axis.semilogy(time, errors, label="largest error")
axis.semilogy(time, deviations, label="largest deviation of the committee")
axis.set(xlabel="time, ps", ylabel="eV/Å")
axis.legend()
figure.tight_layout()

# %%
# Frames to label next
# --------------------
# Those about which the members disagree, and which differ from one another:
selection = select_frames(calculator, visited, 5)
for index in selection.indices:
    print(f"{time[index]:5.1f} ps, deviation {selection.deviations[index]:.4f} eV/Å")

# %%
# ``ase-segnn learn`` does all of this in a loop: labels, fits, dynamics and selection, until nothing new is found.
