"""The report of a training run: errors by frame, group and element, physical checks, and the page itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from PIL import Image
from random_potentials import CONFIGS, random_potential
from scipy.stats import spearmanr

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.evaluation import evaluate
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.physics.dynamics import constant_energy_run, langevin_run, timestep_for
from ase_segnn.training.data.frames import Frame
from ase_segnn.training.report import evaluate_sets, write_report
from ase_segnn.training.report.checks import (
    Survey,
    check_accuracy,
    check_deviations,
    check_dimers,
    dimer_curves,
    volume_curve,
)
from ase_segnn.training.report.predictions import Predictions, predict_frames

SECTIONS = (
    "Summary",
    "Learning curves",
    "Errors",
    "Forces by element",
    "Parity",
    "Distribution of errors",
    "Worst frames",
    "Speed",
    "Dynamics",
    "Short range",
    "Energy and volume",
    "Deviations of the committee",
)
ARGON = {"sigma": 3.4, "epsilon": 0.0104, "rc": 6.0, "smooth": True}
AR, CU = 18, 29


class Pairs(Calculator):
    """Energy of all pairs without periodicity: `strength` times a Gaussian of 1 Å, attractive if that is negative."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  # as ASE spells it

    def __init__(self, strength: float, force_sign: float = 1.0, wall: float = 0.0) -> None:
        super().__init__()
        self.strength, self.force_sign, self.wall = strength, force_sign, wall

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        vectors = self.atoms.positions[:, None] - self.atoms.positions[None]
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(self.atoms))
        off = 1 - np.eye(len(self.atoms))
        # a Gaussian at zero, and a wall at 1.5 Å around it
        gaussian = self.strength * np.exp(-(distances**2)) * off
        wall = self.wall * np.exp(-4 * (distances - 1.5) ** 2) * off
        slope = -2 * distances * gaussian - 8 * (distances - 1.5) * wall
        forces = -self.force_sign * (slope / distances)[..., None] * vectors
        self.results = {"energy": float((gaussian + wall).sum() / 2), "forces": forces.sum(axis=1)}


class Committee(LennardJones):
    """Lennard-Jones whose forces come with deviations of half the error that they have against `truth`."""

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        truth = atoms.copy()
        truth.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        error = np.linalg.norm(self.results["forces"] - truth.get_forces(), axis=1)
        self.results["forces_std"] = error / 2


def crystal(index: int = 0) -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.symbols[: 1 + index % 2] = "Si"
    atoms.rattle(0.08, seed=index)
    return atoms


def labeled_frames(n_frames: int = 9) -> list[Frame]:
    """Crystals in two groups, labeled by a Lennard-Jones potential; each third frame lacks a label."""
    frames = []
    for index in range(n_frames):
        atoms = crystal(index)
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)
        frame = Frame(
            atoms=atoms.copy(),
            source=f"crystals.xyz@{index}",
            energy=float(atoms.get_potential_energy()),
            forces=atoms.get_forces() if index % 3 else None,
            stress=atoms.get_stress(voigt=False) if index % 3 != 1 else None,
            group="first" if index < 4 else "second",
        )
        frames.append(frame)
    return frames


def potential() -> SEGNNCalculator:
    return SEGNNCalculator(random_potential(CONFIGS["with ZBL"]), device="cpu", dtype="float64", compile=False)


def argon() -> Atoms:
    return bulk("Ar", "fcc", a=5.26, cubic=True)


# ---- errors


def test_errors_equal_plain_numpy() -> None:
    frames, calculator = labeled_frames(), potential()
    predictions = predict_frames(calculator, iter(frames))
    energy, per_atom, forces, stress, symbols, groups = [], [], [], [], [], []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.calc = calculator
        energy.append(atoms.get_potential_energy() - frame.energy)
        per_atom.append(energy[-1] / len(atoms))
        if frame.forces is not None:
            forces.append(atoms.get_forces() - frame.forces)
            symbols += list(atoms.symbols)
            groups += [frame.group] * len(atoms)
        if frame.stress is not None:
            stress.append((atoms.get_stress(voigt=False) - frame.stress)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
    errors = predictions.errors()
    components = np.concatenate(forces)
    for name, values in {
        "energy_{}_meV": energy,
        "energy_per_atom_{}_meV": per_atom,
        "forces_{}_meV_per_A": components,
        "stress_{}_meV_per_A3": stress,
    }.items():
        assert errors[name.format("RMSE")] == pytest.approx(1000 * np.sqrt(np.mean(np.square(values))))
        assert errors[name.format("MAE")] == pytest.approx(1000 * np.mean(np.abs(values)))
    by_element = predictions.forces_errors_by_element()
    assert list(by_element) == ["Si", "Cu"]
    copper = components[np.array(symbols) == "Cu"]
    assert by_element["Cu"]["forces_RMSE_meV_per_A"] == pytest.approx(1000 * np.sqrt(np.mean(copper**2)))
    by_group = predictions.errors_by_group()
    first = components[np.array(groups) == "first"]
    assert by_group["first"]["forces_MAE_meV_per_A"] == pytest.approx(1000 * np.abs(first).mean())
    assert by_group["second"]["energy_MAE_meV"] == pytest.approx(1000 * np.abs(energy[4:]).mean())


def test_worst_frames_are_those_with_a_wrong_label() -> None:
    frames = [frame for frame in labeled_frames() if frame.forces is not None]
    frames[2].forces[3] += [0.0, 300.0, 400.0]
    object.__setattr__(frames[4], "energy", frames[4].energy - 4000.0)
    predictions = predict_frames(LennardJones(sigma=2.3, epsilon=0.1, rc=6.0), frames)
    worst = predictions.worst_frames("forces", 2)
    assert [worst[0].source, worst[0].atom, worst[0].symbol] == [frames[2].source, 3, "Cu"]
    assert worst[0].error == pytest.approx(500.0)
    assert worst[1].error < 1e-9
    assert predictions.worst_frames("energy_per_atom")[0].source == frames[4].source
    assert predictions.worst_frames("energy_per_atom")[0].error == pytest.approx(1000.0)


def test_energies_of_another_level_of_theory_are_compared_but_for_a_constant_per_element() -> None:
    frames = labeled_frames()
    calculator = LennardJones(sigma=2.3, epsilon=0.12, rc=6.0)
    own = predict_frames(calculator, frames).with_fitted_elements()
    shifted = []
    for frame in frames:
        assert frame.energy is not None
        n_silicon = frame.atoms.get_chemical_symbols().count("Si")
        shifted.append(replace(frame, energy=frame.energy + 700.0 * n_silicon - 90.0 * (4 - n_silicon)))
    other = predict_frames(calculator, shifted)
    assert other.errors()["energy_per_atom_RMSE_meV"] > 1e5
    fitted = other.with_fitted_elements()
    for name, value in own.errors().items():
        assert fitted.errors()[name] == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert own.errors()["energy_RMSE_meV"] > 1.0
    mean = (own.difference("energy") / own.n_atoms).mean()
    assert abs(mean) < 1e-9  # of equally many atoms, so that the fit leaves none


def test_labels_of_weight_zero_are_no_errors() -> None:
    frames = labeled_frames(4)
    spoiled = [
        replace(frame, energy=1e3, weights={"energy": 0.0, "forces": 1.0, "stress": 1.0}) if i % 2 else frame
        for i, frame in enumerate(frames)
    ]
    errors, expected = (predict_frames(potential(), some).errors() for some in (spoiled, frames[::2]))
    assert errors["energy_RMSE_meV"] == pytest.approx(expected["energy_RMSE_meV"])
    assert errors["forces_RMSE_meV_per_A"] != pytest.approx(expected["forces_RMSE_meV_per_A"])


def test_frames_without_labels_are_left_out_and_failures_are_named() -> None:
    frames = labeled_frames(2)
    unlabeled = Frame(crystal(), "nothing.xyz@0")
    assert predict_frames(potential(), [unlabeled, *frames]).sources.tolist() == [f.source for f in frames]
    nothing = predict_frames(potential(), [unlabeled])
    assert nothing.errors() == {}
    assert nothing.worst_frames("forces") == []
    foreign = Frame(Atoms("He2", [[0, 0, 0], [0, 0, 3]]), "helium.xyz@0", energy=1.0)
    with pytest.raises(ValueError, match=r"^helium.xyz@0: .*He"):
        predict_frames(potential(), [foreign])


def test_deviations_are_compared_with_errors() -> None:
    frames = labeled_frames()
    calibration = predict_frames(Committee(sigma=2.4, epsilon=0.1, rc=6.0), frames).calibration()
    assert calibration is not None
    assert calibration.rank_correlation == pytest.approx(1.0)
    assert calibration.factor == pytest.approx(2.0)
    assert check_deviations({"a": calibration}).outcome == "passed"
    rng = np.random.default_rng(0)
    none = {name: np.zeros((200, 3)) for name in ("energy", "energy_per_atom", "forces", "stress")}
    noise = Predictions(
        np.array(["x"]),
        np.array([""]),
        np.array([200]),
        np.ones(200, int),
        none,
        {**none, "forces": rng.random((200, 3))},
    )
    object.__setattr__(noise, "forces_std", rng.random(200))
    weak = noise.calibration()
    assert weak is not None
    assert weak.rank_correlation == pytest.approx(spearmanr(noise.forces_std, noise.forces_error()).statistic)
    assert check_deviations({"a": calibration, "b": weak}).outcome == "failed"
    assert check_deviations({"a": None}).outcome == "not applicable"


# ---- checks


def test_shortest_distances_and_start_are_found() -> None:
    survey = Survey()
    frames = [frame for frame in labeled_frames() if frame.forces is not None]
    calm = min(frames, key=lambda frame: float(np.mean(frame.forces**2)))
    lone = Frame(Atoms("Ar"), "lone", energy=0.0)
    assert list(survey.watch([lone, *frames], as_start=True)) == [lone, *frames]
    assert survey.start is not None
    assert survey.start[0] == calm.source
    assert survey.elements == {14, 18, 29}
    everything = [AtomicGraph.from_atoms(frame.atoms, 4.0).shortest_distances()[29, 29] for frame in frames]
    assert survey.shortest[29, 29] == min(everything)


def test_forces_that_were_not_learned_are_called_failed() -> None:
    frames = labeled_frames()
    near = check_accuracy(predict_frames(LennardJones(sigma=2.3, epsilon=0.11, rc=6.0), frames))
    assert near.outcome == "passed"
    assert "off by 10.0 % of what they typically are" in near.statement
    assert check_accuracy(predict_frames(LennardJones(sigma=2.3, epsilon=0.02, rc=6.0), frames)).outcome == "failed"
    energies = [Frame(crystal(), "x", energy=1.0)]
    assert check_accuracy(predict_frames(LennardJones(**ARGON), energies)).outcome == "not applicable"


def test_argon_is_stable_and_conserves_energy() -> None:
    run = langevin_run(LennardJones(**ARGON), argon(), 40.0, steps=150, seconds=20)
    assert run.verdict.outcome == "passed", run.verdict.statement
    assert run.time_ps[-1] == pytest.approx(150 * 2e-3)
    assert 15 < run.temperature_K[1:].mean() < 60
    run = constant_energy_run(LennardJones(**ARGON), argon(), 40.0, steps=150, seconds=20)
    assert run.verdict.outcome == "passed", run.verdict.statement
    assert np.abs(run.energy).max() < 1.0
    assert run.seconds_per_step > 0


def cluster() -> Atoms:
    return Atoms("Ar8", [[x, y, z] for x in (0, 3.0) for y in (0, 3.1) for z in (0, 3.2)])


@pytest.mark.parametrize(
    ("calculator", "statement"),
    [
        (Pairs(-300.0), "apart|run away"),  # atoms fall into each other
        (Pairs(300.0, wall=0.0), "left the others|run away"),  # and fly apart
        (LennardJones(sigma=30.0, epsilon=1e300), "no numbers|failed|run away"),
    ],
    ids=["attractive", "repulsive", "not finite"],
)
def test_potentials_that_explode_are_called_failed(calculator: Calculator, statement: str) -> None:
    atoms = cluster()
    atoms.positions *= 0.5
    run = langevin_run(calculator, atoms, 300.0, steps=400, seconds=20)
    assert run.verdict.outcome == "failed"
    assert re.search(rf"After [\d.]+ fs .*({statement})", run.verdict.statement)
    assert len(run.time_ps) == len(run.temperature_K) == len(run.energy)


def test_forces_that_are_no_derivative_do_not_conserve_energy() -> None:
    class Wrong(LennardJones):
        def calculate(self, *args: Any, **kwargs: Any) -> None:
            super().calculate(*args, **kwargs)
            self.results["forces"] = 0.5 * self.results["forces"]

    run = constant_energy_run(Wrong(**ARGON), argon(), 120.0, steps=200, seconds=20)
    assert run.verdict.outcome == "failed"
    assert "not the derivative" in run.verdict.statement


def test_runs_that_are_cut_short_do_not_pass() -> None:
    run = langevin_run(LennardJones(**ARGON), argon(), 40.0, steps=1000, seconds=0.0)
    assert run.verdict.outcome == "not applicable"
    assert "Too slow to say: 0 steps" in run.verdict.statement


def test_time_step_goes_by_the_lightest_element() -> None:
    assert [timestep_for(Atoms(name)) for name in ("CuH", "CuC", "CuSi")] == [0.5, 1.0, 2.0]


def test_holes_at_short_range_are_found() -> None:
    [good] = dimer_curves(LennardJones(**ARGON), [AR], {})
    assert good.hole is None
    assert check_dimers([good], 1).outcome == "passed"
    [bare] = dimer_curves(Pairs(-5.0), [AR], {(AR, AR): 3.5})
    assert bare.hole is not None
    assert bare.hole[0] == pytest.approx(0.3)
    assert bare.shortest_in_data == 3.5
    verdict = check_dimers([bare], 1)
    assert verdict.outcome == "failed"
    assert "no barrier" in verdict.statement
    [walled] = dimer_curves(Pairs(-5.0, wall=4.0), [AR], {})
    assert walled.hole is not None
    assert walled.hole[1] == pytest.approx(1.55, abs=0.1)  # the top of the wall
    verdict = check_dimers([walled], 3)
    assert re.search(r"Ar-Ar attract each other from 0.30 to 1.5\d Å, behind a barrier of 3.\d eV", verdict.statement)


def test_energies_that_are_not_finite_fail_every_check() -> None:
    calculator = LennardJones(sigma=3.4, epsilon=np.nan)
    curves = dimer_curves(calculator, [AR], {})
    assert check_dimers(curves, 1).outcome == "failed"
    assert "Ar-Ar have no finite energy" in check_dimers(curves, 1).statement
    assert volume_curve(calculator, "argon", argon()).verdict.outcome == "failed"


def test_pairs_beyond_the_limit_are_counted() -> None:
    curves = dimer_curves(LennardJones(**ARGON), [AR, CU], {(CU, CU): 2.0}, most_pairs=2)
    assert [curve.pair for curve in curves] == ["Cu-Cu", "Ar-Ar"]
    assert "2 of 3 pairs" in check_dimers(curves, 3).statement


def test_compression_costs_energy() -> None:
    good = volume_curve(LennardJones(**ARGON), "argon", argon())
    assert good.verdict.outcome == "passed"
    assert good.volumes[good.energies.argmin()] == pytest.approx(5.26**3 / 4, rel=0.1)
    bad = volume_curve(Pairs(-5.0), "argon", bulk("Ar", "fcc", a=3.0, cubic=True))
    assert bad.verdict.outcome == "failed"
    assert "0.70 of what they were" in bad.verdict.statement


# ---- the page


def write(path: Path, calculator: Calculator, sets: dict[str, list[Frame]], **changes: Any) -> Any:
    history = [
        {"epoch": epoch, "seconds": 1.0, "loss": 2.0 / (1 + epoch), "learning_rate": 1e-3 * (4 - epoch)}
        | ({"validation_forces_RMSE_meV_per_A": 90.0 - epoch} if epoch % 2 else {})
        for epoch in range(5)
    ]
    options: dict[str, Any] = {"title": "A <tiny> potential", "steps": 12, "seconds": 10.0, **changes}
    return write_report(path, calculator, evaluate_sets(calculator, sets), history, **options)


def test_page_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    frames = [frame for frame in labeled_frames() if frame.forces is not None]
    frames[2].forces[1] += 1000.0
    sets = {"validation": frames, "far & away": labeled_frames(3), "unlabeled": [Frame(crystal(), "x")]}
    calculator = Committee(sigma=2.4, epsilon=0.1, rc=6.0)
    verdicts = write(path, calculator, sets, facts={"weights": 17}, notes=["two frames occur twice"])
    text = path.read_text(encoding="utf-8")
    plain = unescape(text)
    assert tuple(re.findall("<h2>(.*?)</h2>", text)) == SECTIONS
    for words in ("A <tiny> potential", "validation", "far & away", "weights", "17", "two frames occur twice"):
        assert words in plain
    assert "A <tiny>" not in text
    assert "No frame of unlabeled has a label" in text
    worst = text[text.index("atom of the worst force") :]
    assert worst.index(frames[2].source) < worst.index(frames[0].source)
    assert "best in epoch 3, 87 meV/Å" in text
    for verdict in verdicts:
        assert verdict.statement in plain
    assert "passed" in {verdict.outcome for verdict in verdicts}
    assert not re.search(r"<script|http|src=\"(?!data:image/png;base64,)", text)
    pictures = re.findall('src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 8
    for picture in pictures:
        with Image.open(BytesIO(base64.b64decode(picture))) as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert list(tmp_path.iterdir()) == [path]


def test_page_of_a_potential_that_is_no_committee(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    frames = labeled_frames()
    for frame in frames:
        frame.atoms.pbc = False
        object.__setattr__(frame, "stress", None)
    verdicts = write(path, potential(), {"validation": frames})
    text = path.read_text(encoding="utf-8")
    assert "Energy and volume" not in text
    assert verdicts[-1].outcome == "not applicable"
    own = evaluate_forces(frames)
    assert f"force components {own:.0f} meV/Å" in text or f"force components {own:.3g} meV/Å" in text


def evaluate_forces(frames: list[Frame]) -> float:
    """Root mean square error of the forces in meV/Å, by the library's own evaluation."""
    labeled = []
    for frame in frames:
        if frame.forces is not None:
            atoms = frame.atoms.copy()
            atoms.calc = Calculator()
            atoms.calc.results = {"forces": frame.forces}
            labeled.append(atoms)
    return evaluate(potential(), labeled).errors()["forces_RMSE_meV_per_A"]


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("an older page")
    with pytest.raises(ValueError, match="no frame of validation has an energy, forces or a stress"):
        write(path, potential(), {"validation": [Frame(crystal(), "x")]})

    assert path.read_text() == "an older page"
    assert list(tmp_path.iterdir()) == [path]
