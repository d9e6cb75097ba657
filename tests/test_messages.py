"""Whatever a user gives the command line: one line that says what is wrong, exit code 2, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from random_potentials import CONFIGS, random_potential
from typer.testing import CliRunner

from ase_segnn import save_potential
from ase_segnn.cli import app
from ase_segnn.potential_file import Provenance

SMALL = ("network.irreps_hidden=8x0e+8x1o", "network.n_layers=1", "network.cutoff=4.0", "optimization.epochs=1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with all kinds of files."""
    monkeypatch.chdir(tmp_path)
    save_potential(random_potential(CONFIGS["with ZBL"]), tmp_path / "pot.safetensors", provenance=Provenance())
    whole = (tmp_path / "pot.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 1000)
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=0)
    ase.io.write("cu.xyz", crystal)
    crystal.calc = EMT()
    crystal.get_forces()
    ase.io.write("labeled.xyz", [crystal] * 6)
    ase.io.write("gold.xyz", bulk("Au", cubic=True))
    ase.io.write("none.xyz", Atoms())
    broken = crystal.copy()
    broken.positions[3] = np.nan
    ase.io.write("nan.xyz", broken)
    broken = crystal.copy()
    broken.cell[:] = 0
    ase.io.write("no-cell.traj", broken)
    ase.io.write("water.xyz", molecule("H2O"))
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "half.xyz").write_text((tmp_path / "labeled.xyz").read_text()[:700])
    for name in ("garbage.xyz", "garbage"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 9)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe" * 99)
    return tmp_path


def error_of(folder: Path, *arguments: str) -> str:
    """Run a command that fails, and return the line that says why."""
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1, result.output
    assert lines[0].lower().startswith("error: ")
    assert sorted(folder.rglob("*")) == before
    return lines[0]


STRUCTURES = {
    "nothing.xyz": "there is no file 'nothing.xyz'",
    "empty.xyz": "'empty.xyz' is empty",
    "garbage.xyz": "ASE cannot read 'garbage.xyz'",
    "garbage": "ASE cannot read 'garbage': neither its name nor its first lines tell the format",
    "half.xyz": "ASE cannot read 'half.xyz'",
    "folder": "'folder' is a folder",
    "nan.xyz": "the positions of atom 3 (Cu) are not finite",
    "none.xyz": "the structure has no atoms",
    "gold.xyz": "this structure also has Au",
    "no-cell.traj": "span no volume",
    "cu.xyz@5": "'cu.xyz' has no structure that '@5' selects",
    "cu.xyz@::0": "has a step of 0",
    "pot.safetensors": "ASE cannot read 'pot.safetensors'",
}


@pytest.mark.parametrize("command", ["md", "relax"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures(folder: Path, command: str, structure: str) -> None:
    assert STRUCTURES[structure] in error_of(folder, command, "pot.safetensors", structure, "--steps", "1")


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ("nothing", "potential 'nothing' is neither a shipped potential nor a file"),
        ("cut.safetensors", "'cut.safetensors' is truncated or damaged"),
        ("junk.safetensors", "'junk.safetensors' is no safetensors file"),
        ("cu.xyz", "'cu.xyz' is no safetensors file"),
        ("folder", "'folder' is neither"),
        ("", "potential '' is neither"),
    ],
)
def test_potentials(folder: Path, potential: str, message: str) -> None:
    assert message in error_of(folder, "md", potential, "cu.xyz", "--steps", "1")
    assert message in error_of(folder, "relax", potential, "cu.xyz", "--steps", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("md cu.xyz --temperature nan", "'--temperature'"),
        ("md cu.xyz --temperature inf", "'--temperature'"),
        ("md cu.xyz --timestep inf", "'--timestep'"),
        ("md cu.xyz --friction inf", "'--friction'"),
        ("md cu.xyz --pressure-gpa nan --ensemble npt", "'--pressure-gpa'"),
        ("md cu.xyz --ensemble npt --temperature 0", "NPT needs a --temperature above 0 K"),
        ("md cu.xyz --ensemble nvt", "'--ensemble'"),
        ("md cu.xyz --steps 1.5", "'--steps'"),
        ("md cu.xyz --output no/where", "there is no folder 'no' for 'where.traj'"),
        (
            "md cu.xyz --output folder/",
            "--output is the beginning of names of files, such as runs/first, got 'folder/'",
        ),
        ("md cu.xyz --output=", "--output is the beginning of names of files, such as runs/first, got ''"),
        ("md cu.xyz --bogus", "--bogus"),
        ("relax cu.xyz --fmax inf", "'--fmax'"),
        ("relax cu.xyz --output relaxed.bogus", "ASE writes no structures to files such as 'relaxed.bogus'"),
        ("relax cu.xyz --output folder", "'folder' is a folder; give the name of a file in it"),
        ("relax water.xyz --cell", "--cell needs a structure that is periodic along all three vectors"),
        ("relax cu.xyz --output water.xyz", "'water.xyz' exists already; choose another output"),
    ],
)
def test_options(folder: Path, arguments: str, message: str) -> None:
    command, *rest = arguments.split()
    assert message in error_of(folder, command, "pot.safetensors", *rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give either one recipe or frames with --data, got none of them"),
        ("nothing.yaml", "there is no recipe 'nothing.yaml'"),
        ("folder", "there is no recipe 'folder'"),
        ("list.yaml", "recipe 'list.yaml' must be a YAML mapping"),
        ("twice.yaml", "recipe 'twice.yaml' is not YAML: 'name' is given twice"),
        ("binary.yaml", "recipe 'binary.yaml' is not YAML"),
        ("list.yaml twice.yaml", "give either one recipe or frames with --data, got 2"),
        ("list.yaml --test cu.xyz", "--test goes with --data"),
        ("--data labeled.xyz cu.xyz", "give --data and --test once per file"),
        (
            "--data labeled.xyz --test cu.xyz gold.xyz",
            "'gold.xyz' would be a recipe, which does not go with --data; give",
        ),
        (
            "--data labeled.xyz cu.xyz gold.xyz",
            "give --data and --test once per file, as in --data labeled.xyz --data cu.xyz",
        ),
        ("--test labeled.xyz", "give either one recipe or frames with --data"),
        ("--data nothing.xyz", "no data file 'nothing.xyz'"),
        ("--data labeled.xyz@20:", "'labeled.xyz' has no structure that '@20:' selects"),
        ("--data folder", "'folder' is a folder; give files of frames"),
        ("--data labeled.xyz --test nothing.xyz", "no data file 'nothing.xyz'"),
        ("--data labeled.xyz --time soon", "'soon' is no duration"),
        ("--data labeled.xyz --set data=null", "data: should be a mapping of keys to values, got None"),
        ("--data labeled.xyz --set device=tpu", "device: should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("--data labeled.xyz --set cutoff=4", "cutoff: unknown key; did you mean 'network.cutoff'"),
        ("--data labeled.xyz --set name=1e5", "name: should be a valid string, got 100000.0"),
        ("--data labeled.xyz --output cu.xyz", "'cu.xyz' is a file, and no folder for a run"),
        ("--data labeled.xyz --output cu.xyz/run", "'cu.xyz/run': Not a directory"),
        ("--data labeled.xyz --resume", "no checkpoint 'labeled/last.ckpt' to resume from"),
    ],
)
def test_training(folder: Path, arguments: str, message: str) -> None:
    small = [word for change in SMALL for word in ("--set", change)] if "--data" in arguments else []
    assert message in error_of(folder, "train", *small, *arguments.split())


def test_a_broken_checkpoint_is_named(folder: Path) -> None:
    (folder / "labeled").mkdir()
    (folder / "labeled" / "last.ckpt").write_bytes(b"PK" * 99)
    small = [word for change in SMALL for word in ("--set", change)]
    result = CliRunner().invoke(app, ["train", "--data", "labeled.xyz", *small, "--resume"])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith(
        "error: 'labeled/last.ckpt' is no checkpoint, or broken; start anew"
    )


FILL = """
import resource, sys
from ase_segnn.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
app(sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
@pytest.mark.parametrize(
    ("most", "arguments", "file"),
    [
        ("6000", "md pot.safetensors cu.xyz --steps 20 --interval 1", "cu-langevin.traj"),
        ("9000", "md pot.safetensors cu.xyz --steps 2 --interval 1", "cu-langevin.png"),
        ("3000", "relax pot.safetensors cu.xyz", "cu-relaxed.traj"),
    ],
)
def test_a_full_disk_is_named_with_the_file(folder: Path, most: str, arguments: str, file: str) -> None:
    before = {*folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FILL, most, *arguments.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: '{file}': cannot be written")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in {*folder.iterdir()} - before if path.name.startswith(".")]


def test_without_a_home_training_keeps_its_graphs_in_a_temporary_folder() -> None:
    small = [word for change in (*SMALL, "network.cutoff=-1") for word in ("--set", change)]
    command = [sys.executable, "-c", "from ase_segnn.cli import app; app()", "train", "--data", "labeled.xyz"]
    environment = {**os.environ, "HOME": "/proc/none", "XDG_CACHE_HOME": ""}
    # The one energy weight that is learned is missing, which is found once the graphs are there.
    small += ["--set", "network.cutoff=4.0", "--set", "data.energy_key=nothing"]
    done = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()[-2:]
    assert "the cache folder '/proc/none/.cache/ase-segnn' cannot be used ('/proc/none': No such file" in warning
    assert "set XDG_CACHE_HOME" in warning
    assert error.startswith("error: ")
    assert "energy" in error
