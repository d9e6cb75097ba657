"""
Train on your own frames
========================

Labeled frames in, a potential and its errors out. The frames here are of GFN2-xTB, so that this page can make them
itself; yours are of a DFT code.
"""

# %%
# Frames
# ------
# 120 frames of dynamics of ethanol at 500 K, each with energy and forces:
import ase.build
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from tblite.ase import TBLite

from ase_segnn import SEGNNCalculator, evaluate
from ase_segnn.training import train

random = np.random.default_rng(0)
atoms = ase.build.molecule("CH3CH2OH")
atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
atoms.set_constraint(FixCom())
thermalize_momenta(atoms, 500, rng=random)
dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=500, friction=0.01 / units.fs, fixcm=False, rng=random)
dynamics.run(500)
frames = []
for _ in range(120):
    dynamics.run(20)
    frame = Atoms(atoms.numbers, atoms.positions)
    frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    frames.append(frame)

# %%
# Training
# --------
# Forty seconds here; an hour or more for real. From files, ``ase-segnn train --data frames.xyz --time 2h`` does the
# same and writes a folder with potential, card, recipe and report.
potential = train(frames[:100], max_time="40s", network={"irreps_hidden": "16x0e+16x1o+16x2e"})

# %%
# Errors
# ------
# On frames that training did not see:
calculator = SEGNNCalculator(potential)
result = evaluate(calculator, frames[100:])
errors = result.errors()
print(f"energy RMSE {errors['energy_RMSE_meV']:.1f} meV, forces RMSE {errors['forces_RMSE_meV_per_A']:.0f} meV/Å")

reference = np.concatenate([frame.get_forces().ravel() for frame in frames[100:]])
predicted = np.concatenate([calculator.get_property("forces", frame).ravel() for frame in frames[100:]])
figure, axis = plt.subplots(figsize=(4, 4))
axis.plot(reference, predicted, ".", markersize=3)
axis.plot(reference, reference, color="0.7", zorder=0)
axis.set(xlabel="force of the reference, eV/Å", ylabel="force of the potential, eV/Å")
figure.tight_layout()

# %%
# Neighboring frames of one trajectory resemble each other. So these errors are those of this dynamics;
# :doc:`../trust` says what else there is to know.
