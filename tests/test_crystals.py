"""Physics of crystals: lattice, elasticity, defects and phonons of EMT copper, by other routes to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.optimize import BFGS

from ase_segnn.physics.crystals import ElasticConstants, elastic_constants, fit_cubic, relax
from ase_segnn.physics.defects import is_slab, slab_energy, supercell, surface_energy, vacancy_energy
from ase_segnn.physics.phonons import phonons

STRETCH = [0.96, 0.98, 1.02, 1.04]


@pytest.fixture(scope="module")
def copper() -> Atoms:
    return relax(EMT(), bulk("Cu", cubic=True, a=3.7), cell=True)


def test_lattice_and_elastic_constants_of_copper(copper: Atoms) -> None:
    """EMT's lattice constant is 3.59 Å, its bulk modulus 134 GPa, see the tutorial of ASE."""
    elastic = elastic_constants(EMT(), copper)
    assert copper.cell[0, 0] == pytest.approx(3.59, abs=0.001)
    assert elastic.bulk_modulus == pytest.approx(134, rel=0.01)
    assert elastic.is_cubic
    assert elastic.is_stable
    c = elastic.entries
    assert c.keys() == {"C11", "C12", "C44"}
    assert (c["C11"] + 2 * c["C12"]) / 3 == pytest.approx(elastic.bulk_modulus, rel=1e-3)
    volumes, energies = [], []
    for scale in np.linspace(0.98, 1.02, 7):
        scaled = copper.copy()
        scaled.set_cell(scale * copper.cell, scale_atoms=True)
        scaled.calc = EMT()
        volumes.append(scaled.get_volume())
        energies.append(scaled.get_potential_energy())
    assert EquationOfState(volumes, energies).fit()[2] / units.GPa == pytest.approx(elastic.bulk_modulus, rel=0.01)
    shear = 0.01  # energy V C44 γ² / 2
    sheared = copper.copy()
    sheared.set_cell(copper.cell.array @ [[1, shear / 2, 0], [shear / 2, 1, 0], [0, 0, 1]], scale_atoms=True)
    sheared.calc = EMT()
    gained = sheared.get_potential_energy() - copper.get_potential_energy()
    assert 2 * gained / shear**2 / copper.get_volume() / units.GPa == pytest.approx(c["C44"], rel=0.02)


def test_constants_that_are_not_cubic_are_all_told() -> None:
    matrix = np.diag([300.0, 200, 200, 60, 60, 50])
    matrix[:3, :3] += 50 * (1 - np.eye(3))
    elastic = ElasticConstants(matrix)
    assert not elastic.is_cubic
    assert elastic.entries == {
        "C11": 300,
        "C12": 50,
        "C13": 50,
        "C22": 200,
        "C23": 50,
        "C33": 200,
        "C44": 60,
        "C55": 60,
        "C66": 50,
    }
    assert not ElasticConstants(matrix - 80 * np.eye(6)).is_stable


def test_atoms_relax_in_a_strained_crystal_unless_they_are_not_to() -> None:
    """A shear moves the two sublattices of an ordered alloy of low symmetry apart, which lowers the energy."""
    alloy = bulk("Cu", cubic=True, a=3.8)
    alloy.symbols[0] = "Au"
    alloy.rattle(0.02, seed=3)
    alloy = relax(EMT(), alloy, cell=True)
    free, clamped = (elastic_constants(EMT(), alloy, relax_atoms=relaxed) for relaxed in (True, False))
    assert np.trace(free.matrix_GPa) < np.trace(clamped.matrix_GPa) + 1e-6
    silver = bulk("Ag", "diamond", a=6.2, cubic=True)  # not stable, but its sublattices move under shear
    free, clamped = (elastic_constants(EMT(), silver, relax_atoms=relaxed) for relaxed in (True, False))
    assert clamped.cubic["C44"] > free.cubic["C44"] + 1


def test_constants_are_fitted_to_strained_frames(copper: Atoms) -> None:
    frames = []
    for component in range(6):
        for stretch in STRETCH:
            deformation = np.eye(3)
            if component < 3:
                deformation[component, component] = stretch
            else:
                i, j = [(1, 2), (0, 2), (0, 1)][component - 3]
                deformation[i, j] = stretch - 1
            frames.append(copper.copy())
            frames[-1].set_cell(copper.cell.array @ deformation, scale_atoms=True)
            frames[-1].calc = EMT()
    cells = [frame.cell.array for frame in frames]
    fit = fit_cubic(cells, [frame.get_stress(voigt=False) for frame in frames])
    expected = elastic_constants(EMT(), copper).cubic
    assert fit.length == pytest.approx(copper.cell[0, 0], rel=1e-4)
    assert fit.elastic.cubic == pytest.approx(expected, rel=0.02)
    with pytest.raises(ValueError, match=r"4 frames with strains up to 0.06 do not determine elastic constants; give"):
        fit_cubic(cells[:4], [np.zeros((3, 3))] * 4)


def test_what_does_not_relax_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ase_segnn.physics.crystals._MOST_STEPS", 1)
    with pytest.raises(RuntimeError, match=r"Cu4 did not relax to 0.0001 eV/Å in 1 steps; start nearer"):
        relax(EMT(), bulk("Cu", cubic=True, a=3.7), cell=True)


def test_vacancy_of_copper(copper: Atoms) -> None:
    large = copper.repeat(3)
    large.calc = EMT()
    perfect = large.get_potential_energy()
    del large[17]
    large.calc = EMT()
    with BFGS(large, logfile=None) as optimizer:
        optimizer.run(fmax=0.01)
    expected = large.get_potential_energy() - 107 / 108 * perfect
    assert vacancy_energy(EMT(), copper) == pytest.approx(expected, abs=1e-3)
    alloy = copper.copy()
    alloy.symbols[0] = "Au"
    with pytest.raises(ValueError, match="a vacancy of AuCu3 has an energy only with chemical potentials"):
        vacancy_energy(EMT(), alloy)


@pytest.mark.parametrize(("indices", "build"), [((1, 0, 0), fcc100), ((1, 1, 0), fcc110), ((1, 1, 1), fcc111)])
def test_surfaces_of_copper_equal_those_of_ase(copper: Atoms, indices: tuple[int, int, int], build: object) -> None:
    slab = build("Cu", (1, 1, 12), a=copper.cell[0, 0], vacuum=8.0)
    slab.pbc = True
    slab.calc = EMT()
    with BFGS(slab, logfile=None) as optimizer:
        optimizer.run(fmax=0.01)
    expected = slab_energy(slab, slab.get_potential_energy(), copper.get_potential_energy() / 4)
    assert surface_energy(EMT(), copper, indices) == pytest.approx(expected, rel=0.005)
    assert is_slab(slab)
    assert not is_slab(copper)


def test_a_surface_is_cut_where_that_costs_least() -> None:
    """Of two cuts between (111) planes of diamond, one breaks one bond per atom, the other three."""
    from ase.calculators.lj import LennardJones  # bonds to nearest neighbors only

    crystal = bulk("Si", cubic=True, a=5.43)
    bond = 5.43 * np.sqrt(3) / 4
    calculator = LennardJones(sigma=bond / 2 ** (1 / 6), epsilon=1.0, rc=3.0, ro=2.6, smooth=True)
    area = 5.43**2 * np.sqrt(3) / 4  # per atom of a (111) plane
    per_bond = surface_energy(calculator, crystal, (1, 1, 1)) * area / (units.m**2 / units.J)
    assert per_bond == pytest.approx(0.5, rel=0.02)


def test_supercells_are_as_long_as_asked_for() -> None:
    skewed = bulk("Cu")
    heights = 1 / np.linalg.norm(supercell(skewed, 9.0).cell.reciprocal().array, axis=1)
    assert (heights >= 9.0 - 1e-6).all()
    assert (heights < 9.0 + 3.0).all()


def test_phonons_of_copper(copper: Atoms) -> None:
    """At X neighboring (100) planes move against each other, which the cubic cell holds."""
    pytest.importorskip("phonopy")
    found = phonons(EMT(), copper, least_length=7.0)
    assert not found.has_imaginary
    assert np.abs(found.at["G"]).max() < 1e-3
    expected = []
    for axis in (0, 2):
        move = np.zeros((4, 3))
        move[:, axis] = 0.01 * np.where(copper.positions[:, 2] > 0.1, -1, 1)
        moved = copper.copy()
        moved.positions += move
        moved.calc = EMT()
        stiffness = -(moved.get_forces() * move).sum() / (move**2).sum()  # eV/Å²
        omega = np.sqrt(stiffness / copper.get_masses()[0])
        expected.append(omega * units.second / (2 * np.pi) / 1e12)
    np.testing.assert_allclose(found.at["X"], [expected[0], *expected], rtol=0.01)
    unstable = bulk("Cu", "bcc", a=2.87, cubic=True)
    assert phonons(EMT(), unstable, least_length=7.0).has_imaginary
