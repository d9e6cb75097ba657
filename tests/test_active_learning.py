"""Active learning: start frames, walks, the plan, and runs that end at any moment and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from labeled import labeled_clusters, tiny_potential
from typer.testing import CliRunner

from ase_segnn import Committee, SEGNNCalculator, save_potential
from ase_segnn.cli import app
from ase_segnn.potential_file import Provenance, read_header
from ase_segnn.training import LabelsNeeded, learn
from ase_segnn.training.active_learning.exploration import _thinned, explore_and_select
from ase_segnn.training.active_learning.fits import data_of, fitted, is_kept, recipe_of
from ase_segnn.training.active_learning.folder import LearnFolder
from ase_segnn.training.active_learning.fresh import fresh_frames, verdicts_in
from ase_segnn.training.active_learning.plan import Plan
from ase_segnn.training.active_learning.settings import LearnSettings, ladder
from ase_segnn.training.active_learning.start import first_frames, isolated_atoms, next_frames
from ase_segnn.training.active_learning.walks import Band, explore

REFERENCE = """
from ase.calculators.lj import LennardJones

def cheap():
    return LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
"""
_KILLS = 6
TINY = {
    "network": {
        "cutoff": 4.0, "irreps_hidden": "6x0e+3x1o", "l_max_attributes": 1, "n_layers": 1, "n_radial": 4,
        "correlation": 1,
    }
}  # fmt: skip


def cluster() -> Atoms:
    """Return five atoms of argon and neon near their places."""
    atoms = labeled_clusters(3)[2]
    return Atoms(atoms.numbers, atoms.positions)


def two_potentials() -> Committee:
    return Committee([tiny_potential(seed).requires_grad_(False) for seed in (0, 1)])


@pytest.fixture
def reference(tmp_path: Path) -> str:
    (tmp_path / "reference.py").write_text(REFERENCE)
    return f"{tmp_path / 'reference.py'}:cheap"


# ---- settings


def test_a_ladder_has_equal_ratios() -> None:
    assert ladder(300, 300) == [300]
    rungs = np.array(ladder(300, 1500))
    assert len(rungs) == 5
    np.testing.assert_allclose(rungs[1:] / rungs[:-1], 5**0.25, rtol=0.01)
    assert ladder(300, 301) == [300, 301]
    with pytest.raises(ValueError, match="go from cold to hot, got 600:300"):
        ladder(600, 300)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperatures": "warm"}, "'warm' is no range; write two numbers, such as 300:1500"),
        ({"temperatures": "900:300"}, "from the lowest to the highest, got 900:300"),
        ({"labels": 5}, "labels: .*greater than or equal to 30"),
        ({"max_time": "soon"}, "'soon' is no duration"),
        ({"recipe": {"committee": 3}}, "'committee' is decided by the run itself"),
        ({"recipe": {"optimization": {"max_time": 3}}}, "give the time of the whole run"),
        ({"members": 1}, "members"),
        ({"temperature": "300"}, "temperature: unknown key; did you mean 'temperatures'"),
    ],
)
def test_settings_are_checked_before_any_work(
    tmp_path: Path, reference: str, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        learn([cluster()], reference, output=tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_structures_are_checked_before_any_work(tmp_path: Path, reference: str) -> None:
    for structures, settings, message in (
        ([], {}, "no structure to start from"),
        ([Atoms("Ar")], {}, "structure 0 has 1 atom; learning starts from structures of two atoms or more"),
        ([cluster()], {"pressures": "0:1"}, "a pressure moves the cell .*structure 0 has pbc"),
        ([cluster()], {"recipe": {"network": {"cutof": 3.0}}}, "cutof: unknown key"),
    ):
        with pytest.raises(ValueError, match=message):
            learn(structures, reference, output=tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="emt knows"):
        learn([molecule("CH3Cl")], "emt", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- start frames


def test_first_frames_are_the_structures_and_rattled_copies() -> None:
    crystal = bulk("Ar", "fcc", a=3.6, cubic=True)
    frames = first_frames([cluster(), crystal], 8, 100.0, seed=1)
    assert len(frames) == 8
    assert frames[0] == cluster()
    assert frames[1] == crystal
    spread = np.concatenate([(frames[k].positions - cluster().positions).ravel() for k in (2, 4, 6)])
    assert np.std(spread) == pytest.approx(np.sqrt(2 * 0.01 * units.kB * 100.0), rel=0.3)
    assert all(np.abs(frames[k].cell.array - crystal.cell.array).max() > 1e-3 for k in (3, 5, 7))
    assert [len(atoms) for atoms in isolated_atoms([cluster()])] == [1, 1]


def test_next_frames_follow_the_forces_and_keep_what_is_fixed() -> None:
    atoms = cluster()
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
    atoms.get_forces()
    cold = next_frames([atoms], 3, 1e-9, seed=0)
    expected = atoms.positions + 0.01 * atoms.get_forces()
    np.testing.assert_allclose(cold[2].positions, expected, atol=1e-5)
    assert all((frame.positions[0] == atoms.positions[0]).all() for frame in cold)
    far = atoms.copy()
    far.positions[1] = far.positions[0] + [1.2, 0, 0]
    far.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
    moved = next_frames([far], 1, 1e-9, seed=0)[0]
    assert np.linalg.norm(moved.positions - far.positions, axis=1).max() == pytest.approx(0.2, abs=1e-4)


def test_brownian_frames_have_the_spread_of_the_temperature() -> None:
    """In a harmonic well of k the spread is kT / k, over 1 - µk/2 for finite steps."""

    class Well(LennardJones):
        def calculate(self, atoms: Any, *_: Any) -> None:
            self.results = {"energy": 0.0, "forces": -20.0 * atoms.positions}

    frames = [Atoms("Ar50", np.zeros((50, 3)))]
    seen = []
    for step in range(60):
        frames[-1].calc = Well()
        frames[-1].get_forces()
        frames.append(next_frames(frames, 1, 300.0, seed=step)[0])
        if step > 20:
            seen.append(frames[-1].positions.ravel())
    expected = units.kB * 300.0 / 20.0 / (1 - 0.01 * 20.0 / 2)
    assert np.var(np.concatenate(seen)) == pytest.approx(expected, rel=0.1)


# ---- walks


def test_walks_find_frames_below_the_upper_bound() -> None:
    committee, atoms = two_potentials(), cluster()
    rungs, found = explore(committee, [atoms], [50.0, 100.0], Band(0.0, 100.0), seconds=60, steps=200, seed=3)
    assert [rung.temperature for rung in rungs] == [50.0, 100.0]
    assert sum(rung.n_seen for rung in rungs) == len(found) > 0
    calculator = SEGNNCalculator(committee)
    for frame in found:
        assert frame.info["deviation"] == pytest.approx(
            calculator.get_property("forces_std", frame).max(), rel=1e-3, abs=1e-5
        )
        assert not frame.has("masses")
        assert not frame.constraints
    assert atoms == cluster()
    assert not atoms.constraints


def test_walks_end_at_the_upper_bound_and_keep_the_frame_before() -> None:
    committee = two_potentials()
    _, found = explore(committee, [cluster()], [100.0], Band(0.0, 100.0), seconds=60, steps=200, seed=3)
    deviations = sorted(frame.info["deviation"] for frame in found)
    upper = deviations[-2]
    rungs, found = explore(committee, [cluster()], [100.0], Band(0.99 * upper, upper), seconds=60, steps=200, seed=3)
    assert rungs[0].n_broken >= 1
    assert all(frame.info["deviation"] <= upper for frame in found)
    is_new = [frame.info["new"] for frame in found]
    assert sum(is_new) >= rungs[0].n_new  # those before a walk broke, too
    assert 0 < sum(is_new) < len(found)
    assert all(new for frame, new in zip(found, is_new, strict=True) if frame.info["deviation"] >= 0.99 * upper)
    rungs, found = explore(committee, [cluster()], [100.0], Band(1e-12, 1e-9), seconds=60, steps=20, seed=3)
    assert not found
    assert rungs[0].n_broken == rungs[0].n_walks > 1


def test_molecules_that_part_are_not_broken() -> None:
    pair = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.0]])  # nearer than a broken bond, farther than a bond
    [rung], found = explore(two_potentials(), [pair], [3000.0], Band(0.0, 1e9), seconds=60, steps=400, seed=0)
    assert max(atoms.get_distance(0, 1) for atoms in found) > 4.5
    assert rung.n_broken == 0


def test_walks_keep_what_is_fixed_and_move_cells_on_request() -> None:
    committee = two_potentials()
    slab = fcc111("Ar", (1, 1, 3), a=3.6, vacuum=6.0)
    slab.set_constraint(FixAtoms([0]))
    slab.info["charge"] = 2
    _, found = explore(committee, [slab], [100.0], Band(0.0, 1e9), seconds=60, steps=20, seed=0)
    assert all(atoms.info["charge"] == 2 for atoms in found)
    assert all((frame.positions[0] == slab.positions[0]).all() for frame in found)
    assert all((frame.constraints[0].index == [0]).all() for frame in found)
    assert np.abs(found[-1].positions[2] - slab.positions[2]).max() > 1e-3
    with pytest.raises(ValueError, match=r"a pressure moves the cell .* and start 0 has constraints"):
        explore(committee, [slab], [100.0], Band(0.0, 1e9), seconds=1, pressures=(0, 1))
    crystal = bulk("Ar", "fcc", a=3.6, cubic=True)
    _, found = explore(committee, [crystal], [100.0], Band(0, 1e9), seconds=60, steps=20, pressures=(0, 5), seed=0)
    assert all(0 <= frame.info["pressure_GPa"] <= 5 for frame in found)
    assert abs(found[-1].get_volume() - crystal.get_volume()) > 1e-6


def test_exploration_on_all_cores_shares_the_selection_among_temperatures(tmp_path: Path) -> None:
    save_potential(two_potentials(), tmp_path / "two.safetensors", provenance=Provenance())
    explored = explore_and_select(
        tmp_path / "two.safetensors",
        [cluster()],
        [50.0, 150.0],
        Band(1e-6, 100.0),
        6,
        seconds=2,
        folder=tmp_path / "work",
    )
    assert 2 <= len(explored.selected) <= 6
    assert [rung.n_selected for rung in explored.rungs] == [
        sum(abs(frame.info["temperature"] - rung.temperature) < 0.1 for frame in explored.selected)
        for rung in explored.rungs
    ]
    assert all(rung.n_selected >= 1 for rung in explored.rungs)


def test_frames_that_are_not_new_fill_up_the_selection_on_request(tmp_path: Path) -> None:
    save_potential(two_potentials(), tmp_path / "two.safetensors", provenance=Provenance())
    explored = explore_and_select(
        tmp_path / "two.safetensors",
        [cluster()],
        [150.0],
        Band(99.0, 100.0),
        20,
        seconds=1,
        fill_up=True,
        folder=tmp_path / "work",
    )
    assert explored.rungs[0].n_new == 0
    assert explored.rungs[0].n_broken < len(explored.selected) <= 20  # the last frames before breaks would be new
    assert all("new" not in frame.info for frame in explored.selected)


def test_thinned_frames_are_those_that_deviate_most_and_some_of_all_times() -> None:
    frames = [Atoms("Ar", info={"deviation": 1.0 if k < 10 else 0.001 * k, "k": k}) for k in range(200)]
    thinned = [frame.info["k"] for frame in _thinned(frames, 20)]
    assert thinned[:10] == list(range(10))
    assert len(thinned) == 20
    assert np.diff(thinned[10:]).min() > 15
    assert _thinned(frames, 200) == frames


def test_dynamics_of_the_final_potential_begin_at_many_structures(tmp_path: Path) -> None:
    save_potential(two_potentials().members[0], tmp_path / "one.safetensors", provenance=Provenance())
    starts = [cluster() for _ in range(3)]
    for number, atoms in enumerate(starts):
        atoms.info["charge"] = number
    frames = fresh_frames(tmp_path / "one.safetensors", starts, [50.0, 100.0], 6, seconds=2, folder=tmp_path / "runs")
    assert len(frames) == 6
    assert {frame.info["charge"] for frame in frames} == {0, 1, 2}
    assert {frame.info["temperature"] for frame in frames} == {50.0, 100.0}
    assert len(verdicts_in(tmp_path / "runs")) >= 3


# ---- fits


def test_the_fit_before_stays_where_there_is_much_less_time_now(tmp_path: Path) -> None:
    before, output = tmp_path / "member-1.safetensors", tmp_path / "round-2" / "member-1.safetensors"
    assert not is_kept(before, output, 1.0)
    before.write_bytes(b"weights")
    history = [{"epoch": 1.0, "validation_forces_RMSE_meV_per_A": 7.0, "validation_energy_RMSE_meV": 3.0}]
    before.with_suffix(".json").write_text(json.dumps({"history": history, "seconds": 100.0}))
    assert not is_kept(before, output, 60.0)
    assert not output.parent.exists()
    assert is_kept(before, output, 40.0)
    assert output.read_bytes() == b"weights"
    assert fitted(output) == fitted(before)
    assert fitted(output).errors == {"forces_RMSE_meV_per_A": 7.0, "energy_RMSE_meV": 3.0}


# ---- the plan


def plan(**changes: Any) -> Plan:
    settings = {"name": "x", "reference": "emt", "labels": 300, "max_time": 1800.0, **changes.pop("settings", {})}
    known = {"cost": 0.1, "used": 10.0, "labeling": 5.0, "n_labels": 30}
    return Plan(LearnSettings(**settings), **{**known, **changes})


def test_the_plan_spends_the_time_and_no_more() -> None:
    """Following the plan to its end takes the time that was given."""
    used, labeling, n, rounds = 10.0, 5.0, 30, 0
    settings = LearnSettings(name="x", reference="emt", labels=300, max_time=1800.0)
    while (now := Plan(settings, 0.1, used, labeling, n)).n_next > 0:
        used += now.fit_seconds + now.explore_seconds + 10.0 + 0.1 * now.n_next
        labeling += 0.1 * now.n_next
        n += now.n_next
        rounds += 1
    assert n == 270
    assert rounds == 4
    end = used + now.final_seconds + now.dynamics_seconds + 0.1 * settings.n_fresh
    assert end == pytest.approx(1800 - 40 - 10)  # which are for the report and the start of processes
    assert now.final_seconds > 0.45 * 1800


def test_the_plan_has_fewer_rounds_and_labels_when_time_is_short() -> None:
    assert (plan().n_rounds_left, plan().n_next) == (4, 22)
    assert plan(settings={"max_time": 300.0}).n_rounds_left == 2
    assert plan(settings={"max_time": 300.0}).n_next == 60
    assert plan(used=1700.0).n_next == 0
    assert plan(cost=60.0, n_labels=200, settings={"max_time": 40_000.0}, used=20_000.0, labeling=18_000.0).n_next > 0
    slow = plan(cost=600.0, settings={"max_time": None})
    assert slow.max_time == 3600 + 600 * 300
    assert plan(cost=600.0, settings={"max_time": None, "workers": 4}).max_time == 3600 + 600 * 300 / 4
    assert plan(n_labels=265).n_next == 5
    assert plan(n_labels=270).n_next == 0


# ---- data


def test_the_same_labels_are_for_validation_in_all_rounds(tmp_path: Path) -> None:
    frames = labeled_clusters(40)
    for number, atoms in enumerate(frames):
        atoms.info["id"] = number
    recipe = recipe_of(LearnSettings(name="x", reference="emt", recipe=TINY), tmp_path / "labels.xyz")
    few = data_of(frames[:20], recipe, 4.0, tmp_path / "few")
    many = data_of(frames, recipe, 4.0, tmp_path / "many")
    watched = [{frame.source for frame in data.validation.frames()} for data in (few, many)]
    assert watched[0] == {"label 4", "label 14"}
    assert watched[0] < watched[1]
    assert not watched[1] & {frame.source for frame in few.training.frames()}


# ---- whole runs


def quick(**changes: Any) -> dict[str, Any]:
    return {"labels": 30, "max_time": 20.0, "temperatures": (50.0, 100.0), "recipe": TINY, "members": 2, **changes}


@pytest.mark.slow
def test_labels_made_elsewhere(tmp_path: Path) -> None:
    """A run without a reference stops for labels and goes on with them, whatever their order and names."""
    run = tmp_path / "run"
    given, resume, batches = None, False, 0
    while True:
        try:
            arguments: dict[str, Any] = {} if resume else quick()
            structures = None if resume else [cluster()]
            result = learn(structures, None, output=run, resume=resume, labels_from=given, **arguments)
            break
        except LabelsNeeded as needed:
            batches += 1
            given = []
            for atoms in reversed(needed.frames):
                labeled = Atoms(atoms.numbers, atoms.positions.round(5))
                calculator = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
                labeled.info["REF_energy"] = calculator.get_property("energy", labeled)
                labeled.arrays["REF_forces"] = calculator.get_property("forces", labeled)
                given.append(labeled)
            resume = True
    assert batches >= 3
    assert np.isfinite(result.fresh[0].errors["forces_RMSE_meV_per_A"])
    assert sum(each.n_frames + each.n_failed for each in result.fresh) == 10
    assert "labels made elsewhere" in (run / "run.md").read_text()


_UNRELIABLE = """
import os
import random
import time
from pathlib import Path

import numpy as np
from ase.calculators.lj import LennardJones

HERE = Path(__file__).parent


class Unreliable(LennardJones):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        chance = random.Random(os.urandom(8)).random()
        if chance < 0.1:
            raise RuntimeError("did not converge")
        if first("hung"):
            time.sleep(1000)
        if first("nan"):
            self.results["energy"] = np.nan


def first(what):
    try:
        (HERE / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make():
    return Unreliable(sigma=2.3, epsilon=0.1, rc=6.0)
"""


@pytest.mark.slow
def test_a_reference_that_fails_hangs_and_gives_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "reference.py").write_text(_UNRELIABLE)
    reference = f"{tmp_path / 'reference.py'}:make"
    ion = cluster()
    ion.info["charge"] = 1
    result = learn([ion], reference, output=tmp_path / "run", limit=3.0, **quick())
    assert (tmp_path / "hung").exists()
    assert (tmp_path / "nan").exists()
    labels = list(ase.io.iread(tmp_path / "run" / "labels.xyz"))
    assert len(labels) >= 10
    fresh = list(ase.io.iread(tmp_path / "run" / "fresh.xyz"))
    assert all(atoms.info["charge"] == 1 for atoms in (*labels, *fresh) if len(atoms) > 1)
    assert "The structures had charge 1." in (tmp_path / "run" / "run.md").read_text()
    for atoms in labels:
        expected = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0).get_property("energy", Atoms(atoms))
        assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-6)
    assert sum(each.n_frames + each.n_failed for each in result.fresh) == 10
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_is_resumed_with_what_it_began_with(tmp_path: Path) -> None:
    folder = LearnFolder(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="holds no run of ase-segnn learn to resume"):
        folder.resumed({})
    folder.path.mkdir()
    folder.begin(LearnSettings(name="x", reference="emt", labels=100), [cluster()])
    settings, structures = folder.resumed({"labels": 200, "max_time": "2h", "workers": 3})
    assert (settings.labels, settings.max_time, settings.workers) == (200, 7200, 3)
    np.testing.assert_allclose(structures[0].positions, cluster().positions, atol=1e-7)
    with pytest.raises(ValueError, match=r"cannot go on: temperatures was \[300.0, 600.0\] and is \[300.0, 900.0\]"):
        folder.resumed({"temperatures": "300:900"})
    with pytest.raises(ValueError, match="reference was 'emt' and is 'gfn2'"):
        folder.resumed({"reference": "gfn2"})


def test_the_command_explains_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("cluster.xyz", cluster())
    runner = CliRunner()
    for arguments, message in (
        (["cluster.xyz"], "give --reference, such as gfn2 or my_dft.py:make_calculator; or --export"),
        (["cluster.xyz", "--resume"], "--resume and --labels-from take the folder of a run, got 'cluster.xyz'"),
        (["cluster.xyz", "--reference", "emt"], "emt knows"),
    ):
        result = runner.invoke(app, ["learn", *arguments])
        assert result.exit_code == 2
        assert message in result.output
    result = runner.invoke(app, ["learn", "cluster.xyz", "--export", "batch.xyz", "--labels", "30"])
    assert result.exit_code == 0, result.output
    assert len(ase.io.read("batch.xyz", ":")) == 10
    assert "then: ase-segnn learn cluster --labels-from done.xyz" in result.output
    result = runner.invoke(app, ["learn", "cluster", "--resume"])
    assert result.exit_code == 2
    assert "10 frames need labels that are made elsewhere" in result.output


def test_the_command_explores_with_a_committee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("cluster.xyz", cluster())
    save_potential(two_potentials(), "two.safetensors", provenance=Provenance())
    save_potential(tiny_potential(0), "one.safetensors", provenance=Provenance())
    runner = CliRunner()
    arguments = ["explore", "two.safetensors", "cluster.xyz", "--time", "2s", "-n", "4"]
    result = runner.invoke(app, [*arguments, "--temperature", "50", "--deviation", "0.05"])
    assert result.exit_code == 0, result.output
    frames = ase.io.read("explored.xyz", ":")
    assert 1 <= len(frames) <= 4
    result = runner.invoke(app, ["explore", "one.safetensors", "cluster.xyz"])
    assert result.exit_code == 2
    result = runner.invoke(app, ["explore", "one.safetensors", "cluster.xyz", "--output", "a.xyz"])
    assert "'one.safetensors' holds a single potential" in result.output


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_keeps_its_labels_and_ends(tmp_path: Path, reference: str) -> None:
    ase.io.write(tmp_path / "cluster.xyz", cluster())
    recipe = [f"--set=network.{key}={value}" for key, value in TINY["network"].items()]
    begin = ["cluster.xyz", "--reference", reference, "--labels", "30", "--temperature", "50:100", "--time", "40s"]
    command = [sys.executable, "-m", "ase_segnn", "learn"]
    random, labels = np.random.default_rng(0), tmp_path / "cluster" / "labels.xyz"
    kept = b""
    for kill in range(_KILLS + 1):
        known = (tmp_path / "cluster" / "settings.json").exists()
        arguments = ["cluster", "--resume"] if known else [*begin, *recipe]
        with subprocess.Popen([*command, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=None if kill == _KILLS else random.uniform(2, 12))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
        now = labels.read_bytes() if labels.exists() else b""
        assert now.startswith(kept[: kept.rfind(b"\n") + 1])
        kept = now
        time.sleep(0.2)
    run = tmp_path / "cluster"
    assert json.loads((run / "state.json").read_text())["finished"]
    learned, fresh, failed = (
        list(ase.io.iread(path)) if path.exists() else []
        for path in (run / f"{name}.xyz" for name in ("labels", "fresh", "failed"))
    )
    ids = [atoms.info["id"] for atoms in (*learned, *fresh)]
    assert len(set(ids)) == len(ids) <= 30
    n_fresh = len(fresh) + sum(atoms.info["stage"] == "fresh" for atoms in failed)
    broken = [verdict for verdict in verdicts_in(run / "work" / "fresh") if verdict.outcome == "failed"]
    assert n_fresh == 10 or (broken and n_fresh < 10)  # what was learned in so little time may not hold together
    for atoms in learned:
        expected = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0).get_property("forces", Atoms(atoms))
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-6)
    known = {tuple(atoms.positions.ravel().round(6)) for atoms in learned}
    assert not any(tuple(atoms.positions.ravel().round(6)) in known for atoms in fresh)
    header = read_header(run / "cluster.safetensors")
    assert set(header.provenance.errors) >= {"validation"}
    assert all(name == "validation" or name.startswith("own dynamics at ") for name in header.provenance.errors)
    card = (run / "cluster.md").read_text()
    assert "reference.py:cheap (LennardJones)" in card
    assert "Learned for ArNeArNeAr" in card or "Learned for Ar3Ne2" in card
    assert "Fresh frames" in (run / "report.html").read_text()
    again = CliRunner().invoke(app, ["learn", str(run), "--resume"])
    assert "came to its end; start another one in another folder" in again.output
    with pytest.raises(FileExistsError, match="holds a run already; resume it with --resume, or choose another"):
        learn([cluster()], reference, output=run, **quick())
