"""A study of a system: all physics that applies to it."""

from __future__ import annotations

from collections.abc import Callable

from ase.calculators.calculator import Calculator

from ase_segnn.physics.crystal_study import study_crystal
from ase_segnn.physics.liquid_study import study_liquid
from ase_segnn.physics.molecule_study import study_molecule
from ase_segnn.physics.phonons import check_phonopy
from ase_segnn.physics.results import Results
from ase_segnn.physics.systems import LoadedSystem
from ase_segnn.physics.work import Work

_STUDIES = {"crystal": study_crystal, "liquid": study_liquid, "molecule": study_molecule}


def check_extras(loaded: LoadedSystem) -> None:
    """Refuse a study that needs a package which is not installed.

    Raises
    ------
    ImportError
    """
    if loaded.kind == "crystal" and "phonons" not in loaded.system.skip:
        check_phonopy()


def study(
    loaded: LoadedSystem,
    static: Calculator,
    moving: Calculator | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Results:
    """Compute the physics of a system. A part that cannot be computed gives a verdict, and the others go on.

    Parameters
    ----------
    loaded : the system
    static : calculator of ASE for relaxations and differences of forces; float64
    moving : calculator for dynamics; default: the same
    tell : called with what is computed next

    Raises
    ------
    ImportError
        If a package is missing, before any work.
    """
    check_extras(loaded)
    results = Results(f"{loaded.system.structure} ({loaded.kind}, {loaded.atoms.get_chemical_formula()})")
    _STUDIES[loaded.kind](Work(loaded, static, moving or static, tell, results))
    return results.with_references(loaded.system.reference)
