"""Seconds per epoch of training on charged particles, ours and the implementation of the SEGNN paper's authors.

    git clone https://github.com/RobDHess/Steerable-E3-GNN authors && pip install torch_geometric
    OMP_NUM_THREADS=1 python benchmarks/particles_speed.py authors

Both have the network of `training/dynamics/charged.yaml` and steps of 100 trajectories of 5 particles with Adam, 30 of
which are an epoch; in alternation, after warm-up. Attributes are part of a step on both sides. What the authors' code
takes from wandb and torch_scatter is replaced: the former by nothing, the latter by torch_geometric.
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

import torch
from e3nn import o3

from ase_segnn.training import read_recipe_file
from ase_segnn.training.dynamics import DynamicsRecipe, ParticleNetwork
from ase_segnn.training.dynamics.graphs import ParticleGraphs
from ase_segnn.training.dynamics.module import ParticleLoss
from ase_segnn.training.optimizers import make_optimizers
from ase_segnn.training.recipe import make_recipe
from ase_segnn.training.step import CompiledStep

RECIPE = Path(__file__).parents[1] / "training" / "dynamics" / "charged.yaml"
BATCH, PARTICLES, STEPS_PER_EPOCH = 100, 5, 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("authors", type=Path, help="clone of the authors' repository")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each in a round")
    arguments = parser.parse_args()
    recipe = make_recipe(read_recipe_file(RECIPE), "the recipe", DynamicsRecipe)
    torch.manual_seed(0)
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
    steps = {"ours": our_step(recipe, graphs), "authors": their_step(arguments.authors, recipe, graphs)}
    for step in steps.values():
        for _ in range(3):
            step()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| round | ours, s/epoch | authors, s/epoch | ratio |\n|---|---|---|---|", flush=True)
    ratios = []
    for index in range(arguments.rounds):
        ours, theirs = (STEPS_PER_EPOCH * seconds(step, arguments.steps) for step in steps.values())
        ratios.append(theirs / ours)
        print(f"| {index + 1} | {ours:.2f} | {theirs:.2f} | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def seconds(step: Callable[[], Any], n_steps: int) -> float:
    """Mean time of a step."""
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    return (time.perf_counter() - started) / n_steps


def our_step(recipe: DynamicsRecipe, graphs: ParticleGraphs) -> Callable[[], None]:
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


def their_step(clone: Path, recipe: DynamicsRecipe, graphs: ParticleGraphs) -> Callable[[], None]:
    """Return a step as the authors' code takes it."""
    from torch_geometric.data import Data
    from torch_geometric.utils import scatter

    for name, contents in {"wandb": {}, "torch_scatter": {"scatter": scatter}}.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
    sys.path.insert(0, str(clone))
    from models.balanced_irreps import WeightBalancedIrreps
    from models.segnn.segnn import SEGNN
    from nbody.train_nbody import O3Transform

    settings = recipe.network
    attributes = o3.Irreps.spherical_harmonics(settings.l_max_attributes)
    hidden = WeightBalancedIrreps(o3.Irreps(f"{settings.width}x0e"), attributes, True, lmax=settings.l_max)
    network = SEGNN(
        o3.Irreps("2x1o+1x0e"),
        hidden,
        o3.Irreps("1x1o"),
        attributes,
        attributes,
        num_layers=settings.n_layers,
        task="node",
        additional_message_irreps=o3.Irreps("2x0e"),
    )
    print(f"authors: {sum(p.numel() for p in network.parameters())} weights, {hidden}", flush=True)
    transform = O3Transform(settings.l_max_attributes)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.optimization.learning_rate, weight_decay=recipe.optimization.weight_decay
    )
    first = PARTICLES * torch.arange(BATCH)[:, None, None]
    neighbors = (graphs.neighbors + first).flatten()
    centers = torch.arange(BATCH * PARTICLES).repeat_interleave(PARTICLES - 1)

    def step() -> None:
        optimizer.zero_grad()
        graph = Data(
            edge_index=torch.stack([neighbors, centers]),
            pos=graphs.positions.flatten(0, 1),
            vel=graphs.velocities.flatten(0, 1),
            charges=graphs.strengths.flatten()[:, None],
            batch=torch.arange(BATCH).repeat_interleave(PARTICLES),
        )
        loss = (network(transform(graph)) - graphs.targets.flatten(0, 1)).square().mean()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
