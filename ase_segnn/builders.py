"""Structures that are built from a text: ``bulk:Si``, ``molecule:CH3CH2OH``, ``smiles:CCO``."""

from __future__ import annotations

import ase.build
from ase import Atoms

from ase_segnn.smiles import from_smiles

_BUILDERS = ("bulk:", "molecule:", "smiles:")
_FORMS = "write bulk:SYMBOLS, bulk:SYMBOLS:STRUCTURE:A with A in Å, molecule:NAME with a name of ASE, or smiles:SMILES"


def is_built(text: str) -> bool:
    """Whether a text stands for a structure that `built` builds, and not for a file."""
    return text.startswith(_BUILDERS)


def built(text: str) -> Atoms:
    """Build a structure: ``bulk`` and ``molecule`` by ASE, ``smiles`` by `ase_segnn.smiles.from_smiles`.

    >>> built("bulk:Cu:fcc:3.6").cell.cellpar().tolist()
    [3.6, 3.6, 3.6, 90.0, 90.0, 90.0]

    Raises
    ------
    ImportError
        If RDKit is missing for a SMILES.
    ValueError
        If the structure cannot be built.
    """
    builder, _, name = text.partition(":")
    if builder == "smiles":
        return from_smiles(name)
    name, *rest = name.split(":")
    try:
        if builder == "molecule" and not rest:
            molecule: Atoms = ase.build.molecule(name)
            return molecule
        if builder == "bulk" and len(rest) <= 2:
            structure, length = [*rest, None, None][:2]
            return _bulk(name, structure, None if length is None else float(length))
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"ASE cannot build '{text}': {error}; {_FORMS}") from error
    raise ValueError(f"'{text}' has too many parts; {_FORMS}")


def _bulk(name: str, structure: str | None, length: float | None) -> Atoms:
    """Build a crystal in its cubic cell if it has one."""
    try:
        return ase.build.bulk(name, structure, a=length, cubic=True)
    except (RuntimeError, ValueError):
        return ase.build.bulk(name, structure, a=length)
