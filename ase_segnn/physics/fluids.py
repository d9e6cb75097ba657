"""Structure and motion of fluids: radial distribution functions and diffusion, from positions of many frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from ase_segnn.graphs.atomic_graph import AtomicGraph

_Floats = NDArray[np.float64]

_BIN = 0.02  # Å
_SMOOTHING = 0.05  # Å
_LEAST_PEAK = 0.3  # by which a maximum of g(r) rises above its surroundings
_FIT_WINDOW = 0.1, 0.5  # of the run: time differences of the line through the mean square displacement
_MOST_RADIUS = 8.0  # Å
_A2_PER_PS = 10.0  # 1e-9 m²/s


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """Density of neighbors of one element around another, relative to the mean density.

    Parameters
    ----------
    pair : name such as "O-H"
    distances : (n,) Å, centers of bins of 0.02 Å
    values : (n,) g(r)
    """

    pair: str
    distances: _Floats
    values: _Floats

    def peaks(self) -> list[tuple[float, float]]:
        """Distance (Å) and height of the maxima, nearest first, after smoothing over 0.05 Å."""
        smooth = gaussian_filter1d(self.values, _SMOOTHING / _BIN, mode="nearest")
        found, _ = find_peaks(smooth, prominence=_LEAST_PEAK)
        return [(float(self.distances[index]), float(smooth[index])) for index in found]

    def difference(self, other: RadialDistribution) -> float:
        """Mean magnitude of the difference from another g(r) of the same bins, as far as both reach."""
        n = min(len(self.values), len(other.values))
        return float(np.abs(self.values[:n] - other.values[:n]).mean())


def radial_distributions(frames: Iterable[Atoms], radius: float | None = None) -> dict[str, RadialDistribution]:
    r"""Radial distribution functions of all pairs of elements, averaged over frames.

    .. math:: g_{ab}(r) = \frac{V}{N_a N_b} \frac{n_{ab}(r)}{4 \pi r^2 \, \mathrm{d}r}

    where :math:`n_{ab}` counts ordered pairs; for a = b, :math:`N_a (N_a - 1)` takes the place of :math:`N_a N_b`.

    Parameters
    ----------
    frames : with the same elements, periodic along all three vectors
    radius : Å; by default half the shortest height of the first cell, at most 8

    Raises
    ------
    ValueError
        If there is no frame, or a frame is not periodic along all three vectors.
    """
    sums: dict[str, _Floats] = {}
    n_frames = 0
    edges: _Floats = np.empty(0)
    for atoms in frames:
        if not atoms.pbc.all() or atoms.cell.rank < 3:
            raise ValueError(f"a fluid is periodic along all three vectors, got pbc={atoms.pbc.tolist()}")
        if n_frames == 0:
            radius = radius or min(
                _MOST_RADIUS, float(0.5 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1).max())
            )
            edges = _BIN * np.arange(int(radius / _BIN) + 1, dtype=np.float64)
        n_frames += 1
        graph = AtomicGraph.from_atoms(atoms, edges[-1])
        distances = graph.edge_vectors().norm(dim=1).numpy()
        first, second = atoms.numbers[graph.centers.numpy()], atoms.numbers[graph.neighbors.numpy()]
        shells = 4 / 3 * np.pi * np.diff(edges**3)
        for a, b in combinations_with_replacement(sorted(set(atoms.numbers.tolist()), reverse=True), 2):
            counts = np.histogram(distances[(first == a) & (second == b)], edges)[0].astype(float)
            n_a, n_b = int((atoms.numbers == a).sum()), int((atoms.numbers == b).sum()) - (a == b)
            if n_b > 0:
                name = f"{chemical_symbols[a]}-{chemical_symbols[b]}"
                sums[name] = sums.get(name, 0.0) + counts * atoms.get_volume() / (shells * n_a * n_b)
    if n_frames == 0:
        raise ValueError("there is no frame to count neighbors in")
    centers = (edges[:-1] + edges[1:]) / 2
    return {name: RadialDistribution(name, centers, total / n_frames) for name, total in sums.items()}


class Recorder:
    """Keeps copies of a run's positions, every so many looks; pass `look` as `watch` of a run.

    Parameters
    ----------
    every : steps between copies, a multiple of `ase_segnn.physics.dynamics.INTERVAL`
    after : steps that pass before the first copy
    """

    def __init__(self, every: int, after: int = 0) -> None:
        self.frames: list[Atoms] = []
        self._every, self._after = every, after

    def look(self, step: int, atoms: Atoms) -> None:
        """Copy the atoms if it is time to."""
        if step >= self._after and (step - self._after) % self._every == 0:
            self.frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))


def mean_square_displacements(frames: Sequence[Atoms], element: str) -> _Floats:
    r"""Mean square displacement over time differences of 0, 1, 2, … frames, averaged over atoms and starting times.

    .. math:: m(k) = \langle |x_i(t + k) - x_i(t)|^2 \rangle_{i, t}

    Parameters
    ----------
    frames : at equal time steps, positions not wrapped into the cell; the motion of the center of mass is taken out
    element : symbol

    Returns
    -------
    (len(frames),) Å²
    """
    which = frames[0].symbols == element
    positions = np.array([atoms.positions[which] - atoms.get_center_of_mass() for atoms in frames])
    moves = [((positions[lag:] - positions[: len(positions) - lag]) ** 2).sum(axis=2) for lag in range(len(frames))]
    return np.array([float(move.mean()) for move in moves])


def diffusion_coefficient(frames: Sequence[Atoms], element: str, time_step_ps: float) -> float:
    r"""Self-diffusion coefficient in 1e-9 m²/s by Einstein's relation.

    .. math:: \langle |x(t) - x(0)|^2 \rangle = 6 D t + \mathrm{const.}

    The line goes through time differences of a tenth to half of the run. A periodic box slows diffusion down, by
    a fifth or so for 64 molecules of water (Yeh and Hummer, J. Phys. Chem. B 108, 15873, 2004). Compare only boxes of
    one size.

    Parameters
    ----------
    frames : as of `mean_square_displacements`, of a run at constant energy: a thermostat slows atoms down
    element : symbol
    time_step_ps : between frames

    Raises
    ------
    ValueError
        If there are less than 20 frames.
    """
    if len(frames) < 20:
        raise ValueError(f"diffusion needs 20 frames at least, got {len(frames)}; make the run longer")
    start, end = (int(share * len(frames)) for share in _FIT_WINDOW)
    times = time_step_ps * np.arange(start, end + 1)
    slope = np.polyfit(times, mean_square_displacements(frames, element)[start : end + 1], 1)[0]
    return float(slope / 6 * _A2_PER_PS)
