"""Study of a molecule: minimum and vibrations, bond stretching, torsions, dynamics."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_segnn.physics.molecules import minimum, n_imaginary, stretches, torsions
from ase_segnn.physics.work import Work

_DEEPEST = 1.0  # eV below the minimum: a hole


def study_molecule(work: Work) -> None:
    """Compute what applies to a molecule, and add it to the results."""
    found = work.attempt("Minimum", None, lambda: minimum(work.static, work.loaded.atoms))
    if found is None:
        return
    molecule, frequencies = found
    work.attempt("Vibrations", "vibrations", lambda: _vibrations(work, frequencies))
    work.attempt("Bond stretching", "stretching", lambda: _stretching(work, molecule))
    work.attempt("Torsions", "torsions", lambda: _torsions(work, molecule))
    work.dynamics(molecule)


def _vibrations(work: Work, frequencies: NDArray[np.float64]) -> None:
    work.results.add("lowest vibration", "cm⁻¹", frequencies[0])
    work.results.add("highest vibration", "cm⁻¹", frequencies[-1])
    count = n_imaginary(frequencies)
    if count:
        statement = f"{count} of {len(frequencies)} modes are imaginary: there is no minimum near the structure."
        work.judge("Vibrations", "failed", statement)
    else:
        work.judge("Vibrations", "passed", f"All {len(frequencies)} modes at the minimum are real.")


def _stretching(work: Work, molecule: Atoms) -> None:
    scans = stretches(work.static, molecule)
    holes = {scan.name: hole for scan in scans if (hole := scan.hole()) is not None}
    if not scans:
        work.judge("Bond stretching", "not applicable", "All bonds are in rings.")
    elif holes:
        weakest = min(holes, key=lambda name: holes[name][1])
        length, barrier = holes[weakest]
        statement = (
            f"The energy of {len(holes)} of {len(scans)} bonds falls again between 0.7 and 2 of their length. The "
            f"lowest barrier before it is that of {weakest}, {barrier:.2f} eV, at {length:.2f} Å."
        )
        work.judge("Bond stretching", "failed", statement)
    else:
        statement = f"The energy of all {len(scans)} bonds rises to both sides, from 0.7 to 2 of their length."
        work.judge("Bond stretching", "passed", statement)


def _torsions(work: Work, molecule: Atoms) -> None:
    scans = torsions(work.static, molecule)
    for scan in scans:
        work.results.add(f"torsion barrier {scan.name}", "meV", 1000 * scan.barrier)
    deep = [scan.name for scan in scans if not scan.energies.min() > -_DEEPEST]
    if not scans:
        work.judge("Torsions", "not applicable", "No bond can turn.")
    elif deep:
        work.judge("Torsions", "failed", f"{', '.join(deep)} leads more than {_DEEPEST:g} eV below the minimum.")
    else:
        work.judge("Torsions", "passed", f"{len(scans)} bonds turn once around, and none falls into a hole.")
