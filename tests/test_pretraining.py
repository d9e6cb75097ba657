"""Runs that learn labels of a cheap reference first: what is labeled, learned and told, and how they are resumed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from labeled import labeled_clusters, labeled_crystals, recipe_for, write_frames

from ase_segnn import load_potential
from ase_segnn.potential_file import read_header
from ase_segnn.training import load_recipe, run_recipe, train
from ase_segnn.training.data.sources import sha256
from ase_segnn.training.fit import CHECKPOINT
from ase_segnn.training.labeling import Walkers
from ase_segnn.training.pretraining import with_share
from ase_segnn.training.recipe import PretrainSection, Recipe

pytestmark = pytest.mark.usefixtures("no_report")

# About the labels of `labeled_clusters`, but for a constant per element and other well depths.
REFERENCE = """
from ase.calculators.lj import LennardJones
from ase.calculators.calculator import all_changes

FAIL_AFTER = None
N_CALLS = 0

class Cheap(LennardJones):
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        global N_CALLS
        N_CALLS += 1
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] += 1000.0 * (atoms.numbers == 10).sum() - 500.0 * (atoms.numbers == 18).sum()

class Moody(Cheap):
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        if len(atoms) == 3:
            raise RuntimeError("SCF not converged")
        super().calculate(atoms, properties, system_changes)

class Useless(LennardJones):
    def calculate(self, *args, **kwargs):
        raise RuntimeError("no license")

def cheap():
    return Cheap(sigma=2.3, epsilon=0.09, rc=6.0)

def moody():
    return Moody(sigma=2.3, epsilon=0.09, rc=6.0)

def useless():
    return Useless()
"""


@pytest.fixture
def frames_file(tmp_path: Path) -> Path:
    (tmp_path / "reference.py").write_text(REFERENCE)
    return write_frames(tmp_path / "frames.xyz", labeled_clusters())


def pretrained(frames_file: Path, function: str = "cheap", **changes: Any) -> Recipe:
    own = changes.pop("pretrain", {})
    settings = {
        "reference": f"{frames_file.parent / 'reference.py'}:{function}",
        "frames": 40,
        "temperature": 50,
        **own,
    }
    return recipe_for(frames_file, pretrain=settings, **{"data": {"test": {}}, **changes})


def labels_of(folder: Path) -> list[Atoms]:
    return list(ase.io.iread(folder / "pretraining" / "labels.xyz"))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_potential(path).named_parameters())


def assert_same_run(one: Path, other: Path) -> None:
    for first, second in zip(labels_of(one), labels_of(other), strict=True):
        np.testing.assert_array_equal(first.positions, second.positions)
        np.testing.assert_array_equal(first.get_forces(), second.get_forces())
    a, b = (weights_of(folder / "tiny.safetensors") for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_cheap_labels_help_where_true_ones_are_few(tmp_path: Path, frames_file: Path) -> None:
    write_frames(tmp_path / "test.xyz", labeled_clusters(20, seed=5))
    common: dict[str, Any] = {"data": {"test": {"test": "test.xyz"}}, "optimization": {"epochs": 12}}
    recipe = pretrained(frames_file, pretrain={"frames": 40}, **common)
    with_labels = run_recipe(recipe, tmp_path / "with")
    without = run_recipe(recipe.model_copy(update={"pretrain": None}), tmp_path / "without")
    errors, expected = (result.errors["test"]["forces_RMSE_meV_per_A"] for result in (with_labels, without))
    assert errors < 0.7 * expected
    # a kilo-electronvolt between the references is no error
    assert with_labels.errors["test"]["energy_RMSE_meV"] < 1.5 * without.errors["test"]["energy_RMSE_meV"]
    curve = (tmp_path / "with" / "pretraining" / "metrics.csv").read_text().splitlines()
    column = curve[0].split(",").index("validation_energy_RMSE_meV")
    assert float(curve[-1].split(",")[column]) < 100


def test_frames_lie_around_the_training_frames_alone(tmp_path: Path, frames_file: Path) -> None:
    result = run_recipe(pretrained(frames_file, data={"test": {}, "validation": 4}), tmp_path / "run")
    frames = [atoms.positions for atoms in labeled_clusters()]
    labels = labels_of(tmp_path / "run")
    assert len(labels) == 40
    near = [
        [np.abs(atoms.positions - p).max() < 1e-6 for p in frames if p.shape == atoms.positions.shape].count(True)
        for atoms in labels
    ]
    assert near == [1] * 8 + [0] * 32  # 12 frames less 4; each as it is, then moved
    header = read_header(result.potential_path)
    settled = Recipe.model_validate(header.provenance.recipe).pretrain
    assert settled is not None
    assert header.provenance.data["pretraining/labels.xyz"] == sha256(tmp_path / "run" / "pretraining" / "labels.xyz")
    assert (settled.frames, settled.share, settled.reference) == (40, 0.75, "reference.py:cheap")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").pretrain == settled.model_copy(
        update={"reference": f"{tmp_path / 'reference.py'}:cheap"}
    )
    text = "- Pretrained on: 40 frames around the training frames, of dynamics at 50 K, labeled by reference.py:cheap"
    assert text in result.card_path.read_text()


def test_failures_are_passed_over_and_counted(
    tmp_path: Path, frames_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = run_recipe(pretrained(frames_file, "moody"), tmp_path / "run")
    labels = labels_of(tmp_path / "run")
    assert {len(atoms) for atoms in labels} == {4, 5}
    n_failed = labels[-1].info["attempt"] + 1 - 40
    assert n_failed > 5
    assert f"; {n_failed} further structures got no label; " in result.card_path.read_text()
    assert f"{n_failed} x RuntimeError: SCF not converged" in caplog.text
    assert re.search(r"plan: 40 labels by reference.py:moody \(Moody\) x .* ms .* = .* s", caplog.text)


def test_a_reference_that_never_works_is_an_error(tmp_path: Path, frames_file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"labeled 0 of 10 structures, .* are needed; failures: 10 x RuntimeError: no lic"
    ):
        run_recipe(pretrained(frames_file, "useless"), tmp_path / "run")


def test_what_the_reference_cannot_do_is_said_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    path = write_frames(tmp_path / "frames.xyz", labeled_crystals())
    recipe = recipe_for(path, pretrain={"reference": "gfn2"})
    with pytest.raises(ValueError, match=r"gfn2 has no k-points and needs cells of at least 10 Å .* frames.xyz@\d has"):
        run_recipe(recipe, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no file 'none.py' with the reference 'make'"):
        run_recipe(recipe_for(path, pretrain={"reference": "none.py:make"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class StoppedError(Exception):
    """Ends a run as a signal would."""


def stop_after(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, n_calls: int) -> None:
    original, calls = getattr(place, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > n_calls:
            raise StoppedError
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, wrapped)


@pytest.mark.parametrize("moment", ["labels", "pretraining", "fit"])
def test_a_run_is_resumed_at_any_moment(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from ase_segnn.training.fit.module import TrainingModule

    recipe = pretrained(frames_file, "moody")
    run_recipe(recipe, tmp_path / "whole")
    n_epochs = len((tmp_path / "whole" / "pretraining" / "metrics.csv").read_text().splitlines()) - 1
    assert n_epochs >= 1
    with monkeypatch.context() as patch:
        if moment == "labels":
            stop_after(patch, Walkers, "attempt", 25)
        else:
            stop_after(patch, TrainingModule, "on_train_epoch_start", 1 if moment == "pretraining" else n_epochs + 2)
        with pytest.raises(StoppedError):
            run_recipe(recipe, tmp_path / "parts")
    assert (tmp_path / "parts" / CHECKPOINT).exists() == (moment == "fit")
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_recipe(recipe, tmp_path / "parts")
    with monkeypatch.context() as patch:
        if moment != "labels":  # all are there
            stop_after(patch, Walkers, "attempt", 0)
        result = run_recipe(recipe, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    sentences = [
        re.search(r"Pretrained on: .* got no label; RMSE on 2 of them .* meV, .* meV/Å; ", path.read_text())
        for path in (result.card_path, tmp_path / "whole" / "tiny.md")
    ]
    assert sentences[0] is not None
    assert sentences[1] is not None
    assert sentences[0][0] == sentences[1][0]


def test_labels_of_another_run_are_not_used(tmp_path: Path, frames_file: Path) -> None:
    recipe = pretrained(frames_file)
    run_recipe(recipe, tmp_path / "run")
    hotter = pretrained(frames_file, pretrain={"temperature": 60})
    with pytest.raises(ValueError, match=r"are of another run, with other temperature; resume with what it began with"):
        run_recipe(hotter, tmp_path / "run", resume=True)
    before = labels_of(tmp_path / "run")
    run_recipe(hotter, tmp_path / "run", overwrite=True)
    assert np.abs(labels_of(tmp_path / "run")[-1].positions - before[-1].positions).max() > 1e-3
    with pytest.raises(ValueError, match="is of another run, with other settings"):
        run_recipe(pretrained(frames_file, pretrain={"temperature": 60, "share": 0.3}), tmp_path / "run", resume=True)


def test_pretraining_changes_with_its_settings(tmp_path: Path, frames_file: Path) -> None:
    def epochs(name: str, **settings: Any) -> int:
        run_recipe(pretrained(frames_file, pretrain=settings), tmp_path / name)
        return len((tmp_path / name / "pretraining" / "metrics.csv").read_text().splitlines()) - 1

    assert epochs("less", frames=12) < epochs("most", frames=12, share=0.9)
    assert len(labels_of(tmp_path / "most")) == 12


def test_all_of_it_ends_in_time(tmp_path: Path, frames_file: Path) -> None:
    recipe = pretrained(frames_file, pretrain={"frames": 10**6}, optimization={"epochs": 10**5, "max_time": 4.0})
    potential = train(
        labeled_clusters(),
        max_time=4.0,
        output=tmp_path / "run",
        pretrain=recipe.pretrain.model_dump() if recipe.pretrain else None,
        network=recipe.network.model_dump(),
        compile=False,
        device="cpu",
    )
    assert set(potential.elements) == {"Ne", "Ar"}
    labels = labels_of(tmp_path / "run")
    assert 10 <= len(labels) < 10**6
    seconds = [atoms.info["seconds"] for atoms in labels]
    limit = 4.0 * 0.75 / 2  # half of three quarters of the run
    assert sum(seconds) >= limit
    assert sum(seconds[:-1]) < limit or len(labels) == 10
    origin = json.loads((tmp_path / "run" / "pretraining" / "labels.json").read_text())
    assert origin["n_attempts"] >= len(labels)


def test_members_of_a_committee_share_labels_and_learn_them_apart(tmp_path: Path, frames_file: Path) -> None:
    result = run_recipe(pretrained(frames_file, committee=2), tmp_path / "run")
    assert len(labels_of(tmp_path / "run")) == 40
    folders = [tmp_path / "run" / f"member-{number}" / "pretraining" for number in (1, 2)]
    first, second = ((folder / "metrics.csv").read_text() for folder in folders)
    assert first != second
    assert result.potential_path.is_file()


@pytest.mark.parametrize(("n_frames", "share"), [(20, 0.75), (50, 0.75), (200, 0.375), (20000, 0.038)])
def test_the_more_frames_the_less_pretraining(n_frames: int, share: float) -> None:
    assert with_share(PretrainSection(reference="gfn2"), n_frames).share == pytest.approx(share, abs=1e-3)
    assert with_share(PretrainSection(reference="gfn2", share=0.7), n_frames).share == 0.7


def test_given_energies_of_atoms_stay_exact(tmp_path: Path, frames_file: Path) -> None:
    energies = {"Ne": 0.0, "Ar": 0.0}
    recipe = pretrained(frames_file, data={"test": {}, "reference_energies": energies})
    potential = load_potential(run_recipe(recipe, tmp_path / "run").potential_path)
    assert potential.config.reference_energies == energies
    assert all(abs(shift) < 1 for shift in potential.config.energy_shifts.values())


@pytest.mark.parametrize(
    ("pretrain", "more", "message"),
    [
        ({}, {}, "pretrain.reference: missing, a value is needed"),
        ("gfn2", {}, "pretrain: should be a mapping of keys to values, got 'gfn2'"),
        ({"reference": "gfn2", "temprature": 300}, {}, "pretrain.temprature: unknown key; did you mean 'temperature'"),
        ({"reference": "gfn2", "frames": 3}, {}, "pretrain.frames: should be greater than or equal to 10, got 3"),
        ({"reference": "gfn2", "seed": 3}, {}, "pretrain.seed: unknown key; did you mean 'seed'"),
        ({"reference": "gfn2"}, {"base": "acac-pbe"}, "a base has learned already; leave out base or pretrain"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, pretrain: Any, more: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"name": "x", "data": {"train": "a.xyz"}, "pretrain": pretrain, **more}))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(path)
