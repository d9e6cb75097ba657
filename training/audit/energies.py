"""Checks of energies: against the size and composition of frames, and against the energies of isolated atoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .findings import TRAINING, Collected, Finding

_Floats = NDArray[np.float64]

_LARGEST_COHESION = 20.0  # eV/atom
_SAME_ATOM = 0.05  # eV, between isolated atoms of the data and reference energies
_FEWEST = 10
_SHARE = 0.1  # of the frames of a composition, from which one energy is no chance


@dataclass(frozen=True, eq=False)
class EnergyFit:
    """Energies as sums over atoms, by the composition alone.

    Parameters
    ----------
    per_element : eV, of each element
    residuals : (n_frames,) eV/atom, what the fit leaves of each energy; nan without energy
    determined : whether there are compositions enough to tell the elements apart
    """

    per_element: Mapping[str, float]
    residuals: _Floats
    determined: bool


def fit_energies(data: Collected) -> EnergyFit:
    """Fit energies per element to all frames but isolated atoms, so that few wrong energies do not matter."""
    usable = data.has("energy") & ~data.rows["isolated"]
    residuals = np.full(len(data.rows), np.nan)
    if not usable.any():
        return EnergyFit({}, residuals, determined=False)
    counts = data.compositions.astype(np.float64)
    fractions = counts / counts.sum(axis=1, keepdims=True)
    energies = data.rows["energy"][usable] / data.rows["n_atoms"][usable]
    coefficients, rank = _robust_fit(fractions, data.rows["composition"][usable], energies)
    residuals[usable] = energies - (fractions @ coefficients)[data.rows["composition"][usable]]
    present = counts[np.unique(data.rows["composition"][usable])].any(axis=0)
    per_element = {
        symbol: float(value) for symbol, value, there in zip(data.elements, coefficients, present, strict=True) if there
    }
    return EnergyFit(per_element, residuals, determined=rank == int(present.sum()))


def _robust_fit(matrix: _Floats, kinds: NDArray[np.int32], values: _Floats) -> tuple[_Floats, int]:
    """Fit values by the rows of the matrix that `kinds` points to, with least absolute residuals; and the rank.

    Of several solutions the one nearest to equal coefficients is taken. The median of each kind is fitted by least
    squares, with weights that are renewed a few times.
    """
    present, inverse, n_of_kind = np.unique(kinds, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    medians = np.array([np.median(part) for part in np.split(values[order], np.cumsum(n_of_kind)[:-1])])
    rows, middle = matrix[present], float(np.median(medians))
    weights, coefficients, rank = n_of_kind.astype(np.float64), np.zeros(matrix.shape[1]), 0
    for _ in range(10):
        normal = rows.T @ (weights[:, None] * rows)
        solution, _, rank, _ = np.linalg.lstsq(normal, rows.T @ (weights * (medians - middle)), rcond=1e-10)
        coefficients = middle + solution
        weights = n_of_kind / np.maximum(np.abs(medians - rows @ coefficients), 1e-4)
    return coefficients, int(rank)


def energies(data: Collected, fit: EnergyFit) -> Iterator[Finding]:
    """Find energies that do not grow with the number of atoms, or are the same whatever the structure."""
    rows = data.rows
    usable = ~np.isnan(fit.residuals)
    sizes = rows["n_atoms"][usable]
    if usable.sum() >= _FEWEST and sizes.std() > 0.1 * sizes.mean():
        fractions = data.compositions / data.compositions.sum(axis=1, keepdims=True)
        kinds = rows["composition"][usable]
        coefficients, _ = _robust_fit(fractions, kinds, rows["energy"][usable])
        constant = np.median(np.abs(rows["energy"][usable] - (fractions @ coefficients)[kinds]))
        growing = np.median(np.abs(fit.residuals[usable] * sizes))
        if growing > 3 * constant:
            text = (
                f"Energies of frames of {sizes.min()} to {sizes.max()} atoms do not grow with the number of atoms. "
                "They seem to be energies per atom; expected is the energy of the whole frame."
            )
            yield data.finding("energy", "energies per atom", text, np.zeros(0, dtype=np.int64))
    for kind in np.unique(rows["composition"][usable]):
        members = np.flatnonzero(usable & (rows["composition"] == kind))
        values, inverse, repeats = np.unique(rows["energy"][members], return_inverse=True, return_counts=True)
        same = members[inverse.reshape(-1) == repeats.argmax()]
        if len(same) < _SHARE * len(members) or len(np.unique(rows["structure"][same, 0])) < 4:
            continue
        text = (
            f"{len(same)} of {len(members)} frames of one composition have exactly the same energy, "
            f"{values[repeats.argmax()]:.8g} eV, though their structures differ. A key that is not the energy of "
            "the frame may have been read."
        )
        yield data.finding("energy", "the same energy for different structures", text, same)


def references(data: Collected, fit: EnergyFit, used: Mapping[str, float], origin: str) -> Iterator[Finding]:
    """Compare the reference energies in use with the energies of the frames."""
    if not fit.determined and len(fit.per_element) > 1:
        text = (
            "There are fewer independent compositions than elements: data do not determine energies per element, only "
            "their sums. Potentials are meaningful for these compositions alone; energies of isolated atoms would tell."
        )
        yield Finding("note", "energies per element are not determined", text)
    missing = sorted(set(fit.per_element) - set(used))
    if missing:
        text = "Give them, or leave out all reference energies for a least-squares fit."
        yield Finding("error", f"no reference energy of {', '.join(missing)}", text)
        return
    training = data.of(TRAINING) & data.has("energy")
    e0 = np.array([used.get(symbol, 0.0) for symbol in data.elements])
    single = np.flatnonzero(training & data.rows["isolated"])
    off = single[
        np.abs(data.rows["energy"][single] - data.compositions[data.rows["composition"][single]] @ e0) > _SAME_ATOM
    ]
    if len(off):
        text = (
            f"Reference energies ({origin}) differ from these frames of isolated atoms. Atoms far from all others get "
            "the reference energy, so their energies would be wrong by that; use the isolated atoms as references."
        )
        remarks = [f"{data.rows['energy'][i]:.4f} eV" for i in off]
        yield data.finding("energy", "isolated atoms do not have the reference energies", text, off, remarks)
    bound = cohesion(data, used)
    if origin == "least squares" or not len(bound):
        return
    mean = float(bound.mean())
    if not 0 <= mean <= _LARGEST_COHESION:
        numbers = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in fit.per_element.items())
        problem = "above those of the isolated atoms" if mean < 0 else "far below those of the isolated atoms"
        text = (
            f"By the reference energies ({origin}), energies of training frames are {-mean:.3g} eV/atom on average, "
            f"{problem}; bound matter has -0.01 to -10. They seem to belong to another level of theory or other "
            "pseudopotentials, or have another unit. A fit near the data is possible all the same, but the energy of "
            f"separated atoms will be wrong. A fit to the frames has, in eV: {numbers}; leave out reference energies "
            "for one."
        )
        yield data.finding("energy", "reference energies do not fit the data", text, np.zeros(0, dtype=np.int64))


def cohesion(data: Collected, used: Mapping[str, float]) -> _Floats:
    """Energy to take each training frame apart, by the reference energies, eV/atom; without single atoms."""
    frames = data.of(TRAINING) & data.has("energy") & ~data.rows["isolated"]
    e0 = np.array([used.get(symbol, np.nan) for symbol in data.elements])
    present = data.compositions.any(axis=0)
    atoms = data.compositions @ np.where(present, e0, 0.0) if len(e0) else np.zeros(0)
    return np.asarray(
        (atoms[data.rows["composition"][frames]] - data.rows["energy"][frames]) / data.rows["n_atoms"][frames]
    )
