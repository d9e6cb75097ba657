"""
Your own physics: vectors as inputs
===================================

The promise of a steerable network is that any physical quantity can steer its messages. Here velocities do: five
charged particles move by Coulomb's law, and a network says where they will be, as in the paper of SEGNN.
"""

# %%
# With and without velocities as attributes
# -----------------------------------------
# Both networks get velocities and charges as features of the particles. In the first, velocities also steer the
# messages and updates, beside the directions to the other particles; in the second only the directions do. Half a
# minute each, where the published runs take hours:
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ase_segnn.training.particles.network import load_network
from ase_segnn.training.particles.recipe import ParticleRecipe
from ase_segnn.training.particles.run import particle_sets, predict, run_particles

folder = Path(tempfile.mkdtemp())
results = {}
for name, physics in (("with", True), ("without", False)):
    recipe = ParticleRecipe.model_validate(
        {
            "name": name,
            "system": {"kind": "charged", "train": 2000, "validation": 200, "test": 500},
            "network": {"width": 24, "n_layers": 3, "physics": physics},
            "optimization": {"max_time": "30s", "learning_rate": 0.01, "optimizer": "adamw", "ema_decay": 0.99},
        }
    )
    results[name] = run_particles(recipe, folder / name)
    print(f"{name} velocities as attributes: test MSE {results[name].errors['test MSE']:.4f}")

# %%
# Where the particles are
# -----------------------
# Ten frames ahead, which are 1000 steps of the simulation:
network = load_network(results["with"].files["network"])
targets, predictions = predict(network, particle_sets(recipe.system)["test"])
figure, axis = plt.subplots(figsize=(4, 4))
axis.plot(targets.ravel(), predictions.ravel(), ".", markersize=2)
axis.plot([-4, 4], [-4, 4], color="0.7", zorder=0)
axis.set(xlabel="displacement", ylabel="predicted displacement", xlim=(-4, 4), ylim=(-4, 4))
figure.tight_layout()

# %%
# A rotation of the particles and their velocities rotates what is predicted; that is built in and not learned.
# :doc:`../segnn` has the equations, :doc:`../adding_a_layer` shows how a new part of the network is written.
print(f"mean square of the displacements: {np.mean(targets**2):.3f}")
