"""Selection of frames: large deviations first, no near-duplicates, and the command that does it."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from random_potentials import CONFIGS, random_potential
from typer.testing import CliRunner

from ase_segnn import Committee, SEGNNCalculator, save_potential, select_frames
from ase_segnn.cli import app
from ase_segnn.potential_file import Provenance
from ase_segnn.training.data.frames import Frame

MEMBERS = [random_potential(CONFIGS["with ZBL"], seed=seed).double() for seed in range(3)]


@pytest.fixture
def calculator() -> SEGNNCalculator:
    return SEGNNCalculator(Committee(MEMBERS), device="cpu", dtype="float64", compile=False)


def ethanol(size: float, seed: int) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(size, seed=seed)
    return atoms


def deviations(calculator: SEGNNCalculator, frames: list[Atoms]) -> np.ndarray:
    return np.array([calculator.get_property("forces_std", frame).max() for frame in frames])


def test_frames_that_differ_are_selected_by_their_deviation(calculator: SEGNNCalculator) -> None:
    frames = [molecule(name) for name in ("H2O", "CH4", "CO2", "H2", "CH3OH", "C2H6")]
    expected = deviations(calculator, frames)
    calls: list[int] = []
    selection = select_frames(calculator, frames, 4, on_frame=lambda: calls.append(1))
    np.testing.assert_allclose(selection.deviations, expected, rtol=1e-9)
    assert selection.indices == np.argsort(-expected)[:4].tolist()
    assert len(calls) == 6
    assert (selection.n_beyond, selection.n_similar) == (0, 0)


def test_near_duplicates_are_selected_once(calculator: SEGNNCalculator) -> None:
    """The same frame again, however turned and in whatever order, and one a hair's breadth away."""
    different = [ethanol(0.1, seed) for seed in range(5)]
    worst = different[int(deviations(calculator, different).argmax())]
    turned = worst.copy()
    turned.rotate(50, (3, 1, 2))
    turned = turned[np.random.default_rng(0).permutation(len(turned))]
    near = worst.copy()
    near.rattle(1e-4, seed=1)
    frames = [*different, worst.copy(), turned, near]
    selection = select_frames(calculator, frames, 8)
    assert selection.n_similar == 3
    assert len(selection.indices) == 5
    alike = {next(i for i, frame in enumerate(different) if frame is worst), 5, 6, 7}
    assert len(alike & set(selection.indices)) == 1


def test_likeness_outweighs_a_larger_deviation(calculator: SEGNNCalculator) -> None:
    """Of frames close to the first one selected none comes second, as by the formula."""
    different = [ethanol(0.1, seed) for seed in range(5)]
    worst = different[int(deviations(calculator, different).argmax())]
    frames = [*different, *(worst.copy() for _ in range(3))]
    for seed, frame in enumerate(frames[5:]):
        frame.rattle(0.01, seed=seed)
    sigma = deviations(calculator, frames)
    first, second = select_frames(calculator, frames, 2).indices
    assert first == sigma.argmax()
    assert second != np.argsort(-sigma)[1], "the formula made no difference"
    energies = np.array([calculator.get_property("energies", frame) for frame in frames])
    symbols = np.array(list(worst.symbols))
    sorted_energies = np.hstack([np.sort(energies[:, symbols == s], axis=1) for s in ("C", "H", "O")])
    squared = (sorted_energies[:, None] - sorted_energies[None]) ** 2
    distances = np.sqrt((squared[first] / squared.mean(axis=(0, 1))).mean(axis=1))
    scores = sigma * np.minimum(1, distances)
    assert second == scores.argmax()


def test_frames_beyond_the_limit_are_left_out(calculator: SEGNNCalculator) -> None:
    frames = [ethanol(0.1, seed) for seed in range(6)]
    sigma = deviations(calculator, frames)
    limit = float(np.median(sigma))
    selection = select_frames(calculator, frames, 2, max_deviation=limit)
    assert selection.n_beyond == 3
    assert selection.indices[0] == np.where(sigma <= limit, sigma, 0).argmax()
    assert all(sigma[index] <= limit for index in selection.indices)
    with pytest.raises(
        ValueError, match=r"none of the 6 frames has a deviation above 0 and up to max_deviation=1e-06 eV/Å"
    ):
        select_frames(calculator, frames, 2, max_deviation=1e-6)


def test_wrong_arguments_are_refused(calculator: SEGNNCalculator) -> None:
    frames = [molecule("H2O")]
    with pytest.raises(ValueError, match="at least 1 frame is selected, got number=0"):
        select_frames(calculator, frames, 0)
    with pytest.raises(ValueError, match="positive, got -1"):
        select_frames(calculator, frames, 1, max_deviation=-1)
    with pytest.raises(ValueError, match="none of the 0 frames"):
        select_frames(calculator, [], 1)
    with pytest.raises(ValueError, match=r"none of the 1 frames has a deviation above 0 .*; the smallest is 0"):
        select_frames(calculator, [Atoms("O")], 1)
    with pytest.raises(ValueError, match="by the disagreement of a committee, and this is a single potential"):
        select_frames(SEGNNCalculator(MEMBERS[0], device="cpu"), frames, 1)


# ---- the command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS["with ZBL"].model_copy(update={"energy_scale": 0.01, "energy_shifts": {}})
    committee = Committee([random_potential(config, seed=seed) for seed in range(3)])
    save_potential(committee, "com.safetensors", provenance=Provenance())
    save_potential(committee.members[0], "one.safetensors", provenance=Provenance())
    ase.io.write("md.traj", [ethanol(0.1, seed) for seed in range(8)])
    ase.io.write("water.xyz", molecule("H2O"))
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_select_writes_frames_with_their_deviations(folder: Path) -> None:
    text = run("select", "com.safetensors", "md.traj", "-n", "3", "--dtype", "float64")
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if "│" in line}
    assert [int(rows[name][0]) for name in ("all", "selected")] == [8, 3]
    assert "selected frames: selected.xyz" in text
    source, calculator = ase.io.read("md.traj", ":"), SEGNNCalculator("com.safetensors", dtype="float64", device="cpu")
    selected = ase.io.read("selected.xyz", ":")
    assert len(selected) == len({frame.info["source_index"] for frame in selected}) == 3
    for frame in selected:
        original = source[frame.info["source_index"]]
        np.testing.assert_allclose(frame.positions, original.positions, atol=1e-7)
        expected = calculator.get_property("forces_std", original)
        np.testing.assert_allclose(frame.arrays["forces_std"], expected, atol=1e-7)
        assert frame.info["max_forces_std"] == pytest.approx(expected.max(), abs=1e-7)
        assert frame.info["energy_std"] == pytest.approx(calculator.get_property("energy_std", original), abs=1e-7)
        assert frame.calc is None, "what a committee predicts is no label"
    largest = max(frame.info["max_forces_std"] for frame in selected)
    assert rows["all"][3].strip() == f"{largest:.3g}"
    before = Path("selected.xyz").read_bytes()
    assert "'selected.xyz' exists already" in run("select", "com.safetensors", "md.traj", code=2)
    assert "single potential" in run("select", "one.safetensors", "md.traj", "--output", "no.xyz", code=2)
    assert Path("selected.xyz").read_bytes() == before
    assert not (folder / "no.xyz").exists()
    run("select", "com.safetensors", "md.traj@:2", "--max-deviation", str(largest / 1e6), "--force", code=2)
    run("select", "com.safetensors", "md.traj@:2", "--max-deviation", str(2 * largest), "--force", "--device", "cpu")
    assert len(ase.io.read("selected.xyz", ":")) == 2


def test_labels_are_not_left_in_what_is_to_be_labeled(calculator: SEGNNCalculator) -> None:
    frames = [ethanol(0.1, seed) for seed in range(4)]
    for atoms in frames:
        atoms.info |= {"REF_energy": 1.0, "mace_energy": 2.0, "virial": np.eye(3), "config_energy_weight": 0.0}
        atoms.info |= {"config_type": "hot", "Energy": 1.0}
        atoms.arrays["forces"] = atoms.arrays["dft_force"] = np.zeros((len(atoms), 3))
    selected = select_frames(calculator, frames, 2).frames
    for atoms in selected:
        assert set(atoms.info) == {"config_type", "source", "source_index", "energy_std", "max_forces_std"}
        assert set(atoms.arrays) == {"numbers", "positions", "forces_std"}
        assert Frame.from_atoms(atoms, "selected").labels == ()
    assert "REF_energy" in frames[0].info


def test_frames_are_named_as_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_potential(Committee(MEMBERS), tmp_path / "committee.safetensors", provenance=Provenance())
    frames = [ethanol(0.1, seed) for seed in range(9)]
    ase.io.write("md.traj", frames)
    result = CliRunner().invoke(app, ["select", "committee.safetensors", "md.traj@3::2", "-n", "2"])
    assert result.exit_code == 0, result.output
    for atoms in ase.io.read("selected.xyz", ":"):
        index = int(atoms.info["source_index"])
        assert atoms.info["source"] == f"md.traj@{index}"
        assert index in {3, 5, 7}
        np.testing.assert_allclose(atoms.positions, frames[index].positions, atol=1e-7)
    frames[5].symbols[0] = "Ag"
    ase.io.write("md.traj", frames)
    result = CliRunner().invoke(app, ["select", "committee.safetensors", "md.traj@3::2", "--force"])
    assert result.output.strip().startswith("error: md.traj@5: ")
