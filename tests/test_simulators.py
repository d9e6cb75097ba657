"""Simulated trajectories of charged and of gravitating particles: physics, starts, files and neighbors."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from ase_segnn.training.particles import (
    INPUT_FRAME,
    TARGET_FRAME,
    ChargedSystem,
    GravitySystem,
    PublishedChargedSystem,
    charged_dataset,
    gravity_dataset,
    nearest_neighbor_edges,
)
from ase_segnn.training.particles.datasets import load, save
from ase_segnn.training.particles.simulators import (
    ChargedTrajectories,
    GravityTrajectories,
    Trajectories,
    coulomb_forces,
    gravity_forces,
    leapfrog,
)

Array = NDArray[np.float64]


def pair_forces(positions: Array, strengths: Array, softening: float = 0.0) -> Array:
    """Sum strength × vector / distance³ over all others, for one structure, by two loops."""
    forces = np.zeros_like(positions)
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            if i != j:
                forces[i] += strengths[i, j] * (a - b) / (np.sum((a - b) ** 2) + softening**2) ** 1.5
    return forces


def energy(positions: Array, velocities: Array, strengths: Array, softening: float = 0.0) -> float:
    """Return the total energy of one structure."""
    i, j = np.triu_indices(len(positions), 1)
    distances = np.sqrt(np.sum((positions[i] - positions[j]) ** 2, axis=-1) + softening**2)
    return float(0.5 * np.sum(velocities**2) + np.sum(strengths[i, j] / distances))


def equal(a: Trajectories, b: Trajectories) -> bool:
    """Whether all arrays are the same to the last bit."""
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def repelling_start() -> tuple[Array, Array, Array]:
    """Positions and velocities (3, 5, 2) and equal charges, so that nobody comes close."""
    rng = np.random.default_rng(3)
    return rng.standard_normal((3, 5, 2)), 0.3 * rng.standard_normal((3, 5, 2)), np.ones((5, 2))


def test_coulomb_forces_are_those_of_two_loops():
    rng = np.random.default_rng(0)
    positions, charges = rng.standard_normal((4, 6, 3)), rng.choice([-1.0, 1.0], (4, 6))
    expected = [pair_forces(x, np.outer(c, c)) for x, c in zip(positions, charges, strict=True)]
    np.testing.assert_allclose(coulomb_forces(positions.T, charges.T).T, expected, rtol=1e-11, atol=1e-12)


def test_gravity_is_that_of_two_loops():
    positions = np.random.default_rng(0).standard_normal((2, 30, 3))
    expected = [pair_forces(x, -np.ones((30, 30)), softening=0.1) for x in positions]
    np.testing.assert_allclose(gravity_forces(positions, 0.1), expected, rtol=1e-9, atol=1e-11)


def test_like_charges_repel_and_masses_attract():
    positions = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    for charges, sign in (([1.0, 1.0], -1), ([-1.0, -1.0], -1), ([1.0, -1.0], 1)):
        forces = coulomb_forces(positions.T[..., None], np.array(charges)[:, None])[..., 0].T
        np.testing.assert_allclose(forces, [[sign / 4, 0, 0], [-sign / 4, 0, 0]])
    assert gravity_forces(positions[None], 0.1)[0, 0, 0] > 0


def test_components_of_forces_are_clipped_and_trajectories_feel_it():
    positions = np.zeros((3, 2, 1))
    positions[:, 1, 0] = 0.05, 0.001, 0.0
    charges = np.array([[1.0], [-1.0]])
    free, clipped = coulomb_forces(positions, charges), coulomb_forces(positions, charges, 100.0)
    assert np.abs(free).max() > 100
    np.testing.assert_array_equal(clipped, np.clip(free, -100, 100))
    assert 0 < np.abs(clipped[1]).min() < 100  # a small component stays

    weak, strong = (ChargedSystem(max_force=f).simulate(5, 0, frames=[3]) for f in (1.0, 100.0))
    assert np.abs(weak.positions - strong.positions).max() > 0.01


def test_charged_trajectories_solve_newtons_equations():
    """Also fixes what a frame is: frame f is at the time (f + 1) / 10, with the velocities of that time."""
    system = ChargedSystem()
    trajectories = system.simulate(40, 1, frames=[0, 4])
    compared = 0
    for t, (x, v, c) in enumerate(zip(*system.start(40, 1), strict=True)):
        strengths = np.outer(c, c)

        def derivative(_: float, state: Array, strengths: Array = strengths) -> Array:
            return np.concatenate((state[15:], pair_forces(state[:15].reshape(5, 3), strengths).ravel()))

        if t % 10 or np.abs(derivative(0.0, np.concatenate((x, v), axis=None))[15:]).max() > 5:
            continue
        compared += 1
        solution = solve_ivp(
            derivative, (0, 0.5), np.concatenate((x, v), axis=None), method="DOP853", t_eval=[0.1, 0.5], rtol=1e-9
        )
        np.testing.assert_allclose(trajectories.positions[t].reshape(2, 15), solution.y[:15].T, atol=2e-5)
        np.testing.assert_allclose(trajectories.velocities[t].reshape(2, 15), solution.y[15:].T, atol=2e-5)
    assert compared >= 2


def test_frame_0_of_gravity_is_the_start_and_forces_belong_to_their_frame():
    system = GravitySystem(n_particles=8)
    trajectories = system.simulate(2, 0, frames=[0, 2])
    positions, velocities = system.start(2, 0)
    np.testing.assert_array_equal(trajectories.positions[:, 0], positions)
    np.testing.assert_array_equal(trajectories.velocities[:, 0], velocities)
    assert np.abs(trajectories.positions[:, 1] - positions).max() > 0.1
    for t in range(2):
        for f in range(2):
            expected = pair_forces(trajectories.positions[t, f], -np.ones((8, 8)), softening=0.1)
            np.testing.assert_allclose(trajectories.forces[t, f], expected, rtol=1e-9, atol=1e-11)


def test_energy_is_conserved_to_the_square_of_the_time_step():
    positions, velocities, charges = repelling_start()
    errors = []
    for steps in (50, 100):
        frames = leapfrog(positions, velocities, partial(coulomb_forces, charges=charges), 0.2 / steps, steps)
        energies = [
            [energy(x[..., t].T, v[..., t].T, np.ones((5, 5))) for t in range(2)] for x, v, _ in islice(frames, 6)
        ]
        errors.append(np.abs(np.array(energies) - energies[0]).max())
    assert 0 < errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_gravity_conserves_energy_and_momentum():
    trajectories = GravitySystem(n_particles=20).simulate(2, 0, frames=range(11))
    strengths = -np.ones((20, 20))
    for x, v in zip(trajectories.positions, trajectories.velocities, strict=True):
        energies = np.array([energy(a, b, strengths, softening=0.1) for a, b in zip(x, v, strict=True)])
        kinetic = 0.5 * np.sum(v**2, axis=(1, 2))
        assert np.ptp(kinetic) > 10  # it fell together
        np.testing.assert_allclose(energies, energies[0], rtol=1e-3)
    np.testing.assert_allclose(trajectories.velocities.sum(axis=2), 0, atol=1e-10)


def test_charges_conserve_momentum():
    trajectories = ChargedSystem(max_force=np.inf).simulate(20, 0, frames=[0, 5, 10])
    momenta = trajectories.velocities.sum(axis=2)
    assert np.ptp(trajectories.velocities, axis=1).max(axis=(1, 2)).min() > 0.1  # each trajectory changed
    np.testing.assert_allclose(momenta, np.broadcast_to(momenta[:, :1], momenta.shape), atol=1e-9)


def test_reversed_velocities_lead_back_to_the_start():
    positions, velocities, charges = repelling_start()
    forces = partial(coulomb_forces, charges=charges)
    x, v, _ = list(islice(leapfrog(positions, velocities, forces, 0.001, 300), 2))[1]
    assert np.abs(x - positions).max() > 0.1
    x, v, _ = list(islice(leapfrog(x, -v, forces, 0.001, 300), 2))[1]
    np.testing.assert_allclose(x, positions, atol=1e-11)
    np.testing.assert_allclose(-v, velocities, atol=1e-11)


@pytest.mark.parametrize("kind", ["charged", "gravity"])
def test_a_rotated_reflected_and_shifted_start_moves_the_same_way(kind):
    rng = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    rotation *= -np.sign(np.linalg.det(rotation))  # a reflection too
    shift = np.array([1.0, -2.0, 0.5])
    charges = np.array([1.0, -1.0, 1.0, -1.0, 1.0])[:, None]

    def forces(x: Array) -> Array:  # of one structure, (n, 3)
        return (
            coulomb_forces(x.T[..., None], charges)[..., 0].T if kind == "charged" else gravity_forces(x[None], 0.1)[0]
        )

    x, v = 2 * rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    plain = list(islice(leapfrog(x, v, forces, 0.001, 200), 2))[1]
    moved = list(islice(leapfrog(x @ rotation.T + shift, v @ rotation.T, forces, 0.001, 200), 2))[1]
    assert np.abs(plain[0] - x).max() > 0.1
    assert np.abs(plain[1] - v).max() > 0.01
    np.testing.assert_allclose(moved[0], plain[0] @ rotation.T + shift, atol=1e-11)
    np.testing.assert_allclose(moved[1], plain[1] @ rotation.T, atol=1e-11)


def test_charges_start_as_described():
    positions, velocities, charges = ChargedSystem().start(4000, 7)
    n = charges.size
    np.testing.assert_allclose(np.linalg.norm(velocities, axis=-1), 0.5, rtol=1e-14)
    np.testing.assert_allclose(velocities.mean(axis=(0, 1)), 0, atol=4 * 0.5 / np.sqrt(3 * n))
    np.testing.assert_allclose((velocities**2).mean(axis=(0, 1)), 0.25 / 3, rtol=4 * 0.9 / np.sqrt(n))
    np.testing.assert_allclose(positions.mean(axis=(0, 1)), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(positions.var(axis=(0, 1)), 1, atol=4 * np.sqrt(2 / n))
    assert set(np.unique(charges)) == {-1.0, 1.0}
    assert abs(charges.mean()) < 4 / np.sqrt(n)
    assert abs((charges[:, 0] * charges[:, 1]).mean()) < 4 / np.sqrt(4000)


def test_the_published_trajectories_come_again():
    """What the published generator gives for its first trajectory, to six digits."""
    trajectories = PublishedChargedSystem().simulate(1, 0, [40])
    expected = [
        [4.1655, 2.191309, -1.382619],
        [-0.549322, 0.547097, 1.807787],
        [-0.596871, 0.392962, 1.90582],
        [0.179291, 0.626066, -2.524871],
        [0.015715, -3.516546, -2.320727],
    ]
    np.testing.assert_array_equal(trajectories.charges, [[-1, 1, -1, -1, -1]])
    np.testing.assert_allclose(trajectories.positions[0, 0], expected, atol=1e-6)


def test_published_splits_follow_each_other():
    system = PublishedChargedSystem()
    starts = [system.start(3, split) for split in range(3)]
    for a, b in zip(system.start(1, 2), starts[2], strict=True):
        np.testing.assert_array_equal(a, b[:1])
    assert np.unique([positions for positions, _, _ in starts]).size == 3 * 3 * 15
    np.testing.assert_array_equal(np.unique([charges for _, _, charges in starts]), [-1, 1])
    with pytest.raises(ValueError, match="none of seed 3"):
        system.start(1, 3)
    with pytest.raises(ValueError, match="2001 trajectories of a published split of 2000"):
        system.start(2001, 1)
    with pytest.raises(ValueError, match="have 5 particles, not 4"):
        PublishedChargedSystem(n_particles=4).start(1, 0)


def test_masses_start_at_rest_as_a_whole():
    positions, velocities = GravitySystem().start(100, 7)
    np.testing.assert_allclose(velocities.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(velocities.var(), 0.99, atol=4 * np.sqrt(2 / velocities.size))  # of 100, one is the mean
    np.testing.assert_allclose(positions.var(), 1, atol=4 * np.sqrt(2 / positions.size))
    assert np.abs(positions.mean(axis=1)).max() > 0.1


@pytest.mark.parametrize("system", [ChargedSystem(), GravitySystem(n_particles=12)], ids=["charged", "gravity"])
def test_the_seed_alone_decides_the_numbers(system):
    frames = [0, 3]
    whole = system.simulate(7, 11, frames)
    assert whole.positions.shape == (7, 2, system.n_particles, 3)
    for chunk in (1, 3):
        assert equal(whole, system.simulate(7, 11, frames, chunk=chunk))
    np.testing.assert_array_equal(system.simulate(4, 11, frames).velocities, whole.velocities[:4])
    np.testing.assert_array_equal(system.simulate(7, 11, range(4)).positions[:, 3], whole.positions[:, 1])
    assert not np.isin(system.simulate(7, 12, frames).positions, whole.positions).any()


def test_what_cannot_be_simulated_is_refused():
    with pytest.raises(ValueError, match="cannot simulate 0 trajectories"):
        ChargedSystem().simulate(0, 1)
    for frames in ([], [3, 3], [4, 2], [-1, 2]):
        with pytest.raises(ValueError, match="do not ascend"):
            GravitySystem().simulate(1, 1, frames)
    with pytest.raises(ValueError, match=r"frame 5 is not stored, only \[0, 1\]"):
        ChargedSystem().simulate(1, 1, [0, 1]).index(5)


def test_a_data_set_is_simulated_once_for_its_parameters(tmp_path, monkeypatch):
    def build(**changes):
        parameters = {"seed": 1, "n_train": 4, "n_validation": 3, "n_test": 2, "frames": [0, 2], **changes}
        return charged_dataset(tmp_path / "cache", **parameters)

    data = build()
    assert {split: len(d.positions) for split, d in data.items()} == {"train": 4, "validation": 3, "test": 2}
    assert not np.isin(data["train"].positions, data["test"].positions).any()
    files = set((tmp_path / "cache").iterdir())
    assert len(files) == 3

    with monkeypatch.context() as context:
        context.setattr(ChargedSystem, "simulate", None)
        again = build()
    assert all(equal(data[split], again[split]) for split in data)

    for changes in ({"seed": 2}, {"frames": [0, 1]}, {"system": ChargedSystem(max_force=50.0)}):
        build(**changes)
        new = set((tmp_path / "cache").iterdir()) - files
        assert len(new) == 3, changes
        files |= new
    more = build(n_train=5)
    np.testing.assert_array_equal(more["train"].positions[:4], data["train"].positions)


def test_gravity_is_stored_where_it_is_learned(tmp_path):
    system = GravitySystem(n_particles=3, steps_per_frame=1)
    data = gravity_dataset(tmp_path, seed=0, n_train=2, n_validation=1, n_test=1, system=system)["train"]
    assert data.forces.shape == (2, 2, 3, 3)
    assert (data.index(INPUT_FRAME), data.index(TARGET_FRAME)) == (0, 1)
    assert equal(data, system.simulate(2, 0, [INPUT_FRAME, TARGET_FRAME]))


def test_files_come_back_whole_or_are_refused(tmp_path):
    charged = ChargedSystem().simulate(2, 0, [0])
    path = tmp_path / "a.npz"
    save(path, charged)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert equal(load(path, ChargedTrajectories), charged)
    with pytest.raises(ValueError, match=r"a.npz' holds .*'charges'.*GravityTrajectories are needed"):
        load(path, GravityTrajectories)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a.npz' is broken: .*delete it"):
        load(path, ChargedTrajectories)
    np.savez(path, frames=np.array([object()]))
    with pytest.raises(ValueError, match=r"a.npz' is broken: .*allow_pickle"):
        load(path, ChargedTrajectories)


def test_a_file_of_another_size_is_refused(tmp_path: Path):
    charged_dataset(tmp_path, seed=1, n_train=2, n_validation=1, n_test=1, frames=[0])
    (train,) = tmp_path.glob("charged-train-2-seed1-*.npz")
    save(train, ChargedSystem().simulate(3, 1, [0]))
    with pytest.raises(ValueError, match=r"\(3, 1, 5, 3\), expected \(2, 1, 5, 3\); delete it"):
        charged_dataset(tmp_path, seed=1, n_train=2, n_validation=1, n_test=1, frames=[0])


def test_edges_lead_to_the_nearest_neighbors_of_the_same_structure():
    positions = np.random.default_rng(2).standard_normal((3, 20, 3))
    center, neighbor = nearest_neighbor_edges(positions, 6)
    np.testing.assert_array_equal(center, np.repeat(np.arange(60), 6))
    for t, structure in enumerate(positions):
        distances = np.linalg.norm(structure[:, None] - structure, axis=-1)
        np.fill_diagonal(distances, np.inf)
        expected = np.argsort(distances, axis=1)[:, :6] + 20 * t
        np.testing.assert_array_equal(neighbor.reshape(3, 20, 6)[t], expected)


def test_particles_at_the_same_place_are_neighbors_but_never_of_themselves():
    center, neighbor = nearest_neighbor_edges(np.zeros((1, 9, 3)), 4)
    assert (center != neighbor).all()
    assert len(set(zip(center, neighbor, strict=True))) == 36
    with pytest.raises(ValueError, match=r"6 neighbors of each of 6 particles: give 1 to 5"):
        nearest_neighbor_edges(np.zeros((1, 6, 3)), 6)
