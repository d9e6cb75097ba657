from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from random_potentials import SHAPES, random_potential
from systems import ELEMENTS, TOLERANCES, systems
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ase_segnn import calculator as calculator_module
from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.graphs.verlet import VerletGraphs
from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential, Prediction
from ase_segnn.potential_file import PotentialFileError, Provenance, save_potential

SYSTEMS = systems()


@pytest.fixture(scope="module")
def potential() -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = PotentialConfig(
            elements=tuple(ELEMENTS),
            reference_energies={symbol: -13.6 * (1 + i) for i, symbol in enumerate(ELEMENTS)},
            network=NetworkConfig(
                cutoff=3.5, irreps_hidden="8x0e+4x1o", l_max_attributes=1, n_layers=2, n_radial=4, correlation=1
            ),
        )
        return Potential(config)


@pytest.fixture
def calculator(potential: Potential) -> SEGNNCalculator:
    return SEGNNCalculator(potential, device="cpu", dtype="float64", compile=False)


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Whether forces and stress were wanted, for each evaluation of the potential."""
    wanted = []
    original = Potential.predict

    def spy(self: Potential, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        wanted.append((forces, stress))
        return original(self, graph, forces=forces, stress=stress)

    monkeypatch.setattr(Potential, "predict", spy)
    return wanted


@pytest.fixture
def no_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a neighbor list was built")

    monkeypatch.setattr(calculator_module.VerletGraphs, "graph", forbidden)


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=seed)
    return atoms


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def energy_and_forces(atoms: Atoms) -> tuple[float, np.ndarray]:
    return atoms.get_potential_energy(), atoms.get_forces()


# -- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_forces_are_numerical_derivatives(calculator: SEGNNCalculator, name: str) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.calc = calculator
    some = range(min(len(atoms), 3))
    forces = atoms.get_forces()
    np.testing.assert_allclose(calculate_numerical_forces(atoms, 1e-4, iatoms=some), forces[some], atol=1e-6)
    if name not in {"lone atom", "far dimer", "one-atom cell"}:
        assert np.abs(forces[some]).max() > 1e-4, "there was nothing to compare"


@pytest.mark.parametrize("name", [name for name, atoms in SYSTEMS.items() if atoms.cell.rank == 3])
def test_stress_is_a_numerical_derivative(calculator: SEGNNCalculator, name: str) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.calc = calculator
    stress = atoms.get_stress()
    np.testing.assert_allclose(calculate_numerical_stress(atoms, 1e-5), stress, atol=1e-6)
    assert np.abs(stress).max() > 1e-4, "there was nothing to compare"


@pytest.mark.parametrize("name", SYSTEMS)
def test_results_are_those_of_the_potential(calculator: SEGNNCalculator, potential: Potential, name: str) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.calc = calculator
    graph = AtomicGraph.from_atoms(atoms, potential.cutoff)
    expected = copy.deepcopy(potential).double().predict(graph, stress=bool(atoms.pbc.all()))
    assert expected.forces is not None
    forces = atoms.get_forces()
    assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.atom_energies.detach(), rtol=1e-10)
    np.testing.assert_allclose(forces, expected.forces.detach(), atol=1e-9)
    if expected.stress is not None:
        s = expected.stress[0].detach().numpy()
        np.testing.assert_allclose(
            atoms.get_stress(), [s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]], atol=1e-9
        )
    single = SEGNNCalculator(potential, device="cpu", dtype="float32")
    tolerance = TOLERANCES[torch.float32] * max(1.0, np.abs(forces).max())
    np.testing.assert_allclose(single.get_property("forces", atoms), forces, atol=tolerance)
    assert single.potential.dtype == torch.float32
    assert {array.dtype for array in single.results.values() if isinstance(array, np.ndarray)} == {np.dtype(np.float64)}


def test_only_what_is_asked_for_is_computed(calculator: SEGNNCalculator, predictions: list[tuple[bool, bool]]) -> None:
    atoms = copper()
    atoms.calc = calculator
    atoms.get_potential_energy()
    assert predictions == [(False, False)]
    assert calculator.get_property("forces", atoms, allow_calculation=False) is None
    assert calculator.get_property("stress", atoms, allow_calculation=False) is None
    atoms.get_potential_energy()
    atoms.get_potential_energies()
    assert len(predictions) == 1, "the energy was there"
    forces = atoms.get_forces()
    assert predictions[1:] == [(True, True)]
    atoms.get_stress()
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-12)
    atoms.get_potential_energy()
    assert len(predictions) == 2, "the stress came with the forces"
    for change in (
        lambda: atoms.rattle(1e-3),
        lambda: atoms.set_cell(atoms.cell * 1.001),
        lambda: atoms.set_pbc([True, True, False]),
        lambda: atoms.set_atomic_numbers([1, 29, 29, 29]),
    ):
        n, energy = len(predictions), atoms.get_potential_energy()
        change()
        assert atoms.get_potential_energy() != energy
        assert len(predictions) == n + 1
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    n = len(predictions)
    atoms.get_potential_energy()
    assert len(predictions) == n, "the potential does not see magnetic moments"


def test_results_that_are_handed_out_are_copies(calculator: SEGNNCalculator) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    forces = atoms.get_forces()
    forces += 1.0
    assert not np.allclose(atoms.get_forces(), forces)


def test_the_skin_changes_no_result(potential: Potential) -> None:
    """MD of a slab, with atoms that are wrapped and a cell that breathes along the way."""
    with_skin = SEGNNCalculator(potential, dtype="float64", skin=0.6)
    without = SEGNNCalculator(potential, dtype="float64", skin=0.0)
    atoms = copper() * (2, 1, 1)
    atoms.calc = with_skin
    atoms.set_momenta(np.random.default_rng(0).normal(0, 2.0, (len(atoms), 3)))  # about 900 K
    start = atoms.positions.copy()
    with VelocityVerlet(atoms, 2.0 * units.fs) as md:
        for step in range(30):
            md.run(1)
            if step % 7 == 3:
                atoms.wrap()
            if step % 10 == 5:
                atoms.set_cell(atoms.cell * 1.003, scale_atoms=True)
            np.testing.assert_allclose(atoms.get_forces(), without.get_property("forces", atoms), atol=1e-10)
    assert np.abs(atoms.positions - start).max() > 0.1
    assert with_skin.neighbor_builds < without.neighbor_builds == 30


# -- one calculator, many structures ------------------------------------------------------------------------------


def test_structures_may_change_from_call_to_call(potential: Potential) -> None:
    calculator = SEGNNCalculator(potential, dtype="float64")
    for name in [*SYSTEMS, *reversed(SYSTEMS)]:
        atoms = SYSTEMS[name].copy()
        atoms.calc = calculator
        fresh = SYSTEMS[name].copy()
        fresh.calc = SEGNNCalculator(potential, dtype="float64")
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-10)


@pytest.mark.parametrize("name", SYSTEMS)
def test_atoms_are_never_changed(calculator: SEGNNCalculator, name: str) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.info = {"note": "kept"}
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_momenta(np.ones((len(atoms), 3)), apply_constraint=False)
    before = copy.deepcopy(atoms)
    atoms.calc = calculator
    atoms.get_forces(apply_constraint=False)
    if atoms.pbc.all():
        atoms.get_stress()
    assert atoms.arrays.keys() == before.arrays.keys()
    for key, array in before.arrays.items():
        np.testing.assert_array_equal(atoms.arrays[key], array)
        assert atoms.arrays[key].dtype == array.dtype
    np.testing.assert_array_equal(atoms.cell.array, before.cell.array)
    np.testing.assert_array_equal(atoms.pbc, before.pbc)
    assert atoms.info == before.info
    assert atoms.calc is calculator
    assert [list(c.index) for c in atoms.constraints] == [[0]]


@pytest.mark.parametrize("compile_it", ["auto", False])
def test_arrays_of_any_kind_are_taken(potential: Potential, compile_it: bool | str) -> None:
    calculator = SEGNNCalculator(potential, device="cpu", compile=compile_it)
    expected = copper()
    expected.positions = expected.positions.astype(np.float32)
    forces = calculator.get_property("forces", expected)
    for change in (
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f8"),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
    ):
        atoms = copper()
        atoms.arrays["positions"] = change(expected.positions)
        atoms.arrays["numbers"] = atoms.numbers.astype(np.uint8)
        np.testing.assert_allclose(calculator.get_property("forces", atoms), forces, atol=1e-6)
        [result] = calculator.evaluate_many([atoms])
        np.testing.assert_allclose(result["forces"], forces, atol=1e-6)


def test_the_given_potential_is_never_changed(potential: Potential) -> None:
    weights = copy.deepcopy(potential.state_dict())
    potential.train()
    calculator = SEGNNCalculator(potential, dtype="float64")
    calculator.get_property("forces", ethanol())
    assert potential.training
    assert all(p.requires_grad and p.grad is None for p in potential.parameters())
    for name, weight in potential.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name])
    assert calculator.potential is not potential
    assert not any(p.requires_grad for p in calculator.potential.parameters())


def test_calculators_live_side_by_side(potential: Potential) -> None:
    other = copy.deepcopy(potential)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    first, second = ethanol(), ethanol()
    first.calc, second.calc = SEGNNCalculator(potential), SEGNNCalculator(other, dtype="float64")
    energies = first.get_potential_energy(), second.get_potential_energy()
    assert energies[0] != energies[1]
    for _ in range(2):
        first.positions += 0.1
        second.positions += 0.1
        assert (first.get_potential_energy(), second.get_potential_energy()) == pytest.approx(energies, abs=1e-3)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_work_on_their_own(
    calculator: SEGNNCalculator, duplicate: Callable[[SEGNNCalculator], SEGNNCalculator]
) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    energy, forces = energy_and_forces(atoms)
    twin = duplicate(calculator)
    assert twin.results.keys() == calculator.results.keys()
    other = ethanol(seed=5)
    other.calc = twin
    assert other.get_potential_energy() != energy
    assert (calculator.neighbor_builds, twin.neighbor_builds) == (1, 1)
    assert twin.engine is not calculator.engine
    assert calculator.results["energy"] == energy
    other.positions = atoms.positions
    np.testing.assert_allclose(other.get_forces(), forces, atol=1e-12)
    assert twin.todict() == calculator.todict()
    assert all(value is not calculator for value in vars(twin).values())


def test_atoms_with_their_calculator_can_be_copied(calculator: SEGNNCalculator) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    twin = copy.deepcopy(atoms)
    assert twin.get_potential_energy() == atoms.get_potential_energy()
    assert twin.calc is not calculator


@pytest.mark.slow  # two new interpreters import torch
def test_calculators_go_to_other_processes(calculator: SEGNNCalculator) -> None:
    structures = [ethanol(seed) for seed in range(4)]
    for atoms in structures:
        atoms.calc = calculator
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        remote = pool.map(energy_and_forces, structures)
    for (energy, forces), atoms in zip(remote, structures, strict=True):
        assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)


# -- ASE's tools --------------------------------------------------------------------------------------------------


def test_relaxation_of_positions_and_cell(calculator: SEGNNCalculator, predictions: list[tuple[bool, bool]]) -> None:
    atoms = copper()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    predictions.clear()
    with BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.05) as optimizer:
        optimizer.run(fmax=0.0, steps=5)
    assert atoms.get_potential_energy() < energy
    assert len(predictions) == 6, "forces and stress come together"


def test_trajectories_and_databases_hold_the_results(calculator: SEGNNCalculator, tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    forces = atoms.get_forces()
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    back = read(tmp_path / "a.traj")
    np.testing.assert_array_equal(back.get_forces(), forces)
    assert back.get_potential_energy() == atoms.get_potential_energy()
    assert back.calc.name == "segnn"
    with connect(tmp_path / "a.json") as database:
        database.write(atoms)
    row = database.get(id=1)
    assert row.calculator == "segnn"
    assert row.calculator_parameters == calculator.todict()


def test_todict_says_how_to_make_it_again(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_potential(potential, path, provenance=Provenance())
    calculator = SEGNNCalculator(path, device="cpu", dtype="float64", skin=0.5, backend="matscipy")
    again = SEGNNCalculator(**calculator.todict())
    assert again.todict() == calculator.todict()
    assert again.get_property("energy", ethanol()) == calculator.get_property("energy", ethanol())


def test_a_potential_is_found_by_name_path_or_object(
    potential: Potential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    save_potential(potential, path, provenance=Provenance())
    monkeypatch.setattr("ase_segnn.potentials.shipped_potentials", lambda: {"mine": path})
    energies = {
        SEGNNCalculator(source, device="cpu").get_property("energy", ethanol())
        for source in (potential, path, str(path), "mine")
    }
    assert len(energies) == 1
    with pytest.raises(ValueError, match=r"'min' is neither .* \(did you mean 'mine'\?\); shipped: mine"):
        SEGNNCalculator("min")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PotentialFileError, match="truncated"):
        SEGNNCalculator("mine")


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float32' or 'float64', got 'float16'"),
        ({"dtype": torch.float64}, "got torch.float64"),
        ({"skin": -0.1}, "skin is a length in Å, zero or more, got -0.1"),
        ({"skin": float("nan")}, "got nan"),
        ({"device": "gpu"}, "device is 'auto', 'cpu', 'cuda' or 'cuda:<number>', got 'gpu'"),
        ({"device": "mps"}, "got 'mps'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available: torch .* finds . GPUs here; use device='cpu'"),
        ({"backend": "cell list"}, "backend is 'auto' or one of 'matscipy'.*, got 'cell list'"),
    ],
)
def test_wrong_arguments_are_refused(potential: Potential, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEGNNCalculator(potential, **arguments)


def test_unknown_elements_tell_the_shipped_potentials_that_would_fit() -> None:
    crystal = Atoms("Si2", [[0, 0, 0], [0, 0, 2.4]])
    with pytest.raises(ValueError, match="this structure also has Si; shipped with Si: 'si-pbe', see 'ase-segnn info'"):
        list(SEGNNCalculator("acac-pbe").evaluate_many([crystal]))
    molecule = ethanol()
    with pytest.raises(
        ValueError, match="also has H, C, O; shipped with C, H, O: '3bpa-wb97x', 'acac-pbe', 'acac-pbe-fast', see"
    ):
        molecule.calc = SEGNNCalculator("si-pbe")
    crystal.symbols[0] = "O"
    with pytest.raises(ValueError, match="also has O; no shipped potential has O, Si together; 'ase-segnn train'"):
        crystal.calc = SEGNNCalculator("si-pbe")


def test_settings_cannot_be_changed_afterwards(calculator: SEGNNCalculator) -> None:
    with pytest.raises(ValueError, match="cannot be changed, got skin; make a new one"):
        calculator.set(skin=2.0)


@pytest.mark.usefixtures("no_neighbors")
def test_unknown_elements_are_refused_before_any_work(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_potential(potential, path, provenance=Provenance())
    calculator = SEGNNCalculator(path)
    strange = Atoms("XeHXRn", np.arange(12.0).reshape(4, 3))
    message = (
        f"potential '.*p.safetensors' knows {', '.join(ELEMENTS)} only, this structure also has X, Xe, Rn; "
        "no shipped potential has H, Rn, X, Xe together; 'ase-segnn train' makes one from labeled frames, 'ase-segnn "
    )
    with pytest.raises(ValueError, match=message):
        strange.calc = calculator
    with pytest.raises(ValueError, match=message):
        calculator.get_property("energy", strange)
    atoms = ethanol()
    atoms.calc = calculator
    atoms.numbers[0] = 54
    with pytest.raises(ValueError, match="also has Xe;"):
        atoms.get_potential_energy()
    with pytest.raises(ValueError, match=r"this potential knows .* only, this structure also has Xe;"):
        SEGNNCalculator(potential).get_property("energy", atoms)


@pytest.mark.usefixtures("no_neighbors")
def test_structures_that_are_not_finite_are_refused_before_any_work(calculator: SEGNNCalculator) -> None:
    atoms = copper()
    atoms.calc = calculator
    atoms.positions[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"positions of atom 2 \(Cu\) are not finite, the first is \[.*, nan, "):
        atoms.get_potential_energy()
    atoms.positions[3, 0] = np.inf
    with pytest.raises(ValueError, match=r"positions of atoms 2 \(Cu\), 3 \(Cu\) are not finite"):
        atoms.get_forces()
    atoms = copper()
    atoms.calc = calculator
    atoms.cell[0, 0] = np.inf
    with pytest.raises(ValueError, match=r"the cell is not finite: \[\[inf"):
        atoms.get_potential_energy()
    with pytest.raises(ValueError, match="the structure has no atoms"):
        calculator.get_property("energy", Atoms())
    with pytest.raises(ValueError, match="there are no atoms to calculate"):
        calculator.calculate()


def test_a_cell_without_volume_is_refused(calculator: SEGNNCalculator) -> None:
    atoms = copper()
    atoms.cell[2] = atoms.cell[0]
    with pytest.raises(ValueError, match="span no volume"):
        calculator.get_property("energy", atoms)


@pytest.mark.usefixtures("no_neighbors")
@pytest.mark.parametrize("cell", [[0, 0, 0], [10, 10, 0], [[5, 0, 0], [0, 5, 0], [5, 5, 0]]])
def test_stress_without_a_volume_is_refused(calculator: SEGNNCalculator, cell: Any) -> None:
    atoms = copper()
    atoms.pbc = False
    atoms.cell = cell
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="needs a cell of three vectors that span one"):
        atoms.get_stress()
    assert "stress" not in calculator.results
    assert calculator.results == {}


def test_a_stress_that_there_is_not_leaves_the_forces(calculator: SEGNNCalculator) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    forces = atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    np.testing.assert_array_equal(calculator.results["forces"], forces)


@pytest.mark.parametrize("broken", ["energies", "forces"])
def test_results_that_are_not_finite_stop_the_run(
    calculator: SEGNNCalculator, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    atoms.get_forces()
    original = Potential.predict

    def nan(self: Potential, graph: AtomicGraph, *, forces: bool, stress: bool) -> Prediction:
        prediction = original(self, graph, forces=forces, stress=stress)
        assert prediction.forces is not None
        assert prediction.stress is not None
        e, f = prediction.atom_energies.detach().clone(), prediction.forces.detach().clone()
        if broken == "energies":
            e[1] = torch.nan
        else:
            f[1, 2] = torch.inf
        return Prediction(e.sum()[None], e, f, prediction.stress)

    atoms.positions += 0.01
    with monkeypatch.context() as patch:
        patch.setattr(Potential, "predict", nan)
        with pytest.raises(RuntimeError, match=r"gives no finite energy or force for atom 1 \(C\)"):
            atoms.get_forces()
    assert calculator.results == {}
    assert calculator.get_property("energy", atoms, allow_calculation=False) is None
    assert np.isfinite(atoms.get_forces()).all(), "the calculator works on"


# ---- many structures


@pytest.mark.parametrize("most_edges", [1, 100, 100_000])
def test_many_structures_equal_single_ones(
    potential: Potential, monkeypatch: pytest.MonkeyPatch, most_edges: int
) -> None:
    monkeypatch.setattr(calculator_module, "EDGES_TOGETHER", most_edges)
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64")
    structures = [*SYSTEMS.values()]
    before = [atoms.copy() for atoms in structures]
    many = list(calculator.evaluate_many(structures, ["energy", "forces"]))
    assert calculator.results == {}
    assert structures == before
    assert len(many) == len(structures)
    for atoms, results in zip(structures, many, strict=True):
        calculator.calculate(atoms, ["energy", "forces"])
        assert results.keys() == calculator.results.keys()
        for name, value in calculator.results.items():
            np.testing.assert_allclose(results[name], value, rtol=1e-10, atol=1e-10)


def test_many_structures_with_stress_and_with_energy_alone(potential: Potential) -> None:
    calculator = SEGNNCalculator(potential, device="cpu", dtype="float64")
    structures = [atoms for atoms in SYSTEMS.values() if atoms.pbc.all()]
    for atoms, results in zip(structures, calculator.evaluate_many(structures, ["stress"]), strict=True):
        calculator.calculate(atoms, ["stress"])
        np.testing.assert_allclose(results["stress"], calculator.results["stress"], rtol=1e-10, atol=1e-12)
    assert all("forces" not in results for results in calculator.evaluate_many(structures, ["energy"]))
    assert list(calculator.evaluate_many([])) == []


def test_errors_of_many_structures_name_the_structure(potential: Potential) -> None:
    calculator = SEGNNCalculator(potential, device="cpu")
    bad = SYSTEMS["water"].copy()
    bad.positions[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"structure 1: .*not finite"):
        calculator.evaluate_many([SYSTEMS["water"], bad])
    with pytest.raises(ValueError, match=r"structure 2: .*this structure also has Xe"):
        calculator.evaluate_many([SYSTEMS["water"], SYSTEMS["dimer"], Atoms("Xe")])
    with pytest.raises(PropertyNotImplementedError, match=r"structure 0: stress"):
        calculator.evaluate_many([SYSTEMS["water"]], ["stress"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 3. GiB for an array"),
    ],
)
def test_out_of_memory_stops_the_run(
    calculator: SEGNNCalculator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()

    def full(*_: object, **__: object) -> None:
        raise error

    atoms.positions[0] += 0.01
    with monkeypatch.context() as patch:
        patch.setattr(Potential, "predict", full)
        with pytest.raises(
            MemoryError, match=r"out of memory on cpu for 9 atoms and \d+ edges; use a smaller"
        ) as caught:
            atoms.get_potential_energy()
    assert caught.value.__cause__ is error
    assert calculator.results == {}
    assert atoms.get_potential_energy() != energy


def test_other_errors_pass_through(calculator: SEGNNCalculator, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Potential, "predict", broken)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        calculator.get_property("energy", ethanol())


# -- devices ------------------------------------------------------------------------------------------------------


def test_auto_takes_a_gpu_where_there_is_one(potential: Potential) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert SEGNNCalculator(potential).todict()["device"] == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("derivatives", [True, False])
def test_no_tensor_is_left_on_the_cpu(
    potential: Potential, monkeypatch: pytest.MonkeyPatch, dtype: str, derivatives: bool
) -> None:
    """Evaluate on a device that exists in shape only; an operation on tensors of two devices raises there.

    It is "meta" that stands for "cuda", since torch without CUDA does not differentiate on the latter.
    """
    monkeypatch.setattr(calculator_module, "checked_device", torch.device)
    calculator = SEGNNCalculator(potential, device="meta", dtype=dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        graph = VerletGraphs(potential.cutoff, 0.0, device="meta").graph(copper())
        results = vars(calculator.engine.evaluate(graph, forces=derivatives, stress=derivatives))
        with pytest.raises(RuntimeError, match=r"same device|different devices"):
            results["atom_energies"] + torch.ones(4)
    found = {name for name, tensor in results.items() if tensor is not None}
    assert found == {"energy", "atom_energies", *(("forces", "stress") if derivatives else ())}
    for name, tensor in results.items():
        assert tensor is None or tensor.device.type == "meta", name


def test_no_pair_of_a_skin_is_left_on_the_cpu() -> None:
    graphs = VerletGraphs(3.5, 1.0, device="meta")
    atoms = copper()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        for _ in range(2):
            for name, tensor in vars(graphs.graph(atoms)).items():
                assert tensor.device.type == "meta", name
            atoms.positions[0] += atoms.cell[1]  # its pairs change their shifts
            atoms.numbers[1] = 1
    assert graphs.builds == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_it", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("shape", ["products", "shortest distances"])
def test_gpu_and_cpu_agree(shape: str, name: str, compile_it: bool) -> None:
    potential = random_potential(SHAPES[shape]).requires_grad_(False).eval()
    results = []
    for device in ("cpu", "cuda"):
        atoms = SYSTEMS[name].copy()
        compile_here = compile_it and device == "cuda"
        atoms.calc = SEGNNCalculator(potential, device=device, dtype="float64", compile=compile_here)
        results.append(energy_and_forces(atoms))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-8)
