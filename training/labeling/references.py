"""References that label structures: GFN2-xTB, EMT, potentials of other packages, or any ASE calculator of a user."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.data import atomic_numbers, chemical_symbols
from ase.geometry import complete_cell

from ase_segnn.electrons import charge_of, known_electrons, multiplicity_of, noted_electrons

from .labeling import reason_of

_LAST_ELEMENT = 86  # radon, of the parameters of GFN2
# Å between opposite faces of a cell. tblite has no k-points: at the Γ point alone silicon is 0.03, 0.5 and 4.7 eV per
# atom higher in cells of 9.4, 5.4 and 3.1 Å than in one of 10.9 Å.
_THINNEST_CELL = 10.0
_OTHER = "leave out such frames or take another reference, such as my_file.py:make_calculator"
_IN_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")


class Reference(Protocol):
    """A source of labels.

    Attributes
    ----------
    description : method and version, for model cards
    knows_atoms : whether the energy of an atom alone means something; it does not for most learned potentials
    """

    @property
    def knows_atoms(self) -> bool:
        """Whether the energy of an atom alone means something."""

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
    name : one of

        - "gfn2": GFN2-xTB by tblite
        - "emt": effective medium theory by ASE
        - file and function, such as ``my_file.py:make_calculator``: the function takes no arguments and returns an ASE
          calculator. The file is run
        - module and class or function, such as ``ase.calculators.lj:LennardJones``, to be called without arguments.
          The module is installed, or lies in the working directory
        - a potential of another package: ``mace:FILE``, ``sevennet:NAME`` or ``sevennet:FILE``, ``chgnet`` or
          ``chgnet:VERSION``, ``orb:NAME``, ``so3lr``; those that know charges read "charge" in ``info``
        - a potential of this package: ``segnn:NAME`` or ``segnn:FILE``, in float64
    charge : e, of each structure, for "gfn2" alone; by default what a structure says, or else 0
    multiplicity : 2S + 1, for "gfn2" alone; by default what a structure says, or else the lowest

    Raises
    ------
    ImportError
        If a package or module is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the name is of another form, or no calculator comes of it.
    """
    if name == "gfn2":
        return GFN2(charge, multiplicity)
    if charge is not None or multiplicity is not None:
        raise ValueError(
            f"charge and multiplicity are for the reference gfn2; for '{name}' set them in the calculator itself"
        )
    if name == "emt":
        return EffectiveMedium()
    prefix, colon, rest = name.partition(":")
    if prefix in _PACKAGES and bool(rest) >= bool(colon or prefix not in _ONE_OF_A_KIND):
        return _of_package(prefix, rest)
    file, _, function = name.rpartition(":")
    if Path(file).suffix == ".py":
        return _of_file(name, Path(file).expanduser(), function)
    in_module = _IN_MODULE.fullmatch(name)
    if in_module:
        return _of_module(name, in_module["module"], in_module["attribute"])
    raise ValueError(
        "a reference is gfn2, emt, FILE.py:FUNCTION, package.module:FUNCTION, mace:FILE, sevennet:NAME, "
        f"sevennet:FILE, chgnet, chgnet:VERSION, orb:NAME, so3lr, segnn:NAME or segnn:FILE; got '{name}'"
    )


@dataclass(frozen=True)
class GFN2:
    """GFN2-xTB by tblite: molecules of any elements up to radon, and periodic cells that are large enough.

    Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 2019, 15, 1652.

    Parameters
    ----------
    charge : e, of each structure; None for what it says itself, see `ase_segnn.electrons`, or else 0
    multiplicity : 2S + 1; None for what a structure says, or else the lowest, 1 or 2

    Raises
    ------
    ImportError
        If tblite is missing.
    """

    charge: int | None = None
    multiplicity: int | None = None
    knows_atoms: ClassVar[bool] = True

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
        """Refuse other elements, slabs and wires, small cells, and charges and multiplicities that cannot be."""
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
            for name, wanted in (("charge", self.charge), ("multiplicity", self.multiplicity)):
                told = known_electrons(atoms).get(name)
                if wanted is not None and told is not None and wanted != told:
                    raise ValueError(f"{name} {wanted} is asked for, and {source} has {told}; leave out the option")
            try:
                charge, multiplicity = self._electrons(atoms)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from error
            n_electrons = int(atoms.numbers.sum()) - charge
            if multiplicity is not None and (n_electrons + multiplicity) % 2 == 0:
                raise ValueError(
                    f"multiplicity {multiplicity} does not go with the {n_electrons} electrons of {source}; leave it "
                    "out for the lowest"
                )

    def calculator(self, atoms: Atoms) -> BaseCalculator:
        """Return a new calculator, which knows no earlier structure, so that labels do not depend on their order."""
        from tblite.ase import TBLite

        charge, multiplicity = self._electrons(atoms)
        lowest = 1 + (int(atoms.numbers.sum()) - charge) % 2
        return TBLite(method="GFN2-xTB", charge=charge, multiplicity=multiplicity or lowest, verbosity=0)

    def _electrons(self, atoms: Atoms) -> tuple[int, int | None]:
        """Charge and multiplicity of a structure, the latter None for the lowest."""
        charge = charge_of(atoms) if self.charge is None else self.charge
        return charge or 0, multiplicity_of(atoms) if self.multiplicity is None else self.multiplicity


class EffectiveMedium:
    """Effective medium theory by ASE: late transition metals and aluminum, for tests and first steps."""

    knows_atoms = True

    @property
    def description(self) -> str:
        """Method and version."""
        return f"EMT ({_versioned('ase')})"

    def check(self, structures: Iterable[tuple[str, Atoms]]) -> None:
        """Refuse other elements."""
        from ase.calculators.emt import parameters

        _check_elements("emt", parameters, structures)

    def calculator(self, atoms: Atoms) -> BaseCalculator:  # noqa: ARG002  # the same for all
        """Return a new calculator, which knows no earlier structure, so that labels do not depend on their order."""
        from ase.calculators.emt import EMT

        return EMT()


class OneCalculator:
    """A calculator for all structures.

    Parameters
    ----------
    name : of the reference
    calculator : that labels
    description : method and version, for model cards
    elements : that the calculator knows; None to let the first labels show
    knows_atoms : see `Reference`
    """

    def __init__(
        self,
        name: str,
        calculator: BaseCalculator,
        description: str,
        elements: Collection[str] | None = None,
        *,
        knows_atoms: bool = True,
    ) -> None:
        self._name, self._calculator, self._elements, self.knows_atoms = name, calculator, elements, knows_atoms
        self._noted: dict[str, Any] = {}
        self.description = description

    def check(self, structures: Iterable[tuple[str, Atoms]]) -> None:
        """Refuse other elements, if the elements of the calculator are known."""
        if self._elements is not None:
            _check_elements(self._name, self._elements, structures)

    def calculator(self, atoms: Atoms) -> BaseCalculator:
        """Return the calculator, without results of a structure of another charge or spin."""
        noted = noted_electrons(atoms)
        if noted != self._noted and isinstance(self._calculator, Calculator):
            self._calculator.reset()
        self._noted = noted
        return self._calculator


# ---- functions and classes of a user


def _of_file(name: str, path: Path, function: str) -> OneCalculator:
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}' with the reference '{function}'")
    make = getattr(_run(path), function, None)
    if not callable(make):
        raise ValueError(f"'{path}' has no function '{function}' that makes a calculator")  # noqa: TRY004  # of a file
    calculator = _called(make, name)
    return OneCalculator(name, calculator, f"{path.name}:{function} ({type(calculator).__name__})")


def _of_module(name: str, module: str, attribute: str) -> OneCalculator:
    with _working_directory_on_path():
        try:
            make = getattr(import_module(module), attribute, None)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                raise ImportError(
                    f"there is no module '{error.name}' for the reference '{name}', neither installed nor in the "
                    "working directory; install the package, or write FILE.py:FUNCTION"
                ) from error
            raise ImportError(f"the module '{module}' of the reference '{name}' cannot be imported: {error}") from error
        except Exception as error:  # a user's module raises whatever it does
            raise ValueError(f"'{module}' cannot be run: {reason_of(error)}") from error
        if not callable(make):
            raise ValueError(  # noqa: TRY004  # of a module
                f"the module '{module}' has no function or class '{attribute}' that makes a calculator"
            )
        calculator = _called(make, name)
    kind = type(calculator).__name__
    packages = packages_distributions().get(module.partition(".")[0], [])[:1]
    details = ", ".join([*([kind] if kind != attribute else []), *map(_versioned, packages)])
    return OneCalculator(name, calculator, f"{name} ({details})" if details else name)


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _run(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file raises whatever it does
        raise ValueError(f"'{path}' cannot be run: {reason_of(error)}") from error
    return module


def _called(make: Callable[[], Any], name: str) -> BaseCalculator:
    try:
        calculator = make()
    except Exception as error:  # a user's function raises whatever it does
        raise ValueError(f"'{name}' made no calculator: {reason_of(error)}") from error
    if not isinstance(calculator, BaseCalculator):
        raise ValueError(f"'{name}' returned a {type(calculator).__name__}; an ASE calculator is needed")  # noqa: TRY004
    return calculator


# ---- potentials of packages


def _mace(file: str) -> Any:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}' for the reference mace")
    calculator = import_module("mace.calculators").MACECalculator
    return calculator(model_paths=str(path), device=_device(), default_dtype="float64")


def _sevennet(name: str) -> Any:
    return import_module("sevenn.calculator").SevenNetCalculator(name)


def _chgnet(model_version: str) -> Any:
    calculator = import_module("chgnet.model.dynamics").CHGNetCalculator
    chosen = {"model_name": model_version} if model_version else {}
    return calculator(import_module("chgnet.model.model").CHGNet.load(verbose=False, **chosen))


def _orb(name: str) -> Any:
    known = import_module("orb_models.forcefield.pretrained")
    load = getattr(known, name.replace("-", "_"), None)
    if not callable(load):
        raise ValueError(f"{known.__name__} has no '{name}'; a name is such as orb-v3-conservative-inf-omat")  # noqa: TRY004
    device = _device()
    loaded = load(device=device, precision="float64")
    if isinstance(loaded, tuple):  # newer versions: the model, and what makes its graphs
        return import_module("orb_models.forcefield.inference.calculator").ORBCalculator(*loaded, device=device)
    return import_module("orb_models.forcefield.calculator").ORBCalculator(loaded, device=device)


def _so3lr(_: str) -> Any:
    return import_module("so3krates_torch.calculator.so3").SO3LRCalculator(
        r_max_lr=12.0,  # Å, of electrostatics and dispersion, the damping length of the latter as published
        dispersion_energy_cutoff_lr_damping=2.0,
        default_dtype="float64",
        device=_device(),
    )


def _segnn(name: str) -> Any:
    from ase_segnn.calculator import SEGNNCalculator

    return SEGNNCalculator(name, dtype="float64")


# prefix -> method, name on PyPI, and function that makes a calculator of what follows the colon
_PACKAGES: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "mace": ("MACE", "mace-torch", _mace),
    "sevennet": ("SevenNet", "sevenn", _sevennet),
    "chgnet": ("CHGNet", "chgnet", _chgnet),
    "orb": ("ORB", "orb-models", _orb),
    "segnn": ("SEGNN", "ase-segnn", _segnn),
    "so3lr": ("SO3LR", "so3krates-torch", _so3lr),
}
_ELEMENTS = {"so3lr": ("H", "C", "N", "O", "F", "P", "S", "Cl")}
_ONE_OF_A_KIND = ("chgnet", "so3lr")  # that need no name of a model


def _of_package(prefix: str, rest: str) -> OneCalculator:
    method, package, make = _PACKAGES[prefix]
    name = f"{prefix}:{rest}" if rest else prefix
    try:
        calculator = make(rest)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the reference {prefix} needs the package {package}: pip install {package} (missing: {error.name})"
        ) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # packages raise whatever they stumble over
        raise ValueError(f"'{name}' made no calculator: {reason_of(error)}") from error
    which = f" {Path(rest).name}" if rest else ""
    elements = calculator.potential.elements if prefix == "segnn" else _ELEMENTS.get(prefix)
    description = f"{method}{which} ({_versioned(package)})"
    return OneCalculator(prefix, calculator, description, elements, knows_atoms=False)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- what several references share


def _versioned(package: str) -> str:
    """Return name and version of a package, or the name alone if no version is known."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _check_elements(name: str, known: Collection[str], structures: Iterable[tuple[str, Atoms]]) -> None:
    for source, atoms in structures:
        foreign = sorted(set(atoms.symbols) - set(known), key=atomic_numbers.__getitem__)
        if foreign:
            elements = ", ".join(sorted(known, key=atomic_numbers.__getitem__))
            raise ValueError(f"{name} knows the elements {elements}, {source} has {', '.join(foreign)}; {_OTHER}")


def _thickness(atoms: Atoms) -> float:
    """Smallest distance of opposite faces of the cell, Å."""
    cell = complete_cell(atoms.cell)
    return float(1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())
