"""Frames: structures with their labels, read from files whatever the labels are called there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ase_segnn.electrons import known_electrons
from ase_segnn.labels import LABELS, LabelChoice, LabelKeys, LabelReport, Remark, choose_labels
from ase_segnn.structures import selected

from .sources import DataFile

logger = logging.getLogger(__name__)

# What the options for names of labels are called in messages.
LABEL_OPTIONS = {label: f"data.{label}_key" for label in LABELS}
_GROUP_KEYS = ("config_type", "group")
_ISOLATED = "IsolatedAtom"


@dataclass(frozen=True, eq=False)
class Frame:
    """A structure of n atoms with its labels, in ASE's units; a missing label is None.

    Parameters
    ----------
    atoms : the structure, without a calculator; in ``info`` "charge" and "multiplicity" if they are known
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
        """Names of the labels of this frame."""
        return tuple(label for label in LABELS if getattr(self, label) is not None)

    @property
    def weighted_labels(self) -> tuple[str, ...]:
        """Names of the labels with a weight above zero; other labels are placeholders."""
        return tuple(label for label in self.labels if self.weights.get(label, 1.0) > 0)

    @property
    def is_isolated_atom(self) -> bool:
        """Whether this frame is one atom alone, whose energy is a reference energy."""
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
    def from_atoms(cls, atoms: Atoms, source: str, labels: LabelKeys | LabelChoice | None = None) -> Frame:
        """Make a frame of the structure and labels of `atoms`, which stay unchanged.

        Parameters
        ----------
        atoms : with labels as results of a calculator or by their names in ``info`` and ``arrays``
        source : for messages
        labels : as chosen for the data set of the frame; with keys or None, the frame is a data set of its own

        Raises
        ------
        ValueError
            If the structure is empty or not finite, or a label is not finite or has a wrong shape; the error names
            source and label.
        """
        choice = labels if isinstance(labels, LabelChoice) else choose_labels([(source, atoms)], labels, required=False)
        found = choice.labels(atoms)
        return cls(
            atoms=Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=known_electrons(atoms)),
            source=source,
            energy=found.energy,
            forces=found.forces,
            stress=found.stress,
            group=next((str(atoms.info[key]) for key in _GROUP_KEYS if key in atoms.info), ""),
            weights=found.weights,
        )


def read_atoms(path: Path, name: str | None = None) -> Iterator[tuple[str, Atoms]]:
    """Read the structures of a file in any format that ASE reads, one after another, each with its source.

    Parameters
    ----------
    path : of the file
    name : of the file for messages and sources; by default its last part

    Raises
    ------
    ValueError
        If ASE cannot read the file, or it holds no frame; the error names file and frame.
    """
    n_frames = 0
    reader = ase.io.iread(path, ":", do_not_split_by_at_sign=True)
    while True:
        try:
            atoms = next(reader)
        except StopIteration:
            break
        except Exception as error:  # ASE's readers raise whatever they stumble over
            advice = f"; the {n_frames} before it can be read, end the file there or write it anew" if n_frames else ""
            reason = str(error) or type(error).__name__
            raise ValueError(f"ASE cannot read frame {n_frames} of '{path}': {reason}{advice}") from error
        yield f"{name or path.name}@{n_frames}", atoms
        n_frames += 1
    if n_frames == 0:
        raise ValueError(f"'{path}' holds no frames")


def tell_labels(use: str, report: LabelReport | None) -> None:
    """Log the labels of a data set with their sources, and whatever looks like a label and is not used."""
    if report is None:
        return
    logger.info("%s: %d frames; %s", use, report.n_frames, report.line())
    for remark in report.remarks:
        logger.log(remark.level, "%s: %s", use, remark)


def read_frames(path: Path, keys: LabelKeys | None = None, name: str | None = None) -> Iterator[Frame]:
    """Read the frames of a file one after another. The file is one data set.

    Parameters
    ----------
    path : of the file; a first pass chooses the labels, a second reads them
    keys : names of its labels; a key that no frame has is not minded
    name : of the file for messages and sources; by default its last part

    Raises
    ------
    ValueError
        As `read_atoms` and `ase_segnn.labels.choose_labels`.
    """
    files = FrameFiles({name or path.name: DataFile(path, "")})
    yield from files.frames(files.choose_labels(keys, required=False))


class FrameFiles:
    """Files of one data set. They may be read several times.

    Parameters
    ----------
    files : name -> file
    may_fail : names of files, such as those of a pattern, that are left out if ASE cannot read their first frame

    Attributes
    ----------
    left_out : name -> why, once the files were read
    """

    def __init__(self, files: Mapping[str, DataFile], may_fail: Collection[str] = ()) -> None:
        self._files, self._may_fail = files, may_fail
        self.left_out: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Atoms]]:
        """Yield sources and structures of all files.

        Raises
        ------
        ValueError
            As `read_atoms`; or if none of the files can be read.
        """
        for name, (path, selection) in self._files.items():
            if name in self.left_out:
                continue
            reader = selected(read_atoms(path, name.removesuffix(f"@{selection}")), selection, path)
            try:
                first = next(reader)
            except ValueError as error:
                if name not in self._may_fail:
                    raise
                self.left_out[name] = str(error)
                continue
            yield first
            yield from reader
        if self.left_out and len(self.left_out) == len(self._files):
            raise ValueError(f"none of {len(self._files)} files can be read; {next(iter(self.left_out.values()))}")

    def choose_labels(self, keys: LabelKeys | None = None, *, required: bool = True) -> LabelChoice:
        """Decide where the labels are, as `ase_segnn.labels.choose_labels`; files left out are remarked on."""
        choice = choose_labels(self, keys, required=required, options=LABEL_OPTIONS)
        if not self.left_out:
            return choice
        names = list(self.left_out)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text = (
            f"{len(names)} of {len(self._files)} files of a pattern cannot be read: {', '.join(names[:3])}{more}; "
            f"{self.left_out[names[0]]}"
        )
        remark = Remark(severity="warning", title="files left out", text=text)
        report = choice.report.model_copy(update={"remarks": (remark, *choice.report.remarks)})
        return LabelChoice(choice.places, report)

    def frames(self, choice: LabelChoice) -> Iterator[Frame]:
        """Read the frames with the labels that were chosen."""
        for source, atoms in self:
            yield Frame.from_atoms(atoms, source, choice)
