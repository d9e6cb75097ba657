"""What structures say of charge and spin."""

from __future__ import annotations

from typing import Any

import pytest
from ase import Atoms
from ase.build import molecule

from ase_segnn.electrons import charge_of, keep_electrons, known_electrons, multiplicity_of, noted_electrons


def saying(**info: Any) -> Atoms:
    atoms = molecule("H2O")
    atoms.info = info
    return atoms


@pytest.mark.parametrize(
    ("info", "charge", "multiplicity"),
    [
        ({}, None, None),
        ({"charge": -1}, -1, None),
        ({"total_charge": 2.0, "spin": 3}, 2, 3),
        ({"charge": 0, "total_charge": 5, "multiplicity": 1, "spin": 3}, 0, 1),
        ({"charge": "1"}, 1, None),
    ],
)
def test_info_says_charge_and_multiplicity(info: dict[str, Any], charge: int | None, multiplicity: int | None) -> None:
    assert charge_of(saying(**info)) == charge
    assert multiplicity_of(saying(**info)) == multiplicity


def test_initial_charges_and_moments_say_them_where_info_does_not() -> None:
    atoms = molecule("H2O")
    atoms.set_initial_charges([0.4, 0.3, 0.2999])
    atoms.set_initial_magnetic_moments([-1.0, -1.0, 0.0])
    assert known_electrons(atoms) == {"charge": 1, "multiplicity": 3}
    atoms.info["charge"] = -1
    assert charge_of(atoms) == -1


@pytest.mark.parametrize("info", [{"charge": 0.5}, {"charge": "much"}, {"multiplicity": 0}, {"spin": None}])
def test_what_is_no_such_number_is_an_error_or_unknown(info: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the (charge|multiplicity)|a multiplicity"):
        _ = charge_of(saying(**info)), multiplicity_of(saying(**info))
    assert known_electrons(saying(**info)) == {}


def test_another_structure_says_the_same() -> None:
    source = saying(charge=1, spin=2, energy=3.0)
    source.set_initial_charges([1, 0, 0])
    atoms = keep_electrons(molecule("H2O"), source)
    assert atoms.info == noted_electrons(atoms) == {"charge": 1, "spin": 2}
    assert atoms.get_initial_charges().tolist() == [1, 0, 0]
