"""Labels of given frames: three files, which an interrupted session leaves for the next one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from filelock import FileLock, Timeout

from ase_segnn.files import written_whole
from ase_segnn.labels import without_labels

from .labeling import LabelFile
from .queue import label_queue, reasons_of, tell_reasons
from .worker import encoded
from .workers import Labelers


@dataclass(frozen=True, eq=False)
class LabelOutputs:
    """Places of labels, of failures, of what decided them, and of what the processes of the reference printed.

    Parameters
    ----------
    labels : extended-xyz file; the others lie beside it
    """

    labels: Path

    def __post_init__(self) -> None:
        if self.labels.suffix not in {".xyz", ".extxyz"}:
            raise ValueError(f"labels are written as extended xyz; name the file .xyz or .extxyz, not '{self.labels}'")

    @property
    def failed(self) -> Path:
        """Frames without a label."""
        return self.labels.with_name(f"{self.labels.stem}-failed{self.labels.suffix}")

    @property
    def origin(self) -> Path:
        """What decided the labels."""
        return self.labels.with_suffix(".json")

    @property
    def log(self) -> Path:
        """What the processes of the reference printed."""
        return self.labels.with_suffix(".log")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write over other labels, or to resume without any.

        Raises
        ------
        FileExistsError, FileNotFoundError, ValueError
        """
        if resume and overwrite:
            raise ValueError("labels are either resumed or overwritten; leave out one of the two")
        if resume and not self.origin.is_file():
            raise FileNotFoundError(f"no '{self.origin}' of labels to resume; leave out the option to begin")
        for path in (self.labels, self.failed, self.origin):
            if path.exists() and not (resume or overwrite):
                raise FileExistsError(
                    f"'{path}' exists already; resume the labels, replace them with --force, or choose another output"
                )


@dataclass(frozen=True, eq=False)
class LabeledFrames:
    """Frames that were labeled.

    Parameters
    ----------
    outputs : places of the files
    n_frames, n_labels : of all frames, and of those with a label
    seconds : mean duration of a label
    reasons : why frames have no label -> their number
    """

    outputs: LabelOutputs
    n_frames: int
    n_labels: int
    seconds: float
    reasons: Counter[str]


def label_frames(
    frames: Sequence[Atoms],
    reference: str,
    output: str | Path = "labels.xyz",
    *,
    sources: Sequence[str] | None = None,
    charge: int | None = None,
    multiplicity: int | None = None,
    workers: int = 1,
    limit: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], object] | None = None,
) -> LabeledFrames:
    """Label frames with a reference, in a file that `ase_segnn.training.train` learns from.

    Each label is on the disk the moment it is known. Old labels in the frames are left out. Beside ``labels.xyz`` lie
    ``labels-failed.xyz`` with the frames that got no label, and ``labels.json`` with what decided the labels.

    Parameters
    ----------
    frames : not changed; in the files, "id" in ``info`` is the index among them
    reference, charge, multiplicity : see `find_reference`
    output : extended-xyz file
    sources : names of the frames, for "source" in ``info`` and for messages; default: "frame 0" and so on
    workers, limit : see `Labelers`
    resume : go on with the labels of an interrupted session
    overwrite : replace existing files
    on_progress : called with the number of frames that are done, at the beginning and after each frame

    Raises
    ------
    FileExistsError, FileNotFoundError
        If there are files that are neither to be resumed nor overwritten, or nothing to resume; or another session
        writes them.
    ImportError, ValueError
        If there is no such reference, the frames are beyond what the reference can compute, other data decided the
        labels to be resumed, or no frame gets a label.
    RuntimeError
        If no process of the reference can be started.
    OSError
        If a file cannot be written.
    """
    outputs = LabelOutputs(Path(output))
    outputs.check(resume=resume, overwrite=overwrite)
    names = [f"frame {index}" for index in range(len(frames))] if sources is None else sources
    queue = [_bare(atoms, number) for number, atoms in enumerate(frames)]
    labelers = Labelers(reference, charge, multiplicity, workers=workers, limit=limit, log=outputs.log)
    labelers.reference.check(zip(names, queue, strict=True))
    decisive = {
        "reference": reference,
        "description": labelers.reference.description,
        "charge": charge,
        "multiplicity": multiplicity,
        "frames": hashlib.sha256("\n".join(map(encoded, queue)).encode()).hexdigest(),
    }
    for atoms, name in zip(queue, names, strict=True):
        atoms.info["source"] = name
    try:
        with FileLock(outputs.labels.with_name(f".{outputs.labels.name}.lock"), timeout=0):
            outputs.check(resume=resume, overwrite=overwrite)
            _begin(outputs, decisive, resume=resume)
            return _label(queue, outputs, labelers, on_progress)
    except Timeout as error:
        raise FileExistsError(f"another session writes '{outputs.labels}'; choose another output") from error


def _label(
    queue: Sequence[Atoms], outputs: LabelOutputs, labelers: Labelers, on_progress: Callable[[int], object] | None
) -> LabeledFrames:
    labels, failed = LabelFile(outputs.labels), LabelFile(outputs.failed)

    def tell(_: object = None) -> None:
        if on_progress is not None:
            on_progress(len(labels.frames) + len(failed.frames))

    tell()
    try:
        with labelers:
            label_queue(queue, labels, failed, labelers, tell)
    finally:
        if outputs.log.exists() and outputs.log.stat().st_size == 0:
            outputs.log.unlink()
    for file in (labels, failed):
        file.sort()
    reasons = reasons_of(failed)
    if not labels.frames:
        raise ValueError(
            f"{labelers.reference.description} labeled none of the {len(queue)} frames; "
            f"failures: {tell_reasons(reasons)}"
        )
    seconds = float(np.mean([atoms.info["seconds"] for atoms in labels.frames]))
    return LabeledFrames(outputs, len(queue), len(labels.frames), seconds, reasons)


def _bare(atoms: Atoms, number: int) -> Atoms:
    copied = without_labels(atoms)
    for of_before in ("seconds", "reason", "source"):
        copied.info.pop(of_before, None)
    copied.info["id"] = number
    return copied


def _begin(outputs: LabelOutputs, decisive: dict[str, Any], *, resume: bool) -> None:
    """Write what decides the labels, or compare it with what decided those to be resumed."""
    if resume:
        before = json.loads(outputs.origin.read_text(encoding="utf-8"))
        differing = " and ".join(name for name, value in decisive.items() if before.get(name) != value)
        if differing:
            raise ValueError(
                f"the labels in '{outputs.labels}' were made with other {differing}; resume with what they began with, "
                "replace them with --force, or choose another output"
            )
        return
    for path in (outputs.labels, outputs.failed, outputs.log):
        path.unlink(missing_ok=True)
    with written_whole(outputs.origin) as path:
        path.write_text(json.dumps(decisive, indent=1), encoding="utf-8")
