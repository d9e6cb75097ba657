"""Charge and spin of a structure: the names under which references read them, and how they stay with the structure."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from ase import Atoms

_CHARGE = ("charge", "total_charge")
_MULTIPLICITY = ("multiplicity", "spin")  # "spin" of MACE, ORB and UMA is 2S + 1 as well
_INFO = (*_CHARGE, *_MULTIPLICITY)
_ARRAYS = ("initial_charges", "initial_magmoms")


def charge_of(atoms: Atoms) -> int | None:
    """Return the charge of a structure in e; None if it says nothing.

    It is "charge" or "total_charge" in ``info``, or else the sum of ASE's initial charges.

    Raises
    ------
    ValueError
        If it is no whole number.
    """
    found = _of_info(atoms, _CHARGE)
    if found is None and atoms.has("initial_charges"):
        found = float(atoms.get_initial_charges().sum())
    return _whole(found, "charge")


def multiplicity_of(atoms: Atoms) -> int | None:
    """Return 2S + 1 of a structure; None if it says nothing.

    It is "multiplicity" or "spin" in ``info``, or else one more than the sum of ASE's initial magnetic moments.

    Raises
    ------
    ValueError
        If it is no whole number, or below 1.
    """
    found = _of_info(atoms, _MULTIPLICITY)
    if found is None and atoms.has("initial_magmoms"):
        found = 1 + abs(float(atoms.get_initial_magnetic_moments().sum()))
    number = _whole(found, "multiplicity")
    if number is not None and number < 1:
        raise ValueError(f"a multiplicity is 1 or more, got {number}")
    return number


def known_electrons(atoms: Atoms) -> dict[str, int]:
    """Return "charge" and "multiplicity" of a structure as far as it says them in whole numbers."""
    known = {}
    for name, number_of in (("charge", charge_of), ("multiplicity", multiplicity_of)):
        with suppress(ValueError):
            number = number_of(atoms)
            if number is not None:
                known[name] = number
    return known


def noted_electrons(atoms: Atoms) -> dict[str, Any]:
    """Return what ``info`` of a structure says of charge and spin, which ASE's calculators do not see change."""
    return {name: atoms.info[name] for name in _INFO if name in atoms.info}


def keep_electrons(atoms: Atoms, source: Atoms) -> Atoms:
    """Give a structure what another one of the same atoms says of charge and spin; return the structure."""
    atoms.info |= noted_electrons(source)
    for name in _ARRAYS:
        if source.has(name):
            atoms.set_array(name, source.get_array(name))
    return atoms


def _of_info(atoms: Atoms, names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in atoms.info:
            try:
                return float(atoms.info[name])
            except (TypeError, ValueError):
                raise ValueError(f"the {names[0]} of a structure is a number, got {atoms.info[name]!r}") from None
    return None


def _whole(value: float | None, name: str) -> int | None:
    if value is None:
        return None
    if not np.isclose(value, round(value), atol=1e-3):
        raise ValueError(f"the {name} of a structure is a whole number, got {value:g}")
    return round(value)
