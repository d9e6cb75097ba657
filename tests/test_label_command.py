"""Labels of given frames: the command and the function beneath, their files, and interruptions."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from filelock import FileLock
from typer.testing import CliRunner

from ase_segnn.cli import app
from ase_segnn.labels import without_labels
from ase_segnn.training.labeling import LabelOutputs, label_frames

REFERENCE = """
import time
from pathlib import Path
from ase.calculators.emt import EMT

class Slow(EMT):
    def calculate(self, atoms, properties, system_changes):
        if Path(__file__).with_name("slow").exists():
            time.sleep(0.3)
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 1:
            raise RuntimeError("one atom is not enough")

def make_calculator():
    return Slow()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a reference and two files of frames with labels of another origin."""
    monkeypatch.chdir(tmp_path)
    Path("reference.py").write_text(REFERENCE)
    frames = coppers(12)
    ase.io.write("first.xyz", frames[:8])
    ase.io.write("second.xyz", frames[8:])
    return tmp_path


def coppers(n: int) -> list[Atoms]:
    """Displaced crystals with labels that are wrong; a frame of one atom among them."""
    frames = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=seed != 3)
        atoms.rattle(0.05, seed=seed)
        atoms.set_constraint(FixAtoms([0]))
        atoms.info = {"config_type": "crystal", "temperature": 0.1 * seed, "REF_energy": 7.0, "seconds": 1000.0}
        atoms.arrays["dft_forces"] = np.ones((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=5.0, forces=np.zeros((len(atoms), 3)))
        frames.append(atoms)
    return frames


def run(*arguments: str, code: int = 0) -> str:
    """Run a command, check its exit code and return what it printed."""
    result = CliRunner().invoke(app, ["label", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().glob("labels*")}


def test_frames_of_several_files_are_labeled() -> None:
    text = run("first.xyz", "second.xyz@::2", "--reference", "reference.py:make_calculator", "--workers", "2")
    assert "no label: 1 x RuntimeError: one atom is not enough\nframes without a label: labels-failed.xyz\n" in text
    assert re.search(r"\nlabels: 9 of 10 frames, [\d.]+ ms each; labels\.xyz\n$", text)
    labeled, given = ase.io.read("labels.xyz", ":"), [*coppers(8), coppers(12)[8], coppers(12)[10]]
    assert [atoms.info["id"] for atoms in labeled] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [atoms.info["source"] for atoms in labeled[-3:]] == ["first.xyz@7", "second.xyz@0", "second.xyz@2"]
    for atoms in labeled:
        known = ase.io.read(atoms.info["source"])
        np.testing.assert_allclose(atoms.positions, given[atoms.info["id"]].positions, atol=1e-7)
        # the neighbor list of a calculator that knows earlier frames adds in another order
        assert atoms.get_potential_energy() == pytest.approx(EMT().get_potential_energy(known), rel=1e-12)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), EMT().get_forces(known), atol=1e-7)
        np.testing.assert_allclose(atoms.get_stress(apply_constraint=False), EMT().get_stress(known), atol=1e-12)
        assert atoms.constraints[0].index.tolist() == [0]
        assert set(atoms.info) == {"config_type", "temperature", "id", "source", "seconds"}
        assert atoms.info["temperature"] == given[atoms.info["id"]].info["temperature"]
        assert atoms.info["seconds"] < 100
        assert "dft_forces" not in atoms.arrays
    failed = ase.io.read("labels-failed.xyz")
    assert failed.calc is None
    assert (failed.info["id"], failed.info["reason"]) == (3, "RuntimeError: one atom is not enough")
    origin = json.loads(Path("labels.json").read_text())
    assert origin["description"] == "reference.py:make_calculator (Slow)"
    assert (origin["reference"], origin["charge"]) == ("reference.py:make_calculator", None)
    assert not Path("labels.log").exists()


def test_files_are_resumed_or_replaced_only_if_asked() -> None:
    reference = "reference.py:make_calculator"
    run("first.xyz", "--reference", reference)
    before = files()
    exists = "'labels.xyz' exists already; resume the labels, replace them with --force, or choose another output"
    assert exists in run("first.xyz", "--reference", reference, code=2)
    assert "labels: 7 of 8 frames" in run("first.xyz", "--reference", reference, "--resume")
    assert files() == before
    for arguments, differing in (
        (("second.xyz", "--reference", reference), "frames"),
        (("first.xyz@:5", "--reference", reference), "frames"),
        (("first.xyz", "--reference", "emt"), "reference and description"),
    ):
        message = f"the labels in 'labels.xyz' were made with other {differing}; resume with what they began with"
        assert message in run(*arguments, "--resume", code=2)
        assert files() == before
    # a file under another name is the same frames
    Path("copy.xyz").write_bytes(Path("first.xyz").read_bytes())
    run("copy.xyz", "--reference", reference, "--resume")
    assert files() == before
    run("second.xyz", "--reference", "emt", "--force")
    assert [atoms.info["id"] for atoms in ase.io.read("labels.xyz", ":")] == [0, 1, 2, 3]
    assert not Path("labels-failed.xyz").exists()
    assert "no 'other.json' of labels to resume" in run(
        "first.xyz", "--reference", "emt", "--output", "other.xyz", "--resume", code=2
    )
    assert "either resumed or overwritten" in run("first.xyz", "--reference", "emt", "--resume", "--force", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.xyz", "--reference", "emt"], "there is no file 'none.xyz'"),
        (["first.xyz", "--reference", "nothing"], "a reference is gfn2, emt"),
        (["first.xyz", "--reference", "emt", "--charge", "1"], "charge and multiplicity are for the reference gfn2"),
        (["first.xyz", "--reference", "emt", "--limit", "soon"], "'soon' is no duration; write it as 90s"),
        (["first.xyz", "--reference", "emt", "--output", "no/where.xyz"], "there is no folder 'no'"),
        (["first.xyz", "--reference", "emt", "--output", "labels.traj"], "labels are written as extended xyz"),
        (["first.xyz", "silicon.xyz", "--reference", "emt"], "Pt, Au, silicon.xyz@0 has Si; leave out such frames"),
    ],
)
def test_errors_come_before_any_work(folder: Path, arguments: list[str], message: str) -> None:
    ase.io.write("silicon.xyz", bulk("Si"))
    before = sorted(folder.iterdir())
    assert message in run(*arguments, code=2)
    assert sorted(folder.iterdir()) == before


def test_a_reference_that_labels_nothing_is_an_error() -> None:
    text = run("first.xyz@3", "--reference", "reference.py:make_calculator", code=2)
    assert "reference.py:make_calculator (Slow) labeled none of the 1 frames; failures: 1 x RuntimeError: one" in text


def test_two_sessions_do_not_write_the_same_files() -> None:
    with (
        FileLock(".labels.xyz.lock"),
        pytest.raises(FileExistsError, match=r"another session writes 'labels.xyz'; choose another output"),
    ):
        label_frames(coppers(2), "emt")
    assert not Path("labels.json").exists()


def test_an_interruption_tells_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, on_progress: Any, **__: Any) -> None:
        on_progress(3)
        raise KeyboardInterrupt

    monkeypatch.setattr("ase_segnn.training.labeling.label_frames", interrupted)
    text = run("first.xyz", "--reference", "emt", code=130)
    assert "interrupted after 3 of 8 frames; go on with --resume" in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_labels_of_a_command_that_was_ended_are_kept(folder: Path, number: signal.Signals) -> None:
    Path("slow").touch()
    arguments = ("first.xyz", "second.xyz", "--reference", "reference.py:make_calculator", "--workers", "2")
    program = [sys.executable, "-m", "ase_segnn", "label", *arguments]

    def heed_interruptions() -> None:  # also where the tests run in the background of a shell, which has them ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interruptions) as session:  # noqa: PLW1509
        end = time.monotonic() + 120
        while not (folder / "labels.xyz").exists() or (folder / "labels.xyz").read_text().count("config_type") < 3:
            assert time.monotonic() < end
            assert session.poll() is None
            time.sleep(0.05)
        session.send_signal(number)
        _, errors = session.communicate(timeout=60)
    assert session.returncode == (-9 if number == signal.SIGKILL else 130)
    assert ("go on with --resume" in errors) == (number == signal.SIGINT)
    Path("slow").unlink()
    before = {atoms.info["id"]: atoms for atoms in ase.io.read("labels.xyz", ":")}
    assert 3 <= len(before) < 11
    assert "labels: 11 of 12 frames" in run(*arguments, "--resume")
    after = ase.io.read("labels.xyz", ":")
    assert [atoms.info["id"] for atoms in after] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    for atoms in after:
        if atoms.info["id"] in before:
            assert atoms.info == before[atoms.info["id"]].info
            assert atoms.calc.results["energy"] == before[atoms.info["id"]].calc.results["energy"]
    assert sum(atoms.info["seconds"] > 0.3 for atoms in after) == len(before)


# ---- from Python


def test_frames_in_memory_are_labeled(folder: Path) -> None:
    frames, done = coppers(4), []
    frames[3] = Atoms("Cu2", [[0, 0, 0], [0, 0, 1.0]])  # a force above the largest allowed
    labeled = label_frames(frames, "emt", folder / "made.extxyz", on_progress=done.append)
    assert done == [0, 1, 2, 3, 4]
    assert (labeled.n_frames, labeled.n_labels) == (4, 3)
    assert labeled.reasons == {"a force above 30 eV/Å": 1}
    assert 0 < labeled.seconds < 10
    assert labeled.outputs.failed == folder / "made-failed.extxyz"
    assert ase.io.read(labeled.outputs.labels, 1).info["source"] == "frame 1"
    assert frames[0].info["REF_energy"] == 7.0
    assert frames[0].get_potential_energy() == 5.0


def test_names_of_files_go_by_the_labels() -> None:
    outputs = LabelOutputs(Path("runs/copper.v2.xyz"))
    names = [path.as_posix() for path in (outputs.failed, outputs.origin, outputs.log)]
    assert names == ["runs/copper.v2-failed.xyz", "runs/copper.v2.json", "runs/copper.v2.log"]


def test_whatever_could_be_taken_for_a_label_is_removed() -> None:
    [atoms] = coppers(1)
    atoms.info |= {"config_energy_weight": 2.0, 5: "five", "forces_std": 0.1}
    bare = without_labels(atoms)
    assert bare.calc is None
    assert set(bare.info) == {"config_type", "temperature", "seconds", 5, "forces_std"}
    assert set(bare.arrays) == {"numbers", "positions"}
    assert "REF_energy" in atoms.info
