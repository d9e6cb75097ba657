"""Processes that label: exact results, and no harm by calculators that fail, hang, crash or print."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixBondLength
from labeled import labeled_clusters

from ase_segnn.training.labeling import Attempt, Labelers, LabelFile, label_queue
from ase_segnn.training.labeling.worker import _set_apart, decoded, encoded
from ase_segnn.training.labeling.workers import _Place, n_cores

REFERENCE = """
import os, random, subprocess, sys, time
from pathlib import Path
import numpy as np
from ase.calculators.lj import LennardJones

HERE = Path(__file__).parent
random.seed()

def once(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def hang():
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (HERE / "new.pids").write_text(f"{os.getpid()} {program.pid}")
    (HERE / "new.pids").replace(HERE / "pids")
    time.sleep(600)

class Troubled(LennardJones):
    def calculate(self, atoms, properties, system_changes):
        os.write(1, b"from Fortran, without a line end")
        print("from Python", flush=True)
        super().calculate(atoms, properties, system_changes)
        trouble = atoms.info.get("trouble", "")
        if trouble == "nan once" and once("nan"):
            self.results["forces"][0, 0] = np.nan
        if trouble == "hang" or (trouble == "hang once" and once("hang")):
            hang()
        if trouble == "killed" or (trouble == "killed once" and once("killed")):
            os.kill(os.getpid(), 9)
        if trouble == "exit":
            os._exit(3)
        if trouble == "reads" and sys.stdin.read() != "":
            raise RuntimeError("the input has something in it")
        if trouble == "seldom" and random.random() < 0.1:
            raise RuntimeError("SCF not converged")
        if trouble == "fails":
            raise RuntimeError(f"threads: {os.environ['OMP_NUM_THREADS']}")

def make_calculator():
    return Troubled(sigma=2.3, epsilon=0.1, rc=6.0)

def elsewhere_broken():
    if os.getpid() != PARENT:
        raise OSError("no memory")
    return make_calculator()

def one_license():
    if os.getpid() != PARENT and not once("license"):
        raise OSError("no license")
    return make_calculator()
"""


@pytest.fixture
def reference(tmp_path: Path) -> str:
    path = tmp_path / "reference.py"
    path.write_text(f"{REFERENCE}\nPARENT = {os.getpid()}\n")
    return f"{path}:make_calculator"


def clusters(troubles: Sequence[str]) -> list[Atoms]:
    frames = [Atoms(atoms.numbers, atoms.positions) for atoms in labeled_clusters(len(troubles))]
    for atoms, trouble in zip(frames, troubles, strict=True):
        atoms.info["trouble"] = trouble
    return frames


def direct(atoms: Atoms) -> tuple[float, np.ndarray[Any, Any]]:
    calculator = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
    return calculator.get_potential_energy(atoms), calculator.get_forces(atoms)


def check(attempt: Attempt, atoms: Atoms) -> None:
    """Check that a label is the calculator's own, to the last digit."""
    assert attempt.reason == ""
    assert attempt.atoms is not None
    energy, forces = direct(atoms)
    assert attempt.atoms.get_potential_energy() == energy
    np.testing.assert_array_equal(attempt.atoms.get_forces(apply_constraint=False), forces)
    assert np.abs(forces).max() > 1e-3


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or is a zombie that nobody asks for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


# ---- processes


def test_whatever_happens_each_structure_has_a_label_or_a_reason(reference: str, tmp_path: Path) -> None:
    troubles = ["seldom"] * 40
    troubles[3], troubles[7], troubles[11], troubles[15] = "hang once", "nan once", "killed once", "reads"
    structures = clusters(troubles)
    log = tmp_path / "reference.log"
    with Labelers(reference, workers=2, limit=1.5, retries=2, log=log) as labelers:
        attempts = dict(labelers.label(structures))
    assert sorted(attempts) == list(range(40))
    assert [attempts[index].n_tries for index in (3, 7, 11, 15)] == [2, 2, 2, 1]
    for index, attempt in attempts.items():
        if attempt.atoms is None:
            assert (attempt.reason, attempt.n_tries) == ("RuntimeError: SCF not converged", 3)
            assert troubles[index] == "seldom"
        else:
            check(attempt, structures[index])
            assert attempt.seconds < 1.5
    assert sum(attempt.atoms is None for attempt in attempts.values()) < 5
    printed = log.read_text()
    assert printed.count("from Python") >= 40
    assert "from Fortran, without a line end" in printed


@needs_proc
def test_failures_have_reasons_and_leave_no_process_behind(reference: str, tmp_path: Path) -> None:
    structures = clusters(["hang", "killed", "exit", "fails", "", ""])
    structures[4].positions[1] = structures[4].positions[0] + [0.5, 0, 0]
    with Labelers(reference, workers=2, limit=1.0) as labelers:
        attempts = dict(labelers.label(structures))
        processes = list(labelers._processes)
    assert {index: (attempt.reason, attempt.n_tries) for index, attempt in attempts.items()} == {
        0: ("took longer than 1 s", 2),
        1: ("the process of the reference ended (signal 9)", 2),
        2: ("the process of the reference ended (exit code 3)", 2),
        3: ("RuntimeError: threads: 1", 2),  # of tests/conftest.py
        4: ("a force above 30 eV/Å", 1),
        5: ("", 1),
    }
    assert attempts[0].seconds >= 1
    assert processes
    assert all(process.exit_code == -signal.SIGKILL for process in processes)
    assert all(is_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


PARENT_PROGRAM = """
import sys
from ase import Atoms
from ase_segnn.training.labeling import Labelers

hanging = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.6]])
hanging.info["trouble"] = "hang"
with Labelers(sys.argv[1]) as labelers:  # a program without a guard of its main part
    print(list(labelers.label([hanging])))
"""


@needs_proc
def test_processes_end_with_a_parent_that_is_killed(reference: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT_PROGRAM, reference]) as program:
        wait_for((tmp_path / "pids").exists)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert not any(map(is_gone, pids))
        program.kill()
    wait_for(lambda: all(map(is_gone, pids)))


@needs_proc
def test_whoever_stops_waiting_can_go_on(reference: str, tmp_path: Path) -> None:
    with Labelers(reference, workers=2) as labelers:
        attempts = labelers.label(clusters(["hang", "", ""]))
        assert {next(attempts)[0], next(attempts)[0]} == {1, 2}
        wait_for((tmp_path / "pids").exists)
        attempts.close()
        assert all(is_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())
        [idle] = labelers._processes
        os.kill(idle._process.pid, signal.SIGKILL)
        idle._process.wait()
        structures = clusters([""] * 3)
        for index, attempt in labelers.label(structures):
            check(attempt, structures[index])
            assert attempt.n_tries == 1
        assert list(labelers.label([])) == []


def test_a_calculator_that_cannot_be_made_is_an_error_at_once(reference: str) -> None:
    with pytest.raises(ValueError, match="has no function 'other' that makes a calculator"):
        Labelers(reference.replace("make_calculator", "other"))
    for options, message in (
        ({"workers": 0}, "at least one process labels, got workers=0"),
        ({"limit": 0.0}, "the limit of a label is in seconds, positive, got 0.0"),
        ({"retries": -1}, "the number of retries is 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Labelers(reference, **options)


def test_a_calculator_that_cannot_be_made_elsewhere_is_given_up(reference: str) -> None:
    message = r"no process of the reference '.*' can be started: ValueError: .* made no calculator: OSError: no memory$"
    with (
        Labelers(reference.replace("make_calculator", "elsewhere_broken")) as labelers,
        pytest.raises(RuntimeError, match=message),
    ):
        list(labelers.label(clusters(["", ""])))


def test_fewer_processes_do_where_no_more_can_be_started(reference: str, caplog: pytest.LogCaptureFixture) -> None:
    structures = clusters([""] * 30)
    with (
        caplog.at_level(logging.WARNING),
        Labelers(reference.replace("make_calculator", "one_license"), workers=2) as labelers,
    ):
        attempts = list(labelers.label(structures[:1]))
        attempts += list(labelers.label(structures[1:]))
        wait_for(lambda: list(labelers.label(structures[:2])) and caplog.records)
    assert len(attempts) == 30
    assert "1 processes of the reference label, and one more cannot be started: ValueError: " in caplog.text
    assert "no license" in caplog.text


def test_modules_are_found_in_the_working_directory_and_hide_no_others(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(reference.rpartition(":")[0]).rename(tmp_path / "my_module_of_processes.py")
    for name in ("json", "queue", "random", "label"):
        (tmp_path / f"{name}.py").write_text("raise ValueError('this is another module')")
    monkeypatch.chdir(tmp_path)
    structures = clusters([""])
    with Labelers("my_module_of_processes:make_calculator") as labelers:
        [(index, attempt)] = labelers.label(structures)
    check(attempt, structures[index])


def test_crystals_with_constraints_and_momenta_come_back_whole(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=0)
    crystal.set_cell(crystal.cell.array * 1.0123456789, scale_atoms=True)
    crystal.set_constraint(FixAtoms([0, 2]))
    crystal.set_momenta(np.random.default_rng(0).normal(size=(4, 3)), apply_constraint=False)
    crystal.set_tags([3, 1, 2, 0])
    crystal.info = {"id": 7, "note": 'a "b" = c', "temperature": 0.1 + 0.2, "of mine": object()}
    with Labelers("emt") as labelers:
        [(_, attempt)] = labelers.label([crystal])
        assert attempt.atoms is not None
        labeled = attempt.atoms
        assert labeled is not crystal
        assert crystal.calc is None
        np.testing.assert_array_equal(labeled.get_stress(apply_constraint=False), EMT().get_stress(crystal))
        np.testing.assert_array_equal(labeled.get_forces(apply_constraint=False), EMT().get_forces(crystal))
        for name, array in crystal.arrays.items():
            np.testing.assert_array_equal(labeled.arrays[name], array)
        np.testing.assert_array_equal(labeled.cell.array, crystal.cell.array)
        assert labeled.info == crystal.info
        del crystal.info["of mine"]
        labels, failed = LabelFile(tmp_path / "labels.xyz"), LabelFile(tmp_path / "failed.xyz")
        label_queue([crystal], labels, failed, labelers)
    [read] = LabelFile(tmp_path / "labels.xyz").frames
    assert read.constraints[0].index.tolist() == [0, 2]
    np.testing.assert_allclose(read.get_momenta(), crystal.get_momenta(), atol=1e-7)
    assert read.get_tags().tolist() == [3, 1, 2, 0]
    assert read.info.pop("seconds") > 0
    assert read.info == crystal.info
    assert not failed.frames


def test_the_limit_follows_the_durations(reference: str) -> None:
    labelers = Labelers(reference)
    assert labelers._limit_of_label == 3600
    labelers._durations.extend([1.0, 10.0])
    assert labelers._limit_of_label == 3600
    labelers._durations.append(7.0)
    assert labelers._limit_of_label == 140
    labelers._durations.extend([0.1] * 5)
    assert labelers._limit_of_label == 60
    assert Labelers(reference, limit=5.0)._limit_of_label == 5


def test_threads_share_the_cores_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert _Place.here(1, None).environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert _Place.here(1, None).environment["OMP_NUM_THREADS"] == str(n_cores())
    assert _Place.here(10**6, None).environment["OMP_NUM_THREADS"] == "1"


def test_calculators_that_write_files_are_kept_apart() -> None:
    calculator = LennardJones(directory="runs")
    _set_apart(calculator, "process-1")
    assert Path(calculator.directory) == Path("runs/process-1")


def test_calculators_that_write_nothing_leave_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crystals = [bulk("Cu"), bulk("Ag"), bulk("Au")]
    with Labelers("emt", workers=2) as labelers:
        assert all(attempt.atoms is not None for _, attempt in labelers.label(crystals))
    assert not list(tmp_path.iterdir())


# ---- structures as text


def test_structures_travel_with_all_digits() -> None:
    atoms = Atoms(
        "ArNeAr", np.random.default_rng(0).normal(size=(3, 3)) / 3, cell=[[1 / 3, 0, 0], [0.1, 3, 0], [0, 1, 2]]
    )
    atoms.positions[0] = [-0.0, 1e-300, 1 + 2**-52]
    atoms.pbc = [True, False, True]
    atoms.set_celldisp([0.1, 0.2, 0.3])
    atoms.set_momenta(np.random.default_rng(1).normal(size=(3, 3)))
    atoms.set_tags([1, 2, 3])
    atoms.set_initial_magnetic_moments([0.1, -0.2, 0.3])
    atoms.arrays["names"] = np.array(["a", "bc", "ä"])
    atoms.arrays["objects"] = np.array([object()] * 3)
    atoms.set_constraint([FixAtoms([1]), FixBondLength(0, 2)])
    atoms.info = {"charge": -1, "spin": 0.5, "note": "a\nb", "list": [1, 2], "array": np.eye(2), "own": object(), 3: 4}
    text = encoded(atoms)
    assert "\n" not in text
    json.loads(text)
    again = decoded(text)
    assert set(again.arrays) == set(atoms.arrays) - {"objects"}
    for name, array in again.arrays.items():
        assert array.dtype == atoms.arrays[name].dtype
        assert array.tobytes() == atoms.arrays[name].tobytes()
    assert again.cell.array.tobytes() == atoms.cell.array.tobytes()
    assert again.get_celldisp().tolist() == atoms.get_celldisp().tolist()
    assert again.pbc.tolist() == atoms.pbc.tolist()
    assert [constraint.todict() for constraint in again.constraints] == [c.todict() for c in atoms.constraints]
    np.testing.assert_array_equal(again.info.pop("array"), np.eye(2))
    assert again.info == {"charge": -1, "spin": 0.5, "note": "a\nb", "list": [1, 2]}


# ---- queues


class Prepared:
    """Labels at once, but for the structures of some numbers."""

    def __init__(self, failing: Sequence[int]) -> None:
        self.failing, self.asked = failing, []

    @property
    def reference(self) -> Prepared:
        return self

    description = "prepared"

    def label(self, structures: Sequence[Atoms]) -> Iterator[tuple[int, Attempt]]:
        for index in reversed(range(len(structures))):
            atoms = structures[index].copy()
            number = int(atoms.info["id"])
            self.asked.append(number)
            if number in self.failing:
                yield index, Attempt(None, f'KeyError: "n = {number % 2}"', 0.1, 2)
                continue
            atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
            atoms.get_forces()
            yield index, Attempt(atoms, "", 0.25, 1)


def numbered(n: int) -> list[Atoms]:
    queue = clusters(["some"] * n)
    for number, atoms in enumerate(queue):
        atoms.info["id"] = 100 + number
    return queue


def test_a_queue_goes_on_after_an_interruption_at_any_byte(tmp_path: Path) -> None:
    paths = tmp_path / "labels.xyz", tmp_path / "failed.xyz"
    queue = numbered(6)
    called: list[Attempt] = []
    labels, failed = (LabelFile(path) for path in paths)
    label_queue(queue, labels, failed, Prepared([101, 104]), called.append)
    assert [attempt.atoms is not None for attempt in called] == [True, False, True, True, False, True]
    assert [atoms.info["id"] for atoms in labels.frames] == [105, 103, 102, 100]
    assert all(atoms.info["seconds"] == 0.25 and atoms.info["trouble"] == "some" for atoms in labels.frames)
    assert [atoms.info["id"] for atoms in failed.frames] == [104, 101]
    assert failed.frames[0].calc is None
    assert failed.frames[0].info == {"trouble": "some", "id": 104, "reason": 'KeyError: "n = 0"'}
    contents = [path.read_bytes() for path in paths]
    for cut in (1, 150, 400):
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content[:-cut])
        labels, failed = (LabelFile(path) for path in paths)
        kept = [path.read_bytes() for path in paths]
        done = {atoms.info["id"] for atoms in (*labels.frames, *failed.frames)}
        assert 0 < len(done) < 6
        labelers = Prepared([101, 104])
        label_queue(queue, labels, failed, labelers)
        assert sorted(labelers.asked) == sorted({100, 101, 102, 103, 104, 105} - done)
        for path, before in zip(paths, kept, strict=True):
            assert path.read_bytes().startswith(before)
            assert sorted(atoms.info["id"] for atoms in LabelFile(path).frames) in ([100, 102, 103, 105], [101, 104])


def test_a_reference_that_always_fails_is_given_up(tmp_path: Path) -> None:
    labels, failed = LabelFile(tmp_path / "labels.xyz"), LabelFile(tmp_path / "failed.xyz")
    message = (
        'prepared labeled none of the first 10 structures; failures: 5 x KeyError: "n = 1", 5 x KeyError: "n = 0"; '
        "look at the structures"
    )
    with pytest.raises(ValueError, match=message):
        label_queue(numbered(12), labels, failed, Prepared(range(100, 112)))
    assert len(failed.frames) == 10
    label_queue([], labels, failed, Prepared([]))
    label_queue(numbered(14)[12:], labels, failed, Prepared([112, 113]), gives_up=False)
    assert len(failed.frames) == 12


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2, 1], "an 'id' in info, each its own; 1 occurs twice"),
        ([1, None, 2], "an 'id' in info, a whole number each; got None"),
        ([1, "b", 2], "an 'id' in info, a whole number each; got 'b'"),
    ],
)
def test_numbers_of_a_queue_are_checked(tmp_path: Path, numbers: list[object], message: str) -> None:
    queue = numbered(3)
    for atoms, number in zip(queue, numbers, strict=True):
        atoms.info["id"] = number
    with pytest.raises(ValueError, match=message):
        label_queue(queue, LabelFile(tmp_path / "a.xyz"), LabelFile(tmp_path / "b.xyz"), Prepared([]))
