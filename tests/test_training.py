"""Whole training runs, small ones: what they learn, write, survive and refuse."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from compiler import needs_compiler
from filelock import FileLock
from labeled import labeled_clusters, labeled_crystals, recipe_for, write_frames

from ase_segnn import load_potential
from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.engines.build import NoCompilerError
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import read_header
from ase_segnn.training import load_recipe, run_recipe, train
from ase_segnn.training.data import TrainingData, sources
from ase_segnn.training.data.batches import LabeledGraph
from ase_segnn.training.data.frames import read_frames
from ase_segnn.training.fit import CHECKPOINT, PotentialModule
from ase_segnn.training.fit.module import TrainingModule
from ase_segnn.training.recipe import Recipe, make_recipe
from ase_segnn.training.run import new_potential, settled

pytestmark = pytest.mark.usefixtures("no_report")

COMPILED: dict[str, Any] = {"network": {"irreps_hidden": "8x0e+8x1o"}, "compile": "auto"}


@pytest.fixture
def frames_file(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames.xyz", labeled_clusters())


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_potential(path).named_parameters())


def curve_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def short(frames_file: Path, **optimization: Any) -> Recipe:
    return recipe_for(frames_file, optimization=optimization, data={"test": {}})


# ---- results


def test_run_learns_and_writes_its_files(tmp_path: Path, frames_file: Path) -> None:
    rng_before = torch.random.get_rng_state()
    recipe = recipe_for(frames_file, optimization={"epochs": 60})
    result = run_recipe(recipe, tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), rng_before)
    frames = list(read_frames(frames_file))
    shift = np.std([frame.energy / len(frame.atoms) for frame in frames])  # type: ignore[operator]
    assert result.errors["all"]["energy_RMSE_meV"] < 1000 * shift * 4
    spread = np.sqrt(np.mean(np.concatenate([frame.forces for frame in frames]) ** 2))  # type: ignore[arg-type]
    assert result.errors["all"]["forces_RMSE_meV_per_A"] < 500 * spread

    header = read_header(result.potential_path)
    assert header.provenance.errors == result.errors
    assert header.provenance.seed == recipe.seed
    assert header.provenance.data == {"frames.xyz": sources.sha256(frames_file)}
    card = result.card_path.read_text()
    assert f"{result.errors['all']['forces_RMSE_meV_per_A']:.2f}" in card
    curve = curve_of(tmp_path / "run")
    assert [int(row["epoch"]) for row in curve] == list(range(1, 61))
    assert float(curve[-1]["loss"]) < 0.2 * float(curve[0]["loss"])  # though energies count more by then
    assert float(curve[-1]["learning_rate"]) < 1e-3 * 0.01

    atoms = frames[0].atoms.copy()
    atoms.calc = SEGNNCalculator(result.potential_path)
    error = atoms.get_forces() - frames[0].forces
    assert np.abs(error).max() < 5 * result.errors["all"]["forces_RMSE_meV_per_A"] / 1000


def test_the_weights_kept_are_the_averaged_ones_that_validated_best(tmp_path: Path, frames_file: Path) -> None:
    result = run_recipe(short(frames_file, epochs=6, ema_decay=0.9, schedule="constant"), tmp_path / "run")
    curve = curve_of(tmp_path / "run")
    shown = [
        (float(row["validation_energy_RMSE_meV"]), float(row["validation_forces_RMSE_meV_per_A"])) for row in curve
    ]
    own = result.errors["validation"]
    kept = (own["energy_RMSE_meV"], own["forces_RMSE_meV_per_A"])
    assert kept == pytest.approx(min(shown, key=lambda errors: errors[0] * errors[1]), rel=1e-3)


def test_the_last_epoch_is_validated(tmp_path: Path, frames_file: Path) -> None:
    run_recipe(short(frames_file, epochs=5).model_copy(update={"validate_every": 3}), tmp_path / "run")
    validated = [bool(row["validation_forces_RMSE_meV_per_A"]) for row in curve_of(tmp_path / "run")]
    assert validated == [False, False, True, False, True]


def test_runs_repeat_and_depend_on_the_seed(tmp_path: Path, frames_file: Path) -> None:
    first = run_recipe(short(frames_file), tmp_path / "first").potential_path
    kept = load_recipe(tmp_path / "first" / "recipe.yaml")
    second = run_recipe(kept, tmp_path / "second").potential_path
    other = run_recipe(kept.model_copy(update={"seed": 1}), tmp_path / "other").potential_path
    a, b, c = (weights_of(path) for path in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_options_change_the_result(tmp_path: Path, frames_file: Path) -> None:
    plain = weights_of(run_recipe(short(frames_file), tmp_path / "plain").potential_path)
    changes: list[dict[str, Any]] = [
        {"optimizer": "adamw"},
        {"muon_learning_rate": 0.002},
        {"learning_rate": 0.002},
        {"warmup_steps": 10},
        {"weight_decay": 0.5},
        {"ema_decay": 0.0},
        {"gradient_clip": 1e-3},
        {"energy_weight": 0.0},
        {"energy_weight": 1.0},
        {"energy_weight": (1.0, 100.0)},
        {"forces_weight": 0.0},
        {"forces_weight": (1.0, 0.1)},
        {"batch_edges": 1},
        {"batch_edges": 20},
        {"schedule": "constant"},
        {"loss": "l1"},
        {"loss": "huber"},
        {"loss": "huber", "huber_delta": 0.5},
    ]
    seen = [plain]
    for number, change in enumerate(changes):
        changed = weights_of(run_recipe(short(frames_file, **change), tmp_path / str(number)).potential_path)
        for other in seen:
            assert any(not torch.equal(other[key], changed[key]) for key in other), change
        seen.append(changed)


def test_stresses_are_learned_unless_that_is_not_wanted(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "crystals.xyz", labeled_crystals())
    results = {}
    for weight in (0.0, 1.0):
        changes = {"epochs": 30, "stress_weight": weight, "energy_weight": 0.0, "forces_weight": 0.01}
        changes["batch_edges"] = 430  # about four crystals
        results[weight] = run_recipe(recipe_for(path, optimization=changes), tmp_path / str(weight))
    errors = {weight: result.errors["all"]["stress_RMSE_meV_per_A3"] for weight, result in results.items()}
    assert errors[1.0] < 0.5 * errors[0.0]
    assert f"| {errors[1.0]:.2f} |" in results[1.0].card_path.read_text()
    assert "stress RMSE" not in results[0.0].card_path.read_text()
    assert "validation_stress_RMSE_meV_per_A3" in curve_of(tmp_path / "1.0")[0]
    run_recipe(recipe_for(path, optimization={"epochs": 1}), tmp_path / "open")
    settled = load_recipe(tmp_path / "open" / "recipe.yaml").optimization
    assert (settled.stress_weight, settled.energy_weight) == (0.01, (0.01, 1.0))


def test_forces_alone_can_be_learned_and_a_label_without_frames_not(tmp_path: Path) -> None:
    frames = labeled_clusters()
    for atoms in frames:
        atoms.calc.results.pop("energy")
        atoms.calc.results.pop("free_energy", None)
        atoms.calc.results.pop("energies", None)
    path = write_frames(tmp_path / "frames.xyz", frames)
    with pytest.raises(ValueError, match=r"energy_weight is 0.01, but no training frame has energy.*data.energy_key"):
        run_recipe(short(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = run_recipe(short(path, energy_weight=0.0), tmp_path / "run")
    assert set(result.errors["validation"]) == {"forces_MAE_meV_per_A", "forces_RMSE_meV_per_A"}
    with pytest.raises(ValueError, match="all 0; nothing would be learned"):
        run_recipe(short(path, energy_weight=0.0, forces_weight=0.0), tmp_path / "nothing")


# ---- schedules


def test_a_run_ends_in_time_and_its_learning_rate_with_it(tmp_path: Path, frames_file: Path) -> None:
    started = time.monotonic()
    recipe = short(frames_file, epochs=100000, max_time="3s").model_copy(update={"validate_every": 1000})
    run_recipe(recipe, tmp_path / "run")
    assert time.monotonic() - started < 60  # 100,000 epochs take an hour
    curve = curve_of(tmp_path / "run")
    assert 1 < len(curve) < 100000
    rates = [float(row["learning_rate"]) for row in curve]
    assert rates[-1] < 0.05 * max(rates)
    assert "validation_forces_RMSE_meV_per_A" in curve[-1]


def test_plateau_and_early_stopping(tmp_path: Path, frames_file: Path) -> None:
    # with learning rates that change nothing, no validation after the first is better by more than rounding
    still = {"muon_learning_rate": 1e-30, "learning_rate": 1e-30, "schedule": "plateau", "epochs": 50}
    run_recipe(short(frames_file, **still, early_stopping=22), tmp_path / "run")
    rates = [float(row["learning_rate"]) for row in curve_of(tmp_path / "run")]
    assert len(rates) == 23
    assert rates[10] == pytest.approx(1e-30)
    assert rates[11] == pytest.approx(0.5e-30)
    assert rates[22] == pytest.approx(0.25e-30)


# ---- interruptions


@pytest.mark.parametrize("changes", [{}, pytest.param(COMPILED, marks=needs_compiler)], ids=["plain", "C++"])
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, frames_file: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(frames_file, **changes)
    whole = run_recipe(recipe, tmp_path / "whole").potential_path
    step = TrainingModule.training_step

    def fail_in_third_epoch(self: TrainingModule, batch: LabeledGraph, batch_idx: int) -> None:
        if self.current_epoch == 2 and batch_idx == 1:
            raise OSError("power cut")
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", fail_in_third_epoch)
        with pytest.raises(OSError, match="power cut"):
            run_recipe(recipe, tmp_path / "broken")
    assert not (tmp_path / "broken" / "tiny.safetensors").exists()
    resumed = run_recipe(recipe, tmp_path / "broken", resume=True).potential_path
    a, b = weights_of(whole), weights_of(resumed)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert curve_of(tmp_path / "broken") == curve_of(tmp_path / "whole")
    # what is finished already is not trained again
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", lambda *_: pytest.fail("trained again"))
        third = run_recipe(recipe, tmp_path / "broken", resume=True).potential_path
    assert all(torch.equal(a[name], weights_of(third)[name]) for name in a)


@needs_compiler
def test_compiled_networks_train_alike(tmp_path: Path, frames_file: Path) -> None:
    curves = {}
    for compile_it in (False, "auto"):
        recipe = recipe_for(frames_file, **{**COMPILED, "compile": compile_it})
        result = run_recipe(recipe, tmp_path / str(compile_it))
        assert isinstance(result.potential, Potential)
        curves[compile_it] = [float(row["loss"]) for row in curve_of(tmp_path / str(compile_it))]
    assert curves["auto"] != curves[False]
    assert curves["auto"] == pytest.approx(curves[False], rel=1e-3)


def test_training_goes_on_without_a_compiler(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    recipe = recipe_for(frames_file, **COMPILED, optimization={"epochs": 1})
    run_recipe(recipe, tmp_path / "run")
    assert "training without generated code, which takes several times as long" in caplog.text
    with pytest.raises(NoCompilerError, match="CXX names 'no-such-compiler', which is not there"):
        run_recipe(recipe.model_copy(update={"compile": True}), tmp_path / "other")


def test_a_long_run_goes_on_without_a_compiler_too(
    frames_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for epochs, by_torch in ((6000, True), (1, False)):
        recipe = recipe_for(frames_file, **COMPILED, optimization={"epochs": epochs})
        data = TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)
        recipe = settled(recipe, data)
        assert recipe.compile == "auto"
        module = PotentialModule(new_potential(recipe, data), data.training, data.validation, recipe)
        caplog.clear()
        assert not module.predict_by_generated_code()
        assert "training without generated code" in caplog.text
        assert module.settings.compile is by_torch  # torch then compiles the step


def test_a_killed_process_is_resumed_with_the_same_losses(tmp_path: Path, frames_file: Path) -> None:
    recipe = short(frames_file, epochs=40)
    whole = run_recipe(recipe, tmp_path / "whole")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "ase_segnn", "train", str(path), "--output", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (folder / "metrics.csv").exists() or len(curve_of(folder)) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "tiny.safetensors").exists()
    resumed = run_recipe(recipe, folder, resume=True)
    assert curve_of(folder) == curve_of(tmp_path / "whole")
    a, b = weights_of(whole.potential_path), weights_of(resumed.potential_path)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = short(frames_file), tmp_path / "run"
    save, saved = torch.save, []

    def save_until_the_disk_is_full(*arguments: Any, **options: Any) -> None:
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(1)
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_the_disk_is_full)
        with pytest.raises(OSError, match=r"as it was before.*No space left"):
            run_recipe(recipe, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "audit.md",
        CHECKPOINT,
        "metrics.csv",
        "recipe.yaml",
    ]
    resumed, whole = run_recipe(recipe, folder, resume=True), run_recipe(recipe, tmp_path / "whole")
    a, b = weights_of(whole.potential_path), weights_of(resumed.potential_path)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupt_ends_the_run(tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: TrainingModule, *_: object) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(short(frames_file), tmp_path / "run")
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert not (tmp_path / "run" / "tiny.safetensors").exists()


def test_a_frame_that_spoils_the_loss_is_named(tmp_path: Path) -> None:
    frames = labeled_clusters()
    frames[7].info["config_weight"] = 1e38
    path = write_frames(tmp_path / "frames.xyz", frames)
    recipe = recipe_for(path, data={"validation": 1, "test": {}}, optimization={"energy_weight": 1e6})
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1, frame frames.xyz@7;"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "tiny.safetensors").exists()


def test_a_run_resumes_only_what_it_was(tmp_path: Path, frames_file: Path) -> None:
    recipe = short(frames_file)
    run_recipe(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "tiny.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is of another run, with other settings; resume with what it began with"):
        run_recipe(short(frames_file, batch_edges=20), tmp_path / "run", resume=True)
    write_frames(frames_file, labeled_clusters(14))
    with pytest.raises(ValueError, match="with other frames and elements, energies or network"):
        run_recipe(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "tiny.safetensors").read_bytes() == before


def test_a_run_of_a_version_with_other_keys_is_not_resumed(tmp_path: Path, frames_file: Path) -> None:
    recipe = short(frames_file, epochs=1)
    run_recipe(recipe, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    checkpoint = torch.load(path, weights_only=True)
    optimization = checkpoint["run"]["identity"]["settings"]["optimization"]
    optimization |= {"batch_size": None, "patience": 10}
    torch.save(checkpoint, path)
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"'{path}' is of another version of ase-segnn, whose recipes differ in optimization.batch_size, "
            "optimization.patience; resume the run with that version, or start anew with --force"
        ),
    ):
        run_recipe(recipe, tmp_path / "run", resume=True)
    del checkpoint["run"]["identity"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="is of another version of ase-segnn; resume the run with that version"):
        run_recipe(recipe, tmp_path / "run", resume=True)


def test_the_potential_is_kept_whatever_happens_to_its_evaluation(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ase_segnn.training.conclusion.evaluate_sets", fail)
    with pytest.raises(MemoryError):
        run_recipe(short(frames_file, epochs=1), tmp_path / "run")
    assert load_potential(tmp_path / "run" / "tiny.safetensors").elements == ("Ne", "Ar")


# ---- folders


def test_runs_are_not_overwritten(tmp_path: Path, frames_file: Path) -> None:
    recipe = short(frames_file, epochs=1)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_recipe(recipe, tmp_path / "run", resume=True)
    path = run_recipe(recipe, tmp_path / "run").potential_path
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_recipe(recipe, tmp_path / "run")
    assert path.read_bytes() == before
    run_recipe(recipe_for(frames_file, optimization={"epochs": 1}, seed=5), tmp_path / "run", overwrite=True)
    assert path.read_bytes() != before


def test_two_runs_do_not_share_a_folder(tmp_path: Path, frames_file: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(FileExistsError, match="another run is using"):
        run_recipe(short(frames_file), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_bad_data_leave_no_folder(tmp_path: Path, frames_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data file .missing\.xyz."):
        run_recipe(recipe_for(frames_file, data={"test": {"far": "missing.xyz"}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- several processes


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, pytest.param(COMPILED, marks=needs_compiler)], ids=["plain", "C++"])
def test_two_processes_equal_one_with_the_doubled_batch(
    tmp_path: Path, frames_file: Path, changes: dict[str, Any]
) -> None:
    alike = [atoms for atoms in labeled_clusters(36) if len(atoms) == 3]  # of 6 edges each
    write_frames(frames_file, alike)
    one = run_recipe(
        recipe_for(frames_file, optimization={"batch_edges": 36, "epochs": 3}, **changes), tmp_path / "one"
    )
    shared = recipe_for(frames_file, optimization={"batch_edges": 18, "epochs": 3}, processes=2, **changes)
    two = run_recipe(shared, tmp_path / "two")
    for a, b in zip(curve_of(tmp_path / "one"), curve_of(tmp_path / "two"), strict=True):
        assert {key: float(value) for key, value in a.items()} == pytest.approx(
            {key: float(value) for key, value in b.items()}, rel=1e-4
        )
    a, b = weights_of(one.potential_path), weights_of(two.potential_path)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


# ---- committees and fine-tuning


def test_a_committee_is_one_file_whose_members_differ(tmp_path: Path, frames_file: Path) -> None:
    recipe = short(frames_file, epochs=3).model_copy(update={"committee": 3})
    result = run_recipe(recipe, tmp_path / "run")
    assert isinstance(result.potential, Committee)
    alone = weights_of(run_recipe(short(frames_file, epochs=3), tmp_path / "alone").potential_path)
    first = dict(result.potential.members[0].named_parameters())
    assert all(torch.equal(alone[name], first[name]) for name in alone)
    atoms = labeled_clusters(1)[0].copy()
    atoms.calc = SEGNNCalculator(result.potential_path)
    atoms.get_forces()
    assert atoms.calc.results["forces_std"].min() > 0
    (tmp_path / "run" / "member-3" / CHECKPOINT).unlink()  # as if it was killed between the second and the third
    resumed = run_recipe(recipe, tmp_path / "run", resume=True).potential
    for name, value in result.potential.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    drawn = run_recipe(recipe.model_copy(update={"bootstrap": True}), tmp_path / "drawn").potential
    assert drawn.config == result.potential.config
    name = "members.0.network.readout.linear_2.weights.0"
    assert not torch.equal(drawn.state_dict()[name], result.potential.state_dict()[name])


def test_fine_tuning_starts_from_the_base_and_tells_what_it_forgot(tmp_path: Path, frames_file: Path) -> None:
    base = run_recipe(recipe_for(frames_file, optimization={"epochs": 60}), tmp_path / "base")
    few = labeled_clusters(6, seed=9)
    for atoms in few:
        atoms.calc.results["energy"] += 3.0 * len(atoms)  # another zero of energy
    changes: dict[str, Any] = {
        "data": {"test": {}, "train": write_frames(tmp_path / "few.xyz", few).name, "validation": 2},
        "optimization": {"epochs": 2, "muon_learning_rate": 1e-3, "learning_rate": 1e-3},
    }
    scratch = run_recipe(recipe_for(frames_file, **changes), tmp_path / "scratch")
    raw = recipe_for(frames_file, **changes).model_dump() | {"base": str(base.potential_path), "frozen": ["embedding"]}
    del raw["network"]
    tuned = run_recipe(make_recipe(raw, "this", Recipe), tmp_path / "tuned")
    own, from_scratch = tuned.errors["validation"], scratch.errors["validation"]
    assert own["forces_RMSE_meV_per_A"] < 0.75 * from_scratch["forces_RMSE_meV_per_A"]
    assert own["energy_per_atom_RMSE_meV"] < 100
    before, after = base.errors["all"], tuned.errors["all of tiny"]
    assert after["energy_per_atom_RMSE_meV"] < 100  # though zeros of energy differ by 3 eV per atom
    sentence = f"{before['forces_RMSE_meV_per_A']:.2f} meV/Å became {after['forces_RMSE_meV_per_A']:.2f}"
    assert sentence in tuned.card_path.read_text()
    name = "network.embedding.weights.0"
    assert torch.equal(weights_of(tuned.potential_path)[name], weights_of(base.potential_path)[name])
    # where the old data are not at hand, that is said
    raw["data"]["folder"] = str(tmp_path / "elsewhere")
    write_frames_into = tmp_path / "elsewhere"
    write_frames_into.mkdir()
    write_frames(write_frames_into / "few.xyz", few)
    assert (
        "what it forgot is unknown"
        in run_recipe(make_recipe(raw, "this", Recipe), tmp_path / "other").card_path.read_text()
    )


# ---- the audit


def test_an_audit_is_kept_and_its_warnings_stand_in_the_card(tmp_path: Path) -> None:
    frames = labeled_clusters()
    frames[5] = frames[4]
    result = run_recipe(short(write_frames(tmp_path / "frames.xyz", frames), epochs=1), tmp_path / "run")
    for text in (result.audit_path.read_text(), result.card_path.read_text()):
        assert "frames.xyz@5" in text


# ---- Python


def test_training_from_python(tmp_path: Path) -> None:
    frames = labeled_clusters()
    settings: dict[str, Any] = recipe_for(tmp_path / "x").model_dump(include={"network", "optimization", "compile"})
    potential = train(frames, max_time="1m", device="cpu", **settings)
    assert potential.elements == ("Ne", "Ar")
    kept = train(frames, validation=frames[:2], test={"far": frames[2:4]}, output=tmp_path / "run", **settings)
    header = read_header(tmp_path / "run" / "potential.safetensors")
    assert set(header.provenance.errors) == {"validation", "far"}
    assert torch.equal(load_potential(tmp_path / "run" / "potential.safetensors").one_hot, kept.one_hot)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(frames, output=tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=r"^these settings: sead: unknown key; did you mean 'seed'"):
        train(frames, sead=1)


def test_training_without_a_folder_makes_no_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nobody can see this")

    for name in ("evaluate_sets", "write_report", "write_card", "save_potential"):
        monkeypatch.setattr(f"ase_segnn.training.conclusion.{name}", forbidden)
    settings: dict[str, Any] = recipe_for(tmp_path / "x").model_dump(include={"network", "optimization", "compile"})
    frames = labeled_clusters(8)
    assert train(frames, **settings).elements == ("Ne", "Ar")
    message = r"^test frames \(far, near\) are for the report of a run, .*; give output, or leave out test$"
    with pytest.raises(ValueError, match=message):
        train(frames, test={"far": frames, "near": frames}, **settings)


# ---- provenance


def test_files_for_others_do_not_tell_places_on_this_machine(tmp_path: Path) -> None:
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        write_frames(tmp_path / folder / "frames.xyz", labeled_clusters(6, seed=len(folder)))
    isolated = [Atoms("Ne"), Atoms("Ar")]
    for atoms, energy in zip(isolated, (-1.0, -2.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    atoms_file = write_frames(tmp_path / "isolated.xyz", isolated)
    data = {
        "train": [str(tmp_path / "one" / "frames.xyz"), str(tmp_path / "two" / "frames.xyz")],
        "test": {"third": "three/frames.xyz"},
        "reference_energies": str(atoms_file),
        "folder": str(tmp_path),
    }
    result = run_recipe(recipe_for(tmp_path / "x", data=data, optimization={"epochs": 1}), tmp_path / "run")
    assert str(tmp_path).encode() not in result.potential_path.read_bytes()
    assert str(tmp_path) not in result.card_path.read_text()
    provenance = read_header(result.potential_path).provenance
    own, names = provenance.recipe["data"], ["one/frames.xyz", "two/frames.xyz"]
    assert (own["train"], own["test"]) == (names, {"third": ["three/frames.xyz"]})
    assert (own["reference_energies"], own["folder"], own["cache"]) == ("isolated.xyz", None, None)
    assert set(provenance.data) == {*names, "three/frames.xyz", "isolated.xyz"}
    assert str(tmp_path) in (tmp_path / "run" / "recipe.yaml").read_text(), "it can be run again here"


# ---- the report


@pytest.mark.slow
def test_a_run_reports_on_itself(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "crystals.xyz", labeled_crystals())
    recipe = recipe_for(path, optimization={"epochs": 30}).model_copy(update={"committee": 2})
    result = run_recipe(recipe, tmp_path / "run")
    page = result.report_path.read_text()
    for words in ("Learning curves", "30 epochs", "Parity", "Dynamics", "Short range", "Deviations of the committee"):
        assert words in page
    assert f"{result.errors['all']['forces_RMSE_meV_per_A']:.3g}" in page
    assert {verdict.outcome for verdict in result.verdicts} <= {"passed", "failed", "not applicable"}
    assert len(result.verdicts) >= 6


# ---- logging


def test_the_progress_bar_tells_errors_speed_and_time_left(
    tmp_path: Path, frames_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    run_recipe(short(frames_file, epochs=3), tmp_path / "run")
    shown = capsys.readouterr().err
    assert re.search(r"epoch 3, loss [\d.e-]+, validation [\d.]+ meV, [\d.]+ meV/Å, \d+ frames/s, 0:00:0\d left", shown)


def test_a_logger_that_is_not_installed_is_named(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ase_segnn.training.fit.trainer.find_spec", lambda _: None, raising=True)
    with pytest.raises(ImportError, match="logger: wandb needs the package: pip install wandb"):
        run_recipe(short(frames_file).model_copy(update={"logger": "wandb"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_run_is_seen_in_tensorboard(tmp_path: Path, frames_file: Path) -> None:
    pytest.importorskip("tensorboardX")
    run_recipe(short(frames_file, epochs=2).model_copy(update={"logger": "tensorboard"}), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
