"""How often the potential is evaluated: once for each structure that ASE asks about, whatever it asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from compiler import needs_compiler

from ase_segnn import SEGNNCalculator
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Prediction

STEP = units.fs
BARE = {"temperature_K": 300, "pressure_au": 0.0}
NPT = {**BARE, "tdamp": 100 * STEP, "pdamp": 1000 * STEP}
# Each asks about one structure per step, but for NPTBerendsen: it scales the cell first and moves the atoms then.
RUNS: dict[str, tuple[Callable[[Atoms], Any], int]] = {
    "NVE": (lambda atoms: VelocityVerlet(atoms, STEP), 1),
    "Langevin": (lambda atoms: Langevin(atoms, STEP, temperature_K=300, friction=0.01 / units.fs, fixcm=False), 1),
    "IsotropicMTKNPT": (lambda atoms: IsotropicMTKNPT(atoms, STEP, **NPT), 1),
    "MTKNPT": (lambda atoms: MTKNPT(atoms, STEP, **NPT), 1),
    "NPTBerendsen": (lambda atoms: NPTBerendsen(atoms, STEP, compressibility_au=0.01, **BARE), 2),
    "BFGS, cell": (lambda atoms: BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02), 1),
    "FIRE, cell": (lambda atoms: FIRE(UnitCellFilter(atoms), logfile=None, maxstep=0.02), 1),
}


@pytest.mark.parametrize("compile_it", [pytest.param("auto", marks=needs_compiler), False])
@pytest.mark.parametrize("name", RUNS)
def test_one_evaluation_gives_everything(name: str, compile_it: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[bytes] = []
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = SEGNNCalculator("si-pbe", device="cpu", compile=compile_it)
    evaluate = atoms.calc.engine.evaluate

    def spy(graph: AtomicGraph, **wanted: bool) -> Prediction:
        evaluated.append(graph.positions.numpy().tobytes() + graph.cell.numpy().tobytes())
        return evaluate(graph, **wanted)

    monkeypatch.setattr(atoms.calc.engine, "evaluate", spy)
    atoms.set_momenta(np.random.default_rng(0).normal(0, 1, (8, 3)))
    make, per_step = RUNS[name]
    run = make(atoms)
    options = {"fmax": 0.0} if "cell" in name else {}
    run.run(steps=2, **options)
    evaluated.clear()
    before = atoms.get_positions()
    run.run(steps=10, **options)
    assert np.abs(atoms.get_positions() - before).max() > 1e-4
    assert len(set(evaluated)) == len(evaluated), "a structure was evaluated twice"
    assert len(evaluated) == 10 * per_step


@pytest.mark.parametrize("compile_it", [pytest.param("auto", marks=needs_compiler), False])
def test_stress_of_slabs_wires_and_molecules(compile_it: bool | str) -> None:
    """Derivatives by a strain of cell and positions over the volume, as ASE's own calculators have them."""
    for pbc in ((True, True, False), (False, False, True), (False, False, False)):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=2)
        atoms.set_cell(atoms.cell + np.diag([0.0 if p else 6.0 for p in pbc]))
        atoms.pbc = pbc
        atoms.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float64", compile=compile_it)
        stress = atoms.get_stress(voigt=False)
        assert np.abs(stress).max() > 1e-3
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2)):
            energies = []
            for size in (-1e-5, 1e-5):
                strained = atoms.copy()
                strain = np.zeros((3, 3))
                strain[i, j] += size / 2
                strain[j, i] += size / 2
                strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                strained.calc = atoms.calc
                energies.append(strained.get_potential_energy())
            assert (energies[1] - energies[0]) / (2e-5 * atoms.get_volume()) == pytest.approx(stress[i, j], abs=1e-7)


def test_a_slab_relaxes_its_cell_in_the_plane() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell * [1.03, 1.03, 1.0], scale_atoms=True)
    atoms.center(vacuum=6, axis=2)
    atoms.pbc = (True, True, False)
    height = atoms.cell[2, 2]
    atoms.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float64", compile=False)
    before = np.abs(atoms.get_stress()[[0, 1, 5]]).max()
    BFGS(FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(fmax=0.05, steps=40)
    assert np.abs(atoms.get_stress()[[0, 1, 5]]).max() < before / 5
    assert atoms.cell[2, 2] == height
