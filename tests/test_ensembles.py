"""Dynamics of the command line: what constraints fix stays fixed, and the temperature is that of what moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixConstraint,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    FixSubsetCom,
    Hookean,
)

from ase_segnn.constraints import check_for_cell
from ase_segnn.ensembles import Ensemble, Motion

KELVIN = 400.0


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    return atoms


def skewed() -> Atoms:
    atoms = bulk("Cu") * (3, 3, 3)
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.05, -0.1, 1.0]]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def carbon_dioxide() -> Atoms:
    return molecule("CO2")  # C, O, O


HALF = list(range(16))
# Structure, constraints, what they take out, and what stays as it was at the start.
CASES: dict[str, tuple[Callable[[], Atoms], list[FixConstraint], int, Callable[[Atoms], Any]]] = {
    "FixAtoms": (crystal, [FixAtoms(HALF)], 48, lambda a: a.positions[HALF]),
    "FixCartesian": (crystal, [FixCartesian(HALF, (1, 0, 1))], 32, lambda a: a.positions[HALF][:, [0, 2]]),
    "FixedPlane": (crystal, [FixedPlane(HALF, (1, 1, 0))], 16, lambda a: a.positions[HALF] @ [1, 1, 0]),
    "FixedLine": (
        crystal,
        [FixedLine(HALF, (0, 1, 1))],
        32,
        lambda a: a.positions[HALF] @ np.array([[1, 0], [0, 1], [0, -1]]),
    ),
    "FixScaled": (skewed, [FixScaled(HALF, (1, 0, 0))], 16, lambda a: a.cell.scaled_positions(a.positions[HALF])[:, 0]),
    "FixScaled, two": (
        skewed,
        [FixScaled(HALF, (1, 0, 1))],
        32,
        lambda a: a.cell.scaled_positions(a.positions[HALF])[:, [0, 2]],
    ),
    "FixScaled, all": (skewed, [FixScaled(HALF)], 48, lambda a: a.positions[HALF]),
    "FixCom": (ethanol, [FixCom()], 3, lambda a: a.get_center_of_mass()),
    "FixBondLengths": (
        ethanol,
        [FixBondLengths([(0, 1), (1, 2)])],
        2,
        lambda a: [a.get_distance(0, 1), a.get_distance(1, 2)],
    ),
    "FixInternals": (
        ethanol,
        [FixInternals(bonds=[[None, [0, 1]]], angles_deg=[[None, [0, 1, 2]]])],
        2,
        lambda a: [a.get_distance(0, 1), a.get_angle(0, 1, 2)],
    ),
    "FixLinearTriatomic": (
        carbon_dioxide,
        [FixLinearTriatomic([(1, 0, 2)])],
        4,
        lambda a: [a.get_distance(0, 1), a.get_distance(0, 2), a.get_distance(1, 2)],
    ),
    "Hookean": (ethanol, [Hookean(0, 1, 1.0, 1.2)], 0, lambda _: 0.0),
    "Hookean to a point": (ethanol, [Hookean(0, (0.0, 0.0, 0.0), 1.0, 1.2)], 0, lambda _: 0.0),
    "two": (crystal, [FixAtoms(HALF[:8]), FixCartesian(HALF[8:], (1, 0, 0))], 32, lambda a: a.positions[HALF[:8]]),
}
INTERNAL = ["FixBondLengths", "FixInternals", "FixLinearTriatomic", "Hookean"]  # leave a structure free as a whole


def prepared(name: str, ensemble: Ensemble, temperature: float = KELVIN) -> Motion:
    make, constraints, *_ = CASES[name]
    atoms = make()
    atoms.set_constraint([constraint.copy() for constraint in constraints])
    atoms.calc = EMT()
    return Motion(atoms, name, ensemble, temperature)


@pytest.mark.parametrize("ensemble", [Ensemble.nve, Ensemble.langevin])
@pytest.mark.parametrize("name", CASES)
def test_what_is_fixed_stays_and_degrees_of_freedom_are_counted(name: str, ensemble: Ensemble) -> None:
    _, _, n_removed, fixed = CASES[name]
    motion = prepared(name, ensemble)
    atoms, rng = motion.atoms, np.random.default_rng(2)
    before, positions = np.array(fixed(atoms)), atoms.positions.copy()
    motion.draw_velocities(rng)
    at_rest = 3 * (ensemble is Ensemble.langevin and name in INTERNAL)  # the center of mass
    assert motion.n_degrees_of_freedom == 3 * len(atoms) - n_removed - at_rest
    twice_the_energy = (atoms.get_momenta() ** 2 / atoms.get_masses()[:, None]).sum()
    assert twice_the_energy == pytest.approx(motion.n_degrees_of_freedom * units.kB * KELVIN)
    motion.dynamics(1.0, 0.05, 0.0, rng).run(30)
    np.testing.assert_allclose(np.array(fixed(atoms)), before, atol=1e-6)
    assert np.abs(atoms.positions - positions).max() > 0.01
    velocities = atoms.get_velocities()
    moved = atoms.copy()  # without the constraints of dynamics
    moved.set_constraint()
    moved.positions += 1e-4 * velocities
    now = np.array(fixed(moved))
    np.testing.assert_allclose(now, np.array(fixed(atoms)), atol=1e-6)  # velocities are within the constraints too
    if at_rest:
        assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_files_show_the_constraints_of_the_structure_only(name: str, tmp_path: Any) -> None:
    motion = prepared(name, Ensemble.langevin)
    given = [type(constraint) for constraint in CASES[name][1]]
    with motion.own_constraints():
        assert [type(constraint) for constraint in motion.atoms.constraints] == given
        ase.io.write(tmp_path / "a.traj", motion.atoms)
    assert [type(constraint) for constraint in ase.io.read(tmp_path / "a.traj").constraints] == given
    assert any(isinstance(c, FixCom) for c in motion.atoms.constraints) == (name in [*INTERNAL, "FixCom"])


@pytest.mark.parametrize(
    "name",
    [
        "FixAtoms",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in CASES
            if name not in ("FixAtoms", "FixLinearTriatomic")
        ),
    ],
)
def test_mean_temperature_of_langevin_dynamics(name: str) -> None:
    motion = prepared(name, Ensemble.langevin)
    rng = np.random.default_rng(0)
    motion.draw_velocities(rng)
    step = 2.0 if len(motion.atoms) > 20 else 0.5
    dynamics = motion.dynamics(step, 0.02 / step * 2, 0.0, rng)
    kelvin: list[float] = []
    dynamics.attach(lambda: kelvin.append(motion.atoms.get_temperature()))
    dynamics.run(2000 if len(motion.atoms) > 20 else 6000)
    # Squared energies of f degrees of freedom spread by 2 / f; values are independent after some 30 steps.
    expected_error = np.sqrt(2 / motion.n_degrees_of_freedom / (len(kelvin) / 30))
    assert np.mean(kelvin[len(kelvin) // 10 :]) == pytest.approx(KELVIN, rel=4 * expected_error)


@pytest.mark.parametrize("name", ["FixAtoms", "FixScaled", "FixBondLengths", "FixInternals", "FixCom"])
def test_energy_is_conserved_within_constraints(name: str) -> None:
    motion = prepared(name, Ensemble.nve)
    motion.draw_velocities(np.random.default_rng(0))
    step = 2.0 if len(motion.atoms) > 20 else 0.2
    energies: list[float] = []
    dynamics = motion.dynamics(step, 0.0, 0.0, np.random.default_rng(0))
    dynamics.attach(lambda: energies.append(motion.atoms.get_total_energy()))
    dynamics.run(150)
    kinetic = motion.n_degrees_of_freedom / 2 * units.kB * KELVIN
    assert np.ptp(energies) < 0.01 * kinetic


@pytest.mark.parametrize("ensemble", [Ensemble.nve, Ensemble.langevin])
@pytest.mark.parametrize("n_atoms", [1, 2, 3])
def test_few_atoms_have_the_temperature_and_only_one_alone_goes_away(ensemble: Ensemble, n_atoms: int) -> None:
    atoms = Atoms("Cu" * n_atoms, [[2.3 * i, 0.1 * i * i, 0.0] for i in range(n_atoms)])
    atoms.calc = EMT()
    motion = Motion(atoms, "few", ensemble, KELVIN)
    rng = np.random.default_rng(0)
    motion.draw_velocities(rng)
    assert atoms.get_temperature() == pytest.approx(KELVIN)
    assert motion.n_degrees_of_freedom == 3 * n_atoms - 3 * (ensemble is Ensemble.langevin and n_atoms > 1)
    motion.dynamics(1.0, 0.01, 0.0, rng).run(20)
    assert np.isfinite(atoms.get_temperature())
    assert (np.abs(atoms.get_momenta().sum(axis=0)).max() > 1e-3) == (n_atoms == 1)


def test_at_zero_kelvin_nothing_is_drawn() -> None:
    motion = prepared("FixAtoms", Ensemble.langevin, temperature=0.0)
    rng = np.random.default_rng(0)
    motion.draw_velocities(rng)
    assert not motion.atoms.get_momenta().any()
    energy = motion.atoms.get_potential_energy()
    motion.dynamics(1.0, 0.05, 0.0, rng).run(30)
    assert motion.atoms.get_total_energy() < energy


def test_kept_velocities_are_within_the_constraints() -> None:
    atoms = crystal()
    atoms.set_momenta(np.ones((32, 3)))
    atoms.set_constraint(FixAtoms(HALF))
    Motion(atoms, "a", Ensemble.langevin, KELVIN).keep_velocities()
    assert not atoms.get_momenta()[HALF].any()
    assert (atoms.get_momenta()[16:] == 1).all()
    atoms.set_constraint()
    Motion(atoms, "a", Ensemble.langevin, KELVIN).keep_velocities()
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10


@pytest.mark.parametrize(
    ("ensemble", "constraints", "message"),
    [
        ("nve", [FixAtoms(range(32))], r"constraints of 'a' \(FixAtoms\) leave nothing to move"),
        ("langevin", [FixAtoms(range(32))], "leave nothing to move"),
        ("npt", [FixAtoms([0])], r"'a' has constraints \(FixAtoms\), and NPT moves all atoms with the cell"),
        ("npt", [FixCom()], "NPT moves all atoms with the cell"),
        ("nve", [FixAtoms([0]), FixCom()], r"\(FixAtoms, FixCom\) that contradict one another"),
        ("nve", [FixAtoms([0]), FixBondLengths([(0, 1)])], "contradict one another"),
        ("nve", [FixBondLengths([(0, 1)]), FixAtoms([0])], "contradict one another"),
        ("langevin", [FixAtoms([0, 1]), FixAtoms([1, 2])], "fix something twice"),
        ("langevin", [FixAtoms([0]), FixCartesian([0], (1, 0, 0))], "fix something twice"),
        ("langevin", [FixedMode(np.ones((32, 3)))], "one degree of freedom per atom out"),
        ("langevin", [FixSubsetCom([0, 1])], "atoms outside the subset; remove FixSubsetCom"),
    ],
)
def test_constraints_that_cannot_be_kept(ensemble: str, constraints: list[FixConstraint], message: str) -> None:
    atoms = crystal()
    atoms.set_constraint(constraints)
    before = atoms.copy()
    with pytest.raises(ValueError, match=message):
        Motion(atoms, "a", Ensemble(ensemble), KELVIN)
    assert atoms == before
    assert len(atoms.constraints) == len(constraints)


def test_npt_needs_a_cell_and_a_temperature() -> None:
    with pytest.raises(ValueError, match="NPT needs a structure that is periodic along all three vectors"):
        Motion(ethanol(), "a", Ensemble.npt, KELVIN)
    with pytest.raises(ValueError, match="NPT needs a --temperature above 0 K"):
        Motion(crystal(), "a", Ensemble.npt, 0.0)


def test_momenta_to_keep() -> None:
    atoms = crystal()
    motion = Motion(atoms, "a", Ensemble.nve, KELVIN)
    with pytest.raises(ValueError, match="'a' has no momenta to keep"):
        motion.keep_velocities()
    atoms.set_momenta(np.full((32, 3), np.nan))
    with pytest.raises(ValueError, match="'a' has momenta that are not finite"):
        motion.keep_velocities()


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        (FixScaled([0]), True),
        (FixScaled([0], (1, 1, 0)), False),
        (FixAtoms([0]), False),
        (FixBondLengths([(0, 1)]), False),
        (Hookean(0, 1, 1.0, 1.2), False),
    ],
)
def test_constraints_in_a_cell_that_changes(constraint: FixConstraint, allowed: bool) -> None:
    atoms = crystal()
    atoms.set_constraint(constraint)
    if allowed:
        check_for_cell(atoms, "a")
    else:
        with pytest.raises(ValueError, match=r"'a' has constraints \(.*\), and --cell moves all atoms with the cell"):
            check_for_cell(atoms, "a")
