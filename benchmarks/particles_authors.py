"""Beside the implementation of the SEGNN paper's authors, on charged particles: seconds per epoch, and learning curves.

    git clone https://github.com/RobDHess/Steerable-E3-GNN authors && pip install torch_geometric
    OMP_NUM_THREADS=1 python benchmarks/particles_authors.py authors
    OMP_NUM_THREADS=1 python benchmarks/particles_authors.py authors --epochs 35

Both have the network of `training/particles/charged_paper.yaml` and steps of 100 trajectories of 5 particles with Adam,
30 of which are an epoch. The first command takes steps of both in alternation, after warm-up; attributes are part of a
step on both sides. The second trains the authors' network on the trajectories of the recipe; `metrics.csv` of a run of
`particles.py` has the same for ours. What the authors' code takes from wandb and torch_scatter is replaced: the former
by nothing, the latter by torch_geometric.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from ase_segnn.training import read_recipe_file
from ase_segnn.training.fit.optimizers import make_optimizers
from ase_segnn.training.fit.step import CompiledStep
from ase_segnn.training.particles import ParticleNetwork, ParticleRecipe
from ase_segnn.training.particles.graphs import ParticleGraphs
from ase_segnn.training.particles.module import AT_A_TIME, ParticleLoss
from ase_segnn.training.particles.run import particle_sets
from ase_segnn.training.recipe import make_recipe

RECIPE = Path(__file__).parents[1] / "training" / "particles" / "charged_paper.yaml"
BATCH, PARTICLES, STEPS_PER_EPOCH = 100, 5, 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("authors", type=Path, help="clone of the authors' repository")
    parser.add_argument("--epochs", type=int, help="train theirs for so many epochs instead of measuring times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each in a round")
    arguments = parser.parse_args()
    recipe = make_recipe(read_recipe_file(RECIPE), "the recipe", ParticleRecipe)
    torch.manual_seed(0)
    theirs = Theirs(arguments.authors, recipe)
    if arguments.epochs is None:
        measure(recipe, theirs, arguments.rounds, arguments.steps)
    else:
        train(recipe, theirs, arguments.epochs)


def measure(recipe: ParticleRecipe, theirs: Theirs, rounds: int, n_steps: int) -> None:
    """Print seconds per epoch of both."""
    positions, velocities, targets = torch.randn(3, BATCH, PARTICLES, 3)
    others = torch.tensor([[j for j in range(PARTICLES) if j != i] for i in range(PARTICLES)])
    graphs = ParticleGraphs(
        positions,
        velocities,
        strengths=torch.randn(BATCH, PARTICLES).sign(),
        neighbors=others.repeat(BATCH, 1, 1),
        targets=targets,
        frames=torch.arange(BATCH),
    )
    steps = {"ours": our_step(recipe, graphs), "authors": lambda: theirs.step(graphs)}
    for step in steps.values():
        for _ in range(3):
            step()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| round | ours, s/epoch | authors, s/epoch | ratio |\n|---|---|---|---|", flush=True)
    ratios = []
    for index in range(rounds):
        ours, others_time = (STEPS_PER_EPOCH * seconds(step, n_steps) for step in steps.values())
        ratios.append(others_time / ours)
        print(f"| {index + 1} | {ours:.2f} | {others_time:.2f} | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def train(recipe: ParticleRecipe, theirs: Theirs, n_epochs: int) -> None:
    """Print mean squared errors of theirs on training and validation trajectories."""
    sets = particle_sets(recipe.system)
    random = np.random.default_rng(0)
    print("| epoch | training MSE | validation MSE |\n|---|---|---|", flush=True)
    for epoch in range(1, n_epochs + 1):
        order = random.permutation(len(sets["train"]))
        losses = [
            theirs.step(sets["train"][order[first : first + BATCH].tolist()]) for first in range(0, len(order), BATCH)
        ]
        if epoch % 5 == 0 or epoch == n_epochs:
            with torch.no_grad():
                squares = [theirs.squares(graphs).mean() for graphs in sets["validation"].in_parts(AT_A_TIME)]
            row = statistics.mean(losses), float(torch.stack(squares).mean())
            print(f"| {epoch} | {row[0]:.5f} | {row[1]:.5f} |", flush=True)


def seconds(step: Callable[[], Any], n_steps: int) -> float:
    """Mean time of a step."""
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    return (time.perf_counter() - started) / n_steps


def our_step(recipe: ParticleRecipe, graphs: ParticleGraphs) -> Callable[[], None]:
    """Return a step as the trainer takes it."""
    network = ParticleNetwork(recipe.network)
    print(f"ours: {sum(p.numel() for p in network.parameters())} weights, {network.segnn.irreps_hidden}", flush=True)
    compiled = CompiledStep(ParticleLoss(network))
    optimizers = make_optimizers(network, recipe.optimization)
    coefficients = 1 / graphs.n_labels()

    def step() -> None:
        _, derivatives = compiled(graphs, coefficients)
        for parameter, derivative in zip(network.parameters(), derivatives, strict=True):
            parameter.grad = derivative
        for optimizer in optimizers:
            optimizer.step()

    return step


class Theirs:
    """The authors' network with its optimizer.

    Parameters
    ----------
    clone : of their repository
    recipe : of the network and its training
    """

    def __init__(self, clone: Path, recipe: ParticleRecipe) -> None:
        from torch_geometric.utils import scatter

        for name, contents in {"wandb": {}, "torch_scatter": {"scatter": scatter}}.items():
            module = ModuleType(name)
            vars(module).update(contents)
            sys.modules[name] = module
        sys.path.insert(0, str(clone))
        from models.balanced_irreps import WeightBalancedIrreps
        from models.segnn.segnn import SEGNN
        from nbody.train_nbody import O3Transform

        settings, optimization = recipe.network, recipe.optimization
        attributes = o3.Irreps.spherical_harmonics(settings.l_max_attributes)
        hidden = WeightBalancedIrreps(o3.Irreps(f"{settings.width}x0e"), attributes, True, lmax=settings.l_max)
        self.network: nn.Module = SEGNN(
            o3.Irreps("2x1o+1x0e"),
            hidden,
            o3.Irreps("1x1o"),
            attributes,
            attributes,
            num_layers=settings.n_layers,
            task="node",
            additional_message_irreps=o3.Irreps("2x0e"),
        )
        print(f"authors: {sum(p.numel() for p in self.network.parameters())} weights, {hidden}", flush=True)
        self._transform = O3Transform(settings.l_max_attributes)
        self._optimizer = torch.optim.Adam(
            self.network.parameters(), lr=optimization.learning_rate, weight_decay=optimization.weight_decay
        )

    def squares(self, graphs: ParticleGraphs) -> Tensor:
        """Squared errors of all components."""
        from torch_geometric.data import Data

        n_graphs, n_particles, n_neighbors = graphs.neighbors.shape
        numbers = torch.arange(n_graphs * n_particles)
        graph = Data(
            edge_index=torch.stack(
                [
                    (graphs.neighbors + n_particles * torch.arange(n_graphs)[:, None, None]).flatten(),
                    numbers.repeat_interleave(n_neighbors),
                ]
            ),
            pos=graphs.positions.flatten(0, 1),
            vel=graphs.velocities.flatten(0, 1),
            charges=graphs.strengths.flatten()[:, None],
            batch=numbers // n_particles,
        )
        squares: Tensor = (self.network(self._transform(graph)) - graphs.targets.flatten(0, 1)).square()
        return squares

    def step(self, graphs: ParticleGraphs) -> float:
        """Take a step, and return the mean squared error before it."""
        self._optimizer.zero_grad()
        loss = self.squares(graphs).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.item()


if __name__ == "__main__":
    main()
