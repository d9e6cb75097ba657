"""Physics of molecules: springs, whose frequencies are known, and a chain with a known torsion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from scipy.constants import c  # m/s

from ase_segnn.physics import LoadedSystem, System, study
from ase_segnn.physics.bonds import bonds_of, n_pieces, side_of
from ase_segnn.physics.dynamics import langevin_run
from ase_segnn.physics.molecules import Scan, minimum, n_imaginary, stretches, torsions, vibrations

STIFFNESS = 30.0  # eV/Å²
BARRIER = 0.2  # eV


class Springs(Calculator):
    """Springs of STIFFNESS between pairs, of lengths `rest`; and BARRIER (1 - cos 2φ) / 2 of a dihedral φ."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  # as ASE spells it

    def __init__(self, rest: dict[tuple[int, int], float], dihedral: tuple[int, int, int, int] | None = None) -> None:
        super().__init__()
        self.rest, self.dihedral = rest, dihedral

    def energy(self, atoms: Atoms) -> float:
        stretched = (atoms.get_distance(*pair) - rest for pair, rest in self.rest.items())
        total = sum(STIFFNESS * each**2 / 2 for each in stretched)
        if self.dihedral is not None:
            total += BARRIER * (1 - np.cos(2 * np.radians(atoms.get_dihedral(*self.dihedral)))) / 2
        return float(total)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(self.atoms), 3))
        for index in np.ndindex(forces.shape):
            energies = []
            for sign in (1, -1):
                moved = self.atoms.copy()
                moved.positions[index] += sign * 1e-4
                energies.append(self.energy(moved))
            forces[index] = (energies[1] - energies[0]) / 2e-4
        self.results = {"energy": self.energy(self.atoms), "forces": forces}


def wavenumber(stiffness: float, mass: float) -> float:
    """Frequency in cm⁻¹ of a spring in eV/Å² and a mass in u."""
    omega = np.sqrt(stiffness / mass) * units.second  # 1/s
    return float(omega / (2 * np.pi * c * 100))


def peroxide() -> tuple[Atoms, Springs]:
    """H2O2 with springs between neighbors and next neighbors, flat at its minimum."""
    atoms = molecule("H2O2")
    order = [3, 0, 1, 2] if atoms.get_distance(3, 0) < atoms.get_distance(2, 0) else [2, 0, 1, 3]
    atoms = atoms[order]
    atoms.set_dihedral(0, 1, 2, 3, 180.0, indices=[3])
    rest = {pair: float(atoms.get_distance(*pair)) for pair in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3))}
    return atoms, Springs(rest, (0, 1, 2, 3))


def test_vibration_of_a_diatomic() -> None:
    atoms = Atoms("HCl", [[0, 0, 0], [0.4, 0.5, 1.1]])
    reduced = 1 / (1 / atoms.get_masses()).sum()
    frequencies = vibrations(Springs({(0, 1): float(atoms.get_distance(0, 1))}), atoms)
    assert frequencies == pytest.approx([wavenumber(STIFFNESS, reduced)], rel=1e-3)


def test_vibrations_of_a_linear_molecule() -> None:
    """CO2 on two springs: k/m_O and k/m_O + 2k/m_C, and two bends without a force; 3N - 5 in all."""
    atoms = Atoms("OCO", [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]])
    oxygen, carbon, _ = atoms.get_masses()
    frequencies = vibrations(Springs({(0, 1): 1.16, (1, 2): 1.16}), atoms)
    expected = [wavenumber(STIFFNESS, oxygen), wavenumber(STIFFNESS, 1 / (1 / oxygen + 2 / carbon))]
    assert len(frequencies) == 4
    assert frequencies[2:] == pytest.approx(expected, rel=1e-3)
    assert np.abs(frequencies[:2]).max() < 20
    assert n_imaginary(frequencies) == 0


def test_a_saddle_point_is_left() -> None:
    """At a dihedral of 90 degrees the torsion has its maximum, where the forces are zero."""
    atoms, springs = peroxide()
    atoms.set_dihedral(0, 1, 2, 3, 90.0, indices=[3])
    assert np.abs(springs.get_forces(atoms)).max() < 1e-3
    assert n_imaginary(vibrations(springs, atoms)) == 1
    relaxed, frequencies = minimum(springs, atoms)
    assert n_imaginary(frequencies) == 0
    assert len(frequencies) == 6
    assert abs(np.sin(np.radians(relaxed.get_dihedral(0, 1, 2, 3)))) < 0.05
    assert atoms.get_dihedral(0, 1, 2, 3) == pytest.approx(90)


def test_a_torsion_has_the_barrier_of_the_model() -> None:
    atoms, springs = peroxide()
    [scan] = torsions(springs, atoms)
    assert scan.name == "H0-O1-O2-H3"
    assert scan.values.tolist() == list(range(0, 361, 15))
    assert scan.barrier == pytest.approx(BARRIER, rel=0.01)
    np.testing.assert_allclose(scan.energies, BARRIER * (1 - np.cos(2 * np.radians(scan.values))) / 2, atol=2e-3)


def test_bonds_and_their_sides() -> None:
    ethanol = molecule("CH3CH2OH")
    assert len(bonds_of(ethanol)) == 8
    assert n_pieces(ethanol) == 1
    oxygen = ethanol.symbols.indices()["O"][0]
    bond = next(pair for pair in bonds_of(ethanol) if oxygen in pair and "C" in ethanol.symbols[list(pair)])
    sides = [side_of(ethanol, pair) for pair in (bond, bond[::-1])]
    assert sorted(ethanol.symbols[sides[bond.index(oxygen) - 1]]) == ["H", "O"]
    assert sorted(np.concatenate(sides)) == list(range(9))
    benzene = molecule("C6H6")
    rings = [side_of(benzene, pair) for pair in bonds_of(benzene)]
    assert sum(side is None for side in rings) == 6


def test_stretching_a_spring_costs_energy_and_a_hole_is_found() -> None:
    atoms, springs = peroxide()
    scans = {scan.name: scan for scan in stretches(springs, atoms)}
    assert set(scans) == {"H0-O1", "O1-O2", "O2-H3"}
    assert all(scan.hole() is None for scan in scans.values())
    lengths = scans["O1-O2"].values
    assert [lengths[0], lengths[-1]] == pytest.approx(np.array([0.7, 2.0]) * atoms.get_distance(1, 2))
    values = np.linspace(0.7, 2.0, 66)
    falling = Scan("A-B", values, np.where(values > 1.6, 3.0 - 4 * (values - 1.6), 8 * (values - 1.0) ** 2))
    assert falling.hole() == pytest.approx((1.64, 2.92), abs=0.01)
    inner = Scan("A-B", values, np.where(values < 0.79, 0.1, 8 * (values - 1.0) ** 2))
    assert inner.hole() == pytest.approx((0.78, 0.32), abs=0.01)
    endless = Scan("A-B", values, np.where(values > 1.9, np.nan, 0.0))
    assert endless.hole() == pytest.approx((1.92, 0.0), abs=0.02)


def test_study_of_a_molecule(tmp_path: Path) -> None:
    atoms, springs = peroxide()
    ase.io.write(tmp_path / "peroxide.xyz", atoms)
    system = System(structure=str(tmp_path / "peroxide.xyz"), temperatures=[200.0], duration_ps=0.05)
    results = study(LoadedSystem.load(system), springs)
    found = {finding.quantity: finding.value for finding in results.findings}
    assert found["torsion barrier H0-O1-O2-H3"] == pytest.approx(1000 * BARRIER, rel=0.01)
    assert 100 < found["lowest vibration"] < found["highest vibration"]
    assert {verdict.name: verdict.outcome for verdict in results.verdicts} == {
        "Vibrations": "passed",
        "Bond stretching": "passed",
        "Torsions": "passed",
        "Dynamics at 200 K": "passed",
        "Conservation of energy": "passed",
    }
    assert "over 0.05 ps" in results.verdicts[-1].statement


class Yielding(Springs):
    """Springs that give way: k s² / 2 · exp(-s² / 0.1 Å²), at most 0.55 eV."""

    def energy(self, atoms: Atoms) -> float:
        stretched = np.array([atoms.get_distance(*pair) - rest for pair, rest in self.rest.items()])
        return float((STIFFNESS * stretched**2 / 2 * np.exp(-(stretched**2) / 0.1)).sum())


def test_bonds_that_give_way_are_told(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "hcl.xyz", Atoms("HCl", [[0, 0, 0], [0, 0, 1.3]]))
    system = System(structure=str(tmp_path / "hcl.xyz"), skip="dynamics")
    results = study(LoadedSystem.load(system), Yielding({(0, 1): 1.3}))
    assert {verdict.name: verdict.outcome for verdict in results.verdicts} == {
        "Vibrations": "passed",
        "Bond stretching": "failed",
        "Torsions": "not applicable",
    }
    told = r"The energy of 1 of 1 bonds falls again .* that of H0-Cl1, 0\.55 eV, at 1\.69 Å"
    assert re.search(told, results.verdicts[1].statement)


def test_a_molecule_that_falls_apart_in_pairs_fails() -> None:
    """No atom is left alone, each has a neighbor, but the molecule is in two."""
    atoms = molecule("H2O2")
    halves = {(0, 2), (1, 3)} if atoms.get_distance(0, 2) < atoms.get_distance(0, 3) else {(0, 3), (1, 2)}
    springs = Springs({pair: float(atoms.get_distance(*pair)) for pair in halves})
    atoms.set_momenta(np.zeros((4, 3)))
    run = langevin_run(springs, atoms, 3000.0, steps=400)
    assert run.verdict.outcome == "failed"
    assert "the molecule had fallen apart" in run.verdict.statement
