"""Reference energies: given, of isolated atoms, or fitted to the training frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ase_segnn.labels import LabelKeys

from ..recipe import DataSection
from .frames import Frame, FrameFiles, tell_labels
from .sources import DataFile, locate
from .subset import Subset

_SAME_ATOM = 1e-3  # eV, between energies of one isolated atom


def least_squares_energies(
    elements: Sequence[str], counts: NDArray[np.float64], energies: NDArray[np.float64]
) -> dict[str, float]:
    """Fit energies per element to `energies` (n,) by least squares; of several solutions take the most nearly equal.

    Frames with an energy of NaN are left out. Without any frame all energies are 0.
    """
    known = np.isfinite(energies)
    counts, energies = counts[known], energies[known]
    if not known.any():
        return dict.fromkeys(elements, 0.0)
    mean = energies.sum() / counts.sum()
    correction, *_ = np.linalg.lstsq(counts, energies - mean * counts.sum(1), rcond=None)
    return {symbol: float(mean + value) for symbol, value in zip(elements, correction, strict=True)}


def isolated_atom_energies(path: Path, elements: Sequence[str], keys: LabelKeys | None = None) -> dict[str, float]:
    """Read reference energies of `elements` from a file with one frame per isolated atom.

    Raises
    ------
    ValueError
        If a frame holds more than one atom or has no energy, an element has no frame, or frames of one element differ.
    """
    files = FrameFiles({path.name: DataFile(path, "")})
    choice = files.choose_labels(None if keys is None else LabelKeys(energy=keys.energy), required=False)
    tell_labels(f"reference energies, {path.name}", choice.report)
    frames = []
    for frame in files.frames(choice):
        if len(frame.atoms) != 1 or frame.energy is None:
            raise ValueError(
                f"{frame.source} has {len(frame.atoms)} atoms and {'no' if frame.energy is None else 'an'} energy; "
                "reference energies need single atoms with an energy"
            )
        frames.append(frame)
    energies = energies_of_atoms(frames)
    missing = [symbol for symbol in elements if symbol not in energies]
    if missing:
        raise ValueError(f"'{path}' has no isolated atom of {', '.join(missing)}")
    return {symbol: energies[symbol] for symbol in elements}


def energies_of_atoms(frames: Iterable[Frame]) -> dict[str, float]:
    """Return the energy of each element, eV, from frames of single atoms with an energy of a weight above zero.

    Raises
    ------
    ValueError
        If two atoms of an element differ by more than 1 meV.
    """
    first: dict[str, Frame] = {}
    for frame in frames:
        if "energy" not in frame.weighted_labels:
            continue
        symbol = frame.atoms.get_chemical_symbols()[0]
        other = first.setdefault(symbol, frame)
        assert frame.energy is not None
        assert other.energy is not None
        if abs(frame.energy - other.energy) > _SAME_ATOM:
            raise ValueError(
                f"isolated atoms of {symbol} have different energies: {other.energy:.6g} eV in {other.source} and "
                f"{frame.energy:.6g} eV in {frame.source}; leave in the one that belongs to the other frames, or set "
                "reference_energies"
            )
    return {symbol: frame.energy for symbol, frame in first.items() if frame.energy is not None}


def reference_files(settings: DataSection) -> dict[str, Path]:
    """Find the file with isolated atoms, if the settings name one."""
    reference = settings.reference_energies
    if isinstance(reference, dict) or reference in ("auto", "least-squares"):
        return {}
    return {reference: locate(reference, settings.folder)}


def find_reference_energies(
    settings: DataSection,
    training: Subset,
    elements: tuple[str, ...],
    isolated: Mapping[str, float],
) -> tuple[dict[str, float], str]:
    """Return reference energies in eV per element, and their origin as in `TrainingData`.

    Parameters
    ----------
    settings : of the recipe
    training : frames to fit, if there is nothing else
    elements : that need an energy
    isolated : symbol -> eV, of isolated atoms among the training files

    Raises
    ------
    ValueError
        If an element has no energy where the settings want one.
    """
    reference = settings.reference_energies
    if isinstance(reference, dict):
        missing = [symbol for symbol in elements if symbol not in reference]
        if missing:
            raise ValueError(f"reference_energies lack {', '.join(missing)}, which the training frames have")
        return {symbol: reference[symbol] for symbol in elements}, "given"
    for path in reference_files(settings).values():
        return isolated_atom_energies(path, elements, settings.label_keys), "isolated atoms"
    if reference == "auto" and isolated:
        missing = [symbol for symbol in elements if symbol not in isolated]
        if missing:
            raise ValueError(
                f"the training files have isolated atoms of {', '.join(sorted(isolated))}, but none of "
                f"{', '.join(missing)}; add them, or set reference_energies"
            )
        return {symbol: isolated[symbol] for symbol in elements}, "isolated atoms"
    return least_squares_energies(elements, training.counts(elements), training.energies()), "least squares"
