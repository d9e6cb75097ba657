"""Labels of structures by a calculator, reasons why there is none, and the file that keeps labels as they come."""

from __future__ import annotations

import io
import os
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator

from ase_segnn.files import writing, written_whole

LARGEST_FORCE = 30.0  # eV/Å; structures beyond are on their way to pieces


class NoLabelError(RuntimeError):
    """A structure that gets no label; the message is the reason.

    Parameters
    ----------
    reason : one line
    again : whether another try might give a label
    """

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def label(atoms: Atoms, calculator: BaseCalculator) -> Atoms:
    """Return a copy of a structure with energy and forces, and with the stress of a crystal if the calculator has it.

    Raises
    ------
    NoLabelError
        If the calculator fails, a result is not finite, or a force is above 30 eV/Å.
    """
    names = ["energy", "forces"]
    if atoms.pbc.all() and "stress" in calculator.implemented_properties:
        names.append("stress")
    labeled: Atoms = atoms.copy()
    try:
        results = {name: np.array(calculator.get_property(name, labeled), dtype=np.float64) for name in names}
    except Exception as error:  # calculators raise whatever they stumble over
        raise NoLabelError(reason_of(error)) from error
    for name, values in results.items():
        if not np.isfinite(values).all():
            raise NoLabelError(f"{name} not finite")
    largest = float(np.linalg.norm(results["forces"], axis=1).max())
    if largest > LARGEST_FORCE:
        raise NoLabelError(f"a force above {LARGEST_FORCE:g} eV/Å", again=False)
    labeled.calc = SinglePointCalculator(labeled, **{**results, "energy": float(results["energy"])})
    return labeled


def reason_of(error: Exception) -> str:
    """Return one line that says why a calculator failed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class LabelFile:
    """An extended-xyz file that grows by one labeled structure at a time.

    Whatever ends the program, all structures written before are kept. Half of a structure at the end of the file, from
    a program that was killed, is removed.

    Parameters
    ----------
    path : of the file, which may exist

    Attributes
    ----------
    frames : structures in the file, with their labels, as read back from it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: list[Atoms] = []
        if path.exists():
            whole = b"".join(_whole_frames(path.read_bytes()))
            with writing(path), path.open("r+b") as file:
                file.truncate(len(whole))
            if whole:
                self.frames = list(ase.io.iread(io.StringIO(whole.decode()), ":", format="extxyz"))

    def append(self, atoms: Atoms) -> Atoms:
        """Write a structure to the disk, and return it as a reader of the file sees it, with rounded numbers.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        text = io.StringIO()
        ase.io.write(text, atoms, format="extxyz")
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        text.seek(0)
        self.frames.extend(ase.io.iread(text, ":", format="extxyz"))
        return self.frames[-1]

    def sort(self) -> None:
        """Bring the structures in the file into the order of their "id" in ``info``; their text stays as it is.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        order = sorted(range(len(self.frames)), key=lambda index: int(self.frames[index].info["id"]))
        if order == list(range(len(order))):
            return
        texts = _whole_frames(self.path.read_bytes())
        with written_whole(self.path) as path:
            path.write_bytes(b"".join(texts[index] for index in order))
        self.frames = [self.frames[index] for index in order]


def _whole_frames(contents: bytes) -> list[bytes]:
    """Return the whole structures in an xyz file: a number n, a comment and n lines of atoms each."""
    lines = contents.splitlines(keepends=True)
    frames, end = [], 0
    while end < len(lines) and lines[end].strip().isdigit():
        following = end + 2 + int(lines[end])
        if following > len(lines) or not lines[following - 1].endswith(b"\n"):
            break
        frames.append(b"".join(lines[end:following]))
        end = following
    return frames
