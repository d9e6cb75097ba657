"""Simulation of charged and of gravitating particles, many trajectories at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = tuple[Array, Array, Array]

N_FRAMES = 50

PUBLISHED_SIZES = (10000, 2000, 2000)  # train, validation, test


@dataclass(frozen=True, eq=False)
class Trajectories:
    """T trajectories of n particles of unit mass, of which F frames are stored; all numbers without units.

    Parameters
    ----------
    frames : (F,) numbers of the stored frames, ascending
    positions : (T, F, n, 3)
    velocities : (T, F, n, 3), at the same times as the positions
    """

    frames: NDArray[np.int64]
    positions: Array
    velocities: Array

    def index(self, frame: int) -> int:
        """Return where along F the frame of this number is.

        Raises
        ------
        ValueError
            If it is not stored.
        """
        found = np.flatnonzero(self.frames == frame)
        if len(found) == 0:
            raise ValueError(f"frame {frame} is not stored, only {self.frames.tolist()}; simulate it as well")
        return int(found[0])


@dataclass(frozen=True, eq=False)
class ChargedTrajectories(Trajectories):
    """Trajectories with the charges of their particles.

    Parameters
    ----------
    charges : (T, n), 1 or -1
    """

    charges: Array


@dataclass(frozen=True, eq=False)
class GravityTrajectories(Trajectories):
    """Trajectories with the forces on their particles.

    Parameters
    ----------
    forces : (T, F, n, 3), at the same times as the positions
    """

    forces: Array


@dataclass(frozen=True)
class ChargedSystem:
    r"""Particles with charges :math:`c = \pm 1` that move by Coulomb's law in open space.

    Positions start from a normal distribution of variance 1, velocities with the same magnitude in any direction,
    charges with equal odds. Frame f is the state after ``(f + 1) * steps_per_frame`` steps: the start is no frame, and
    frames 30 and 40 are those of the published benchmark.

    The published generator gives the first velocities a kick by a whole step where leapfrog needs half of one, and
    stores velocities half a step older than the positions beside them. Here the velocities of a frame belong to the
    time of its positions: only both together are a state, with an energy, that can be reversed in time. Positions obey
    the same recurrence in both, from starts that differ by half a kick; stored velocities differ by half a kick, in
    the mean square 1e-5 in frame 30.

    Opposite charges fall into orbits that the time step does not resolve: by frame 40 about half of all
    trajectories have met `max_force`, and a sixth meet it between frames 30 and 40.

    Parameters
    ----------
    n_particles : at least 2
    speed : of each particle at the start
    max_force : largest magnitude of a component of a force; larger ones are clipped to it, which bounds the kick of a
        close encounter but conserves neither energy nor momentum, and depends on the axes
    time_step : of the integration
    steps_per_frame : time steps from one frame to the next

    References
    ----------
    Kipf et al., ICML 2018, arXiv:1802.04687; in three dimensions Satorras et al., ICML 2021, arXiv:2102.09844, and
    Brandstetter et al., ICLR 2022, arXiv:2110.02905.
    """

    n_particles: int = 5
    speed: float = 0.5
    max_force: float = 100.0  # 0.1 / time_step
    time_step: float = 0.001
    steps_per_frame: int = 100

    def start(self, n_trajectories: int, seed: int) -> State:
        """Draw positions (T, n, 3), velocities (T, n, 3) and charges (T, n); more trajectories keep the first ones."""
        normal = np.random.default_rng(seed).standard_normal((n_trajectories, self.n_particles, 7))
        directions = normal[..., 3:6] / np.linalg.norm(normal[..., 3:6], axis=-1, keepdims=True)
        return normal[..., :3].copy(), self.speed * directions, np.copysign(1.0, normal[..., 6])

    def simulate(
        self, n_trajectories: int, seed: int, frames: Sequence[int] = range(N_FRAMES), chunk: int = 1024
    ) -> ChargedTrajectories:
        """Simulate trajectories from random starts.

        Parameters
        ----------
        n_trajectories : at least 1
        seed : not negative; the same seed gives the same numbers on the same machine, and more trajectories keep the
            first ones
        frames : numbers of the frames to store, ascending
        chunk : how many trajectories are simulated at a time, which changes memory and time, but no number

        Raises
        ------
        ValueError
            If there is nothing to simulate or the frames do not ascend from 0 or later.
        """
        _check_request(n_trajectories, frames)
        positions, velocities, charges = self.start(n_trajectories, seed)
        stored = np.empty((2, n_trajectories, len(frames), self.n_particles, 3))
        for first in range(0, n_trajectories, chunk):
            part = slice(first, first + chunk)
            # Trajectories last: they are the longest axis, and all of the arithmetic runs along it.
            forces = partial(coulomb_forces, charges=charges[part].T.copy(), max_force=self.max_force)
            states = leapfrog(positions[part].T, velocities[part].T, forces, self.time_step, self.steps_per_frame)
            for i, (x, v, _) in enumerate(_only(states, [frame + 1 for frame in frames])):
                stored[:, part, i] = x.T, v.T
        return ChargedTrajectories(np.asarray(frames, dtype=np.int64), stored[0], stored[1], charges)


@dataclass(frozen=True)
class PublishedChargedSystem(ChargedSystem):
    """Charged particles from the very starts of the published benchmark, so that errors compare with its table.

    The published generator draws one trajectory after the other, 10000 for training, 2000 for validation and 2000 for
    test, from one stream of random numbers that begins with the seed 43. As seeds, 0, 1 and 2 are these three splits.
    Velocities hold the half of a kick that it has too much at the start, see `ChargedSystem`, so that trajectories are
    the same until close encounters amplify what is rounded in another order.

    References
    ----------
    `generate_dataset.py` and `synthetic_sim.py` of github.com/RobDHess/Steerable-E3-GNN.
    """

    def start(self, n_trajectories: int, seed: int) -> State:
        """Draw positions, velocities and charges as `ChargedSystem.start` does.

        Raises
        ------
        ValueError
            If there is no such split, it is smaller, or the particles are not five.
        """
        if seed >= len(PUBLISHED_SIZES):
            raise ValueError(f"the published splits are of one draw; there is none of seed {seed}")
        if n_trajectories > PUBLISHED_SIZES[seed]:
            raise ValueError(f"{n_trajectories} trajectories of a published split of {PUBLISHED_SIZES[seed]}")
        if self.n_particles != 5:
            raise ValueError(f"published trajectories have 5 particles, not {self.n_particles}")
        random = np.random.RandomState(43)
        positions, velocities, charges = (np.empty((n_trajectories, *shape)) for shape in ((5, 3), (5, 3), (5,)))
        before = sum(PUBLISHED_SIZES[:seed])
        for i in range(-before, n_trajectories):
            drawn_charges = random.choice([-1.0, 0.0, 1.0], size=5, p=[0.5, 0.0, 0.5])
            drawn = random.standard_normal((2, 3, 5))
            random.standard_normal((2, N_FRAMES - 1, 3, 5))  # noise of variance 0 on positions and velocities
            if i >= 0:
                positions[i], velocities[i], charges[i] = drawn[0].T, drawn[1].T, drawn_charges
        velocities *= self.speed / np.linalg.norm(velocities, axis=-1, keepdims=True)
        velocities += self.time_step / 2 * coulomb_forces(positions.T, charges.T, self.max_force).T
        return positions, velocities, charges


@dataclass(frozen=True)
class GravitySystem:
    """Particles of unit mass that attract each other, with gravitational constant 1, in open space.

    Positions and velocities start from a normal distribution of variance 1; the mean velocity of each trajectory is
    then subtracted, the mean position is not. Frame f is the state after ``f * steps_per_frame`` steps: the start is
    frame 0. The kinetic energy of the start is far below what would balance gravity, so that the particles fall
    together within about one frame, and rounding errors grow fast: another machine may give other trajectories of
    the same statistics.

    Parameters
    ----------
    n_particles : at least 2
    softening : ε in `gravity_forces`
    time_step : of the integration
    steps_per_frame : time steps from one frame to the next

    References
    ----------
    Brandstetter et al., ICLR 2022, arXiv:2110.02905.
    """

    n_particles: int = 100
    softening: float = 0.1
    time_step: float = 0.001
    steps_per_frame: int = 100

    def start(self, n_trajectories: int, seed: int) -> tuple[Array, Array]:
        """Draw positions and velocities, (T, n, 3) each; more trajectories keep the first ones."""
        normal = np.random.default_rng(seed).standard_normal((n_trajectories, 2, self.n_particles, 3))
        positions, velocities = normal[:, 0].copy(), normal[:, 1]
        return positions, velocities - velocities.mean(axis=1, keepdims=True)

    def simulate(
        self, n_trajectories: int, seed: int, frames: Sequence[int] = range(N_FRAMES), chunk: int = 4
    ) -> GravityTrajectories:
        """Simulate trajectories from random starts; parameters and errors are those of `ChargedSystem.simulate`."""
        _check_request(n_trajectories, frames)
        positions, velocities = self.start(n_trajectories, seed)
        stored = np.empty((3, n_trajectories, len(frames), self.n_particles, 3))
        forces = partial(gravity_forces, softening=self.softening)
        for first in range(0, n_trajectories, chunk):
            part = slice(first, first + chunk)
            states = leapfrog(positions[part], velocities[part], forces, self.time_step, self.steps_per_frame)
            for i, state in enumerate(_only(states, frames)):
                stored[:, part, i] = state
        return GravityTrajectories(np.asarray(frames, dtype=np.int64), *stored)


def coulomb_forces(positions: Array, charges: Array, max_force: float = np.inf) -> Array:
    r"""Coulomb forces between particles.

    .. math:: F_i = \sum_{j \ne i} c_i c_j \frac{r_i - r_j}{|r_i - r_j|^3}

    Parameters
    ----------
    positions : (3, n, T), of n particles in T trajectories
    charges : (n, T)
    max_force : components of the sum are clipped to this magnitude

    Returns
    -------
    (3, n, T)
    """
    forces = np.zeros_like(positions)
    for i in range(len(charges) - 1):  # each pair once, with those of higher number
        pair = positions[:, i, None] - positions[:, i + 1 :]  # (3, n - 1 - i, T)
        squares = pair[0] * pair[0] + pair[1] * pair[1] + pair[2] * pair[2]
        pair *= charges[i] * charges[i + 1 :] / (squares * np.sqrt(squares))
        forces[:, i] += pair.sum(axis=1)
        forces[:, i + 1 :] -= pair
    return np.clip(forces, -max_force, max_force, out=forces)


def gravity_forces(positions: Array, softening: float) -> Array:
    r"""Gravity between particles of unit mass, with gravitational constant 1.

    .. math:: F_i = \sum_j \frac{r_j - r_i}{(|r_i - r_j|^2 + ε^2)^{3/2}}

    Matrix products give both the squared distances, :math:`|r_i|^2 + |r_j|^2 - 2 r_i \cdot r_j`, whose rounding error
    is small beside ε², and the sum over j.

    Parameters
    ----------
    positions : (T, n, 3), of n particles in T trajectories
    softening : ε, positive

    Returns
    -------
    (T, n, 3)
    """
    squares = (positions * positions).sum(axis=-1, keepdims=True)  # (T, n, 1)
    ones = np.ones_like(squares)
    left = np.concatenate((-2 * positions, squares + softening**2, ones), axis=-1)
    right = np.concatenate((positions, ones, squares), axis=-1)
    distances2 = left @ right.swapaxes(-1, -2)  # (T, n, n)
    weights = np.sqrt(distances2)
    weights *= distances2
    np.reciprocal(weights, out=weights)
    sums = weights @ right[..., :4]  # of positions and of ones
    forces: Array = sums[..., :3] - sums[..., 3:] * positions
    return forces


def leapfrog(
    positions: Array, velocities: Array, forces: Callable[[Array], Array], time_step: float, steps_per_frame: int
) -> Iterator[State]:
    """Integrate Newton's equations of unit masses by kick, drift, kick (velocity Verlet), without end.

    Parameters
    ----------
    positions, velocities : of the start, of any one shape; they are not changed
    forces : positions -> forces
    time_step : may be negative
    steps_per_frame : steps from one yielded state to the next

    Yields
    ------
    positions, velocities and forces of the same time, the start first; the next frame overwrites them
    """
    x, v = positions.copy(), velocities.copy()
    f = forces(x)
    while True:
        yield x, v, f
        v += time_step / 2 * f
        for step in range(steps_per_frame):
            if step > 0:
                v += time_step * f  # the second half of the last step's kick and the first half of this one's
            x += time_step * v
            f = forces(x)
        v += time_step / 2 * f


def _only(states: Iterable[State], numbers: Sequence[int]) -> Iterator[State]:
    """Pick the states of these numbers, ascending; none is computed after the last."""
    for number, state in zip(range(numbers[-1] + 1), states, strict=False):
        if number in numbers:
            yield state


def _check_request(n_trajectories: int, frames: Sequence[int]) -> None:
    if n_trajectories < 1:
        raise ValueError(f"cannot simulate {n_trajectories} trajectories; ask for at least one")
    if len(frames) == 0 or frames[0] < 0 or any(a >= b for a, b in pairwise(frames)):
        raise ValueError(f"frames {list(frames)} do not ascend from 0 or later; give for example range({N_FRAMES})")
