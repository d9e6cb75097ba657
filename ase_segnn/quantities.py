"""The table of quantities: what energies, forces and stresses are called, their units and shapes, and their errors.

====================  ================  =======  =========  ==================  ================
name                  title             unit     shape      unit of errors      in their names
====================  ================  =======  =========  ==================  ================
energy                energy            eV       ()         meV                 meV
energy_per_atom       energy            eV/atom  ()         meV/atom            meV
forces                force components  eV/Å     (n, 3)     meV/Å               meV_per_A
stress                stress            eV/Å³    (6,)       meV/Å³              meV_per_A3
====================  ================  =======  =========  ==================  ================

The name of an error is made of quantity, measure and unit, such as ``forces_RMSE_meV_per_A``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

LABELS = ("energy", "forces", "stress")  # quantities that frames are labeled with

Measure: TypeAlias = Literal["MAE", "RMSE"]  # mean absolute, root mean square error
MEASURES: tuple[Measure, ...] = ("MAE", "RMSE")
MILLI = 1e3  # errors are shown in thousandths of the unit

# Components of a stress in ASE's order, and their rows and columns in the 3x3 tensor.
COMPONENTS = ("xx", "yy", "zz", "yz", "xz", "xy")
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


@dataclass(frozen=True)
class Quantity:
    """A quantity that a potential predicts.

    Parameters
    ----------
    name : in code, in recipes and in the names of errors
    title : in tables and figures
    unit : of values, which is ASE's
    error_suffix : unit of errors in their names
    trailing : shape of the values of one structure, without the atoms
    per_atom : whether there is one such value for each atom
    """

    name: str
    title: str
    unit: str
    error_suffix: str
    trailing: tuple[int, ...] = ()
    per_atom: bool = False

    @property
    def error_unit(self) -> str:
        """Unit in which errors are shown, such as meV/Å."""
        return f"m{self.unit}"

    @property
    def heading(self) -> str:
        """Title and unit of values, such as "stress, eV/Å³"."""
        return f"{self.title}, {self.unit}"

    @property
    def error_heading(self) -> str:
        """Title and unit of errors, such as "stress, meV/Å³"."""
        return f"{self.title}, {self.error_unit}"

    def shape(self, n_atoms: int) -> tuple[int, ...]:
        """Shape of the values of a structure, the stress by its six components."""
        return (n_atoms, *self.trailing) if self.per_atom else self.trailing

    def error_name(self, measure: Measure) -> str:
        """Name of an error.

        >>> QUANTITIES["forces"].error_name("RMSE")
        'forces_RMSE_meV_per_A'
        """
        return f"{self.name}_{measure}_{self.error_suffix}"

    def column(self, measure: Measure) -> str:
        """Heading of a column of errors.

        >>> QUANTITIES["energy_per_atom"].column("MAE")
        'energy MAE, meV/atom'
        """
        return f"{self.title} {measure}, {self.error_unit}"


QUANTITIES: Mapping[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity("energy", "energy", "eV", "meV"),
        Quantity("energy_per_atom", "energy", "eV/atom", "meV"),
        Quantity("forces", "force components", "eV/Å", "meV_per_A", (3,), per_atom=True),
        Quantity("stress", "stress", "eV/Å³", "meV_per_A3", (6,)),
    )
}
# Where frames of different sizes are compared.
SIZE_INDEPENDENT = ("energy_per_atom", "forces", "stress")
VIRIAL_UNIT = "eV"  # of minus the stress times the volume


def shown_errors(errors: Mapping[str, float], names: Iterable[str] = tuple(QUANTITIES)) -> list[str]:
    """Root mean square errors with their units, of the quantities that have one.

    Parameters
    ----------
    errors : name of the error -> value
    names : quantities, in the order of the result

    Examples
    --------
    >>> shown_errors({"stress_RMSE_meV_per_A3": 0.5, "energy_RMSE_meV": 1.25})
    ['1.25 meV', '0.50 meV/Å³']
    """
    given = ((QUANTITIES[name], errors.get(QUANTITIES[name].error_name("RMSE"))) for name in names)
    return [f"{value:.2f} {quantity.error_unit}" for quantity, value in given if value is not None]
