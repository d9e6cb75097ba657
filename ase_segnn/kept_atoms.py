"""The atoms of the last calculation, and what has changed since."""

from __future__ import annotations

from ase import Atoms

from ase_segnn.graphs.verlet import SETTING, setting_of

_State = tuple[bytes, ...]  # all that results depend on, as named below
_NAMES = ("positions", *SETTING)


class KeptAtoms:
    """A copy of atoms that is compared bit by bit with what they are later.

    ASE copies and compares the atoms as well, which takes as long as a small network.

    Parameters
    ----------
    atoms : kept as they are
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms.copy()
        self._state = _state(atoms)

    def changes(self, atoms: Atoms) -> list[str]:
        """Name what differs, as ASE names it; charges and magnetic moments do not count."""
        now = _state(atoms)
        if now == self._state:
            return []
        return [name for name, a, b in zip(_NAMES, now, self._state, strict=True) if a != b]

    def renewed(self, atoms: Atoms) -> KeptAtoms:
        """Return the atoms as they are now: these, made equal, where only positions and arrays differ."""
        kept, now = self.atoms, _state(atoms)
        if (
            now[1:] != self._state[1:]
            or atoms.info
            or atoms.constraints
            or kept.constraints
            or type(atoms) is not Atoms
        ):
            return KeptAtoms(atoms)
        numbers = kept.numbers
        kept.arrays = {name: array.copy() for name, array in atoms.arrays.items() if name != "numbers"}
        kept.arrays["numbers"] = numbers
        kept.info = {}
        self._state = now
        return self


def _state(atoms: Atoms) -> _State:
    """Return what results depend on, as bytes."""
    return atoms.positions.tobytes(), *setting_of(atoms)
