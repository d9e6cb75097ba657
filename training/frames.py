"""Frames as files hold them: a structure with the labels that it has, whatever they are called there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from ase_segnn.configuration import Configuration

LABELS = ("energy", "forces", "stress")
_REFERENCE_KEYS = {"energy": ["REF_energy"], "forces": ["REF_forces"], "stress": ["REF_stress", "REF_virials"]}
_PLAIN_KEYS = {"energy": ["energy"], "forces": ["forces"], "stress": ["stress", "virial", "virials"]}
_GROUP_KEYS = ("config_type", "group")
_WEIGHT_KEY = "config_weight"
_ISOLATED = "IsolatedAtom"


class LabelKeys(Configuration):
    """What labels are called in a file; each is looked for among a frame's calculator results, ``info`` and ``arrays``.

    Without a key of its own a label is `REF_energy`, `REF_forces`, `REF_stress` or `REF_virials` if the frame has any
    of these; otherwise the calculator's result, otherwise `energy`, `forces`, `stress` or `virial` itself. A name that
    contains "virial" stands for minus the stress times the volume, in eV.

    Parameters
    ----------
    energy : eV, of the whole structure
    forces : (n_atoms, 3) eV/Å
    stress : eV/Å³, positive in tension; (6,) in ASE's order xx, yy, zz, yz, xz, xy, or (3, 3) or (9,)
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """A structure of n atoms with the labels that it has, in ASE's units; None for a label that it lacks.

    Parameters
    ----------
    atoms : the structure, without a calculator
    source : file and index, such as ``frames.xyz@12``, for messages
    energy : eV
    forces : (n, 3) eV/Å
    stress : (3, 3) eV/Å³, symmetric, positive in tension
    group : what kind of frame it is, from `config_type` or `group` in ``info``; may be empty
    weights : label -> factor of its squared error, from `config_weight`, `config_energy_weight` and so on in ``info``
    """

    atoms: Atoms
    source: str
    energy: float | None = None
    forces: NDArray[np.float64] | None = None
    stress: NDArray[np.float64] | None = None
    group: str = ""
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(LABELS, 1.0))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels it has."""
        return tuple(label for label in LABELS if getattr(self, label) is not None)

    @property
    def is_isolated_atom(self) -> bool:
        """Whether it is one atom alone, whose energy is a reference energy."""
        return len(self.atoms) == 1 and (self.group == _ISOLATED or not self.atoms.pbc.any())

    def labeled_atoms(self) -> Atoms:
        """Return the structure with its labels as results of a calculator."""
        atoms: Atoms = self.atoms.copy()
        labels = {label: getattr(self, label) for label in self.labels}
        if "stress" in labels:
            labels["stress"] = full_3x3_to_voigt_6_stress(labels["stress"])
        atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms

    @classmethod
    def from_atoms(cls, atoms: Atoms, source: str, keys: LabelKeys | None = None) -> Frame:
        """Take structure and labels of `atoms`, which are not changed.

        Raises
        ------
        ValueError
            If the structure is empty or not finite, or a label is not finite or has a wrong shape; the error names
            source and label.
        """
        if len(atoms) == 0:
            raise ValueError(f"{source} has no atoms")
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise ValueError(f"{source} has positions or a cell that are not finite")
        found = _find_labels(atoms, keys or LabelKeys())
        volume = abs(np.linalg.det(atoms.cell.array))
        has_volume = bool(atoms.pbc.all()) and volume > 0
        stress = None
        if "stress" in found and has_volume:  # elsewhere stress has no meaning, though some programs write zeros
            name, value = found["stress"]
            stress = _stress(name, value, volume, source)
        forces = None if "forces" not in found else _array(*found["forces"], (len(atoms), 3), source)
        return cls(
            atoms=Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc),
            source=source,
            energy=None if "energy" not in found else float(_array(*found["energy"], (), source)),
            forces=forces,
            stress=stress,
            group=next((str(atoms.info[key]) for key in _GROUP_KEYS if key in atoms.info), ""),
            weights=_weights(atoms.info, source),
        )


def read_frames(path: Path, keys: LabelKeys | None = None, name: str | None = None) -> Iterator[Frame]:
    """Read the frames of a file in any format that ASE reads, one after another.

    Parameters
    ----------
    path : of the file
    keys : names of its labels
    name : of the file for messages and sources; by default its last part

    Raises
    ------
    ValueError
        If ASE cannot read the file, or it holds no frame, or `Frame.from_atoms` refuses a frame; the error names file
        and frame.
    """
    n_frames = 0
    reader = ase.io.iread(path, ":", do_not_split_by_at_sign=True)
    while True:
        try:
            atoms = next(reader)
        except StopIteration:
            break
        except Exception as error:  # ASE's readers raise whatever they stumble over
            raise ValueError(f"ASE cannot read frame {n_frames} of '{path}': {error}") from error
        yield Frame.from_atoms(atoms, f"{name or path.name}@{n_frames}", keys)
        n_frames += 1
    if n_frames == 0:
        raise ValueError(f"'{path}' holds no frames")


def _find_labels(atoms: Atoms, keys: LabelKeys) -> dict[str, tuple[str, Any]]:
    """Label -> name under which it was found, and value."""
    results = atoms.calc.results if atoms.calc is not None else {}
    named: dict[str, Any] = {**atoms.arrays, **atoms.info}
    has_reference = any(key in named for names in _REFERENCE_KEYS.values() for key in names)
    found = {}
    for label in LABELS:
        key = getattr(keys, label)
        if key is not None:
            candidates = {**named, **results}
            names = [key]
        elif has_reference:
            candidates, names = named, _REFERENCE_KEYS[label]
        else:
            candidates, names = {**named, **results}, _PLAIN_KEYS[label]
        for name in names:
            if candidates.get(name) is not None:
                found[label] = (name, candidates[name])
                break
    return found


def _array(name: str, value: Any, shape: tuple[int, ...], source: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{name}' of {source} is no number or array of numbers") from error
    if array.shape != shape and not (shape == () and array.size == 1):
        raise ValueError(f"'{name}' of {source} has the shape {array.shape}, expected {shape or 'one number'}")
    if not np.isfinite(array).all():
        raise ValueError(f"'{name}' of {source} is not finite")
    copy: NDArray[np.float64] = array.reshape(shape).copy()
    return copy


def _stress(name: str, value: Any, volume: float, source: str) -> NDArray[np.float64]:
    size = np.size(value)
    if size == 6:
        tensor = np.asarray(voigt_6_to_full_3x3_stress(_array(name, np.ravel(value), (6,), source)), dtype=np.float64)
    elif size == 9:
        tensor = _array(name, np.reshape(value, (3, 3)), (3, 3), source)
    else:
        raise ValueError(f"'{name}' of {source} has {size} values, expected 6 in ASE's order or a 3x3 tensor")
    symmetric: NDArray[np.float64] = (tensor + tensor.T) / 2
    return -symmetric / volume if "virial" in name.lower() else symmetric


def _weights(info: Mapping[str, Any], source: str) -> dict[str, float]:
    weights = {}
    for label in LABELS:
        weight = 1.0
        for name in (_WEIGHT_KEY, f"config_{label}_weight"):
            weight *= float(_array(name, info.get(name, 1.0), (), source))
        if weight < 0:
            raise ValueError(f"{source} has a negative weight of its {label}: {weight}")
        weights[label] = weight
    return weights
