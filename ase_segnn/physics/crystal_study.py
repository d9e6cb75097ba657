"""Study of a crystal: lattice, elasticity, defects, phonons, the reference's own frames, dynamics and melt."""

from __future__ import annotations

from functools import partial

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from ase_segnn.evaluation import predict
from ase_segnn.physics.crystals import elastic_constants, fit_cubic, relax
from ase_segnn.physics.defects import Indices, is_slab, slab_energy, supercell, surface_energy, vacancy_energy
from ase_segnn.physics.fluids import radial_distributions
from ase_segnn.physics.phonons import phonons
from ase_segnn.physics.work import Work

_SURFACES: tuple[Indices, ...] = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
_MOLTEN = 1.0  # of the nearest distance: how far atoms of a liquid are from their places in the crystal


def study_crystal(work: Work) -> None:
    """Compute what applies to a crystal, and add it to the results."""
    crystal = work.attempt("Lattice", None, lambda: relax(work.static, work.loaded.atoms, cell=True))
    if crystal is None:
        return
    _lattice(work, crystal)
    work.attempt("Elastic constants", "elastic", lambda: _elastic(work, crystal))
    is_element = len(set(crystal.numbers)) == 1
    if is_element:
        work.attempt("Vacancy", "vacancy", lambda: _vacancy(work, crystal))
        for indices in _SURFACES:
            name = f"surface energy ({''.join(map(str, indices))})"
            work.attempt(name, "surfaces", partial(_surface, work, crystal, name, indices))
    else:
        several = "Energies of vacancies and surfaces of several elements depend on chemical potentials."
        work.judge("Vacancy and surfaces", "not applicable", several)
    work.attempt("Phonons", "phonons", lambda: _phonons(work, crystal))
    if work.loaded.system.strained is not None:
        work.attempt("Strained frames of the reference", "elastic", lambda: _strained(work))
    if is_element and any(is_slab(frame.atoms) for frame in work.loaded.frames):
        work.attempt("Slabs of the reference", "surfaces", lambda: _slabs(work))
    large = supercell(crystal)
    work.dynamics(large)
    if work.loaded.system.melt is not None:
        _melt(work, large, work.loaded.system.melt)


def _lattice(work: Work, crystal: Atoms) -> None:
    lengths, angles = crystal.cell.lengths(), crystal.cell.angles()
    for index, name in enumerate("abc"):
        if index == 0 or abs(lengths[index] - lengths[0]) > 1e-3:
            work.results.add(f"lattice constant {name}", "Å", lengths[index])
    for name, angle in zip(("alpha", "beta", "gamma"), angles, strict=True):
        if abs(angle - 90) > 1e-2:
            work.results.add(name, "°", angle)
    work.results.add("volume per atom", "Å³", crystal.get_volume() / len(crystal))


def _elastic(work: Work, crystal: Atoms) -> None:
    elastic = elastic_constants(work.static, crystal)
    for name, value in elastic.entries.items():
        work.results.add(name, "GPa", value)
    work.results.add("bulk modulus", "GPa", elastic.bulk_modulus)
    if elastic.is_stable:
        work.judge("Elastic stability", "passed", "Every small strain costs energy.")
    else:
        work.judge("Elastic stability", "failed", "A small strain gains energy: the crystal would change its shape.")


def _vacancy(work: Work, crystal: Atoms) -> None:
    work.results.add("vacancy energy", "eV", vacancy_energy(work.static, crystal))


def _surface(work: Work, crystal: Atoms, name: str, indices: Indices) -> None:
    work.results.add(name, "J/m²", surface_energy(work.static, crystal, indices))


def _phonons(work: Work, crystal: Atoms) -> None:
    found = phonons(work.static, crystal)
    shown: list[NDArray[np.float64]] = []
    for name, frequencies in found.at.items():
        if any(np.allclose(frequencies, other, atol=1e-2) for other in shown):
            continue  # an equivalent point, such as U and K
        shown.append(frequencies)
        if name != "G":
            work.results.add(f"lowest phonon at {name}", "THz", frequencies[0])
        if name != "G" or len(frequencies) > 3:
            work.results.add(f"highest phonon at {name}", "THz", frequencies[-1])
    if found.has_imaginary:
        statement = f"A mode is imaginary, {-found.lowest:.2f}i THz: the crystal gains energy by a distortion."
        work.judge("Phonons", "failed", statement)
    else:
        work.judge("Phonons", "passed", "No mode is imaginary.")


def _strained(work: Work) -> None:
    """Elastic constants by one function of the labels, and of predictions for the same frames."""
    frames = [each for each in work.loaded.frames if each.group == work.loaded.system.strained]
    labeled = [(each.atoms, each.labels.stress) for each in frames if each.labels.stress is not None]
    cells = [atoms.cell.array for atoms, _ in labeled]
    reference = fit_cubic(cells, [stress for _, stress in labeled])
    predicted = predict(work.static, [atoms.copy() for atoms, _ in labeled], ["stress"])
    own = fit_cubic(cells, [voigt_6_to_full_3x3_stress(results["stress"]) for results in predicted])
    work.results.add("edge of strained frames without stress", "Å", own.length, reference.length)
    for name, value in own.elastic.cubic.items():
        work.results.add(f"{name} of strained frames", "GPa", value, reference.elastic.cubic[name])


def _slabs(work: Work) -> None:
    """Energies of the reference's slabs at its positions; the crystal is the frame of lowest energy per atom."""
    labeled = [(each.atoms, each.labels.energy) for each in work.loaded.frames if each.labels.energy is not None]
    structures = [atoms for atoms, _ in labeled]
    slabs = np.array([is_slab(atoms) for atoms in structures])
    if slabs.all():
        raise ValueError("all labeled frames of the reference are slabs; add frames of the crystal")
    predicted = predict(work.static, [atoms.copy() for atoms in structures], ["energy"])
    energies = np.array([[results["energy"] for results in predicted], [energy for _, energy in labeled]], float)
    lowest = (energies / [len(atoms) for atoms in structures])[:, ~slabs].min(axis=1)
    own, reference = (
        np.array([slab_energy(structures[i], values[i], per_atom) for i in np.flatnonzero(slabs)])
        for values, per_atom in zip(energies, lowest, strict=True)
    )
    name = f"surface energy of {len(own)} slabs of the reference"
    work.results.add(f"{name}, mean", "J/m²", own.mean(), reference.mean())
    work.results.add(f"{name}, mean absolute error", "J/m²", np.abs(own - reference).mean())


def _melt(work: Work, crystal: Atoms, temperature: float) -> None:
    name = f"Melt at {temperature:.0f} K"
    work.tell(name)
    recorded = work.run(crystal, temperature)
    verdict = recorded.run.verdict
    if verdict.outcome != "passed":
        work.judge(name, verdict.outcome, verdict.statement)
        return
    moved = float(np.sqrt(((recorded.frames[-1].positions - crystal.positions) ** 2).sum(axis=1).mean()))
    distributions = radial_distributions(recorded.late_frames)
    first = {pair: peaks[0] for pair, each in distributions.items() if (peaks := each.peaks())}
    if moved < _MOLTEN * min((distance for distance, _ in first.values()), default=np.inf):
        statement = (
            f"The crystal did not melt: atoms are {moved:.1f} Å from their places. It takes more K or more time."
        )
        work.judge(name, "not applicable", statement)
        return
    for pair, (distance, height) in first.items():
        work.results.add(f"g(r) {pair} of the melt at {temperature:g} K, peak 1", "Å", distance)
        work.results.add(f"g(r) {pair} of the melt at {temperature:g} K, height 1", "", height)
    work.judge(name, "passed", f"It is a liquid: atoms are {moved:.1f} Å from their places. {verdict.statement}")
