"""What a potential promises, on every named system: with random weights, and with those of every shipped potential."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.data import chemical_symbols
from numpy.typing import NDArray
from random_potentials import CONFIGS, random_potential
from systems import TOLERANCES, rattled, systems
from torch import Tensor

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction
from ase_segnn.potential_file import load_potential, read_header
from ase_segnn.potentials import shipped_potentials

SYSTEMS = systems() | {
    "close-packed": rattled(bulk("Cu", a=3.63, cubic=True)),
}
FORCE_FREE = {"lone atom", "far dimer", "one-atom cell"}
ELEMENTS = {name: config.elements for name, config in CONFIGS.items()}
ELEMENTS |= {name: read_header(path).config.elements for name, path in shipped_potentials().items()}
CASES = [
    (potential, name)
    for potential, elements in ELEMENTS.items()
    for name, atoms in SYSTEMS.items()
    if set(atoms.symbols) <= set(elements)
]

# Elsewhere a trained potential may be too steep for any time step.
TRAINED_FOR = {
    "3bpa-wb97x": "3bpa",
    "acac-pbe": "acetylacetone",
    "acac-pbe-fast": "acetylacetone",
    "cu-pbe": "close-packed",
    "si-pbe": "unwrapped",
}
each_case = pytest.mark.parametrize(("potential", "name"), CASES)
each_potential = pytest.mark.parametrize("potential", ELEMENTS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def cases_where(condition) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("potential", "name"), [case for case in CASES if condition(SYSTEMS[case[1]])])


@lru_cache
def make(name: str, dtype: torch.dtype = torch.float64) -> Potential:
    if name in CONFIGS:
        return random_potential(CONFIGS[name]).to(dtype)
    return load_potential(shipped_potentials()[name]).to(dtype)


def has_volume(atoms: Atoms) -> bool:
    return atoms.cell.rank == 3


def predict_graph(potential: Potential, graph: AtomicGraph, *, stress: bool) -> Prediction:
    """Predict, with energies counted from the isolated atoms: their large energies would hide errors."""
    prediction = potential.predict(graph, stress=stress)
    energies = [potential.config.reference_energies[chemical_symbols[z]] for z in graph.atomic_numbers]
    isolated = torch.tensor(energies, dtype=torch.float64)
    total = torch.zeros_like(prediction.energy).index_add(0, graph.structure, isolated)
    return replace(prediction, energy=prediction.energy - total, atom_energies=prediction.atom_energies - isolated)


def predict(potential: Potential, atoms: Atoms, *, cutoff: float | None = None) -> Prediction:
    graph = AtomicGraph.from_atoms(atoms, cutoff or potential.cutoff)
    return predict_graph(potential, graph, stress=has_volume(atoms))


@lru_cache
def reference(name: str, system: str, dtype: torch.dtype = torch.float64) -> Prediction:
    return predict(make(name, dtype), SYSTEMS[system])


def n_edges(potential: Potential, atoms: Atoms) -> int:
    return AtomicGraph.from_atoms(atoms, potential.cutoff).n_edges


def assert_equal(result: Tensor, expected: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Compare relative to the largest number of the kind, or to `floor` where symmetry makes that zero."""
    assert result.shape == expected.shape
    error = (result - expected).abs().max().item()
    scale = max(expected.abs().max().item(), floor)
    assert error <= tolerance * scale, f"{error:.3g} is more than {tolerance:.3g} of {scale:.3g}"


def assert_predictions_equal(result: Prediction, expected: Prediction, tolerance: float) -> None:
    assert_equal(result.energy, expected.energy, tolerance, floor=0.1)
    assert_equal(result.atom_energies, expected.atom_energies, tolerance, floor=0.1)
    assert_equal(result.forces, expected.forces, tolerance, floor=0.1)
    assert (result.stress is None) == (expected.stress is None)
    if result.stress is not None:
        assert_equal(result.stress, expected.stress, tolerance)


def deformed(atoms: Atoms, matrix: NDArray[np.float64]) -> Atoms:
    """Multiply all positions and cell vectors by a matrix from the right."""
    result = atoms.copy()
    result.set_cell(atoms.cell.array @ matrix)
    result.positions = atoms.positions @ matrix
    return result


def derivative(energy, step: float) -> float:
    """Return the central difference of fourth order of a function of one number, at 0."""
    return (8 * (energy(step) - energy(-step)) - (energy(2 * step) - energy(-2 * step))) / (12 * step)


@each_dtype
@each_case
def test_everything_is_finite_and_consistent(potential, name, dtype):
    prediction = reference(potential, name, dtype)
    n_atoms = len(SYSTEMS[name])
    assert prediction.energy.shape == (1,)
    assert prediction.atom_energies.shape == (n_atoms,)
    assert prediction.forces.shape == (n_atoms, 3)
    for tensor in vars(prediction).values():
        if tensor is not None:
            assert tensor.dtype == torch.float64
            assert tensor.isfinite().all()
            assert not tensor.requires_grad
    torch.testing.assert_close(prediction.atom_energies.sum(), prediction.energy[0], rtol=1e-12, atol=1e-10)
    largest = prediction.forces.abs().max().item()
    assert (largest > 1e-3) == (name not in FORCE_FREE)
    assert prediction.forces.sum(0).abs().max() <= TOLERANCES[dtype] * max(largest, 0.1)
    if prediction.stress is not None:
        assert torch.equal(prediction.stress[0], prediction.stress[0].T)
        assert prediction.stress.abs().max() > 1e-5
    bonded = n_edges(make(potential, dtype), SYSTEMS[name]) > 0
    assert bonded or name in FORCE_FREE
    assert (abs(prediction.energy.item()) > 0.01) == bonded


@each_case
def test_float32_equals_float64(potential, name):
    single, double = reference(potential, name, torch.float32), reference(potential, name)
    assert_predictions_equal(single, double, TOLERANCES[torch.float32])


@each_dtype
@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@each_case
def test_rotations_reflections_and_translations(potential, name, reflect, dtype):
    matrix, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix *= np.sign(np.linalg.det(matrix)) * (-1 if reflect else 1)
    moved = deformed(SYSTEMS[name], matrix)
    moved.positions += [3.1, -40.7, 0.6]
    expected = reference(potential, name, dtype)
    turn = torch.tensor(matrix)
    stress = expected.stress
    rotated = Prediction(
        energy=expected.energy,
        atom_energies=expected.atom_energies,
        forces=expected.forces @ turn,
        stress=None if stress is None else turn.T @ stress @ turn,
    )
    if name not in FORCE_FREE:
        assert (rotated.forces - expected.forces).abs().max() > 1e-3
    assert_predictions_equal(predict(make(potential, dtype), moved), rotated, TOLERANCES[dtype])


@each_dtype
@cases_where(lambda atoms: len(atoms) > 1)
def test_permutations(potential, name, dtype):
    order = np.random.default_rng(2).permutation(len(SYSTEMS[name]))
    if len(order) == 2:
        order = np.array([1, 0])
    assert (order != np.arange(len(order))).any()
    expected = reference(potential, name, dtype)
    permuted = Prediction(expected.energy, expected.atom_energies[order], expected.forces[order], expected.stress)
    assert_predictions_equal(predict(make(potential, dtype), SYSTEMS[name][order]), permuted, TOLERANCES[dtype])


@each_dtype
@cases_where(lambda atoms: atoms.pbc.any())
def test_lattice_translations_of_single_atoms(potential, name, dtype):
    atoms = SYSTEMS[name].copy()
    cells = np.random.default_rng(3).integers(-5, 6, (len(atoms), 3)) * atoms.pbc
    atoms.positions += cells @ atoms.cell.array
    assert len(np.unique(cells, axis=0)) > len(atoms) // 2
    expected = reference(potential, name, dtype)
    assert_predictions_equal(predict(make(potential, dtype), atoms), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("seed", range(2))
@each_case
def test_forces_are_derivatives_of_the_energy(potential, name, seed):
    direction = np.random.default_rng(seed).normal(size=(len(SYSTEMS[name]), 3))

    def energy(step: float) -> float:
        atoms = SYSTEMS[name].copy()
        atoms.positions += step * direction
        return predict(make(potential), atoms).energy.item()

    forces = reference(potential, name).forces.numpy()
    expected = -np.vdot(forces, direction)
    scale = np.linalg.norm(forces)
    assert scale > 1e-3 or name in FORCE_FREE
    # differences show 1e-7: their rounding error grows with a shorter step, and with a longer one that where a pair
    # enters and the third derivative jumps, or where a pair is so short that the higher derivatives are large
    step = 2e-5 if name == "short dimer" else 1e-4
    assert derivative(energy, step) == pytest.approx(expected, rel=1e-7, abs=1e-7 * max(scale, 0.1))


@pytest.mark.parametrize("seed", range(2))
@cases_where(has_volume)
def test_stress_is_the_derivative_by_strain(potential, name, seed):
    strain = np.random.default_rng(seed).normal(size=(3, 3)) / 3

    def energy(step: float) -> float:
        return predict(make(potential), deformed(SYSTEMS[name], np.eye(3) + step * strain)).energy.item()

    virial = reference(potential, name).stress[0].numpy() * SYSTEMS[name].get_volume()
    scale = np.linalg.norm(virial)
    assert scale > 1e-3
    assert derivative(energy, step=1e-4) == pytest.approx(np.vdot(virial, strain), rel=1e-7, abs=1e-7 * scale)


@each_dtype
@cases_where(lambda atoms: atoms.pbc.any())
def test_extensive_over_supercells(potential, name, dtype):
    atoms = SYSTEMS[name]
    repeats = np.where(atoms.pbc, 2, 1) if len(atoms) < 20 else [2, 1, 1]
    n = np.prod(repeats)
    assert n > 1
    single = reference(potential, name, dtype)
    expected = Prediction(n * single.energy, single.atom_energies.repeat(n), single.forces.repeat(n, 1), single.stress)
    assert_predictions_equal(predict(make(potential, dtype), atoms.repeat(repeats)), expected, TOLERANCES[dtype])


@each_dtype
@cases_where(lambda atoms: not atoms.pbc.all())
def test_additive_for_far_fragments(potential, name, dtype):
    one, other = SYSTEMS[name], SYSTEMS[name].copy()
    rng = np.random.default_rng(4)
    if name not in FORCE_FREE:
        other.positions += rng.normal(0, 0.02, other.positions.shape)
    axis = int(np.flatnonzero(~one.pbc)[-1])  # at right angles to the periodic cell vectors
    other.positions[:, axis] += np.ptp(one.positions[:, axis]) + 50
    pair = [predict(make(potential, dtype), atoms) for atoms in (one, other)]
    expected = Prediction(
        energy=pair[0].energy + pair[1].energy,
        atom_energies=torch.cat([p.atom_energies for p in pair]),
        forces=torch.cat([p.forces for p in pair]),
        stress=None if pair[0].stress is None else pair[0].stress + pair[1].stress,
    )
    assert_predictions_equal(predict(make(potential, dtype), one + other), expected, TOLERANCES[dtype])


@each_dtype
@each_potential
def test_an_isolated_atom_has_its_reference_energy(potential, dtype):
    model = make(potential, dtype)
    for symbol in model.elements:
        for atoms in (Atoms(symbol), Atoms(symbol, cell=[9 * model.cutoff] * 3, pbc=True)):
            prediction = model.predict(AtomicGraph.from_atoms(atoms, model.cutoff))
            assert prediction.energy.item() == model.config.reference_energies[symbol]
            assert (prediction.forces == 0).all()


@each_potential
def test_far_atoms_have_their_reference_energies(potential):
    model = make(potential)
    first, second = model.elements[0], model.elements[-1]
    atoms = Atoms([first, second], [[0, 0, 0], [0, 0, model.cutoff + 1e-9]])
    energies = model.predict(AtomicGraph.from_atoms(atoms, model.cutoff + 1)).atom_energies
    assert energies.tolist() == [model.config.reference_energies[symbol] for symbol in (first, second)]
    # the envelope has fallen to 4e-4 at 0.98 of the cutoff
    atoms.positions[1, 2] = 0.98 * model.cutoff
    assert 0 < abs(predict(model, atoms).energy.item()) < 0.05


def nearest_to_cutoff(atoms: Atoms, cutoff: float) -> float:
    """Return the distance of the pair that is nearest to the cutoff, Å."""
    distances = AtomicGraph.from_atoms(atoms, cutoff + 2).edge_vectors().norm(dim=1)
    return distances[(distances - cutoff).abs().argmin()].item()


@cases_where(lambda atoms: len(atoms) > 1)
def test_continuous_through_the_cutoff(potential, name):
    """Breathing moves pairs through the cutoff: energy, forces and stress go on as if nothing had happened."""
    model = make(potential)
    scale = model.cutoff / nearest_to_cutoff(SYSTEMS[name], model.cutoff)
    inside, outside = (deformed(SYSTEMS[name], np.eye(3) * scale * (1 + shift)) for shift in (-1e-9, 1e-9))
    before, after = predict(model, inside), predict(model, outside)
    assert n_edges(model, inside) > n_edges(model, outside)
    # over 2e-9 of the distances a smooth energy may change by 2e-9 of the virial
    assert_predictions_equal(after, before, 1e-6)

    # control: where the envelope has not yet ended, at 0.8 of the distances, the same pairs matter
    graphs = [AtomicGraph.from_atoms(atoms, model.cutoff) for atoms in (inside, outside)]
    energies = [model(graph, 0.8 * graph.edge_vectors()).detach() for graph in graphs]
    assert (energies[0] - energies[1]).abs().max() > 1e-5


@each_case
def test_pairs_beyond_the_cutoff_contribute_nothing(potential, name):
    model, atoms = make(potential), SYSTEMS[name]
    more = AtomicGraph.from_atoms(atoms, model.cutoff + 1.5).n_edges
    assert more > n_edges(model, atoms) or not (atoms.pbc.any() or name == "far dimer")
    assert_predictions_equal(predict(model, atoms, cutoff=model.cutoff + 1.5), reference(potential, name), 1e-12)


@each_dtype
@each_potential
def test_batch_equals_single(potential, dtype):
    model = make(potential, dtype)
    names = [name for case, name in CASES if case == potential]
    assert len(names) > 1
    graphs = [AtomicGraph.from_atoms(SYSTEMS[name], model.cutoff) for name in names]
    singles = [reference(potential, name, dtype) for name in names]
    with_stress = [k for k, single in enumerate(singles) if single.stress is not None]
    batch = predict_graph(model, AtomicGraph.batch(graphs), stress=True)
    start = 0
    for k, (name, single) in enumerate(zip(names, singles, strict=True)):
        atoms = slice(start, start + len(SYSTEMS[name]))
        start = atoms.stop
        stress = batch.stress[k : k + 1] if k in with_stress else None
        own = Prediction(batch.energy[k : k + 1], batch.atom_energies[atoms], batch.forces[atoms], stress)
        assert_predictions_equal(own, single, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("potential", "name"),
    [
        *((config, "water") for config in CONFIGS),
        ("with ZBL", "mixed species"),
        *(each for each in TRAINED_FOR.items() if each[1] != "3bpa"),  # in `tests/test_shipped.py` alone, for its size
    ],
)
def test_total_energy_is_conserved(potential, name):
    """Velocity Verlet for 100 fs in steps of 0.5 fs, with trained potentials for what they were trained for."""
    file = Path(__file__).parent / "data" / f"{name}.xyz"
    model, atoms = make(potential), ase.io.read(file) if file.is_file() else SYSTEMS[name].copy()
    if potential in CONFIGS:  # products of a size that depends on chance make forces that do so
        model.calibrate(AtomicGraph.from_atoms(atoms, model.cutoff))
    masses = atoms.get_masses()[:, None]
    velocities = np.random.default_rng(6).normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 / masses)
    prediction = predict(model, atoms)
    step = 0.5 * units.fs
    potential_energies, totals = [], []
    for _ in range(200):
        velocities = velocities + step / 2 * prediction.forces.numpy() / masses
        atoms.positions += step * velocities
        prediction = predict(model, atoms)
        velocities = velocities + step / 2 * prediction.forces.numpy() / masses
        potential_energies.append(prediction.energy.item())
        totals.append(prediction.energy.item() + 0.5 * np.sum(masses * velocities**2))
    fluctuation = np.std(potential_energies)
    assert fluctuation > 0.01
    drift = np.polyfit(np.linspace(0, 1, len(totals)), totals, 1)[0]
    assert abs(drift) < 0.01 * fluctuation
    assert np.std(totals) < 0.05 * fluctuation
