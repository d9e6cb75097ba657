"""A training run on simulated particles, from recipe to network and report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ase_segnn.caches import Cache

from ..fit import check_machine, fit, with_epochs
from ..folder import RunFiles, provenance_of
from .datasets import FRAMES_AHEAD, INPUT_FRAME, charged_dataset, gravity_dataset
from .graphs import ParticleSet
from .module import AT_A_TIME, ParticleModule
from .network import ParticleNetwork, save_network
from .recipe import ParticleRecipe, SystemSection
from .report import Findings, write_report
from .simulators import ChargedSystem, GravitySystem, PublishedChargedSystem, Trajectories

logger = logging.getLogger(__name__)

_SIMPLEST = {
    "positions": "test MSE of straight motion",
    "forces": "test MSE of no force",
    "later_forces": "test MSE of no force",
}


@dataclass(frozen=True)
class ParticleResult:
    """Network, errors and files of a finished run.

    Parameters
    ----------
    network : the network, on the CPU, with the weights that validated best
    errors : measure -> mean squared error over components: of the network on test trajectories, on all but the tenth
        that it predicts worst, on validation trajectories; and of straight motion (or no force) on test trajectories
    seconds_per_epoch : median over epochs, validation included where there was one
    files : what the files for a reader are -> where they are
    """

    network: ParticleNetwork
    errors: dict[str, float]
    seconds_per_epoch: float
    files: dict[str, Path]

    def summary(self) -> list[str]:
        """Return the errors, a line each."""
        return [f"{name}: {mean_square:.5g}" for name, mean_square in self.errors.items()]


def run_particles(
    recipe: ParticleRecipe, output: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> ParticleResult:
    """Train a network to predict particles, by a recipe.

    The folder `output` receives

    - ``<name>.safetensors``, the network, for `load_network`, and ``report.html``, its errors;
    - ``recipe.yaml``, the recipe with everything settled;
    - ``metrics.csv``, losses and errors on validation trajectories, and ``last.ckpt``, from which an interrupted run
      resumes.

    Trajectories are simulated at the first run that needs them. Test trajectories are evaluated once, at the end, with
    the weights that validated best.

    Parameters and errors are those of `ase_segnn.training.run_recipe`.
    """
    files = RunFiles(output or Path(recipe.name), recipe.name)
    files.check(resume=resume, overwrite=overwrite)
    check_machine(recipe)
    sets = particle_sets(recipe.system)
    recipe = _settled(recipe)
    with files.reserved(resume=resume, overwrite=overwrite):
        provenance = provenance_of(recipe, {})
        files.write_recipe(recipe)
        with torch.random.fork_rng():  # the caller's random numbers stay as they are
            torch.manual_seed(recipe.seed)
            network = ParticleNetwork(recipe.network, sets["train"].targets_rms)
            n_weights = sum(parameter.numel() for parameter in network.parameters())
            logger.info("%s: %d trajectories, %d weights to fit", recipe.name, len(sets["train"]), n_weights)
            module = ParticleModule(network, sets["train"], sets["validation"], recipe)
            result = fit(module, recipe, files.folder, resume=resume)
        network = network.cpu().requires_grad_(False).eval()
        about = {"provenance": provenance.model_dump(mode="json")}
        save_network(network, files.potential, about)  # evaluation and report may fail
        targets, predictions = predict(network, sets["test"])
        errors = {
            "test MSE": mean_square(predictions - targets),
            "test MSE without the worst tenth": _without_worst(predictions - targets),
            "validation MSE": mean_square(np.subtract(*predict(network, sets["validation"]))),
            _SIMPLEST[recipe.system.target]: mean_square(_simplest(recipe.system, sets["test"]) - targets),
        }
        save_network(network, files.potential, {**about, "errors": errors})
        times = np.diff([0.0, *(row["seconds"] for row in result.history)])
        findings = Findings(
            errors=errors,
            targets=targets,
            predictions=predictions,
            history=result.history,
            facts={
                "weights": f"{n_weights:,}",
                "features": str(network.segnn.irreps_hidden),
                "epochs": f"{len(result.history)}, {np.median(times):.2f} s each",
                "commit": provenance.commit or "unknown",
                **provenance.versions,
            },
        )
        write_report(files.report, recipe, findings)
        return ParticleResult(
            network, errors, float(np.median(times)), {"network": files.potential, "report": files.report}
        )


def particle_sets(system: SystemSection) -> dict[str, ParticleSet]:
    """Simulate, or read, the trajectories of a recipe: train, validation and test."""
    cache = Cache("trajectories")
    folder = system.cache or cache.folder
    starts = {INPUT_FRAME, *system.train_frames}
    common: dict[str, Any] = {
        "seed": system.seed,
        "n_train": system.train,
        "n_validation": system.validation,
        "n_test": system.test,
        "frames": sorted(starts | {start + FRAMES_AHEAD for start in starts}),
    }
    trajectories: Mapping[str, Trajectories]
    if system.kind == "charged":
        kind = PublishedChargedSystem() if system.draw == "published" else ChargedSystem()
        trajectories = charged_dataset(folder, **common, system=kind)
    else:
        trajectories = gravity_dataset(folder, **common)
    if system.cache is None:
        cache.trim()
    n_neighbors = None if system.kind == "charged" else system.neighbors
    ways: dict[str, Any] = {"input_frames": system.train_frames, "both_ways": system.both_ways}
    return {
        name: ParticleSet(found, system.target, n_neighbors, **(ways if name == "train" else {}))
        for name, found in trajectories.items()
    }


def predict(network: ParticleNetwork, particles: ParticleSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict a set on the CPU; return targets and predictions, (T, n, 3) each."""
    with torch.no_grad():
        pairs = [(part.targets, network(part)) for part in particles.in_parts(AT_A_TIME)]
    targets, predictions = (torch.cat(tensors).double().numpy() for tensors in zip(*pairs, strict=True))
    return targets, predictions


def mean_square(differences: NDArray[np.float64]) -> float:
    """Mean over all components."""
    return float(np.square(differences).mean())


def _without_worst(differences: NDArray[np.float64]) -> float:
    """Mean square of the nine tenths of trajectories that are predicted best; a few chaotic ones make up the rest."""
    squares = np.sort(np.square(differences).mean((1, 2)))
    return float(squares[: -(-9 * len(squares) // 10)].mean())


def _simplest(system: SystemSection, particles: ParticleSet) -> NDArray[np.float64]:
    """Return the prediction that needs no learning, (T, n, 3): straight motion of every particle, or no force."""
    kind = ChargedSystem() if system.kind == "charged" else GravitySystem()
    duration = FRAMES_AHEAD * kind.steps_per_frame * kind.time_step
    velocities = particles[range(len(particles))].velocities.double().numpy()
    return velocities * (duration if system.target == "positions" else 0.0)


def _settled(recipe: ParticleRecipe) -> ParticleRecipe:
    return recipe.model_copy(update={"optimization": with_epochs(recipe.optimization)})
