"""Training: data, recipe, step, and whole small runs on labels from a pair potential."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from ase_segnn import load_potential
from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.model.steerable import SteerableLinear
from ase_segnn.potential_file import read_header
from ase_segnn.training import Recipe, load_recipe, sources, train
from ase_segnn.training.data import (
    LabeledGraph,
    elements_of,
    isolated_atom_energies,
    least_squares_energies,
    read_frames,
    split,
    training_loader,
)
from ase_segnn.training.module import TrainingModule
from ase_segnn.training.optimizers import make_optimizers
from ase_segnn.training.recipe import OptimizationSection
from ase_segnn.training.step import CompiledStep, Loss

NETWORK = NetworkConfig(cutoff=4.0, irreps_hidden="6x0e+3x1o", l_max_attributes=1, n_layers=1, n_radial=4)


def labeled_clusters(n_frames: int = 12, seed: int = 0) -> list[Atoms]:
    """Small clusters of argon and neon of several sizes, labeled by a Lennard-Jones potential."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(n_frames):
        n_atoms = 3 + index % 3
        grid = np.array([[0, 0, 0], [2.6, 0, 0], [0, 2.6, 0], [0, 0, 2.6], [2.6, 2.6, 0]])[:n_atoms]
        atoms = Atoms(["Ar", "Ne"] * 3, np.zeros((6, 3)))[:n_atoms]
        atoms.positions = grid + rng.normal(0, 0.1, (n_atoms, 3))
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        atoms.get_forces()
        frames.append(atoms)
    return frames


def labeled_crystals(n_frames: int = 8) -> list[Atoms]:
    """Strained crystals of argon and neon in cells of two sizes, labeled with stresses as well."""
    rng = np.random.default_rng(3)
    frames = []
    for index in range(n_frames):
        atoms = bulk("Ar", "fcc", a=3.6, cubic=True) * (1 + index % 2, 1, 1)
        atoms.symbols[::2] = "Ne"
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        atoms.get_stress()
        frames.append(atoms)
    return frames


@pytest.fixture
def frames_file(tmp_path: Path) -> Path:
    path = tmp_path / "frames.xyz"
    ase.io.write(path, labeled_clusters())
    return path


def recipe_for(path: Path, **changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "tiny",
        "data": {"train": path.name, "folder": str(path.parent), "validation": 3, "test": {"all": path.name}},
        "network": NETWORK.model_dump(),
        "optimization": {
            "epochs": 4,
            "batch_size": 4,
            "muon_learning_rate": 0.02,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "weight_decay": 0.0,
            "ema_decay": 0.5,
        },
        "validate_every": 1,
        "device": "cpu",
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    return Recipe.model_validate(raw)


def tiny_potential(seed: int = 0) -> Potential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Potential(
            PotentialConfig(
                elements=("Ne", "Ar"), reference_energies={"Ne": -1.0, "Ar": -2.0}, average_neighbors=3, network=NETWORK
            )
        ).double()


def graphs() -> list[LabeledGraph]:
    return [LabeledGraph.from_atoms(atoms, NETWORK.cutoff) for atoms in labeled_clusters()]


# ---- recipe


def test_recipe_is_read_from_yaml(tmp_path: Path, frames_file: Path) -> None:
    recipe = recipe_for(frames_file)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {train: a.xyz}\nsead: 1", "sead: unknown key; did you mean 'seed'"),
        (
            "name: x\ndata: {train: a.xyz}\noptimization: {learning_rat: 1}",
            r"optimization.learning_rat: .*'learning_rate'",
        ),
        ("name: x\ndata: {train: a.xyz}\nqqqq: 1", "qqqq: unknown key; known are name, data"),
        ("name: x", "data: Field required"),
        ("name: ../x\ndata: {train: a.xyz}", "name: String should match"),
        ("name: x\ndata: {train: a.xyz}\nnetwork: {irreps_hidden: 8y0e}", "is not a list of irreps"),
        ("name: x\ndata: {train: a.xyz}\nnetwork: {irreps_hidden: 8x1o}", "no even scalars"),
        ("- 1", "must be a YAML mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_errors_in_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


# ---- data


def test_split_is_seeded_and_complete() -> None:
    frames = labeled_clusters()
    training, validation = split(frames, 4, seed=1)
    assert len(validation) == 4
    assert sorted(map(id, [*training, *validation])) == sorted(map(id, frames))
    assert [id(a) for a in split(frames, 4, seed=1)[1]] == [id(a) for a in validation]
    assert [id(a) for a in split(frames, 4, seed=2)[1]] != [id(a) for a in validation]
    with pytest.raises(ValueError, match="12 validation frames of 12 leave none"):
        split(frames, 12, seed=0)


def test_frames_without_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frames.xyz"
    frames = labeled_clusters(2)
    frames[1].calc = None
    ase.io.write(path, frames)
    with pytest.raises(ValueError, match=r"frame 1 of .*frames.xyz' has no energy"):
        read_frames(path)
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="ASE cannot read"):
        read_frames(path)


def test_least_squares_energies() -> None:
    frames = labeled_clusters()
    exact = np.array([sum({"Ne": -3.0, "Ar": -5.0}[s] for s in atoms.symbols) for atoms in frames])
    assert least_squares_energies(frames, exact) == pytest.approx({"Ne": -3.0, "Ar": -5.0})
    one = frames[:1]  # one composition does not tell elements apart: the mean serves all
    assert least_squares_energies(one, np.array([6.0])) == pytest.approx({"Ne": 2.0, "Ar": 2.0})
    assert elements_of(frames) == ("Ne", "Ar")


def test_isolated_atom_energies(tmp_path: Path, frames_file: Path) -> None:
    path = tmp_path / "atoms.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3 energy=-2.5\nAr 0 0 0\n")
    assert isolated_atom_energies(path, ["Ar"]) == {"Ar": -2.5}
    with pytest.raises(ValueError, match="no isolated atom of Ne"):
        isolated_atom_energies(path, ["Ar", "Ne"])
    with pytest.raises(ValueError, match="has 3 atoms; reference energies need single atoms"):
        isolated_atom_energies(frames_file, ["Ar"])


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
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "project" / "training" / "sources.py"))
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


def test_order_of_batches_depends_on_seed_and_epoch() -> None:
    def energies(seed: int, epoch: int) -> list[float]:
        loader = training_loader(graphs(), 5, seed)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a DistributedSampler
        return torch.cat([batch.energy for batch in loader]).tolist()

    first = energies(0, 0)
    assert len(first) == 12
    assert energies(0, 0) == first
    assert energies(1, 0) != first
    assert energies(0, 1) != first
    assert sorted(energies(1, 3)) == sorted(first)


# ---- step


def test_loss_by_hand() -> None:
    potential = tiny_potential()
    batch = LabeledGraph.batch(graphs()[:3])
    prediction = potential.predict(batch.graph)
    assert prediction.forces is not None
    n_atoms = torch.tensor([3, 4, 5])
    energy = ((prediction.energy - batch.energy) ** 2 / n_atoms).mean()
    forces = ((prediction.forces - batch.forces) ** 2).mean()
    for w_energy, w_forces in ((1.0, 1.0), (7.0, 0.5), (0.0, 1.0)):
        expected = w_energy * energy + w_forces * forces
        assert Loss(potential, w_energy, w_forces)(batch).item() == pytest.approx(expected.item(), rel=1e-12)


def test_loss_of_stress_by_hand() -> None:
    potential, frames = tiny_potential(), labeled_crystals(3)
    batch = LabeledGraph.batch([LabeledGraph.from_atoms(atoms, NETWORK.cutoff, stress=True) for atoms in frames])
    without = Loss(potential, 2.0, 1.0)(batch).item()
    terms = []
    for atoms in frames:
        predicted = atoms.copy()
        predicted.calc = SEGNNCalculator(potential, device="cpu", dtype="float64")
        difference = predicted.get_stress(voigt=False) - atoms.get_stress(voigt=False)
        terms.append(np.mean((atoms.get_volume() * difference) ** 2) / len(atoms))
    assert min(terms) > 1e-3
    assert Loss(potential, 2.0, 1.0, 0.3)(batch).item() == pytest.approx(without + 0.3 * np.mean(terms), rel=1e-9)


def test_padding_changes_no_loss_of_stress() -> None:
    graphs = [LabeledGraph.from_atoms(atoms, NETWORK.cutoff, stress=True) for atoms in labeled_crystals()]
    loss = Loss(tiny_potential(), 2.0, 1.0, 0.5)
    collate = training_loader(graphs, 3, 0, pad_with_cutoff=NETWORK.cutoff).collate_fn
    assert collate is not None
    parts = graphs[:2]
    assert loss(collate(parts)).item() == pytest.approx(loss(LabeledGraph.batch(parts)).item(), rel=1e-12)


@pytest.mark.parametrize("n_parts", [2, 3])
def test_padding_changes_nothing(n_parts: int) -> None:
    loss = Loss(tiny_potential(), 2.0, 1.0)
    parts = graphs()[:n_parts]
    loader = training_loader(graphs(), 3, 0, pad_with_cutoff=NETWORK.cutoff)
    assert loader.collate_fn is not None
    padded, plain = loader.collate_fn(parts), LabeledGraph.batch(parts)
    assert padded.graph.n_atoms == 16  # the three largest, and one to hold spare edges
    assert padded.graph.n_edges >= plain.graph.n_edges
    results = []
    for batch in (plain, padded):
        value = loss(batch)
        results.append([value, *torch.autograd.grad(value, list(loss.parameters()), materialize_grads=True)])
    assert any(gradient.abs().max() > 1e-3 for gradient in results[0][1:])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_step_has_the_same_gradients(backend: str) -> None:
    loss = Loss(tiny_potential(), 2.0, 1.0)
    step = CompiledStep(loss, backend=backend)
    collate = training_loader(graphs(), 3, 0, pad_with_cutoff=NETWORK.cutoff).collate_fn
    assert collate is not None
    for parts in (graphs()[:3], graphs()[3:6], graphs()[6:8]):  # the second and third reuse what was traced
        batch = collate(parts)
        loss.zero_grad()
        value = loss(batch)
        value.backward()
        expected = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
        loss.zero_grad()
        torch.testing.assert_close(step(batch), value.detach(), rtol=1e-12, atol=1e-12)
        for name, parameter in loss.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad, expected.get(name, torch.zeros_like(parameter)), rtol=1e-10, atol=1e-12
            )
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.01)  # new weights must count in the next step


# ---- optimizers


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_weight_has_one_optimizer(optimizer: Literal["muon", "adamw"]) -> None:
    potential = tiny_potential()
    optimizers = make_optimizers(potential, OptimizationSection(optimizer=optimizer))
    assert [type(o).__name__ for o in optimizers] == {"muon": ["Muon", "AdamW"], "adamw": ["AdamW"]}[optimizer]
    optimized = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in potential.parameters())


def test_a_step_of_muon_has_the_size_that_is_promised() -> None:
    potential = tiny_potential()
    muon, _ = make_optimizers(potential, OptimizationSection(muon_learning_rate=0.1, weight_decay=0.0))
    inputs_and_outputs = {
        id(w): tuple(w.shape) for m in potential.modules() if isinstance(m, SteerableLinear) for w in m.weights
    }
    matrices = [group["params"][0] for group in muon.param_groups]
    shapes = [inputs_and_outputs.get(id(w), tuple(reversed(w.shape))) for w in matrices]
    assert {n_in > n_out for n_in, n_out in shapes} == {True, False}
    assert any(id(w) not in inputs_and_outputs for w in matrices)  # of the radial networks
    before = [w.detach().clone() for w in matrices]
    generator = torch.Generator().manual_seed(0)
    for w in matrices:
        w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    muon.step()
    for w, old, (n_in, n_out) in zip(matrices, before, shapes, strict=True):
        singular_values = torch.linalg.svdvals(w.detach() - old) / (0.1 * (n_out / n_in) ** 0.5)
        assert ((singular_values > 0.5) & (singular_values < 1.3)).all()  # Muon makes them 1 only roughly


# ---- whole runs


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_potential(path).named_parameters())


def test_run_learns_and_writes_its_files(tmp_path: Path, frames_file: Path) -> None:
    rng_before = torch.random.get_rng_state()
    recipe = recipe_for(frames_file, optimization={"epochs": 80})
    result = train(recipe, tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), rng_before)
    frames = read_frames(frames_file)
    shift = np.std([atoms.get_potential_energy() / len(atoms) for atoms in frames])
    assert result.errors["all"]["energy_RMSE_meV"] < 1000 * shift * 4
    spread = np.sqrt(np.mean(np.concatenate([atoms.get_forces() for atoms in frames]) ** 2))
    assert result.errors["all"]["forces_RMSE_meV_per_A"] < 500 * spread

    header = read_header(result.potential_path)
    assert header.provenance.errors == result.errors
    assert header.provenance.seed == recipe.seed
    assert header.provenance.data == {"frames.xyz": sources.sha256(frames_file)}
    card = result.card_path.read_text()
    assert f"{result.errors['all']['forces_RMSE_meV_per_A']:.2f}" in card
    metrics = (tmp_path / "run" / "metrics" / "version_0" / "metrics.csv").read_text()
    assert "validation_forces_RMSE_meV_per_A" in metrics

    atoms = frames[0].copy()
    atoms.calc = SEGNNCalculator(result.potential_path)
    error = atoms.get_forces() - frames[0].get_forces()
    assert np.abs(error).max() < 5 * result.errors["all"]["forces_RMSE_meV_per_A"] / 1000


def test_runs_repeat_and_depend_on_the_seed(tmp_path: Path, frames_file: Path) -> None:
    paths = [
        train(recipe_for(frames_file, seed=seed), tmp_path / f"run{k}").potential_path
        for k, seed in enumerate([0, 0, 1])
    ]
    a, b, c = (weights_of(path) for path in paths)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(frames_file)
    whole = train(recipe, tmp_path / "whole").potential_path
    step = TrainingModule.training_step

    def fail_in_third_epoch(self: TrainingModule, batch: LabeledGraph, batch_idx: int) -> None:
        if self.current_epoch == 2 and batch_idx == 1:
            raise OSError("power cut")
        step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", fail_in_third_epoch)
        with pytest.raises(OSError, match="power cut"):
            train(recipe, tmp_path / "broken")
    assert not (tmp_path / "broken" / "tiny.safetensors").exists()
    resumed = train(recipe, tmp_path / "broken", resume=True).potential_path
    a, b = weights_of(whole), weights_of(resumed)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_runs_are_not_overwritten(tmp_path: Path, frames_file: Path) -> None:
    recipe = recipe_for(frames_file, optimization={"epochs": 1})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(recipe, tmp_path / "run", resume=True)
    path = train(recipe, tmp_path / "run").potential_path
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(recipe, tmp_path / "run")
    assert path.read_bytes() == before
    train(recipe_for(frames_file, optimization={"epochs": 1}, seed=5), tmp_path / "run", overwrite=True)
    assert path.read_bytes() != before


def test_options_change_the_result(tmp_path: Path, frames_file: Path) -> None:
    plain = weights_of(train(recipe_for(frames_file), tmp_path / "plain").potential_path)
    changes: dict[str, dict[str, Any]] = {
        "optimizer": {"optimizer": "adamw"},
        "muon_learning_rate": {"muon_learning_rate": 0.002},
        "learning_rate": {"learning_rate": 0.002},
        "warmup_steps": {"warmup_steps": 10},
        "weight_decay": {"weight_decay": 0.5},
        "ema_decay": {"ema_decay": 0.0},
        "gradient_clip": {"gradient_clip": 1e-3},
        "energy_weight": {"energy_weight": 0.0},
        "forces_weight": {"forces_weight": 0.0},
        "batch_size": {"batch_size": 3},
    }
    for name, change in changes.items():
        recipe = recipe_for(frames_file, optimization=change)
        changed = weights_of(train(recipe, tmp_path / name).potential_path)
        assert any(not torch.equal(plain[key], changed[key]) for key in plain), name


def test_stresses_are_learned_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "crystals.xyz"
    ase.io.write(path, labeled_crystals())
    results = {}
    for weight in (0.0, 1.0):
        changes = {"epochs": 30, "stress_weight": weight, "energy_weight": 0.0, "forces_weight": 0.01}
        results[weight] = train(recipe_for(path, optimization=changes), tmp_path / str(weight))
    errors = {weight: result.errors["all"]["stress_RMSE_meV_per_A3"] for weight, result in results.items()}
    assert errors[1.0] < 0.5 * errors[0.0]
    assert f"| {errors[1.0]:.2f} |" in results[1.0].card_path.read_text()
    assert "stress RMSE" not in results[0.0].card_path.read_text()
    metrics = (tmp_path / "1.0" / "metrics" / "version_0" / "metrics.csv").read_text()
    assert "validation_stress_RMSE_meV_per_A3" in metrics


@pytest.mark.parametrize(("defect", "message"), [("no label", "has no stress"), ("slab", "has a stress but pbc")])
def test_frames_whose_stress_cannot_be_learned_are_named(tmp_path: Path, defect: str, message: str) -> None:
    frames = labeled_crystals(4)
    if defect == "slab":
        frames[2].pbc = [True, True, False]
        frames[2].calc = SinglePointCalculator(frames[2], **labeled_crystals(4)[2].calc.results)
    else:
        del frames[2].calc.results["stress"]
    path = tmp_path / "crystals.xyz"
    ase.io.write(path, frames)
    with pytest.raises(ValueError, match=f"frame 2 of .*crystals.xyz' {message}"):
        train(recipe_for(path, data={"validation": 1}, optimization={"stress_weight": 1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, frames_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loss, "forward", lambda self, _: next(self.parameters()).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="the loss became nan in batch 0 of epoch 1"):
        train(recipe_for(frames_file), tmp_path / "run")
    assert not (tmp_path / "run" / "tiny.safetensors").exists()


def test_foreign_elements_in_a_test_set_are_found_before_the_run(tmp_path: Path, frames_file: Path) -> None:
    frames = labeled_clusters(1)
    frames[0].symbols[0] = "He"
    ase.io.write(tmp_path / "foreign.xyz", frames)
    with pytest.raises(ValueError, match=r"'foreign.xyz' has He, which 'frames.xyz' lacks"):
        train(recipe_for(frames_file, data={"test": {"foreign": "foreign.xyz"}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
