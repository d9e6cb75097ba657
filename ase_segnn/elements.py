"""Check of the elements of a structure; an error names the shipped potentials that would fit."""

from __future__ import annotations

from collections.abc import Mapping

from ase import Atoms
from ase.data import chemical_symbols

from ase_segnn.potentials import fitting_potentials


def check_elements(atoms: Atoms, elements: Mapping[int, str], potential_name: str) -> None:
    """Refuse structures with elements that a potential does not know.

    Parameters
    ----------
    atoms : any
    elements : atomic number -> symbol of those it knows
    potential_name : for the message

    Raises
    ------
    ValueError
    """
    present = set(atoms.numbers.tolist())
    unknown = sorted(present.difference(elements))
    if unknown:
        raise ValueError(
            f"{potential_name} knows {', '.join(elements.values())} only, this structure also has "
            f"{', '.join(map(_symbol, unknown))}; {_advice(sorted(map(_symbol, present)))}"
        )


def _advice(symbols: list[str]) -> str:
    """Say which shipped potentials know all the elements of a structure."""
    names = ", ".join(f"'{name}'" for name in fitting_potentials(symbols))
    if names:
        return f"shipped with {', '.join(symbols)}: {names}, see 'ase-segnn info' for what they are made for"
    return (
        f"no shipped potential has {', '.join(symbols)} together; 'ase-segnn train' makes one from labeled frames, "
        "'ase-segnn info' lists the shipped ones"
    )


def _symbol(number: int) -> str:
    return chemical_symbols[number] if 0 <= number < len(chemical_symbols) else f"Z={number}"
