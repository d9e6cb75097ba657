"""References that label structures: GFN2-xTB, or any ASE calculator of a user's function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols
from ase.geometry import complete_cell

_LAST_ELEMENT = 86  # radon, of the parameters of GFN2
# Å between opposite faces of a cell. tblite has no k-points: at the Γ point alone silicon is 0.03, 0.5 and 4.7 eV per
# atom higher in cells of 9.4, 5.4 and 3.1 Å than in one of 10.9 Å.
_THINNEST_CELL = 10.0


class Reference(Protocol):
    """A source of labels.

    Attributes
    ----------
    description : method and version, for model cards
    """

    @property
    def description(self) -> str:
        """Method and version."""

    def check(self, structures: Iterable[tuple[str, Atoms]]) -> None:
        """Refuse structures that the reference cannot compute, before any work.

        Parameters
        ----------
        structures : source, for messages, and structure

        Raises
        ------
        ValueError
            The error names the first such structure.
        """

    def calculator(self, atoms: Atoms) -> BaseCalculator:
        """Return a calculator for a structure and others of the same atoms."""


def find_reference(name: str, charge: int | None = None, multiplicity: int | None = None) -> Reference:
    """Return the reference of a name.

    Parameters
    ----------
    name : "gfn2"; or file and function, such as ``my_file.py:make_calculator``: the function takes no arguments and
        returns an ASE calculator. The file is run
    charge : e, of each structure; for "gfn2" alone, 0 by default
    multiplicity : 2S + 1; for "gfn2" alone, the lowest by default

    Raises
    ------
    ImportError
        If tblite is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the name is of another form, the file has no such function, or the function returns no calculator.
    """
    if name == "gfn2":
        return GFN2(charge or 0, multiplicity)
    if charge is not None or multiplicity is not None:
        raise ValueError(
            f"charge and multiplicity are for the reference gfn2; for '{name}' set them in the calculator itself"
        )
    return UserReference(name)


@dataclass(frozen=True)
class GFN2:
    """GFN2-xTB by tblite: molecules of any elements up to radon, and periodic cells that are large enough.

    Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 2019, 15, 1652.

    Parameters
    ----------
    charge : e, of each structure
    multiplicity : 2S + 1; None for the lowest, 1 or 2

    Raises
    ------
    ImportError
        If tblite is missing.
    """

    charge: int = 0
    multiplicity: int | None = None

    def __post_init__(self) -> None:
        try:
            import tblite.ase  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                f'the reference gfn2 needs the package tblite: pip install "ase-segnn[learn]" (missing: {error.name})'
            ) from error

    @property
    def description(self) -> str:
        """Method and version."""
        charge = f", charge {self.charge:+d}" if self.charge else ""
        spin = f", multiplicity {self.multiplicity}" if self.multiplicity else ""
        return f"GFN2-xTB (tblite {version('tblite')}{charge}{spin})"

    def check(self, structures: Iterable[tuple[str, Atoms]]) -> None:
        """Refuse other elements, slabs and wires, small cells, and a multiplicity that the electrons cannot have."""
        for source, atoms in structures:
            foreign = sorted(number for number in set(atoms.numbers.tolist()) if number > _LAST_ELEMENT)
            if foreign:
                symbols = ", ".join(chemical_symbols[number] for number in foreign)
                raise ValueError(f"gfn2 knows the elements from H to Rn, {source} has {symbols}; {_OTHER}")
            if atoms.pbc.any() and not atoms.pbc.all():
                raise ValueError(
                    f"gfn2 repeats a cell along all vectors or none, {source} has pbc {atoms.pbc.tolist()}; {_OTHER}"
                )
            if atoms.pbc.all() and _thickness(atoms) < _THINNEST_CELL:
                raise ValueError(
                    f"gfn2 has no k-points and needs cells of at least {_THINNEST_CELL:g} Å between opposite faces, "
                    f"{source} has {_thickness(atoms):.2f} Å; {_OTHER}"
                )
            n_electrons = int(atoms.numbers.sum()) - self.charge
            if self.multiplicity is not None and (n_electrons + self.multiplicity) % 2 == 0:
                raise ValueError(
                    f"multiplicity {self.multiplicity} does not go with the {n_electrons} electrons of {source}; "
                    "leave it out for the lowest"
                )

    def calculator(self, atoms: Atoms) -> BaseCalculator:
        """Return a new calculator, which knows no earlier structure, so that labels do not depend on their order."""
        from tblite.ase import TBLite

        lowest = 1 + (int(atoms.numbers.sum()) - self.charge) % 2
        return TBLite(method="GFN2-xTB", charge=self.charge, multiplicity=self.multiplicity or lowest, verbosity=0)


class UserReference:
    """The calculator that a function of a user's file returns. The function is called once.

    Parameters
    ----------
    name : file and function, such as ``my_file.py:make_calculator``

    Raises
    ------
    FileNotFoundError, ValueError
        See `find_reference`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calculator = _make(name)

    @property
    def description(self) -> str:
        """Function and class of the calculator."""
        file, _, function = self._name.rpartition(":")
        return f"{Path(file).name}:{function} ({type(self._calculator).__name__})"

    def check(self, structures: Iterable[tuple[str, Atoms]]) -> None:
        """Refuse nothing: what a user's calculator can do shows at the first labels."""

    def calculator(self, atoms: Atoms) -> BaseCalculator:  # noqa: ARG002  # one for all
        """Return the calculator."""
        return self._calculator


_OTHER = "leave out such frames or take another reference, such as my_file.py:make_calculator"


def _make(name: str) -> BaseCalculator:
    file, colon, function = name.rpartition(":")
    if not colon or Path(file).suffix != ".py":
        raise ValueError(
            f"a reference is gfn2, or a function that returns an ASE calculator, such as my_file.py:make_calculator; "
            f"got '{name}'"
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}' with the reference '{function}'")
    make = getattr(_run(path), function, None)
    if not callable(make):
        raise ValueError(f"'{path}' has no function '{function}' that makes a calculator")  # noqa: TRY004  # of a file
    calculator = _called(make, name)
    if not isinstance(calculator, BaseCalculator):
        raise ValueError(f"'{name}' returned a {type(calculator).__name__}; an ASE calculator is needed")  # noqa: TRY004
    return calculator


def _run(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file raises whatever it does
        raise ValueError(f"'{path}' cannot be run: {type(error).__name__}: {error}") from error
    return module


def _called(make: Callable[[], Any], name: str) -> Any:
    try:
        return make()
    except Exception as error:  # a user's function raises whatever it does
        raise ValueError(f"'{name}' made no calculator: {type(error).__name__}: {error}") from error


def _thickness(atoms: Atoms) -> float:
    """Smallest distance of opposite faces of the cell, Å."""
    cell = complete_cell(atoms.cell)
    return float(1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())
