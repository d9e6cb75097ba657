"""Constraints of ASE in dynamics and relaxations: checks, and corrected forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
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
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
# Constraints on each of their atoms alone.
_LOCAL = (FixAtoms, FixCartesian, FixedLine, FixedPlane)
_MISTAKEN = {
    FixedMode: "ASE takes one degree of freedom per atom out, where it should be one",
    FixSubsetCom: "ASE moves atoms outside the subset",
}


def check_for_dynamics(atoms: Atoms, name: str) -> None:
    """Refuse constraints that ASE cannot keep together, or with degrees of freedom that ASE miscounts.

    Parameters
    ----------
    atoms : not changed
    name : of the structure, for messages

    Raises
    ------
    ValueError
    """
    if not atoms.constraints:
        return
    described = f"'{name}' has constraints ({names_of(atoms)})"
    for kind, reason in _MISTAKEN.items():
        if any(isinstance(constraint, kind) for constraint in atoms.constraints):
            raise ValueError(f"{described} that dynamics cannot keep: {reason}; remove {kind.__name__}")
    constraints = for_dynamics(atoms)
    try:
        atoms.get_number_of_degrees_of_freedom()
    except NotImplementedError:
        raise ValueError(
            f"{described} whose degrees of freedom ASE does not count, so that no temperature is right; remove them, "
            "or take others"
        ) from None
    drawn = np.random.default_rng(0).standard_normal((len(atoms), 3)) * atoms.get_masses()[:, None]
    once = _adjusted(atoms, drawn, constraints)
    if np.abs(_adjusted(atoms, once, constraints) - once).max() > 1e-6 * np.abs(drawn).max():
        raise ValueError(
            f"{described} that contradict one another: ASE applies them in turn, and one undoes another; "
            "give each atom to one of them"
        )
    local = [constraint for constraint in constraints if isinstance(constraint, _LOCAL)]
    # The axes x, y and z at each atom after the constraints: (N, 3, 3).
    axes = np.stack([_adjusted(atoms, np.tile(axis, (len(atoms), 1)), local) for axis in np.eye(3)], axis=1)
    n_removed = 3 * len(atoms) - int(np.linalg.matrix_rank(axes, tol=1e-8).sum())
    if n_removed != sum(constraint.get_removed_dof(atoms) for constraint in local):
        raise ValueError(
            f"{described} that fix something twice, and ASE takes its degrees of freedom out twice, so that no "
            "temperature is right; give each atom to one of them"
        )


def check_for_cell(atoms: Atoms, name: str) -> None:
    """Refuse constraints that do not hold when all atoms move with the cell.

    Raises
    ------
    ValueError
    """
    moved = [
        constraint
        for constraint in atoms.constraints
        if not (isinstance(constraint, FixScaled) and constraint.mask.all()) and not hasattr(constraint, "adjust_cell")
    ]
    if moved:
        raise ValueError(
            f"'{name}' has constraints ({names_of(atoms)}), and --cell moves all atoms with the cell; remove them, or "
            "fix all three coordinates of atoms with FixScaled, which then keep their place relative to the cell"
        )


def for_dynamics(atoms: Atoms) -> list[FixConstraint]:
    """Return the constraints of a structure in forms that are right for momenta and forces in a fixed cell.

    ASE's `FixScaled` projects momenta and forces correctly in rectangular cells only. Its replacements do the same in
    any cell: `FixAtoms`, `FixedLine` along the free cell vector, or `FixedPlane` along the two free ones.
    `FixInternals` is replaced by `MassWeightedInternals`.
    """
    constraints: list[FixConstraint] = []
    for constraint in atoms.constraints:
        if isinstance(constraint, FixInternals):
            constraints.append(MassWeightedInternals(**constraint.todict()["kwargs"]))  # type: ignore[no-untyped-call]
        elif isinstance(constraint, FixScaled):
            constraints.extend(_of_scaled(constraint, atoms.cell.array))
        else:
            constraints.append(constraint)
    return constraints


def _of_scaled(constraint: FixScaled, cell: _Floats) -> list[FixConstraint]:
    free = cell[~constraint.mask]
    if len(free) == 3:
        return []
    if len(free) == 2:
        return [FixedPlane(constraint.index, np.cross(*free))]
    if len(free) == 1:
        return [FixedLine(constraint.index, free[0])]
    return [FixAtoms(constraint.index)]


class MassWeightedInternals(FixInternals):
    r"""`FixInternals` for dynamics: velocities along the internal coordinates become zero, all others stay.

    .. math:: p' = p - B^T (B M^{-1} B^T)^{-1} B M^{-1} p

    with the derivatives B (n, 3N) of the n internal coordinates and the masses M. ASE's own form ignores the masses,
    which heats all other motion. ASE also removes translation and rotation without counting their degrees of freedom.
    """

    def adjust_momenta(self, atoms: Atoms, momenta: _Floats) -> None:
        """Remove the motion along the internal coordinates from momenta (N, 3), in place."""
        self.initialize(atoms)  # type: ignore[no-untyped-call]
        for constraint in self.constraints:
            constraint.setup_jacobian(atoms.positions)
        derivatives = np.array([constraint.jacobian for constraint in self.constraints])
        weighted = derivatives / np.repeat(atoms.get_masses(), 3)
        forces = np.linalg.solve(weighted @ derivatives.T, weighted @ momenta.ravel())
        momenta -= (derivatives.T @ forces).reshape(-1, 3)


def is_free(atoms: Atoms) -> bool:
    """Whether the structure can move as a whole under its constraints."""

    def is_internal(constraint: FixConstraint) -> bool:
        if isinstance(constraint, Hookean):  # ties an atom to another, to a point or to a plane
            return isinstance(constraint.todict()["kwargs"]["a2"], int)
        return isinstance(constraint, FixBondLengths | FixInternals | FixLinearTriatomic)

    return all(map(is_internal, atoms.constraints))


def names_of(atoms: Atoms) -> str:
    """Return the names of the constraint classes of a structure: ``FixAtoms, FixCom``."""
    return ", ".join(dict.fromkeys(type(constraint).__name__ for constraint in atoms.constraints))


@contextmanager
def constrained_by(atoms: Atoms, constraints: list[FixConstraint]) -> Iterator[None]:
    """Give a structure other constraints inside the block, such as its own ones for a file."""
    used = list(atoms.constraints)
    atoms.set_constraint(constraints)
    try:
        yield
    finally:
        atoms.set_constraint(used)


def _adjusted(atoms: Atoms, momenta: _Floats, constraints: Sequence[FixConstraint]) -> _Floats:
    """Return momenta (N, 3) after the constraints."""
    adjusted: _Floats = momenta.copy()
    for constraint in constraints:
        constraint.adjust_momenta(atoms, adjusted)
    return adjusted
