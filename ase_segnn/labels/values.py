"""Values of labels: numbers of the right shape, weights, and structures that lost their cell on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from ase_segnn.quantities import COMPONENTS, LABELS

from .names import Spelling, looks_like_label, weighted_labels

_Floats = NDArray[np.float64]
_CELLS = ("lattice", "latticevectors", "cell", "cellvectors", "unitcell", "box", "boxvectors")
_SAME_POSITION = 1e-6  # Å


class LabelError(ValueError):
    """Something is wrong with a value.

    Parameters
    ----------
    problem : what is wrong, the same text for all values of the kind
    detail : more about this one, may be empty
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(f"{problem} {detail}".rstrip())
        self.problem, self.detail = problem, detail


def numbers(value: Any, shape: tuple[int, ...]) -> _Floats:
    """Return a value as new array of float64 of a shape; () takes any array of one number.

    Raises
    ------
    LabelError
        If the value is missing, empty, a text, a truth value, complex, not finite, or has another shape.
    """
    if value is None:
        raise LabelError("is None, expected numbers; leave the name out of frames without the label")
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "iufO":
            raise LabelError(
                "is no number or array of numbers", f"but {_KINDS.get(raw.dtype.kind, 'something else')}: {value!r:.40}"
            )
        if raw.dtype.kind == "O" and any(isinstance(item, bool | str | bytes) for item in raw.flat):
            raise LabelError("is no number or array of numbers", f"but {value!r:.40}")
        array = raw.astype(np.float64)
    except LabelError:
        raise
    except (TypeError, ValueError) as error:
        raise LabelError("is no number or array of numbers", f"but {value!r:.40}") from error
    if array.size == 0:
        raise LabelError("is empty")
    if array.shape != shape and not (shape == () and array.size == 1):
        expected = f"({', '.join(map(str, shape))})" if shape else "one number"
        raise LabelError("has the shape", f"{array.shape}, expected {expected}")
    if not np.isfinite(array).all():
        raise LabelError("is not finite")
    copied: _Floats = array.reshape(shape).copy()
    return copied


_KINDS = {"b": "a truth value", "c": "complex", "U": "text", "S": "text"}


def label_value(spelling: Spelling, value: Any, atoms: Atoms) -> _Floats:
    """Return a label in ASE's units: energy (), forces (n_atoms, 3), stress (3, 3) symmetric.

    Raises
    ------
    LabelError
        As `numbers`.
    """
    if spelling.label == "energy":
        return numbers(value, ())
    if spelling.label == "forces":
        return numbers(value, (len(atoms), 3))
    try:
        size = np.size(value)
    except ValueError as error:  # rows of different lengths
        raise LabelError("is no number or array of numbers", f"but {value!r:.40}") from error
    if value is None or size not in {6, 9}:
        flat = numbers(value, np.shape(value))
        raise LabelError(
            "has", f"{flat.size} values, expected 6 in ASE's order {', '.join(COMPONENTS)}, or a 3x3 tensor"
        )
    flat = numbers(np.ravel(value), (size,))
    tensor = np.asarray(voigt_6_to_full_3x3_stress(flat) if size == 6 else flat.reshape(3, 3), dtype=np.float64)
    symmetric: _Floats = (tensor + tensor.T) / 2
    return -symmetric / abs(np.linalg.det(atoms.cell.array)) if spelling.is_virial else symmetric


def has_volume(atoms: Atoms) -> bool:
    """Whether a stress has a meaning: periodic along three vectors that span a volume."""
    return bool(atoms.pbc.all()) and abs(float(np.linalg.det(atoms.cell.array))) > 0


def frame_weights(info: Mapping[Any, Any]) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Weight of each label, and of "virial", which stresses given as virials have besides; and names of those not 1.

    Raises
    ------
    LabelError
        If a weight is no number, or negative; `LabelError.problem` is for after the name of the frame.
    """
    weights: dict[str, tuple[float, tuple[str, ...]]] = dict.fromkeys((*LABELS, "virial"), (1.0, ()))
    for name, value in info.items():
        for label in weighted_labels(name) if isinstance(name, str) else ():
            try:
                weight = float(numbers(value, ()))
            except LabelError as error:
                raise LabelError(f"has a weight '{name}' that {error.problem}", error.detail) from error
            if weight < 0:
                raise LabelError(f"has a negative weight '{name}':", f"{weight:g}")
            if weight != 1:
                before, names = weights[label]
                weights[label] = before * weight, (*names, name)
    return weights


def without_labels(atoms: Atoms) -> Atoms:
    """Return a copy of a structure without calculator and without anything that could be taken for a label.

    All names of labels and of their weights in ``info`` and ``arrays`` are removed, whatever their prefix. Use
    `without_labels` before new labels are made, which old ones could be mistaken for.
    """
    copied: Atoms = atoms.copy()
    for values in (copied.info, copied.arrays):
        for name in [name for name in map(str, values) if looks_like_label(name) or weighted_labels(name)]:
            del values[name]
    return copied


def lost_cell(atoms: Atoms) -> str | None:
    """Name of a cell, or of periodic directions, in ``info`` that the structure does not have; None if there is none.

    Readers know ``Lattice`` and ``pbc`` in just this spelling; any other one is left in ``info``, and a crystal without
    its cell is a cluster.
    """
    info: dict[str, Any] = atoms.info
    for name, value in info.items():
        plain = "".join(letter for letter in str(name).lower() if letter.isalpha())
        if plain in {"pbc", "periodic"}:
            try:
                directions = np.broadcast_to(np.asarray(_flags(value)), 3)
            except ValueError:
                continue
            if (directions != atoms.pbc).any():
                return name
        elif plain in _CELLS and (atoms.cell.rank < 3 or not atoms.pbc.any()):
            cell = _floats(value)
            if cell.size in {3, 6, 9} and cell.any() and not _is_cell_of(atoms, cell):
                return name
    return None


def explain_lost_cell(name: str, atoms: Atoms) -> str:
    """Say what is wrong with a frame that lost its cell, see `lost_cell`, for after its name."""
    periodic = "not periodic" if not atoms.pbc.any() else f"periodic with pbc={atoms.pbc.tolist()}"
    return (
        f"has '{name}' beside a structure that is {periodic}, with {atoms.cell.rank} cell vectors: a crystal without "
        "its cell is taken for a cluster. Files name them Lattice and pbc, in this spelling: rename "
        f"'{name}', or remove it if it means something else"
    )


def _is_cell_of(atoms: Atoms, cell: _Floats) -> bool:
    """Whether 3 lengths, lengths and angles, or 9 components are those of the cell of `atoms`."""
    own = [atoms.cell.array.ravel(), atoms.cell.array.T.ravel()] if cell.size == 9 else [atoms.cell.cellpar()]
    return any(np.allclose(values[: cell.size], cell, atol=1e-4) for values in own)


def is_stale(atoms: Atoms) -> bool:
    """Whether the results of the calculator belong to another structure: atoms were changed, or share a calculator."""
    known = getattr(atoms.calc, "atoms", None)
    if not isinstance(known, Atoms):
        return False
    return (
        len(known) != len(atoms)
        or not np.array_equal(known.numbers, atoms.numbers)
        or not np.allclose(known.positions, atoms.positions, rtol=0, atol=_SAME_POSITION, equal_nan=True)
        or not np.allclose(known.cell.array, atoms.cell.array, rtol=0, atol=_SAME_POSITION, equal_nan=True)
    )


def _flags(value: Any) -> list[bool]:
    words = value.replace(",", " ").split() if isinstance(value, str) else np.ravel(value).tolist()
    known = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
    flags = [known.get(str(word).lower()) for word in words]
    if None in flags or len(flags) not in {1, 3}:
        raise ValueError("no directions")
    return [flag is True for flag in flags]


def _floats(value: Any) -> _Floats:
    try:
        words = value.replace(",", " ").split() if isinstance(value, str) else np.ravel(value)
        return np.array([float(word) for word in words])
    except (TypeError, ValueError):
        return np.empty(0)
