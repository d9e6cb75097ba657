"""Frames and their graphs on disk: one file per set of frames, built once and read frame by frame.

A file starts with the rows of atoms and edges, frame by frame. Values of one number, tensor or text per frame follow as
an ``.npz`` archive. The size of the archive and a mark end the file; a file without the mark is not whole. The file is
made by plain writes: on a full disk a write is an error, whereas the library of HDF5 crashes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import weakref
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from numpy.typing import NDArray

from ase_segnn.files import written_whole
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.graphs.neighbors import neighbor_list
from ase_segnn.labels import LABELS, LabelKeys, LabelReport
from ase_segnn.labels.names import fingerprint

from .batches import LabeledGraph
from .frames import Frame, FrameFiles
from .sources import DataFile

logger = logging.getLogger(__name__)

_FORMAT = 4  # of the file; part of its name
_Columns: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]
_MARK = b"ase-segnn frames"  # at the end of the file
_ELECTRONS = ("charge", "multiplicity")  # of a structure
# Per frame, per atom and per edge: name -> shape of a row and type. Long types come first, so that all are aligned.
_OF_FRAMES: _Columns = {
    "cell": ((3, 3), "<f8"),
    "pbc": ((3,), "?"),
    "energy": ((), "<f8"),  # NaN where the label is missing, as in forces and stress
    "stress": ((3, 3), "<f8"),
    "weights": ((3,), "<f8"),
    **dict.fromkeys(_ELECTRONS, ((), "<f8")),  # NaN where it is not known
    "n_atoms": ((), "<i8"),
    "n_edges": ((), "<i8"),
}
_OF_ATOMS: _Columns = {"positions": ((3,), "<f8"), "forces": ((3,), "<f8")}
_OF_EDGES: _Columns = {"centers": ((), "<i4"), "neighbors": ((), "<i4"), "cell_shifts": ((3,), "<i4")}
_TEXTS = ("source", "group")
_REPORT = "labels"


class FrameStore:
    """Labeled frames and their graphs of one cutoff in a file that `FrameStore.build` wrote.

    Values of one number or tensor per frame are in memory. Rows of atoms and edges are read from disk on request.

    Parameters
    ----------
    path : of the file

    Attributes
    ----------
    labels : report on the labels of these frames; None if the store was built without one
    stress_offset : eV/Å³, taken off the normal stresses of the frames that are returned; 0 until it is set
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stress_offset = 0.0
        self._file: FileIO | None = None
        with path.open("rb") as file:
            table = _read_table(file, path)
        self.cutoff = float(table.pop("cutoff"))
        self._numbers: NDArray[np.uint8] = table.pop("numbers")
        self._texts: dict[str, list[str]] = {name: table.pop(name).tolist() for name in _TEXTS}
        self._table = table
        report = str(table.pop(_REPORT))
        self.labels = LabelReport.model_validate_json(report) if report else None
        self._first_atom = np.concatenate([[0], table["n_atoms"].cumsum()])
        n_bytes = _row_bytes(_OF_ATOMS) * table["n_atoms"] + _row_bytes(_OF_EDGES) * table["n_edges"]
        self._first_byte = np.concatenate([[0], n_bytes.cumsum()])

    @classmethod
    def build(cls, path: Path, frames: Iterable[Frame], cutoff: float, labels: LabelReport | None = None) -> FrameStore:
        """Write frames and the graphs of their pairs within `cutoff` (Å); frames may come one at a time.

        The file appears at `path` once it is whole.

        Parameters
        ----------
        path : of the file
        frames : with their labels
        cutoff : Å
        labels : report on the choice of the labels

        Raises
        ------
        OSError
            If the file cannot be written, with its name.
        ValueError
            If a frame has no graph.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            _write(file, frames, cutoff, labels)
        return cls(path)

    @classmethod
    def of_files(
        cls,
        files: Mapping[str, DataFile],
        checksums: Mapping[str, str],
        keys: LabelKeys,
        cutoff: float,
        folder: Path,
        *,
        required: bool = True,
        may_fail: Collection[str] = (),
    ) -> FrameStore:
        """Open the store of some files in a folder; build the store first if it is missing or broken.

        The name of the store is a hash of everything that decides its contents: contents and names of the files, the
        label keys, the table of label names, and the cutoff.

        Parameters
        ----------
        files, checksums : name -> path and SHA-256
        keys, required : names of labels, and whether some frame must have those that are given
        cutoff : Å
        folder : of the store
        may_fail : names of files that are left out if they cannot be read

        Raises
        ------
        OSError
            If the file of the store cannot be written; the error says which, and what to set.
        ValueError
            If a file cannot be read or a frame is not as it should be; see `ase_segnn.labels.choose_labels`.
        """
        contents = [(name, checksums[name], name in may_fail) for name in files]
        key = json.dumps([_FORMAT, fingerprint(), contents, keys.model_dump(), cutoff])
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.frames"
        try:
            store = cls(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("the graphs of the frames are made anew: %s", error)
        else:
            if not required or store.has_labels_of(keys):
                return store
        data_set = FrameFiles(files, may_fail)
        choice = data_set.choose_labels(keys, required=required)
        try:
            return cls.build(path, data_set.frames(choice), cutoff, choice.report)
        except OSError as error:
            if error.filename != str(path) and not _is_above(error.filename, path):
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}; this is for graphs of frames, set data.cache to another folder",
                error.filename,
            ) from error

    def has_labels_of(self, keys: LabelKeys) -> bool:
        """Whether each label with a key is in some frame."""
        given = [label for label, key in keys.model_dump().items() if key is not None]
        return self.labels is not None and all(label in self.labels.sources for label in given)

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Number of atoms of each frame, (F,)."""
        return self._table["n_atoms"]

    @property
    def n_edges(self) -> NDArray[np.int64]:
        """Number of ordered pairs within the cutoff of each frame, (F,)."""
        return self._table["n_edges"]

    @property
    def energies(self) -> NDArray[np.float64]:
        """Energies of the frames in eV, (F,), NaN where missing."""
        return self._table["energy"]

    def groups(self) -> set[str]:
        """Names of the groups of frames."""
        return set(self._texts["group"])

    def group(self, index: int) -> str:
        """Name of the group of a frame, which may be empty."""
        group: str = self._texts["group"][index]
        return group

    def elements(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Chemical symbols in some frames, by atomic number."""
        numbers = {int(z) for index in indices for z in np.unique(self.numbers(int(index)))}
        return tuple(chemical_symbols[number] for number in sorted(numbers))

    def numbers(self, index: int) -> NDArray[np.uint8]:
        """Atomic numbers of a frame, (n,)."""
        return self._numbers[self._first_atom[index] : self._first_atom[index + 1]]

    def frame(self, index: int) -> Frame:
        """Return a frame as it was when the store was built, but for the offset of its stress."""
        table = {name: column[index] for name, column in self._table.items()}
        rows = self._rows(index, _OF_ATOMS)
        forces, stress, energy = rows["forces"], self._stress(index), float(table["energy"])
        electrons = {name: int(table[name]) for name in _ELECTRONS if not np.isnan(table[name])}
        return Frame(
            atoms=Atoms(self.numbers(index), rows["positions"], cell=table["cell"], pbc=table["pbc"], info=electrons),
            source=self._texts["source"][index],
            energy=None if np.isnan(energy) else energy,
            forces=None if np.isnan(forces).any() else forces,
            stress=None if np.isnan(stress).any() else stress,
            group=self._texts["group"][index],
            weights=dict(zip(LABELS, table["weights"].tolist(), strict=True)),
        )

    def labeled_graph(self, index: int) -> LabeledGraph:
        """Return the graph of a frame with its labels; a missing label is zero, with weight zero."""
        table = {name: column[index] for name, column in self._table.items()}
        rows = self._rows(index, {**_OF_ATOMS, **_OF_EDGES})
        n_atoms = int(table["n_atoms"])
        # vectors along which nothing repeats do not matter; edges stay, and every structure gets a volume
        cell = complete_cell(np.where(table["pbc"][:, None], table["cell"], 0.0))
        graph = AtomicGraph(
            positions=torch.from_numpy(rows["positions"]),
            atomic_numbers=torch.from_numpy(self.numbers(index).astype(np.int64)),
            cell=torch.from_numpy(cell)[None],
            pbc=torch.from_numpy(table["pbc"].copy())[None],
            centers=torch.from_numpy(rows["centers"].astype(np.int64)),
            neighbors=torch.from_numpy(rows["neighbors"].astype(np.int64)),
            cell_shifts=torch.from_numpy(rows["cell_shifts"].astype(np.float64)),
            structure=torch.zeros(n_atoms, dtype=torch.int64),
        )
        forces = rows["forces"]
        weights = dict(zip(LABELS, table["weights"].tolist(), strict=True))
        labels = {"energy": table["energy"], "forces": forces, "stress": self._stress(index)}
        for name, value in labels.items():
            weights[name] = 0.0 if np.isnan(value).any() else weights[name]
        return LabeledGraph(
            graph=graph,
            energy=torch.tensor([np.nan_to_num(labels["energy"])], dtype=torch.float64),
            forces=torch.from_numpy(np.nan_to_num(forces)),
            stress=torch.from_numpy(np.nan_to_num(labels["stress"]))[None],
            energy_weights=torch.tensor([weights["energy"]], dtype=torch.float64),
            forces_weights=torch.full((n_atoms,), weights["forces"], dtype=torch.float64),
            stress_weights=torch.tensor([weights["stress"]], dtype=torch.float64),
            frames=torch.tensor([index]),
        )

    def _stress(self, index: int) -> NDArray[np.float64]:
        stress: NDArray[np.float64] = self._table["stress"][index] - self.stress_offset * np.eye(3)
        return stress

    def _rows(self, index: int, columns: _Columns) -> dict[str, NDArray[Any]]:
        """Read the rows of a frame for some columns: those of atoms, or those of atoms and edges."""
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
        n_atoms, n_edges = self._table["n_atoms"][index], self._table["n_edges"][index]
        n_rows = {name: n_edges if name in _OF_EDGES else n_atoms for name in columns}
        n_bytes = sum(n * _row_bytes({name: columns[name]}) for name, n in n_rows.items())
        content, rows, offset = _read_at(self._file, int(self._first_byte[index]), int(n_bytes)), {}, 0
        for name, n in n_rows.items():
            shape, dtype = columns[name]
            rows[name] = np.frombuffer(content, dtype, n * math.prod(shape), offset).reshape(n, *shape)
            offset += rows[name].nbytes
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file: every process opens its own."""
        return {**self.__dict__, "_file": None}


def _row_bytes(columns: _Columns) -> int:
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())


def _read_at(file: FileIO, first: int, n_bytes: int) -> bytearray:
    """Read bytes from a position, without moving the position that forked processes share if the system can."""
    content = bytearray(n_bytes)
    if hasattr(os, "preadv"):
        n_read = os.preadv(file.fileno(), [content], first)
    else:
        file.seek(first)
        n_read = file.readinto(content)
    if n_read != n_bytes:
        raise OSError(errno.EIO, f"the file ends at byte {first + n_read}", file.name)
    return content


def _write(file: BinaryIO, frames: Iterable[Frame], cutoff: float, labels: LabelReport | None) -> None:
    """Write rows of atoms and edges of each frame as the frame comes, and everything else at the end."""
    table: dict[str, list[Any]] = {name: [] for name in (*_OF_FRAMES, *_TEXTS, "numbers")}
    for frame in frames:
        atoms = frame.atoms
        try:
            pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        except ValueError as error:
            raise ValueError(f"{frame.source}: {error}") from error
        rows = {
            "positions": atoms.positions,
            "forces": np.full((len(atoms), 3), np.nan) if frame.forces is None else frame.forces,
            "centers": pairs.centers.numpy(),
            "neighbors": pairs.neighbors.numpy(),
            "cell_shifts": pairs.cell_shifts.numpy(),
        }
        columns = {**_OF_ATOMS, **_OF_EDGES}
        file.writelines(np.ascontiguousarray(rows[name], dtype).data for name, (_, dtype) in columns.items())
        for name, value in {
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
            "energy": np.nan if frame.energy is None else frame.energy,
            "stress": np.full((3, 3), np.nan) if frame.stress is None else frame.stress,
            "weights": [frame.weights[label] for label in LABELS],
            **{name: atoms.info.get(name, np.nan) for name in _ELECTRONS},
            "n_atoms": len(atoms),
            "n_edges": len(pairs.centers),
            "source": frame.source,
            "group": frame.group,
            "numbers": atoms.numbers.astype(np.uint8),
        }.items():
            table[name].append(value)
    arrays = {name: np.array(table[name], dtype).reshape(-1, *shape) for name, (shape, dtype) in _OF_FRAMES.items()}
    arrays |= {name: np.array(table[name], dtype=np.str_) for name in _TEXTS}
    arrays |= {"numbers": np.concatenate([np.empty(0, np.uint8), *table["numbers"]]), "cutoff": np.array(cutoff)}
    arrays[_REPORT] = np.array("" if labels is None else labels.model_dump_json())
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its own argument
    file.write(archive.getbuffer())
    file.write(archive.getbuffer().nbytes.to_bytes(8, "little") + _MARK)


def _read_table(file: BinaryIO, path: Path) -> dict[str, NDArray[Any]]:
    """Read what `_write` wrote at the end.

    Raises
    ------
    ValueError
        If the file is not whole, or another kind of file.
    """
    n_bytes = file.seek(0, io.SEEK_END)
    end = n_bytes - 8 - len(_MARK)
    file.seek(max(end, 0))
    size, mark = int.from_bytes(file.read(8), "little"), file.read()
    if mark != _MARK or size > end:
        raise ValueError(f"'{path}' holds no frames of ase-segnn, or is not whole")
    file.seek(end - size)
    try:
        with np.load(io.BytesIO(file.read(size)), allow_pickle=False) as archive:
            return {name: archive[name] for name in (*_OF_FRAMES, *_TEXTS, "numbers", "cutoff", _REPORT)}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' holds no frames of ase-segnn: {error}") from error


def _is_above(file: Any, path: Path) -> bool:
    return file is not None and Path(os.fsdecode(file)) in path.parents
