"""Frames and their graphs on disk: one HDF5 file per set of files, built once and read frame by frame."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from numpy.typing import NDArray

from ase_segnn.files import written_whole
from ase_segnn.graph import AtomicGraph
from ase_segnn.labels import LABELS, LabelKeys, LabelReport
from ase_segnn.labels.names import fingerprint
from ase_segnn.neighbors import neighbor_list

from .batches import LabeledGraph
from .frames import Frame, FrameFiles

_FORMAT = 2  # of the file; part of its name
_ROWS_AT_ONCE = 65536  # of atoms or edges, between two writes
# Per frame, per atom and per edge: name -> shape of a row and type.
_OF_FRAMES = {
    "cell": ((3, 3), "f8"),
    "pbc": ((3,), "?"),
    "energy": ((), "f8"),  # NaN where the label is missing, as in forces and stress
    "stress": ((3, 3), "f8"),
    "weights": ((3,), "f8"),
    "n_atoms": ((), "i8"),
    "n_edges": ((), "i8"),
}
_OF_ATOMS = {"positions": ((3,), "f8"), "numbers": ((), "u1"), "forces": ((3,), "f8")}
_OF_EDGES = {"centers": ((), "i4"), "neighbors": ((), "i4"), "cell_shifts": ((3,), "i4")}
_TEXTS = ("source", "group")
_REPORT = "labels"


class FrameStore:
    """Labeled frames and their graphs of one cutoff in a file that `FrameStore.build` wrote.

    What is one number or tensor per frame is in memory, all else is read from disk when a frame is asked for.

    Parameters
    ----------
    path : of the file

    Attributes
    ----------
    labels : what was taken as labels of these frames, and what was not; None if nothing was said of that
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        with h5py.File(path, "r") as file:
            self.cutoff = float(file.attrs["cutoff"])
            table = {name: file[name][:] for name in _OF_FRAMES}
            self._texts = {name: [text.decode() for text in file[name][:]] for name in _TEXTS}
            self._numbers: NDArray[np.uint8] = file["numbers"][:]
            report = file[_REPORT][()].decode()
        self.labels = LabelReport.model_validate_json(report) if report else None
        self._table: dict[str, NDArray[Any]] = table
        self._first_atom = np.concatenate([[0], table["n_atoms"].cumsum()])
        self._first_edge = np.concatenate([[0], table["n_edges"].cumsum()])

    @classmethod
    def build(cls, path: Path, frames: Iterable[Frame], cutoff: float, labels: LabelReport | None = None) -> FrameStore:
        """Write frames, which may come one at a time, and the graphs of their pairs within `cutoff` (Å).

        The file appears at `path` once it is whole.

        Parameters
        ----------
        path : of the file
        frames : with their labels
        cutoff : Å
        labels : what was said when these labels were chosen
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["cutoff"] = cutoff
            text = "" if labels is None else labels.model_dump_json()
            file.create_dataset(_REPORT, data=text, dtype=h5py.string_dtype())
            writer = _Writer(file)
            for frame in frames:
                writer.add(frame, cutoff)
            writer.flush()
        return cls(path)

    @classmethod
    def of_files(
        cls,
        files: Mapping[str, Path],
        checksums: Mapping[str, str],
        keys: LabelKeys,
        cutoff: float,
        cache: Path,
        *,
        required: bool = True,
        may_fail: Collection[str] = (),
    ) -> FrameStore:
        """Return the store of some files, by name, from the folder `cache`; it is built there if it is not yet.

        The file of the store is named after all that decides what is in it: contents and names of the files, names of
        labels, those that are given and the table of the others, and the cutoff.

        Parameters
        ----------
        files, checksums : name -> path and SHA-256
        keys, required : names of labels, and whether some frame must have those that are given
        cutoff : Å
        cache : folder
        may_fail : names of files that are left out if they cannot be read

        Raises
        ------
        ValueError
            If a file cannot be read or a frame is not as it should be; see `ase_segnn.labels.choose_labels`.
        """
        contents = [(name, checksums[name], name in may_fail) for name in files]
        key = json.dumps([_FORMAT, fingerprint(), contents, keys.model_dump(), cutoff])
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.h5"
        if path.is_file():
            with suppress(OSError):  # it may be somebody else's
                path.touch()  # for those who clean up by age
            store = cls(path)
            given = [label for label, key in keys.model_dump().items() if key is not None]
            if not required or (store.labels is not None and all(label in store.labels.sources for label in given)):
                return store
        data_set = FrameFiles(files, may_fail)
        choice = data_set.choose_labels(keys, required=required)
        return cls.build(path, data_set.frames(choice), cutoff, choice.report)

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
        """Return a frame as it was when the store was built."""
        atoms = slice(self._first_atom[index], self._first_atom[index + 1])
        file, table = self._open(), {name: column[index] for name, column in self._table.items()}
        forces, stress, energy = file["forces"][atoms], table["stress"], float(table["energy"])
        return Frame(
            atoms=Atoms(self._numbers[atoms], file["positions"][atoms], cell=table["cell"], pbc=table["pbc"]),
            source=self._texts["source"][index],
            energy=None if np.isnan(energy) else energy,
            forces=None if np.isnan(forces).any() else forces,
            stress=None if np.isnan(stress).any() else stress.copy(),
            group=self._texts["group"][index],
            weights=dict(zip(LABELS, table["weights"].tolist(), strict=True)),
        )

    def labeled_graph(self, index: int) -> LabeledGraph:
        """Return a frame's graph with its labels; missing ones are zero, with weight zero."""
        atoms = slice(self._first_atom[index], self._first_atom[index + 1])
        edges = slice(self._first_edge[index], self._first_edge[index + 1])
        file, table = self._open(), {name: column[index] for name, column in self._table.items()}
        n_atoms = int(table["n_atoms"])
        graph = AtomicGraph(
            positions=torch.from_numpy(file["positions"][atoms]),
            atomic_numbers=torch.from_numpy(self._numbers[atoms].astype(np.int64)),
            cell=torch.from_numpy(complete_cell(table["cell"]))[None],  # edges stay; every structure gets a volume
            pbc=torch.from_numpy(table["pbc"].copy())[None],
            centers=torch.from_numpy(file["centers"][edges].astype(np.int64)),
            neighbors=torch.from_numpy(file["neighbors"][edges].astype(np.int64)),
            cell_shifts=torch.from_numpy(file["cell_shifts"][edges].astype(np.float64)),
            structure=torch.zeros(n_atoms, dtype=torch.int64),
        )
        forces = file["forces"][atoms]
        weights = dict(zip(LABELS, table["weights"].tolist(), strict=True))
        labels = {"energy": table["energy"], "forces": forces, "stress": table["stress"]}
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

    def _open(self) -> h5py.File:
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file: every process opens its own."""
        return {**self.__dict__, "_file": None}


class _Writer:
    """Collects rows and appends them to the datasets of a file, many at a time."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._columns = {**_OF_FRAMES, **_OF_ATOMS, **_OF_EDGES}
        self._rows: dict[str, list[Any]] = {name: [] for name in (*self._columns, *_TEXTS)}
        self._n_waiting = 0
        for name, (shape, dtype) in self._columns.items():
            file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=True)
        for name in _TEXTS:
            file.create_dataset(name, (0,), h5py.string_dtype(), maxshape=(None,), chunks=True)

    def add(self, frame: Frame, cutoff: float) -> None:
        atoms = frame.atoms
        try:
            pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        except ValueError as error:
            raise ValueError(f"{frame.source}: {error}") from error
        rows: dict[str, Any] = {
            "cell": [atoms.cell.array],
            "pbc": [atoms.pbc],
            "energy": [np.nan if frame.energy is None else frame.energy],
            "stress": [np.full((3, 3), np.nan) if frame.stress is None else frame.stress],
            "weights": [[frame.weights[label] for label in LABELS]],
            "n_atoms": [len(atoms)],
            "n_edges": [len(pairs.centers)],
            "positions": atoms.positions,
            "numbers": atoms.numbers,
            "forces": np.full((len(atoms), 3), np.nan) if frame.forces is None else frame.forces,
            "centers": pairs.centers.numpy(),
            "neighbors": pairs.neighbors.numpy(),
            "cell_shifts": pairs.cell_shifts.numpy(),
            "source": [frame.source],
            "group": [frame.group],
        }
        for name, values in rows.items():
            self._rows[name].append(values)
        self._n_waiting += max(len(atoms), len(pairs.centers))
        if self._n_waiting > _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        for name, parts in self._rows.items():
            if not parts:
                continue
            dataset = self._file[name]
            values: Any = np.concatenate(parts) if name in self._columns else [text for part in parts for text in part]
            first = len(dataset)
            dataset.resize(first + len(values), axis=0)
            dataset[first:] = values
            parts.clear()
        self._n_waiting = 0
