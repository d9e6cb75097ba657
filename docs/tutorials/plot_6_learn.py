"""
No data: learn from a reference
===============================

A structure and something slow that is right are enough. Here it is a molecule from SMILES and GFN2-xTB, and a run that
is far too short, so that this page is built in minutes.
"""

# %%
# The run
# -------
# The structure is rattled and labeled, a committee learns it, walks at 300 to 600 K find what the committee does not
# know, that is labeled, and so on. In the end fresh frames of the potential's own dynamics are labeled as a test.
import tempfile
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt

from ase_segnn.smiles import from_smiles
from ase_segnn.training import learn

molecule = from_smiles("CC(=O)N")  # acetamide
folder = Path(tempfile.mkdtemp()) / "acetamide"
result = learn([molecule], "gfn2", labels=60, max_time="2m", output=folder)
for line in result.summary():
    print(line)

# %%
# The same from the command line::
#
#     ase-segnn learn "smiles:CC(=O)N" --reference gfn2 --labels 300 --time 30m
#
# Where the labels came from
# --------------------------
labels = ase.io.read(folder / "labels.xyz", ":")
energies = [atoms.get_potential_energy() for atoms in labels if len(atoms) > 1]
stages = [atoms.info["stage"] for atoms in labels if len(atoms) > 1]
figure, axis = plt.subplots(figsize=(6, 3))
for stage in dict.fromkeys(stages):
    places = [place for place, each in enumerate(stages) if each == stage]
    axis.plot(places, [energies[place] - min(energies) for place in places], ".", label=stage)
axis.set(xlabel="label", ylabel="energy, eV")
axis.legend(fontsize="small")
figure.tight_layout()

# %%
# Errors at each temperature, on frames that nothing has learned:
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(
    [each.temperature for each in result.fresh],
    [each.errors["forces_RMSE_meV_per_A"] for each in result.fresh],
    "o-",
)
axis.set(xlabel="temperature, K", ylabel="force RMSE, meV/Å", ylim=(0, None))
figure.tight_layout()

# %%
# With 300 labels and half an hour errors are several times smaller. :doc:`../learning` has references, pressures,
# labels that are made on a cluster, and all files of a run.
