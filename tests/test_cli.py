"""The command line, on a small random potential."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixScaled
from random_potentials import CONFIGS, random_potential
from typer.testing import CliRunner

from ase_segnn import Committee, SEGNNCalculator, __version__, save_potential
from ase_segnn.caches import Cache
from ase_segnn.cli import app
from ase_segnn.potential_file import Provenance
from ase_segnn.training import load_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a potential, a molecule, and a crystal."""
    monkeypatch.chdir(tmp_path)
    config = CONFIGS["with ZBL"].model_copy(update={"energy_scale": 0.01, "energy_shifts": {}})
    provenance = Provenance(seed=3, errors={"some test": {"energy_RMSE_meV": 1.25, "forces_RMSE_meV_per_A": 7.5}})
    save_potential(random_potential(config), tmp_path / "pot.safetensors", provenance=provenance)
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=0)
    ase.io.write(tmp_path / "cu.xyz", crystal)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    """Run a command, check its exit code and return what it printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def log(path: str) -> dict[str, np.ndarray[Any, Any]]:
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def label(atoms: Atoms, noise: float = 0.0) -> Atoms:
    """Attach labels: the potential's own results, with an error of `noise` in eV and eV/Å."""
    atoms = atoms.copy()
    atoms.calc = SEGNNCalculator("pot.safetensors")
    labels = {"energy": atoms.get_potential_energy() + noise, "forces": atoms.get_forces() + noise}
    if atoms.pbc.all():
        labels["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def labeled_waters(n_frames: int) -> list[Atoms]:
    """Water molecules with displaced atoms."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n_frames):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(0, 0.05, (3, 3))
        frames.append(label(atoms))
    return frames


@pytest.fixture
def committee(folder: Path) -> str:
    config = CONFIGS["with ZBL"].model_copy(update={"energy_scale": 0.01, "energy_shifts": {}})
    members = [random_potential(config, seed=seed) for seed in range(3)]
    save_potential(Committee(members), folder / "committee.safetensors", provenance=Provenance())
    return "committee.safetensors"


# ---- the frame


def test_the_installed_command_runs() -> None:
    command = [sys.executable, "-c", "from ase_segnn.cli import app; app()"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__
    failed = subprocess.run([*command, "info", "nothing"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: potential 'nothing' is neither a shipped potential nor a file")
    assert "Traceback" not in failed.stderr
    traced = subprocess.run([*command, "--debug", "info", "nothing"], capture_output=True, text=True, check=False)
    assert "Traceback" in traced.stderr


def test_help_needs_neither_torch_nor_ase() -> None:
    code = (
        "import sys\nfrom ase_segnn.cli import app\ntry:\n    app(['md', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'ase', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["md", "pot.safetensors", "nothing.xyz"], "there is no file 'nothing.xyz'"),
        (["md", "pot.safetensors", "pot.safetensors"], "ASE cannot read"),
        (["md", "pot.safetensors", "water.xyz", "--output", "no/where"], "there is no folder 'no'"),
        (["md", "pot.safetensors", "water.xyz", "--ensemble", "npt"], "NPT needs a structure that is periodic"),
        (["md", "pot.safetensors", "water.xyz", "--keep-velocities"], "has no momenta to keep"),
        (["md", "water.xyz", "water.xyz"], "water.xyz"),
        (["relax", "pot.safetensors", "water.xyz", "--cell"], "--cell needs a structure that is periodic"),
        (["relax", "pot.safetensors", "water.xyz", "--device", "tpu"], "device is 'auto'"),
        (["evaluate", "pot.safetensors", "water.xyz"], "'water.xyz': none of the 1 frames has an energy"),
        (["train", "nothing.yaml"], "there is no recipe 'nothing.yaml'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(folder.iterdir())
    assert message in run(*arguments, code=2)
    assert sorted(folder.iterdir()) == before


# ---- info


def test_info_lists_and_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for expected in ("level of theory", "acac-pbe-fast", "H, C, O", "errors (RMSE)", "cost", "72 µs per atom and step"):
        assert expected in run("info")
    text = run("info", "pot.safetensors")
    for expected in ("H, C, O, Si, Cu", "4.5 Å", "ZBL", "seed:", "3", "some test", "1.25 meV, 7.50 meV/Å"):
        assert expected in text


def test_info_counts_the_members_of_a_committee(committee: str) -> None:
    assert "3 (a committee)" in run("info", committee)
    assert "committee" not in run("info", "pot.safetensors")


# ---- evaluate


def test_evaluate_prints_errors_and_draws_a_plot_if_asked(folder: Path) -> None:
    ase.io.write("exact.xyz", [label(molecule("H2O")), label(bulk("Cu", cubic=True))])
    ase.io.write("off.xyz", [label(molecule("H2O"), noise=0.05)])
    text = run("evaluate", "pot.safetensors", "exact.xyz", "off.xyz")
    exact, off = text.split("off.xyz: 1 frames")
    assert "exact.xyz: 2 frames" in exact
    assert "stress, meV" in exact
    assert "stress, meV" not in off
    assert "energy of 1 frames from 'energy' of the calculator results; forces of 1 frames" in off
    rows = {
        line.split("│")[1].strip(): [x.strip() for x in line.split("│")[2:6]]
        for line in off.splitlines()
        if "│" in line
    }
    assert rows["energy, meV"] == ["1", "1", "50.00", "50.00"]
    assert rows["force components, meV/Å"] == ["1", "9", "50.00", "50.00"]
    assert not list(folder.glob("*.png"))
    plot = ("--plot", "parity.png")
    run("evaluate", "pot.safetensors", "exact.xyz@0", *plot, "--dtype", "float64")
    assert (folder / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert "'parity.png' exists already" in run("evaluate", "pot.safetensors", "exact.xyz", *plot, code=2)
    run("evaluate", "pot.safetensors", "exact.xyz", *plot, "--force")


def test_evaluate_takes_the_labels_that_train_takes() -> None:
    frames = []
    for seed in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        labels = label(atoms).calc.results
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = labels["energy"], labels["forces"]
        atoms.calc = SinglePointCalculator(atoms, energy=labels["energy"] + 100, forces=np.zeros((4, 3)))
        frames.append(atoms)
    ase.io.write("frames.xyz", frames)
    text = run("evaluate", "pot.safetensors", "frames.xyz")
    assert re.search(r"energy, meV +│ 6 +│ 6 +│ 0\.0\d +│ 0\.0\d", text)
    assert re.search(r"force components, meV/Å +│ 6 +│ 72 +│ 0\.0\d +│ 0\.0\d", text)
    assert "labels: energy of 6 frames from 'REF_energy'; forces of 6 frames from 'REF_forces'; no stress" in text
    assert "warning: not used: 'energy' of the calculator results: 6 frames have it" in text
    text = run("evaluate", "pot.safetensors", "frames.xyz", "--energy-key", "energy", "--forces-key", "forces")
    assert re.search(r"energy, meV +│ 6 +│ 6 +│ 100000\.0\d", text)
    text = run("evaluate", "pot.safetensors", "frames.xyz", "--stress-key", "REF_strss", code=2)
    assert text.startswith("error: 'frames.xyz': no frame has 'REF_strss', which --stress-key names")
    for atoms in frames:
        atoms.info["my_energy"] = atoms.info.pop("REF_energy")
        atoms.calc = None
        del atoms.arrays["REF_forces"]
    ase.io.write("own.xyz", frames)
    assert "'my_energy' (6 frames)" in run("evaluate", "pot.safetensors", "own.xyz", code=2)
    run("evaluate", "pot.safetensors", "own.xyz", "--energy-key", "my_energy")


def test_evaluate_names_frames_as_the_file_has_them() -> None:
    frames = [bulk("Cu", cubic=True) for _ in range(8)]
    frames[6].symbols[0] = "Ag"
    for index, atoms in enumerate(frames[2:], start=2):
        stress = {"stress": np.zeros(6)} if index < 5 else {}
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((4, 3)), **stress)
    ase.io.write("frames.xyz", frames)
    for selection in ("", "@3:", "@0::2", "@-2"):
        text = run("evaluate", "pot.safetensors", f"frames.xyz{selection}", code=2)
        assert text.strip().startswith("error: frames.xyz@6: ")
        assert "this structure also has Ag" in text
    frames[4].calc.results["energy"] = np.nan
    ase.io.write("frames.xyz", frames)
    text = run("evaluate", "pot.safetensors", "frames.xyz@3:6", code=2)
    assert text.startswith("error: 'frames.xyz@3:6': 'energy' of frames.xyz@4 is not finite")


def test_a_slab_among_crystals_does_not_stop_evaluate() -> None:
    frames = [label(bulk("Cu", cubic=True)) for _ in range(4)]
    slab = bulk("Cu", cubic=True)
    slab.center(vacuum=5.0, axis=2)
    slab.pbc = [True, True, False]
    slab = label(slab)
    slab.calc.results["stress"] = np.zeros(6)
    ase.io.write("frames.xyz", [*frames[:2], slab, *frames[2:]])
    text = run("evaluate", "pot.safetensors", "frames.xyz")
    assert re.search(r"stress, meV/Å³ +│ 4 +│ 24 +│", text)
    assert "note: stress without a volume: frames.xyz@2 has a stress, but no volume" in text


def test_crystals_without_their_cell_are_refused(folder: Path) -> None:
    ase.io.write("cu.xyz", label(bulk("Cu", cubic=True)))
    text = (folder / "cu.xyz").read_text().replace("Lattice=", "lattice=").replace(' pbc="T T T"', "")
    (folder / "lower.xyz").write_text(text)
    for command in (("evaluate",), ("relax",), ("md", "--steps", "1")):
        name, *options = command
        text = run(name, "pot.safetensors", "lower.xyz", *options, code=2)
        assert "lower.xyz@0 has 'lattice' beside a structure that is not periodic, with 0 cell vectors" in text


# ---- relax


def test_relax_reaches_its_goal() -> None:
    text = run("relax", "pot.safetensors", "cu.xyz", "--fmax", "0.001", "--steps", "200")
    assert "\nconverged after" in text
    relaxed = ase.io.read("cu-relaxed.xyz")
    relaxed.calc = SEGNNCalculator("pot.safetensors", dtype="float64")
    assert np.abs(relaxed.get_forces()).max() < 0.0011
    before = ase.io.read("cu.xyz")
    assert np.abs(relaxed.positions - before.positions).max() > 0.01
    assert np.allclose(relaxed.cell, before.cell)
    assert len(ase.io.read("cu-relaxed.traj", ":")) > 2
    assert "exists already" in run("relax", "pot.safetensors", "cu.xyz", code=2)


def test_relax_options() -> None:
    text = run("relax", "pot.safetensors", "cu.xyz", "--steps", "1", "--output", "one.extxyz", code=1)
    assert "NOT converged after 1 steps" in text
    run("relax", "pot.safetensors", "cu.xyz", "--cell", "--steps", "3", "--output", "cell.xyz", code=1)
    assert not np.allclose(ase.io.read("cell.xyz").cell, ase.io.read("cu.xyz").cell)
    positions = []
    for optimizer in ("BFGS", "LBFGS", "FIRE"):
        output = f"{optimizer}.xyz"
        run("relax", "pot.safetensors", "cu.xyz", "--steps", "5", "--optimizer", optimizer, "--output", output, code=1)
        positions.append(ase.io.read(output).positions)
    assert not np.allclose(positions[0], positions[2])


# ---- md


@pytest.mark.parametrize(("ensemble", "structure"), [("nve", "water"), ("langevin", "water"), ("npt", "cu")])
def test_md_writes_trajectory_log_and_plot(folder: Path, ensemble: str, structure: str) -> None:
    text = run("md", "pot.safetensors", f"{structure}.xyz", "--ensemble", ensemble, "--steps", "40", "--interval", "5")
    prefix = f"{structure}-{ensemble}"
    columns = log(f"{prefix}.csv")
    frames = ase.io.read(f"{prefix}.traj", ":")
    assert columns["step"].tolist() == list(range(0, 41, 5))
    assert len(frames) == 9
    assert columns["time_fs"][-1] == pytest.approx(20.0)
    assert frames[-1].get_potential_energy() == pytest.approx(columns["potential_eV"][-1])
    assert np.ptp(columns["potential_eV"]) > 1e-6
    assert (folder / f"{prefix}.png").read_bytes().startswith(b"\x89PNG")
    assert "ns/day" in text
    assert ("drift of the total energy" in text) == (ensemble == "nve")
    assert ("pressure_GPa" in columns) == (ensemble == "npt")
    if ensemble == "npt":
        assert np.ptp(columns["volume_A3"]) > 0
    for suffix in ("traj", "csv", "png"):
        content = (folder / f"{prefix}.{suffix}").read_bytes()
        assert "exists already" in run(
            "md", "pot.safetensors", f"{structure}.xyz", "--ensemble", ensemble, "--steps", "1", code=2
        )
        assert (folder / f"{prefix}.{suffix}").read_bytes() == content


def test_md_starts_at_the_temperature_and_at_rest() -> None:
    run("md", "pot.safetensors", "water.xyz", "--ensemble", "nve", "--steps", "1", "--temperature", "250")
    first = ase.io.read("water-nve.traj@0")
    assert first.get_temperature() == pytest.approx(250)
    assert np.abs(first.get_momenta().sum(0)).max() < 1e-10
    assert np.abs(first.get_angular_momentum()).max() < 1e-10


def test_md_options_change_the_run() -> None:
    def final(name: str, *options: str) -> np.ndarray[Any, Any]:
        run("md", "pot.safetensors", "cu.xyz", "--steps", "6", "--interval", "3", "--output", name, *options)
        frame = ase.io.read(f"{name}.traj@-1")
        return np.concatenate([frame.positions, frame.cell.array])

    plain = final("plain", "--ensemble", "npt")
    assert np.array_equal(plain, final("again", "--ensemble", "npt"))
    assert not np.allclose(plain, final("pressure", "--ensemble", "npt", "--pressure-gpa", "50"), atol=1e-9, rtol=0)
    langevin = final("langevin")
    for name, *options in (
        ("seed", "--seed", "1"),
        ("friction", "--friction", "0.1"),
        ("temperature", "--temperature", "600"),
        ("timestep", "--timestep", "1.0"),
        ("nve", "--ensemble", "nve"),
    ):
        assert not np.allclose(langevin, final(name, *options), atol=1e-6, rtol=0), name


def test_md_insists_on_a_compiler_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    md = ("md", "pot.safetensors", "water.xyz", "--ensemble", "nve", "--steps", "3")
    run(*md, "--output", "plain")
    text = run(*md, "--output", "compiled", "--compile", code=2)
    assert "CXX names 'no-such-compiler', which is not there; compile=False does without" in text


def test_md_keeps_velocities() -> None:
    nve = ("--ensemble", "nve", "--steps", "10")
    run("md", "pot.safetensors", "water.xyz", *nve, "--output", "first")
    run("md", "pot.safetensors", "first.traj", *nve, "--keep-velocities", "--output", "kept")
    run("md", "pot.safetensors", "first.traj", *nve, "--output", "drawn")
    end = ase.io.read("first.traj@-1").get_momenta()
    assert np.allclose(ase.io.read("kept.traj@0").get_momenta(), end)
    assert not np.allclose(ase.io.read("drawn.traj@0").get_momenta(), end)


def test_md_stops_when_it_explodes() -> None:
    text = run("md", "pot.safetensors", "cu.xyz", "--ensemble", "nve", "--timestep", "500", "--steps", "200", code=2)
    assert "the temperature reached" in text or "no finite energy" in text
    assert len(log("cu-nve.csv")["step"]) >= 1
    assert ase.io.read("cu-nve.traj@0").get_temperature() == pytest.approx(300)


def test_md_interrupted_keeps_what_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calculate, calls = SEGNNCalculator.calculate, []

    def interrupt(self: SEGNNCalculator, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        calculate(self, *arguments)

    monkeypatch.setattr(SEGNNCalculator, "calculate", interrupt)
    text = run("md", "pot.safetensors", "water.xyz", "--ensemble", "nve", "--steps", "100", "--interval", "5")
    assert "interrupted after 2" in text
    assert log("water-nve.csv")["step"].tolist() == [0, 5, 10, 15, 20]
    assert len(ase.io.read("water-nve.traj", ":")) == 5
    assert (folder / "water-nve.png").exists()


def test_md_stops_where_a_committee_disagrees(committee: str) -> None:
    calculator = SEGNNCalculator(committee)

    def deviations(trajectory: str) -> np.ndarray[Any, Any]:
        return np.array([calculator.get_property("forces_std", frame).max() for frame in ase.io.read(trajectory, ":")])

    md = ("md", committee, "water.xyz", "--ensemble", "nve", "--steps", "12", "--interval", "2")
    run(*md, "--output", "free")
    free = deviations("free.traj")
    limit = (free[0] + free.max()) / 2
    assert free[0] < limit
    text = run(*md, "--output", "stopped", "--max-deviation", str(limit), code=2)
    assert "the last frame of 'stopped.traj' is this structure" in text
    stopped = deviations("stopped.traj")
    assert stopped[-1] > limit
    assert (stopped[:-1] <= limit).all()
    frames = ase.io.read("stopped.traj", ":")
    assert frames[-1].get_potential_energy() != frames[-2].get_potential_energy()
    assert len(log("stopped.csv")["step"]) == len(frames) - 1
    text = run("md", "pot.safetensors", "water.xyz", "--max-deviation", "1", code=2)
    assert "max_deviation is for committees" in text


# ---- train


@pytest.mark.usefixtures("no_report")
def test_train_makes_a_potential_that_evaluate_agrees_with(folder: Path) -> None:
    ase.io.write("frames.xyz", labeled_waters(8))
    (folder / "my.yaml").write_text(
        "name: my\ndata: {train: frames.xyz, validation: 2, test: {all: frames.xyz}}\n"
        "network: {irreps_hidden: 4x0e+2x1o, l_max_attributes: 1, n_layers: 1}\n"
        "optimization: {epochs: 2, batch_edges: 12}\ndevice: cpu\n"
    )
    text = run("train", "my.yaml")
    assert "potential: my/my.safetensors" in text
    (line,) = [line for line in text.splitlines() if line.startswith("all: RMSE")]
    table = run("evaluate", "my/my.safetensors", "frames.xyz")
    for error in re.findall(r"[\d.]+", line.removeprefix("all: RMSE ")):
        assert error in table
    assert "holds a run already" in run("train", "my.yaml", code=2)
    run("train", "my.yaml", "--force")
    run("train", "my.yaml", "--resume")
    run("train", "my.yaml", "--output", "elsewhere", "--set", "optimization.epochs=1")
    assert (folder / "elsewhere" / "my.md").exists()
    assert load_recipe(folder / "elsewhere" / "recipe.yaml").optimization.epochs == 1


@pytest.mark.usefixtures("no_report")
def test_train_needs_no_recipe(folder: Path) -> None:
    frames = labeled_waters(15)
    ase.io.write("frames.xyz", frames[:12])
    ase.io.write("other.xyz", frames[12:])
    small = ("--set", "network={irreps_hidden: 4x0e+2x1o, l_max_attributes: 1, n_layers: 1}", "--time", "2s")
    text = run("train", "--data", "frames.xyz", *small)
    assert "held out: RMSE" in text
    assert "report: frames/report.html" in text
    recipe = load_recipe(folder / "frames" / "recipe.yaml")
    assert recipe.optimization.max_time == 2
    assert "other: RMSE" in run("train", "--data", "frames.xyz", "--test", "other.xyz", "--output", "with", *small)
    assert "give either one recipe or frames" in run("train", code=2)
    assert "optimization.epoch: unknown key" in run(
        "train", "--data", "frames.xyz", "--set", "optimization.epoch=1", code=2
    )
    assert "--set takes KEY=VALUE" in run("train", "--data", "frames.xyz", "--set", "seed", code=2)
    assert "'name' has no keys in it" in run("train", "--data", "frames.xyz", "--set", "name.x=1", code=2)


@pytest.mark.usefixtures("no_report")
def test_train_learns_cheap_labels_first(folder: Path) -> None:
    ase.io.write("frames.xyz", labeled_waters(12))
    Path("cheap.py").write_text("from ase.calculators.emt import EMT\n\ndef make():\n    return EMT()\n")
    small = (
        "--set",
        "network={irreps_hidden: 4x0e+2x1o, l_max_attributes: 1, n_layers: 1}",
        "--set",
        "optimization.epochs=2",
    )
    run("train", "--data", "frames.xyz", "--pretrain", "cheap.py:make", "--set", "pretrain.frames=20", *small)
    assert len(ase.io.read("frames/pretraining/labels.xyz", ":")) == 20
    assert "- Pretrained on: 20 frames" in (folder / "frames" / "frames.md").read_text()
    pretrain = load_recipe(folder / "frames" / "recipe.yaml").pretrain
    assert pretrain is not None
    assert (pretrain.reference, pretrain.frames, pretrain.share) == ("cheap.py:make", 20, 0.75)
    assert "no file 'none.py'" in run(
        "train", "frames/recipe.yaml", "--pretrain", "none.py:make", "--output", "other", code=2
    )
    run("train", "--data", "frames.xyz", "--output", "without", *small)
    kept = folder / "without" / "recipe.yaml"
    assert load_recipe(kept).pretrain is None
    assert "got 'gfn3'" in run("train", str(kept), "--pretrain", "gfn3", "--output", "other", code=2)
    assert not (folder / "other").exists()


# ---- cache


def test_cache_shows_and_empties_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user"))
    graphs, compiled = Cache("graphs").folder, Cache("compiled").folder
    (graphs / "a.frames").write_bytes(bytes(3000))
    (graphs / "b.frames").write_bytes(bytes(72))
    (compiled / "c.so").write_bytes(bytes(5 * 2**20))
    shown = {line.split(":")[0]: line for line in run("cache").splitlines()}
    assert set(shown) == {"compiled", "graphs", "trajectories", "downloads"}
    assert re.search(r"2 files, +3 KiB of at most 4\.0 GiB, .*user/ase-segnn/graphs$", shown["graphs"])
    assert re.search(r"1 files, +5 MiB of at most 256 MiB, .*user/ase-segnn/compiled$", shown["compiled"])
    assert re.search(r"0 files, +0 B of", shown["downloads"])
    assert run("cache", "--empty", "graphs") == "graphs: removed 2 files, 3 KiB\n"
    assert (list(graphs.iterdir()), len(list(compiled.iterdir()))) == ([], 1)
    assert "compiled: removed 1 files, 5 MiB" in run("cache", "--empty", "all")
    assert list(compiled.iterdir()) == []
    assert "'everything' is not one of" in run("cache", "--empty", "everything", code=2)


def test_md_keeps_constraints_and_adds_none() -> None:
    crystal = ase.io.read("cu.xyz")
    crystal.set_constraint(FixAtoms([0, 1]))
    ase.io.write("fixed.traj", crystal)
    md = ("md", "pot.safetensors", "fixed.traj", "--steps", "20", "--interval", "5", "--temperature", "600")
    for ensemble in ("langevin", "nve"):
        assert "of 6 degrees of freedom" in run(*md, "--ensemble", ensemble)
        frames = ase.io.read(f"fixed-{ensemble}.traj", ":")
        for frame in frames:
            assert [(type(c), c.index.tolist()) for c in frame.constraints] == [(FixAtoms, [0, 1])]
            assert np.array_equal(frame.positions[:2], crystal.positions[:2])
            assert not frame.get_momenta()[:2].any()
        assert np.abs(frames[-1].positions[2:] - crystal.positions[2:]).max() > 0.01
        kelvin = [frame.get_temperature() for frame in frames]
        assert log(f"fixed-{ensemble}.csv")["temperature_K"] == pytest.approx(kelvin)
    assert "constraints (FixAtoms), and NPT moves all atoms" in run(*md, "--ensemble", "npt", code=2)
    run("md", "pot.safetensors", "water.xyz", "--steps", "5", "--interval", "1")
    frames = ase.io.read("water-langevin.traj", ":")
    assert [frame.constraints for frame in frames] == [[]] * 6
    assert np.abs([frame.get_momenta().sum(axis=0) for frame in frames]).max() < 1e-10


@pytest.mark.parametrize("ensemble", ["langevin", "nve"])
def test_md_of_one_atom(ensemble: str) -> None:
    ase.io.write("atom.xyz", Atoms("Cu"))
    text = run("md", "pot.safetensors", "atom.xyz", "--ensemble", ensemble, "--steps", "20")
    assert "of 3 degrees of freedom" in text
    assert np.isfinite(log(f"atom-{ensemble}.csv")["temperature_K"]).all()
    assert log(f"atom-{ensemble}.csv")["temperature_K"][0] == pytest.approx(300)


def test_relax_keeps_constraints(folder: Path) -> None:
    crystal = ase.io.read("cu.xyz")
    crystal.set_constraint(FixAtoms([0]))
    ase.io.write("fixed.traj", crystal)
    run("relax", "pot.safetensors", "fixed.traj", "--steps", "5", "--output", "relaxed.traj", code=1)
    frames = ase.io.read("relaxed.traj", ":")
    assert np.array_equal(frames[-1].positions[0], crystal.positions[0])
    assert [type(c) for c in frames[-1].constraints] == [FixAtoms]
    assert np.abs(frames[-1].positions - crystal.positions).max() > 0.01
    text = run("relax", "pot.safetensors", "fixed.traj", "--cell", "--output", "cell.traj", code=2)
    assert "constraints (FixAtoms), and --cell moves all atoms with the cell" in text
    assert not (folder / "cell.traj").exists()
    # In a skewed cell an atom may move along one cell vector only.
    crystal.set_cell(
        crystal.cell.array @ np.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.2, -0.1, 1.0]]), scale_atoms=True
    )
    crystal.set_constraint([FixAtoms([0, 1, 2]), FixScaled([3], (1, 1, 0))])
    ase.io.write("skewed.traj", crystal)
    run("relax", "pot.safetensors", "skewed.traj", "--fmax", "0.001", "--steps", "100", "--output", "along.traj")
    relaxed = ase.io.read("along.traj")
    assert [type(c) for c in relaxed.constraints] == [FixAtoms, FixScaled]
    moved = relaxed.cell.scaled_positions(relaxed.positions) - crystal.cell.scaled_positions(crystal.positions)
    assert np.abs(moved[:3]).max() < 1e-9
    assert np.abs(moved[3, :2]).max() < 1e-9
    assert abs(moved[3, 2]) > 1e-3
    relaxed.set_constraint()
    relaxed.calc = SEGNNCalculator("pot.safetensors", dtype="float64")
    assert abs(relaxed.get_forces()[3] @ relaxed.cell.array[2]) < 0.0011 * relaxed.cell.lengths()[2]
    # With the cell, atoms that are fixed keep their place relative to it.
    crystal.set_constraint(FixScaled([0, 1]))
    ase.io.write("scaled.traj", crystal)
    run("relax", "pot.safetensors", "scaled.traj", "--cell", "--steps", "5", "--output", "scaled-cell.traj", code=1)
    relaxed = ase.io.read("scaled-cell.traj")
    assert np.abs(relaxed.cell.array - crystal.cell.array).max() > 1e-3
    moved = relaxed.cell.scaled_positions(relaxed.positions) - crystal.cell.scaled_positions(crystal.positions)
    assert np.abs(moved[:2]).max() < 1e-9 < np.abs(moved[2:]).max()
