"""
Dynamics of a molecule, and its spectrum
========================================

Attach a potential to a molecule, relax it, run molecular dynamics, and see at which frequencies it vibrates.
"""

# %%
# The structure comes from a file, and the potential is one of those that come with the package:
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ase_segnn import SEGNNCalculator

atoms = ase.io.read(Path("../../tests/data/acetylacetone.xyz"))
atoms.calc = SEGNNCalculator("acac-pbe")
print(f"{len(atoms)} atoms, {atoms.get_potential_energy():.3f} eV")

# %%
# Relaxation
# ----------
BFGS(atoms, logfile=None).run(fmax=0.01)
print(f"largest force {np.linalg.norm(atoms.get_forces(), axis=1).max():.4f} eV/Å")

# %%
# Dynamics
# --------
# Half a picosecond with a thermostat warms the molecule up. Then two picoseconds at constant energy follow, in which
# velocities are recorded.
random = np.random.default_rng(1)
timestep = 0.5  # fs
atoms.set_constraint(FixCom())  # the molecule stays where it is
thermalize_momenta(atoms, 300, rng=random)
thermostat = Langevin(atoms, timestep * units.fs, temperature_K=300, friction=0.02 / units.fs, fixcm=False, rng=random)
thermostat.run(1000)

velocities, energies, temperatures = [], [], []


def record() -> None:
    """Keep what is drawn below."""
    velocities.append(atoms.get_velocities())
    energies.append(atoms.get_total_energy())
    temperatures.append(atoms.get_temperature())


dynamics = VelocityVerlet(atoms, timestep * units.fs)
dynamics.attach(record, interval=1)
dynamics.run(4000)

# %%
# Forces are the derivatives of the energy, so the total energy stays where it is while kinetic and potential energy
# change places:
time = timestep / 1000 * np.arange(len(energies))
figure, axes = plt.subplots(2, 1, sharex=True, figsize=(7, 4))
axes[0].plot(time, 1000 * (np.array(energies) - energies[0]))
axes[0].set_ylabel("total energy, meV")
axes[1].plot(time, temperatures)
axes[1].set(xlabel="time, ps", ylabel="temperature, K")
figure.tight_layout()

# %%
# Vibrations
# ----------
# The power spectrum of the velocities, each weighted by its mass, is the vibrational density of states:
weighted = np.array(velocities) * np.sqrt(atoms.get_masses())[:, None]
window = np.hanning(len(weighted))[:, None, None]
spectrum = (np.abs(np.fft.rfft(window * weighted, axis=0)) ** 2).sum(axis=(1, 2))
wavenumber = np.fft.rfftfreq(len(weighted), timestep * 1e-15) / 2.998e10

figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(wavenumber, spectrum / spectrum.max())
axis.set(xlim=(0, 3600), xlabel="wavenumber, 1/cm", ylabel="density of states")
figure.tight_layout()

# %%
# C–H bonds vibrate near 3000/cm and the skeleton below 1700/cm. The hydrogen between both oxygen atoms has no sharp
# line: its bond to one oxygen atom is weakened by the other.
#
# The same from the command line, with trajectory, log and plot::
#
#     ase-segnn md acac-pbe tests/data/acetylacetone.xyz --steps 4000 --temperature 300
