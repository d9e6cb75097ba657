"""Data of a run: sources, the store on disk, division and statistics."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc100
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from labeled import NETWORK, graphs_of, labeled_clusters, labeled_crystals, recipe_for, store_of, write_frames

from ase_segnn.caches import MOST_BYTES, Cache
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.zbl import ZBLRepulsion, ends_below
from ase_segnn.training.data import Frame, FrameStore, Subset, TrainingData, least_squares_energies, sources
from ase_segnn.training.data.reference_energies import isolated_atom_energies
from ase_segnn.training.data.sources import DataFile, locate_all
from ase_segnn.training.data.training_data import HELD_OUT, split
from ase_segnn.training.recipe import DataSection, Recipe


@pytest.fixture
def frames_file(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames.xyz", labeled_clusters())


def read(recipe: Recipe) -> TrainingData:
    return TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)


# ---- store


def test_store_gives_back_frames_and_graphs(tmp_path: Path) -> None:
    frames = [*labeled_clusters(4), *labeled_crystals(3), Atoms("Ar")]
    frames[1].info["config_type"] = "special"
    frames[2].info["config_energy_weight"] = 3.0
    frames[0].info |= {"charge": -1, "spin": 2}
    frames[3].info["charge"] = "unknown"
    store = store_of(frames, tmp_path)
    assert len(store) == 8
    assert store.n_atoms.tolist() == [len(atoms) for atoms in frames]
    for index, atoms in enumerate(frames):
        given, frame, labeled = (
            Frame.from_atoms(atoms, f"frame {index}"),
            store.frame(index),
            store.labeled_graph(index),
        )
        assert frame.atoms == given.atoms
        assert frame.atoms.info == ({"charge": -1, "multiplicity": 2} if index == 0 else {})
        assert (frame.energy, frame.group, frame.source) == (given.energy, given.group, given.source)
        assert frame.weights == given.weights
        assert frame.labels == given.labels
        for label in ("forces", "stress"):
            if label in given.labels:
                np.testing.assert_array_equal(getattr(frame, label), getattr(given, label))
                np.testing.assert_array_equal(getattr(labeled, label).reshape(-1, 3), getattr(given, label))
        graph = AtomicGraph.from_atoms(atoms, NETWORK.cutoff)
        for name in ("positions", "atomic_numbers", "centers", "neighbors", "cell_shifts", "pbc"):
            assert torch.equal(getattr(labeled.graph, name), getattr(graph, name)), name
        assert labeled.frames.tolist() == [index]
    assert store.labeled_graph(2).energy_weights.tolist() == [3.0]
    assert store.labeled_graph(7).n_labels().tolist() == [0, 0, 0]
    assert store.labeled_graph(5).n_labels().tolist() == [1, 24, 1]
    copy = pickle.loads(pickle.dumps(store))  # as for another process
    assert copy.frame(5).atoms == store.frame(5).atoms


def test_an_offset_is_taken_off_all_stresses(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "frames.xyz", [*labeled_crystals(4), *labeled_clusters(2)])
    labels = DataSection(train=[str(path)], validation=1, test={"again": [str(path)]})
    sets = [
        TrainingData.read(labels.model_copy(update={"stress_offset": offset}), NETWORK.cutoff, seed=1)
        for offset in (0.0, 0.25)
    ]
    for before, after in zip(*((data.training, *data.sets.values()) for data in sets), strict=True):
        for index in before.indices:
            old, new = before[int(index)], after[int(index)]
            if old.stress_weights:
                torch.testing.assert_close(old.stress - new.stress, 0.25 * torch.eye(3, dtype=torch.float64)[None])
            else:
                assert not new.stress_weights
        for frame, corrected in zip(before.frames(), after.frames(), strict=True):
            assert (frame.stress is None) == (corrected.stress is None)
            assert frame.energy == corrected.energy
            if frame.stress is not None and corrected.stress is not None:
                np.testing.assert_allclose(frame.stress - corrected.stress, 0.25 * np.eye(3), atol=1e-15)


def test_missing_labels_are_masked_whatever_the_cell(tmp_path: Path) -> None:
    slab = fcc100("Ar", (2, 2, 2), a=3.6)  # its third vector is zero
    slab.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
    slab.get_forces()
    del slab.calc.results["energy"], slab.calc.results["free_energy"]
    [graph] = graphs_of([slab], tmp_path)
    assert graph.n_labels().tolist() == [0, 24, 0]
    assert torch.linalg.det(graph.graph.cell).abs() > 1
    assert torch.equal(graph.graph.edge_vectors(), AtomicGraph.from_atoms(slab, NETWORK.cutoff).edge_vectors())


def test_store_is_built_once_for_the_same_data(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(frames_file)
    first = read(recipe)
    [path] = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(FrameStore, "build", lambda *_: pytest.fail("built again"))
        assert len(read(recipe).training) == len(first.training)
        with pytest.raises(pytest.fail.Exception):
            read(recipe_for(frames_file, network={"cutoff": 3.0}))
        with pytest.raises(pytest.fail.Exception):
            read(recipe_for(frames_file, data={"energy_key": "free_energy"}))
    write_frames(frames_file, labeled_clusters(seed=1))
    assert read(recipe).training.energies() != pytest.approx(first.training.energies())
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert path.exists()


def test_a_store_is_whole_or_not_there(tmp_path: Path) -> None:
    frames_before_the_disk_is_full = iter([Frame.from_atoms(labeled_clusters(1)[0], "frame 0")])

    def frames():  # type: ignore[no-untyped-def]
        yield from frames_before_the_disk_is_full
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"as it was before .*No space left on device.*store\.h5"):
        FrameStore.build(tmp_path / "store.h5", frames(), 4.0)
    assert list(tmp_path.iterdir()) == []


# ---- division


def test_split_is_seeded_and_complete() -> None:
    indices = np.arange(5, 25)
    parts = split(indices, 4, 3, seed=1)
    assert [len(part) for part in parts] == [13, 4, 3]
    assert sorted(np.concatenate(parts)) == indices.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(indices, 4, 3, seed=1), strict=True))
    assert not np.array_equal(parts[1], split(indices, 4, 3, seed=2)[1])
    with pytest.raises(ValueError, match="20 validation frames of 20 leave none"):
        split(indices, 20, 0, seed=0)
    with pytest.raises(ValueError, match="10 validation frames and 10 held out of 20 leave none"):
        split(indices, 10, 10, seed=0)


def test_numbers_and_fractions_of_frames(frames_file: Path) -> None:
    data = read(recipe_for(frames_file, data={"validation": 0.25, "held_out": 2}))
    assert (len(data.training), len(data.validation), len(data.tests[HELD_OUT])) == (7, 3, 2)
    parts = [data.training.indices, data.validation.indices, data.tests[HELD_OUT].indices]
    assert sorted(np.concatenate(parts)) == list(range(12))


def test_several_files_globs_and_files_for_validation(tmp_path: Path, frames_file: Path) -> None:
    for name in ("a/OUT.xyz", "b/OUT.xyz"):
        (tmp_path / name).parent.mkdir()
        write_frames(tmp_path / name, labeled_clusters(3, seed=len(name)))
    recipe = recipe_for(frames_file, data={"train": ["*/OUT.xyz", "frames.xyz"], "validation": ["a/OUT.xyz"]})
    data = read(recipe)
    assert (len(data.training), len(data.validation)) == (18, 3)
    assert [data.training.store.frame(i).source for i in (0, 3, 6)] == ["a/OUT.xyz@0", "b/OUT.xyz@0", "frames.xyz@0"]
    assert set(data.checksums) == {"a/OUT.xyz", "b/OUT.xyz", "frames.xyz"}
    with pytest.raises(FileNotFoundError, match=r"no data file fits 'c\*.xyz'"):
        read(recipe_for(frames_file, data={"train": ["c*.xyz"]}))


def test_group_weights(tmp_path: Path) -> None:
    frames = labeled_clusters(6)
    for index, atoms in enumerate(frames):
        atoms.info["config_type"] = "even" if index % 2 == 0 else "odd"
    path = write_frames(tmp_path / "frames.xyz", frames)
    data = read(recipe_for(path, data={"group_weights": {"odd": 0.25}, "validation": 1}))
    weights = {data.training.store.group(i): data.training[i].energy_weights.item() for i in data.training.indices}
    assert weights == {"even": 1.0, "odd": 0.25}
    with pytest.raises(ValueError, match="group_weights names third; the groups of the training frames are even, odd"):
        read(recipe_for(path, data={"group_weights": {"third": 1.0}}))


def test_foreign_elements_in_a_test_set_are_found(tmp_path: Path, frames_file: Path) -> None:
    frames = labeled_clusters(1)
    frames[0].symbols[0] = "He"
    write_frames(tmp_path / "foreign.xyz", frames)
    with pytest.raises(ValueError, match=r"frames of 'odd ones' have He, training frames have not"):
        read(recipe_for(frames_file, data={"test": {"odd ones": "foreign.xyz"}}))


# ---- statistics


def test_statistics_of_a_subset(tmp_path: Path) -> None:
    frames = [*labeled_clusters(4), Atoms("Ar2", [[0, 0, 0], [9, 0, 0]])]
    subset = Subset(store_of(frames, tmp_path), np.array([1, 2, 4]))
    forces = np.concatenate([frames[i].get_forces() for i in (1, 2)])
    assert subset.forces_rms() == pytest.approx(np.sqrt(np.mean(forces**2)))
    assert subset.counts(("Ne", "Ar")).tolist() == [[2, 2], [2, 3], [0, 2]]
    assert subset.elements() == ("Ne", "Ar")
    assert subset.n_labels() == {"energy": 2, "forces": 2, "stress": 0}
    edges = sum(AtomicGraph.from_atoms(frames[i], NETWORK.cutoff).n_edges for i in (1, 2, 4))
    assert subset.average_neighbors() == pytest.approx(edges / 11)


def test_the_repulsion_ends_where_frames_begin(tmp_path: Path) -> None:
    near, far = Atoms("ONa", [[0, 0, 0], [2.0, 0, 0]]), Atoms("ONa", [[0, 0, 0], [2.2, 0, 0]])
    near += Atoms("H2O", [[5.0, 0, 0], [5.8, 0, 0], [0, 0.9, 0]])  # 0.8 of 0.8 Å is more than two radii of H, 0.62 Å
    frames = [near, far, Atoms("O")]
    store = store_of(frames, tmp_path)
    shortest = Subset(store, np.arange(3)).shortest_distances()
    assert {pair: shortest[pair] for pair in ("O-Na", "O-O", "H-H")} == pytest.approx(
        {"O-Na": 2.0, "O-O": 0.9, "H-H": 0.8}
    )
    ends = ends_below(shortest)
    assert ends == pytest.approx({"O-Na": 1.6, "O-O": 0.72})
    assert ends_below(Subset(store, np.array([1, 2])).shortest_distances()) == pytest.approx({"O-Na": 1.76})
    assert Subset(store, np.array([2])).shortest_distances() == {}
    zbl = ZBLRepulsion([1, 8, 11], NETWORK.cutoff, ends)
    for atoms in frames:
        graph = AtomicGraph.from_atoms(atoms, NETWORK.cutoff)
        species = torch.searchsorted(torch.tensor([1, 8, 11]), graph.atomic_numbers)
        distances = graph.edge_vectors().norm(dim=1)
        assert not zbl(distances, species[graph.centers], species[graph.neighbors]).any()


def test_labels_without_weight_do_not_count(tmp_path: Path) -> None:
    frames = labeled_clusters(4)
    for atoms in frames[:2]:
        atoms.info["config_weight"] = 0.0
        atoms.calc.results["forces"] = atoms.calc.results["forces"] + 1e3
    spoiled, clean = (
        Subset(store_of(frames, tmp_path), np.arange(4)),
        Subset(store_of(frames, tmp_path), np.arange(2, 4)),
    )
    assert spoiled.forces_rms() == pytest.approx(clean.forces_rms())
    assert spoiled.energies()[2:].tolist() == clean.energies().tolist()
    assert np.isnan(spoiled.energies()[:2]).all()
    assert spoiled.n_labels() == {"energy": 2, "forces": 2, "stress": 0}


def test_least_squares_energies() -> None:
    counts = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 1.0]])
    exact = counts @ [-3.0, -5.0]
    assert least_squares_energies(("Ne", "Ar"), counts, exact) == pytest.approx({"Ne": -3.0, "Ar": -5.0})
    masked = np.where([True, True, False], exact, np.nan)
    assert least_squares_energies(("Ne", "Ar"), counts, masked) == pytest.approx({"Ne": -3.0, "Ar": -5.0})
    # one composition does not tell elements apart: the mean serves all
    assert least_squares_energies(("Ne", "Ar"), counts[:1], np.array([6.0])) == pytest.approx({"Ne": 2.0, "Ar": 2.0})


def test_isolated_atom_energies(tmp_path: Path, frames_file: Path) -> None:
    path = tmp_path / "atoms.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3 energy=-2.5\nAr 0 0 0\n")
    assert isolated_atom_energies(path, ["Ar"]) == {"Ar": -2.5}
    with pytest.raises(ValueError, match="no isolated atom of Ne"):
        isolated_atom_energies(path, ["Ar", "Ne"])
    with pytest.raises(
        ValueError, match=r"frames.xyz@0 has 3 atoms and an energy; reference energies need single atoms"
    ):
        isolated_atom_energies(frames_file, ["Ar"])


def test_isolated_atoms_among_the_frames_are_references(tmp_path: Path) -> None:
    atoms = {"Ar": -2.0, "Ne": -1.0}
    frames = labeled_clusters(5)
    for symbol, energy in atoms.items():
        lone = Atoms(symbol)
        lone.calc = SinglePointCalculator(lone, energy=energy)
        frames.insert(1, lone)
    path = write_frames(tmp_path / "frames.xyz", frames)
    data = read(recipe_for(path, data={"validation": 1, "test": {}}))
    assert data.reference_energies == atoms
    assert data.origin_of_references == "isolated atoms"
    assert sorted([*data.training.indices, *data.validation.indices]) == [0, 3, 4, 5, 6]
    fitted = read(recipe_for(path, data={"validation": 1, "test": {}, "reference_energies": "least-squares"}))
    assert fitted.reference_energies != pytest.approx(atoms)
    with pytest.raises(ValueError, match="reference_energies lack Ar"):
        read(recipe_for(path, data={"reference_energies": {"Ne": 1.0}}))
    path = write_frames(tmp_path / "fewer.xyz", frames[:1] + frames[2:])
    with pytest.raises(ValueError, match="isolated atoms of Ar, but none of Ne"):
        read(recipe_for(path, data={"validation": 1, "test": {}}))


@pytest.mark.parametrize(("difference", "refused"), [(0.0, False), (5e-4, False), (2e-3, True)])
def test_isolated_atoms_that_differ_are_named(tmp_path: Path, difference: float, *, refused: bool) -> None:
    frames = [*labeled_clusters(5), *(Atoms(symbol) for symbol in ("Ar", "Ne", "Ar"))]
    for atoms, energy in zip(frames[-3:], (-2.0, -1.0, -2.0 + difference), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    path = write_frames(tmp_path / "frames.xyz", frames)
    lone = write_frames(tmp_path / "atoms.xyz", frames[-3:])
    among = recipe_for(path, data={"validation": 1, "test": {}})
    beside = recipe_for(path, data={"validation": 1, "test": {}, "reference_energies": "atoms.xyz"})
    given = recipe_for(path, data={"validation": 1, "test": {}, "reference_energies": {"Ar": -3.0, "Ne": -1.0}})
    assert read(given).reference_energies == {"Ar": -3.0, "Ne": -1.0}
    if not refused:
        for recipe in (among, beside):
            assert read(recipe).reference_energies == {"Ar": -2.0, "Ne": -1.0}
        return
    message = r"isolated atoms of Ar have different energies: -2 eV in {0}@{1} and -1\.998 eV in {0}@{2}"
    with pytest.raises(ValueError, match=message.format("frames.xyz", 5, 7)):
        read(among)
    with pytest.raises(ValueError, match=message.format(lone.name, 0, 2)):
        read(beside)


# ---- sources


def test_files_are_looked_for_in_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "acac/train_300K.xyz"
    asked = []

    def refuse(address: str, **_: object) -> str:
        asked.append(address)
        raise ConnectionError("no network")

    monkeypatch.setattr(sources.pooch, "retrieve", refuse)
    (tmp_path / "own.xyz").write_text("own")
    assert sources.locate("own.xyz", tmp_path) == tmp_path / "own.xyz"
    with pytest.raises(FileNotFoundError, match=r"no data file 'other.xyz'.*'folder'"):
        sources.locate("other.xyz", tmp_path)
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "project" / "training" / "data" / "sources.py"))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded from https://.*no network"):
        sources.locate(name, tmp_path)
    assert asked == [sources.PUBLIC_FILES[name][0]]
    beside = tmp_path / "shared" / "data" / name
    beside.parent.mkdir(parents=True)
    beside.write_text("not the published frames")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        sources.locate(name, tmp_path)
    monkeypatch.setitem(sources.PUBLIC_FILES, name, ("https://example.invalid", sources.sha256(beside)))
    assert sources.locate(name, tmp_path) == beside


# ---- caches


def test_graphs_are_kept_in_the_users_cache_which_is_trimmed(
    frames_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setitem(MOST_BYTES, "graphs", 1000)
    cache, recipe = Cache("graphs"), recipe_for(frames_file, data={"cache": None})
    read(recipe)
    [first] = cache.entries()
    two_hours_ago = time.time() - 7200
    os.utime(first.path, (two_hours_ago, two_hours_ago))
    read(recipe)  # is a use
    assert time.time() - cache.entries()[0].last_use < 3600
    os.utime(first.path, (two_hours_ago, two_hours_ago))
    read(recipe_for(frames_file, data={"cache": None}, network={"cutoff": 3.0}))
    [second] = cache.entries()
    assert second.path != first.path


@pytest.mark.parametrize("harm", ["cut", "emptied", "of another program", "removed"])
def test_a_broken_store_is_built_anew(frames_file: Path, tmp_path: Path, harm: str) -> None:
    recipe = recipe_for(frames_file)
    energies = read(recipe).training.energies()
    [path] = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-100], "emptied": b"", "of another program": b"x" * 5000}[harm])
    np.testing.assert_array_equal(read(recipe).training.energies(), energies)
    assert path.read_bytes() == content


def test_a_store_that_was_removed_meanwhile_is_still_read(tmp_path: Path) -> None:
    store = store_of(labeled_clusters(3), tmp_path)
    first = store.frame(0)
    store.path.unlink()
    assert store.frame(0).atoms == first.atoms


def test_threads_may_read_one_store(tmp_path: Path) -> None:
    store = store_of(labeled_clusters(12), tmp_path)
    expected = [store.frame(index).atoms for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert [frame.atoms for frame in pool.map(store.frame, range(12))] == expected


WRITE_UNTIL_THE_DISK_IS_FULL = """
import resource, sys
from pathlib import Path
from labeled import labeled_crystals
from ase_segnn.training.data.frames import Frame
from ase_segnn.training.data.sources import DataFile, locate_all
from ase_segnn.training.data.store import FrameStore

frames = [Frame.from_atoms(atoms, "a") for atoms in labeled_crystals(8)]
for most in range(0, 60000, 997):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        FrameStore.build(Path(sys.argv[1], "a.frames"), frames, 4.0)
    except OSError as error:
        print(type(error).__name__, error.errno, error.filename)
    else:
        print("whole")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_UNTIL_THE_DISK_IS_FULL, str(tmp_path)]
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": folder}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {f"OSError {errno.EFBIG} {tmp_path / 'a.frames'}", "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.frames"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_of_the_cache_says_what_to_set(
    frames_file: Path, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ase_segnn.training.data.store._write", fail)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}.*set data.cache to another folder") as caught:
        read(recipe_for(frames_file))
    assert caught.value.errno == number
    assert Path(caught.value.filename).parent == tmp_path / "cache"
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"set data\.cache to another folder") as caught:
        read(recipe_for(frames_file, data={"cache": f"{frames_file}/below"}))
    assert caught.value.filename == f"{frames_file}/below"


def test_an_error_of_reading_frames_is_not_one_of_the_cache(frames_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer", "far/frames.xyz")

    monkeypatch.setattr("ase_segnn.training.data.store.neighbor_list", fail)
    with pytest.raises(ConnectionResetError, match=r"^\[Errno \d+\] Connection reset by peer: 'far/frames.xyz'$"):
        read(recipe_for(frames_file))


# ---- names of files


def numbered(frames_file: Path, name: str, **data: object) -> list[str]:
    recipe = recipe_for(frames_file, data={"train": name, "validation": 2, "test": {}, **data})
    store = read(recipe).training.store
    return [store.frame(index).source for index in range(len(store))]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(":4", range(4)), ("8:", range(8, 12)), ("::3", range(0, 12, 3)), ("-3:", range(9, 12)), ("::-4", [11, 7, 3])],
)
def test_frames_are_selected_and_keep_their_numbers(frames_file: Path, selection: str, expected: list[int]) -> None:
    assert numbered(frames_file, f"frames.xyz@{selection}") == [f"frames.xyz@{number}" for number in expected]
    found = locate_all([f"{frames_file.parent}/fr*.xyz@{selection}"])
    assert found == {f"{frames_file}@{selection}": DataFile(frames_file, selection)}


def test_selections_have_stores_of_their_own(frames_file: Path) -> None:
    assert [len(numbered(frames_file, f"frames.xyz@:{n}")) for n in (4, 5)] == [4, 5]
    assert len(numbered(frames_file, "frames.xyz")) == 12
    two = numbered(frames_file, ["frames.xyz@:3", "frames.xyz@10:"])  # type: ignore[arg-type]
    assert two == [f"frames.xyz@{number}" for number in (0, 1, 2, 10, 11)]


@pytest.mark.parametrize("name", ["me@there/a.xyz", "me@1/a.xyz", "a@2.xyz", "with space/a[1]*?.xyz", "größe/水.xyz"])
@pytest.mark.parametrize("absolute", [False, True])
def test_any_name_of_frames_is_found(frames_file: Path, name: str, absolute: bool) -> None:
    path = frames_file.parent / name
    path.parent.mkdir(exist_ok=True)
    frames_file.rename(path)
    source = str(path) if absolute else name
    assert numbered(frames_file, source) == [f"{source}@{number}" for number in range(12)]
    assert numbered(frames_file, f"{source}@5:9") == [f"{source}@{number}" for number in range(5, 9)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frames.xyz@20:", r"frames.xyz' has no structure that '@20:' selects"),
        ("frames.xyz@::0", "step of 0"),
        ("nothing.xyz@:3", "no data file 'nothing.xyz' in"),
        ("frames.xyz@three", "no data file 'frames.xyz@three' in"),
        ("no*.xyz@:3", r"no data file fits 'no\*.xyz'"),
        ("folder", "folder' is a folder; give files of frames"),
    ],
)
def test_selections_that_are_wrong(frames_file: Path, name: str, message: str) -> None:
    (frames_file.parent / "folder").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        numbered(frames_file, name)


@pytest.mark.parametrize(
    "cell", [[0.0, 0.0, 0.0], [9.0, 9.0, 0.0], [[5, 0, 0], [0, 5, 0], [5, 5, 0]], [[5, 0, 0], [5, 1e-9, 0], [0, 0, 5]]]
)
def test_every_graph_has_a_volume(cell: list[list[float]], tmp_path: Path) -> None:
    """Stresses of clusters have no weight, and nan times no weight is nan."""
    atoms = labeled_clusters(1)[0]
    results = atoms.calc.results
    atoms.set_cell(cell)
    atoms.calc = SinglePointCalculator(atoms, energy=results["energy"], forces=results["forces"])
    [graph] = graphs_of([atoms], tmp_path)
    assert graph.graph.volumes().isfinite().all()
