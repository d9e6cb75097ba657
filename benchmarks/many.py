"""Many small molecules: evaluated and relaxed together and one by one; prints Markdown tables.

    OMP_NUM_THREADS=2 python benchmarks/many.py

Needs the extra ``torch-sim``. Takes acetylacetone, displaced at random 1,000 times. Energies and forces come from
`get_forces` of one molecule after another, from `evaluate_many`, and from `SEGNNModel` of torch-sim. Relaxations are by
FIRE until no force exceeds 0.05 eV/Å: ASE's, one molecule after another, and torch-sim's, all in batches from which
relaxed molecules leave.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import torch_sim as ts
from ase import Atoms
from ase.optimize import FIRE
from torch_sim.autobatching import InFlightAutoBatcher
from torch_sim.runners import generate_force_convergence_fn

from ase_segnn import SEGNNCalculator
from ase_segnn.integrations.torch_sim import SEGNNModel

_FMAX = 0.05  # eV/Å
_MOLECULE = Path(__file__).resolve().parents[1] / "tests" / "data" / "acetylacetone.xyz"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="acac-pbe-fast")
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=3000, help="atoms that torch-sim takes together")
    parser.add_argument("--rounds", type=int, default=3, help="of evaluations; relaxations are run once")
    arguments = parser.parse_args()
    molecules = displaced(arguments.molecules)
    calculator, model = SEGNNCalculator(arguments.potential, device="cpu"), SEGNNModel(arguments.potential, "cpu")
    state = ts.initialize_state(molecules, model.device, model.dtype)
    n_threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{len(molecules)} molecules, {arguments.potential}, OMP_NUM_THREADS={n_threads}\n")

    def one_by_one() -> None:
        for atoms in molecules:
            calculator.get_forces(atoms)

    evaluations: dict[str, Callable[[], object]] = {
        "one by one": one_by_one,
        "`evaluate_many`": lambda: list(calculator.evaluate_many(molecules, ["energy", "forces"])),
        "torch-sim": lambda: model(state),
    }
    for run in evaluations.values():
        run()
    rounds = [[seconds(run) for run in evaluations.values()] for _ in range(arguments.rounds)]
    table("evaluation", dict(zip(evaluations, np.median(rounds, axis=0).tolist(), strict=True)))

    def relax_together() -> None:
        batcher = InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=arguments.batch)
        converged = generate_force_convergence_fn(_FMAX, include_cell_forces=False)
        relaxed = ts.optimize(
            molecules,
            model,
            optimizer=ts.optimizers.fire,
            convergence_fn=converged,
            autobatcher=batcher,
            max_steps=2000,
        )
        forces = np.array([np.abs(np.linalg.norm(calculator.get_forces(x), axis=1)).max() for x in relaxed.to_atoms()])
        assert (forces < 1.01 * _FMAX).all(), f"{(forces > _FMAX).sum()} molecules are not relaxed"

    relaxations = {
        "ASE, one by one": lambda: [relax(atoms, calculator) for atoms in molecules],
        "torch-sim": relax_together,
    }
    table("relaxation", {name: seconds(run) for name, run in relaxations.items()})


def displaced(n: int) -> list[Atoms]:
    """Return molecules whose atoms are displaced at random."""
    molecule = ase.io.read(_MOLECULE)
    molecules = [molecule.copy() for _ in range(n)]
    for number, atoms in enumerate(molecules):
        atoms.rattle(0.05, seed=number)
    return molecules


def relax(molecule: Atoms, calculator: SEGNNCalculator) -> None:
    """Relax a copy of a molecule."""
    atoms = molecule.copy()
    atoms.calc = calculator
    assert FIRE(atoms, logfile=None).run(fmax=_FMAX, steps=2000)


def seconds(run: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def table(what: str, times: dict[str, float]) -> None:
    """Print times beside the first of them."""
    print(f"| {what} | s | times as fast |\n|---|---|---|")
    first = next(iter(times.values()))
    for name, value in times.items():
        print(f"| {name} | {value:.2f} | {first / value:.1f} |", flush=True)
    print()


if __name__ == "__main__":
    main()
