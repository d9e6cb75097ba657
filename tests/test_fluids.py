"""Structure and motion of fluids: lattices, ideal gases and random walks, whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from ase_segnn.physics.dynamics import constant_energy_run
from ase_segnn.physics.fluids import Recorder, diffusion_coefficient, mean_square_displacements, radial_distributions


def random_atoms(seed: int, name: str = "Ar200") -> Atoms:
    rng = np.random.default_rng(seed)
    n_atoms = len(Atoms(name))
    return Atoms(name, rng.random((n_atoms, 3)) * [12.0, 13.0, 14.0], cell=[12.0, 13.0, 14.0], pbc=True)


def test_peaks_of_a_crystal_are_its_distances() -> None:
    crystal = bulk("Cu", cubic=True, a=3.6).repeat(4)
    [distribution] = radial_distributions([crystal]).values()
    distances = [distance for distance, _ in distribution.peaks()]
    assert distances[:3] == pytest.approx([3.6 / np.sqrt(2), 3.6, 3.6 * np.sqrt(1.5)], abs=0.02)
    first = np.abs(distribution.distances - 3.6 / np.sqrt(2)) < 0.3
    r, g = distribution.distances[first], distribution.values[first]
    density = (len(crystal) - 1) / crystal.get_volume()
    assert (4 * np.pi * r**2 * g * 0.02).sum() * density == pytest.approx(12, rel=1e-3)


def test_an_ideal_gas_has_no_structure() -> None:
    distributions = radial_distributions([random_atoms(seed, "Kr100Ar100") for seed in range(40)])
    assert list(distributions) == ["Kr-Kr", "Kr-Ar", "Ar-Ar"]
    for distribution in distributions.values():
        assert distribution.distances[-1] == pytest.approx(6.0, abs=0.05)  # half the shortest edge
        assert distribution.values[distribution.distances > 3].mean() == pytest.approx(1, abs=0.02)
        assert distribution.values.std() > 0
    assert distributions["Kr-Kr"].difference(distributions["Kr-Kr"]) == 0
    assert distributions["Kr-Kr"].difference(distributions["Ar-Ar"]) > 0.01


def test_distributions_need_frames_of_a_fluid() -> None:
    with pytest.raises(ValueError, match="there is no frame to count neighbors in"):
        radial_distributions([])
    with pytest.raises(
        ValueError, match=r"a fluid is periodic along all three vectors, got pbc=\[False, False, False\]"
    ):
        radial_distributions([Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])])


def test_the_diffusion_of_a_random_walk_is_known() -> None:
    r"""Steps of variance s² along each axis, dt apart: D = s²/2dt."""
    rng = np.random.default_rng(0)
    n_atoms, step_ps, spread = 400, 0.02, {"Ar": 0.1, "Kr": 0.03}
    spreads = np.repeat([0.1, 0.03], n_atoms)[:, None]
    walk = np.cumsum(spreads * rng.standard_normal((300, 2 * n_atoms, 3)), axis=0)
    walk += np.linspace(0, 50, 300)[:, None, None]  # a drift of all atoms is no diffusion
    frames = [Atoms(f"Ar{n_atoms}Kr{n_atoms}", positions) for positions in walk]
    for element, one in spread.items():
        expected = one**2 / (2 * step_ps) * 10  # Å²/ps are 1e-8 m²/s
        assert diffusion_coefficient(frames, element, step_ps) == pytest.approx(expected, rel=0.05)
    squares = mean_square_displacements(frames, "Ar")
    assert squares[0] == 0
    assert squares[1] == pytest.approx(3 * 0.1**2, rel=0.02)
    with pytest.raises(ValueError, match="diffusion needs 20 frames at least, got 19"):
        diffusion_coefficient(frames[:19], "Ar", step_ps)


def test_a_recorder_keeps_frames_at_equal_steps() -> None:
    argon = bulk("Ar", cubic=True, a=5.26).repeat(2)
    recorder = Recorder(20, after=20)
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True)
    constant_energy_run(calculator, argon, 40.0, steps=60, watch=recorder.look)
    assert len(recorder.frames) == 3  # after 20, 40 and 60 steps
    assert len({frame.positions.tobytes() for frame in recorder.frames}) == 3
    assert all(frame.calc is None for frame in recorder.frames)
