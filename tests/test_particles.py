"""The network for simulated particles, and its training runs."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rotations import orthogonal_matrix
from typer.testing import CliRunner

from ase_segnn._e3nn import o3
from ase_segnn.cli import app
from ase_segnn.model.steerable import SteerableLinear
from ase_segnn.training.fit.step import CompiledStep, gradients
from ase_segnn.training.particles import ParticleNetwork, ParticleRecipe, load_network, run_particles
from ase_segnn.training.particles.graphs import ParticleGraphs
from ase_segnn.training.particles.module import ParticleLoss
from ase_segnn.training.particles.network import balanced_irreps, save_network
from ase_segnn.training.particles.recipe import NetworkSection, SystemSection
from ase_segnn.training.particles.run import mean_square, particle_sets, predict
from ase_segnn.training.particles.simulators import (
    ChargedSystem,
    GravitySystem,
    coulomb_forces,
    gravity_forces,
    leapfrog,
)
from ase_segnn.training.recipe import make_recipe

RECIPES = Path(__file__).parents[1] / "training" / "particles"
SMALL = {"width": 8, "n_layers": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories that all tests share."""
    return tmp_path_factory.mktemp("trajectories")


def system_of(cache: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "charged", "train": 25, "validation": 8, "test": 12, "cache": str(cache), **changes}


def recipe_for(cache: Path, **changes: Any) -> ParticleRecipe:
    raw = {
        "name": "tiny",
        "system": system_of(cache),
        "network": SMALL,
        "optimization": {"epochs": 3, "batch_size": 10},
        "validate_every": 2,
    }
    return make_recipe({**raw, **changes}, "this", ParticleRecipe)


def network_of(seed: int = 0, **settings: Any) -> ParticleNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ParticleNetwork(NetworkSection(**{**SMALL, **settings}), 2.0)


def random_graphs(n_graphs: int = 2, n_particles: int = 5) -> ParticleGraphs:
    random = torch.Generator().manual_seed(5)
    positions, velocities, targets = torch.randn(3, n_graphs, n_particles, 3, generator=random, dtype=torch.float64)
    others = torch.tensor([[j for j in range(n_particles) if j != i] for i in range(n_particles)])
    strengths = torch.randn(n_graphs, n_particles, generator=random, dtype=torch.float64).sign()
    return ParticleGraphs(
        positions, velocities, strengths, others.repeat(n_graphs, 1, 1), targets, torch.arange(n_graphs)
    )


@pytest.mark.parametrize(("l_max", "l_max_attributes"), [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3)])
def test_balanced_irreps_are_the_smallest_with_enough_weights(l_max: int, l_max_attributes: int) -> None:
    irreps = balanced_irreps(64, l_max, l_max_attributes)
    [copies] = {mul for mul, _ in irreps}

    def n_weights(mul: int) -> int:
        features = o3.Irreps([(mul, ir) for _, ir in irreps])
        layer = SteerableLinear(features, o3.Irreps.spherical_harmonics(l_max_attributes), features)
        return sum(weight.numel() for weight in layer.weights)

    assert n_weights(copies) >= 64**2 > n_weights(copies - 1)
    assert [ir for _, ir in irreps] == [o3.Irrep(degree, (-1) ** degree) for degree in range(l_max + 1)]


NETWORKS: dict[str, dict[str, Any]] = {
    "of the paper": {},
    "geometry only": {"physics": False},
    "degree 2": {"l_max": 2, "l_max_attributes": 2},
    "scalar features": {"l_max": 0},
    "scalar attributes": {"l_max_attributes": 0},
    "linear messages": {"messages": "linear"},
    "invariant messages": {"messages": "invariant"},
    "weights from scalars": {"message_weights_hidden": (8,)},
}


@pytest.mark.parametrize("kind", ["rotation", "reflection"])
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_predictions_turn_with_the_particles(settings: dict[str, Any], kind: str) -> None:
    """From positions and velocities to displacements: the input of the network is part of what is equivariant."""
    network, graphs = network_of(**settings).double(), random_graphs()
    matrix = orthogonal_matrix(kind)
    moved = ParticleGraphs(
        graphs.positions @ matrix.T + torch.tensor([3.0, -1.0, 7.0]),
        graphs.velocities @ matrix.T,
        *graphs.tensors()[2:],
    )
    with torch.no_grad():
        before, after = network(graphs), network(moved)
    assert before.abs().min() > 1e-6
    torch.testing.assert_close(after, before @ matrix.T, rtol=1e-9, atol=1e-9)
    assert (after - before).abs().max() > 1e-3


def test_both_ways_adds_the_motion_backwards(cache: Path) -> None:
    """Where the simulator goes from the second frame with velocities turned around, unless it is too chaotic to say."""
    forwards, both = (
        particle_sets(SystemSection.model_validate(system_of(cache, both_ways=way)))["train"] for way in (False, True)
    )
    assert (len(forwards), len(both)) == (25, 50)
    kept, graphs = both[range(25)], both[range(25, 50)]
    for first, again in zip(forwards[range(25)].tensors(), kept.tensors(), strict=True):
        assert torch.equal(first, again)
    torch.testing.assert_close(graphs.positions, kept.positions + kept.targets, rtol=0, atol=1e-6)
    system = ChargedSystem()
    forces = partial(coulomb_forces, charges=graphs.strengths.double().numpy().T, max_force=system.max_force)
    start = [tensor.double().numpy().T for tensor in (graphs.positions, graphs.velocities)]
    steps = leapfrog(start[0], start[1], forces, system.time_step, 10 * system.steps_per_frame)
    next(steps)
    errors = np.abs(next(steps)[0].T - (graphs.positions + graphs.targets).double().numpy()).max((1, 2))
    assert np.median(errors) < 1e-4
    assert np.median(np.abs(graphs.targets.numpy()).max((1, 2))) > 0.3


def test_training_from_several_frames(cache: Path) -> None:
    """Each frame adds as many graphs, and validation and test stay as they are."""
    settings: dict[str, Any] = {"draw": "published", "both_ways": True}
    several, one = (
        particle_sets(SystemSection.model_validate(system_of(cache, train_frames=frames, **settings)))
        for frames in ((12, 30), (30,))
    )
    assert {name: len(found) for name, found in several.items()} == {"train": 100, "validation": 8, "test": 12}
    forwards, backwards = several["train"][range(25, 50)], several["train"][range(75, 100)]
    expected = one["train"][range(50)]
    for (name, a), b, c in zip(vars(expected).items(), forwards.tensors(), backwards.tensors(), strict=True):
        if name != "frames":
            assert torch.equal(a, torch.cat([b, c])), name
    earlier = several["train"][range(25)]
    assert not torch.isin(earlier.positions, expected.positions).any()
    for name in ("validation", "test"):
        for a, b in zip(several[name][range(8)].tensors(), one[name][range(8)].tensors(), strict=True):
            assert torch.equal(a, b)


def test_order_of_particles_and_company_do_not_matter() -> None:
    network, graphs = network_of().double(), random_graphs()
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = ParticleGraphs(
        graphs.positions[:, order], graphs.velocities[:, order], graphs.strengths[:, order], *graphs.tensors()[3:]
    )
    alone = ParticleGraphs(*(tensor[1:] for tensor in graphs.tensors()))
    with torch.no_grad():
        both = network(graphs)
        torch.testing.assert_close(network(shuffled), both[:, order], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(network(alone), both[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", ["velocities", "strengths"])
@pytest.mark.parametrize("physics", [True, False])
def test_velocities_and_charges_count(what: str, physics: bool) -> None:
    network, graphs = network_of(physics=physics).double(), random_graphs()
    changed = ParticleGraphs(**{**vars(graphs), what: getattr(graphs, what).clone()})
    getattr(changed, what)[:, 0] *= -1
    with torch.no_grad():
        assert (network(changed) - network(graphs)).abs().min() > 1e-9
        still = ParticleGraphs(**{**vars(graphs), "velocities": 0 * graphs.velocities})
        assert network(still).isfinite().all()


def test_sets_hold_what_was_simulated(cache: Path) -> None:
    sets = particle_sets(SystemSection(**system_of(cache)))
    assert {name: len(found) for name, found in sets.items()} == {"train": 25, "validation": 8, "test": 12}
    batch = sets["test"][[3, 7]]
    assert batch.frames.tolist() == [3, 7]
    assert batch.neighbors[0].tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]]
    assert set(batch.strengths.unique().tolist()) == {-1.0, 1.0}
    parts = torch.cat([part.targets for part in sets["test"].in_parts(5)])
    torch.testing.assert_close(parts, sets["test"][range(12)].targets)
    assert sets["test"].targets_rms == pytest.approx(float(parts.square().mean().sqrt()))


def later_displacement(cache: Path, sizes: dict[str, int]) -> torch.Tensor:
    sets = particle_sets(SystemSection(**{**system_of(cache), **sizes, "kind": "gravity"}))
    return sets["train"][[1]].targets


@pytest.mark.parametrize("target", ["positions", "forces", "later_forces"])
def test_gravity_sees_the_nearest(cache: Path, target: str) -> None:
    sizes = {"train": 2, "validation": 1, "test": 1}
    sets = particle_sets(SystemSection(**{**system_of(cache), **sizes, "kind": "gravity", "target": target}))
    batch = sets["train"][[1]]
    distances = torch.cdist(batch.positions[0], batch.positions[0]).fill_diagonal_(torch.inf)
    assert torch.equal(batch.neighbors[0].sort().values, distances.topk(6, largest=False).indices.sort().values)
    assert batch.strengths.eq(1).all()
    if target != "positions":
        moved = {"forces": batch.positions, "later_forces": batch.positions + later_displacement(cache, sizes)}[target]
        expected = gravity_forces(moved.double().numpy(), GravitySystem().softening)
        np.testing.assert_allclose(batch.targets.numpy(), expected, rtol=1e-3, atol=0.1)
    network = network_of()
    with torch.no_grad():
        assert network(batch).shape == (1, 100, 3)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_writes_its_files(cache: Path, tmp_path: Path) -> None:
    recipe = recipe_for(cache, optimization={"epochs": 40, "batch_size": 10, "learning_rate": 5e-3})
    state = torch.get_rng_state()
    result = run_particles(recipe, tmp_path / "run")
    assert torch.equal(state, torch.get_rng_state())
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert losses[-1] < 0.5 * losses[0]
    validated = [float(row["validation_positions_MSE"]) for row in rows_of(tmp_path / "run")[1::2]]
    assert result.errors["validation MSE"] == pytest.approx(min(validated), rel=1e-3)
    loaded = load_network(tmp_path / "run" / "tiny.safetensors")
    sets = particle_sets(recipe.system)
    targets, predictions = predict(loaded, sets["test"])
    assert result.errors["test MSE"] == pytest.approx(mean_square(predictions - targets), rel=1e-5)
    worst = int(np.square(predictions - targets).sum((1, 2)).argmax())  # of 12; the worst tenth is one of them
    rest = np.delete(predictions - targets, worst, axis=0)
    assert result.errors["test MSE without the worst tenth"] == pytest.approx(mean_square(rest), rel=1e-5)
    straight = sets["test"][range(12)].velocities.numpy()  # for a time of 1
    assert result.errors["test MSE of straight motion"] == pytest.approx(mean_square(straight - targets), rel=1e-5)
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{result.errors['test MSE']:.5g}" in page
    assert page.count("data:image/png") == 2
    settled = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert list(settled)[:3] == ["name", "system", "network"]  # what is learned comes before how
    assert make_recipe(settled, "this", ParticleRecipe).compile == "auto"


@pytest.mark.usefixtures("no_particle_report")
def test_a_run_is_not_overwritten_nor_taken_for_another(cache: Path, tmp_path: Path) -> None:
    run_particles(recipe_for(cache), tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_particles(recipe_for(cache), tmp_path / "run")
    with pytest.raises(ValueError, match="another run, with other trajectories"):
        run_particles(recipe_for(cache, system=system_of(cache, seed=1)), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="another run, with other network"):
        run_particles(recipe_for(cache, network={"width": 4}), tmp_path / "run", resume=True)


@pytest.mark.usefixtures("no_particle_report")
def test_a_killed_run_resumes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ase_segnn.training.particles.module import ParticleModule

    recipe = recipe_for(cache, optimization={"epochs": 6, "batch_size": 10})
    whole = run_particles(recipe, tmp_path / "whole")

    def fail_in_fifth_epoch(module: ParticleModule, batch: ParticleGraphs, batch_idx: int) -> None:
        if module.current_epoch == 4:
            raise RuntimeError("killed")
        step(module, batch, batch_idx)

    step = ParticleModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(ParticleModule, "training_step", fail_in_fifth_epoch)
        with pytest.raises(RuntimeError, match="killed"):
            run_particles(recipe, tmp_path / "parts")
    resumed = run_particles(recipe, tmp_path / "parts", resume=True)
    assert resumed.errors == whole.errors
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_the_compiled_step_takes_batches_of_any_size() -> None:
    loss = ParticleLoss(network_of(n_layers=1))
    graphs = ParticleGraphs.from_tensors(
        [tensor.float() if tensor.is_floating_point() else tensor for tensor in random_graphs(4).tensors()]
    )
    fewer = ParticleGraphs.from_tensors([tensor[:3] for tensor in graphs.tensors()])
    step = CompiledStep(loss, backend="eager")
    for batch in (graphs, fewer, graphs):
        coefficients = 1 / batch.n_labels()
        value, derivatives = step(batch, coefficients)
        expected, expected_derivatives = gradients(loss, batch, coefficients)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(derivatives, expected_derivatives)


@pytest.mark.usefixtures("no_particle_report")
def test_the_command_runs_recipes_of_systems(cache: Path, tmp_path: Path) -> None:
    small = ["system.train=25", "system.validation=8", "system.test=12", f"system.cache={cache}", "network.width=8"]
    small += ["optimization.epochs=1"]
    changes = [word for change in small for word in ("--set", change)]
    done = CliRunner().invoke(
        app,
        ["train", str(RECIPES / "charged.yaml"), *changes, "--output", str(tmp_path / "run")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert "test MSE of straight motion: " in done.output
    assert f"network: {tmp_path / 'run' / 'charged.safetensors'}" in done.output


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    recipe = make_recipe(yaml.safe_load(path.read_text()), path.name, ParticleRecipe)
    assert recipe.name == path.stem.replace("_", "-")
    assert path.stem.startswith(recipe.system.kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": {"kind": "charged", "target": "forces"}}, "forces are a target of gravity only"),
        ({"system": {"kind": "planets"}}, "system.kind"),
        ({"system": {"kind": "gravity", "draw": "published"}}, "only the starts of charged particles"),
        ({"system": {"kind": "charged", "draw": "published", "seed": 1}}, "set seed to 0 instead of 1"),
        ({"system": {"kind": "charged", "draw": "published", "test": 2001}}, "2001) trajectories are more than"),
        ({"system": {"kind": "charged", "train_frames": [3, 3]}}, "name a frame twice"),
        ({"system": {"kind": "charged", "train_frames": [40]}}, "system.train_frames"),
        ({"system": {"kind": "charged", "train_frames": []}}, "system.train_frames"),
        ({"optimization": {"batch_size": 0}}, "optimization.batch_size: should be greater than or equal to 1"),
        ({"optimization": {"batch_edges": 9}}, "optimization.batch_edges: unknown key; did you mean 'batch_size'?"),
        ({"optimization": {"patience": 9}}, "optimization.patience: no key any more; schedule: plateau always waits"),
        ({"network": {"l_max": 0, "l_max_attributes": 0}}, "network: features and attributes of degree 0"),
        ({"network": {"l_maximum": 2}}, "network.l_maximum: unknown key; did you mean 'l_max'?"),
        ({"zbl": True}, "zbl: unknown key"),
    ],
)
def test_errors_in_recipes_are_named(cache: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="this:") as caught:
        recipe_for(cache, **changes)
    assert message in str(caught.value)


def test_files_of_networks(tmp_path: Path) -> None:
    network = network_of(messages="invariant")
    save_network(network, tmp_path / "a.safetensors", {"note": "x"})
    loaded = load_network(tmp_path / "a.safetensors")
    batch = ParticleGraphs.from_tensors([t.float() if t.is_floating_point() else t for t in random_graphs().tensors()])
    torch.testing.assert_close(loaded(batch), network(batch).detach())
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no network for particles"):
        load_network(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "c.safetensors")


@pytest.fixture
def no_particle_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes longer than tiny runs."""
    monkeypatch.setattr("ase_segnn.training.particles.run.write_report", lambda *_: None)
