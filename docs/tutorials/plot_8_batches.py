"""
Many molecules at a time
========================

torch-sim evaluates structures in batches, and relaxes or runs all of them in one call.
"""

# %%
# Forty distorted molecules of acetylacetone are relaxed together:
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import torch_sim as ts

from ase_segnn import SEGNNCalculator
from ase_segnn.integrations.torch_sim import SEGNNModel

molecule = ase.io.read(Path("../../tests/data/acetylacetone.xyz"))
molecules = []
for seed in range(40):
    atoms = molecule.copy()
    atoms.rattle(0.1, seed=seed)
    molecules.append(atoms)

model = SEGNNModel("acac-pbe")
relaxed = ts.optimize(
    system=molecules,
    model=model,
    optimizer=ts.optimizers.fire,
    convergence_fn=ts.generate_force_convergence_fn(force_tol=0.02, include_cell_forces=False),
    max_steps=500,
)

# %%
# Energies before and after: all come to the same minimum.
calculator = SEGNNCalculator("acac-pbe")
before = [calculator.get_property("energy", atoms) for atoms in molecules]
after = relaxed.energy.numpy()
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(np.array(before) - after.min(), "o", label="rattled")
axis.plot(after - after.min(), "o", label="relaxed")
axis.set(xlabel="molecule", ylabel="energy, eV")
axis.legend()
figure.tight_layout()
print(f"after relaxation energies differ by at most {1000 * np.ptp(after):.1f} meV")
