"""Studies of whole systems from Python, the command line and a recipe: computed, compared, skipped and refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from typer.testing import CliRunner

from ase_segnn.cli import app
from ase_segnn.physics import LoadedSystem, Results, System, Verdict, study
from ase_segnn.physics.results import to_markdown
from ase_segnn.potentials import path_of
from ase_segnn.training import Recipe, run_recipe
from ase_segnn.training.recipe import make_recipe

ARGON = {"sigma": 3.4, "epsilon": 0.0104, "rc": 6.0, "smooth": True}


def values(results: Results) -> dict[str, float | None]:
    return {finding.quantity: finding.value for finding in results.findings}


def outcomes(results: Results) -> dict[str, str]:
    return {verdict.name: verdict.outcome for verdict in results.verdicts}


def strained_copper(path: Path) -> Path:
    """Strained crystals and slabs, labeled by EMT at 1.1 times the energy."""
    frames = []
    for component in range(6):
        for strain in (-0.04, -0.02, 0.02, 0.04):
            deformation = np.eye(3)
            deformation[[(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)][component]] += strain
            frames.append(bulk("Cu", cubic=True, a=3.59))
            frames[-1].set_cell(frames[-1].cell.array @ deformation, scale_atoms=True)
            frames[-1].info["group"] = "Elastic"
    frames.append(bulk("Cu", cubic=True, a=3.59))
    frames.append(fcc111("Cu", (1, 1, 6), a=3.59, vacuum=5))
    frames[-1].pbc = True
    frames[-1].info.clear()
    for frame in frames:
        frame.calc = EMT()
        frame.info["REF_energy"] = 1.1 * frame.get_potential_energy()
        frame.info["REF_stress"] = 1.1 * frame.get_stress()
        frame.calc = None
    ase.io.write(path, frames)
    return path


def test_study_of_a_crystal(tmp_path: Path) -> None:
    pytest.importorskip("phonopy")
    system = System(
        structure="bulk:Cu",
        duration_ps=0.02,
        temperatures=[300.0],
        frames=str(strained_copper(tmp_path / "cu.xyz")),
        strained="Elastic",
        reference={"C11": 176.0, "melting point": 1358.0},
    )
    told: list[str] = []
    results = study(LoadedSystem.load(system), EMT(), tell=told.append)
    found = {finding.quantity: finding for finding in results.findings}
    assert found["lattice constant a"].value == pytest.approx(3.59, abs=0.001)
    assert found["C11"].value == pytest.approx(172.6, rel=0.01)
    assert found["C11"].reference == 176.0
    assert found["vacancy energy"].value == pytest.approx(1.2, abs=0.1)
    assert found["surface energy (111)"].value == pytest.approx(1.044, rel=0.01)
    assert found["lowest phonon at X"].value == pytest.approx(5.53, rel=0.02)
    assert found["C44 of strained frames"].value == pytest.approx(found["C44"].value, rel=0.02)
    for name in ("C44 of strained frames", "surface energy of 1 slabs of the reference, mean"):
        assert found[name].reference == pytest.approx(1.1 * found[name].value)
    assert found["melting point"].value is None
    assert outcomes(results) == {
        "Elastic stability": "passed",
        "Phonons": "passed",
        "Dynamics at 300 K": "passed",
        "Conservation of energy": "passed",
    }
    assert {"Lattice", "Vacancy", "Phonons", "dynamics at 300 K"} <= set(told)
    text = to_markdown([results], "mine")
    assert "### bulk:Cu (crystal, Cu4)\n\n| quantity | unit | mine | reference |" in text
    assert "| C11 | GPa | 172.6 | 176 |" in text
    assert "| melting point |  | not computed | 1358 |" in text
    assert "- Phonons: passed. No mode is imaginary." in text


def test_parts_are_skipped_and_do_not_apply_to_alloys() -> None:
    system = System(structure="bulk:NaCl:rocksalt:5.64", skip=["phonons", "elastic", "dynamics"])
    results = study(LoadedSystem.load(system), LennardJones(sigma=2.5, epsilon=0.3, rc=6.0, smooth=True))
    assert set(values(results)) == {"lattice constant a", "volume per atom"}
    assert outcomes(results) == {"Vacancy and surfaces": "not applicable"}


def test_a_part_that_fails_does_not_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("Cu31 did not relax")

    monkeypatch.setattr("ase_segnn.physics.crystal_study.vacancy_energy", fail)
    system = System(structure="bulk:Cu", skip=["phonons", "dynamics", "surfaces"])
    results = study(LoadedSystem.load(system), EMT())
    assert outcomes(results) == {"Elastic stability": "passed", "Vacancy": "failed"}
    assert results.verdicts[-1].statement == "It could not be computed: Cu31 did not relax."


@pytest.mark.parametrize(("kelvin", "outcome"), [(20.0, "not applicable"), (3000.0, "passed")])
def test_melt_of_argon(kelvin: float, outcome: str) -> None:
    """Argon melts at 84 K; far below it stays a crystal."""
    system = System(
        structure="bulk:Ar",
        duration_ps=2.0,
        melt=kelvin,
        skip=["elastic", "vacancy", "surfaces", "phonons", "dynamics"],
    )
    results = study(LoadedSystem.load(system), LennardJones(**ARGON))
    name = f"Melt at {kelvin:.0f} K"
    assert outcomes(results) == {name: outcome}
    peaks = [value for quantity, value in values(results).items() if "peak 1" in quantity]
    assert [2.5 < peak < 4.2 for peak in peaks] == [True] * (outcome == "passed")


def test_study_of_a_liquid(tmp_path: Path) -> None:
    liquid = bulk("Ar", cubic=True, a=5.6).repeat(2)
    frames = []
    for seed in range(20):
        frames.append(liquid.copy())
        frames[-1].rattle(0.2, seed=seed)
        frames[-1].info["REF_energy"] = 0.0
    ase.io.write(tmp_path / "start.xyz", liquid)
    ase.io.write(tmp_path / "frames.xyz", frames)
    system = System(
        structure=str(tmp_path / "start.xyz"),
        kind="liquid",
        temperatures=[150.0],
        duration_ps=1.0,
        frames=str(tmp_path / "frames.xyz"),
    )
    results = study(LoadedSystem.load(system), LennardJones(**ARGON))
    found = {finding.quantity: finding for finding in results.findings}
    assert 3.4 < found["g(r) Ar-Ar at 150 K, peak 1"].value < 4.2
    assert found["g(r) Ar-Ar at 150 K, peak 1"].reference == pytest.approx(5.6 / np.sqrt(2), abs=0.1)
    assert 1.5 < found["g(r) Ar-Ar at 150 K, height 1"].value < 4
    assert found["g(r) Ar-Ar at 150 K, mean absolute difference from the reference"].value > 0
    assert 0 < found["diffusion of Ar, box of 11.2 Å"].value < 100
    assert outcomes(results) == {"Dynamics at 150 K": "passed", "Conservation of energy": "passed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "bulk:Cu", "kind": "molecule"}, "a molecule is not periodic, 'bulk:Cu' has pbc="),
        (
            {"structure": "molecule:H2O", "kind": "liquid"},
            "a liquid is periodic along all three vectors, 'molecule:H2O'",
        ),
        (
            {"structure": "molecule:H2O", "melt": 300},
            "melt is for a crystal, 'molecule:H2O' is a molecule; leave it out",
        ),
        ({"structure": "molecule:H"}, "'molecule:H' is one atom, which has no physics of a molecule"),
        ({"structure": "nowhere.xyz"}, "there is no file 'nowhere.xyz'"),
        ({"structure": "bulk:Cu", "skip": "phonon"}, "skip.0: should be 'elastic', 'vacancy', .*, got 'phonon'"),
        ({"structure": "bulk:Cu", "temperature": [3.0]}, "temperature: unknown key; did you mean 'temperatures'?"),
    ],
)
def test_systems_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LoadedSystem.load(System(**settings))


def test_frames_belong_to_the_system(tmp_path: Path) -> None:
    frames = str(strained_copper(tmp_path / "cu.xyz"))
    with pytest.raises(ValueError, match="no frame of the reference has the group 'Shear'; there are , Elastic"):
        LoadedSystem.load(System(structure="bulk:Cu", frames=frames, strained="Shear"))
    with pytest.raises(ValueError, match="frames of the reference have Cu, which 'bulk:Si' has not"):
        LoadedSystem.load(System(structure="bulk:Si", frames=frames))


def test_phonons_need_phonopy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonopy", None)
    loaded = LoadedSystem.load(System(structure="bulk:Cu"))
    with pytest.raises(ImportError, match=r'pip install "ase-segnn\[physics\]", or leave them out'):
        study(loaded, EMT())


# ---- the command


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["physics", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_prints_and_writes_what_was_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "physics.json"
    options = ["--skip", "phonons", "--skip", "surfaces", "--skip", "elastic", "--skip", "dynamics"]
    text = run("si-pbe", "bulk:Si", *options, "--output", str(output))
    assert re.search(r"\| lattice constant a \| Å \| 5\.47 \|", text)
    assert re.search(r"\| vacancy energy \| eV \| 3\.[56]\d* \|", text)
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["potential"] == "si-pbe"
    [system] = data["systems"]
    assert system["findings"][0]["quantity"] == "lattice constant a"
    assert system["findings"][0]["value"] == pytest.approx(5.470, abs=1e-3)
    assert system["verdicts"] == []
    assert "exists already" in run("si-pbe", "bulk:Si", "--output", str(output), code=2)


def test_options_of_the_command_reach_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems: list[System] = []

    def remember(loaded: LoadedSystem, *_: Any) -> Results:
        systems.append(loaded.system)
        return Results(loaded.system.structure)

    monkeypatch.setattr("ase_segnn.physics.study", remember)
    settings = {
        "temperatures": [300.0, 900.0],
        "duration_ps": 0.5,
        "melt": 2000.0,
        "skip": ["phonons"],
        "kind": "crystal",
    }
    options = ["--temperature", "300", "--temperature", "900", "--duration-ps", "0.5", "--melt", "2000"]
    options += ["--skip", "phonons", "--kind", "crystal", "--output", str(tmp_path / "a.md")]
    run("si-pbe", "bulk:Si", "bulk:Si:diamond:5.5", *options)
    assert systems == [System(structure=name, **settings) for name in ("bulk:Si", "bulk:Si:diamond:5.5")]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "### bulk:Si\n\n### bulk:Si:diamond:5.5\n"
    frames = str(strained_copper(tmp_path / "cu.xyz"))
    assert "which 'bulk:Si' has not" in run("si-pbe", "bulk:Si", "--frames", frames, "--strained", "Elastic", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acac-pbe-fast"], "the recipe of potential 'acac-pbe-fast' names no systems; give structures, such as"),
        (["si-pbe", "bulk:Ge"], "knows Si only, this structure also has Ge; no shipped potential has Ge together"),
        (["si-pbe", "bulk:Si", "--output", "a.txt"], "results are written to .md or .json, got 'a.txt'"),
        (
            ["si-pbe", "bulk:Si", "--temperature", "-5"],
            "these options: temperatures.0: should be greater than 0, got -5.0",
        ),
    ],
)
def test_errors_of_the_command_come_before_any_work(arguments: list[str], message: str) -> None:
    assert message in run(*arguments, code=2)


# ---- a recipe


def recipe(folder: Path, **card: Any) -> Recipe:
    frames = []
    for seed in range(12):
        frames.append(bulk("Cu", cubic=True, a=3.6))
        frames[-1].rattle(0.05, seed=seed)
        frames[-1].calc = EMT()
        frames[-1].get_forces()
    ase.io.write(folder / "cu.xyz", frames)
    raw = {
        "name": "cu",
        "data": {"train": str(folder / "cu.xyz"), "validation": 2, "cache": str(folder / "cache")},
        "network": {"cutoff": 3.5, "irreps_hidden": "4x0e+4x1o", "n_layers": 1},
        "optimization": {"epochs": 1},
        "compile": False,
        "card": {"physics": [card]},
    }
    return make_recipe(raw, "this", Recipe)


@pytest.mark.usefixtures("no_report")
def test_the_card_of_a_run_has_cost_and_physics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systems: list[LoadedSystem] = []

    def remember(loaded: LoadedSystem, *_: Any) -> Results:
        systems.append(loaded)
        results = Results(loaded.system.structure, verdicts=[Verdict("Dynamics", "passed", "It lasted.")])
        results.add("C11", "GPa", 170.0, 176.0)
        return results

    monkeypatch.setattr("ase_segnn.training.report.physics.study", remember)
    card = {"structure": str(tmp_path / "cu.xyz@0"), "skip": "phonons"}
    result = run_recipe(recipe(tmp_path, **card), tmp_path / "run")
    text = result.card_path.read_text(encoding="utf-8")
    assert re.search(r"- Cost: \d+ µs per atom and step, in dynamics of Cu4 on 1 thread of ", text)
    assert "## Physics\n\n### cu.xyz@0\n\n| quantity | unit | cu | reference |" in text
    assert "| C11 | GPa | 170 | 176 |\n\n- Dynamics: passed. It lasted.\n\n## Known limits" in text
    assert str(tmp_path) not in text
    assert [len(each.atoms) for each in systems] == [4]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"structure": "bulk:Si", "skip": "phonons"}, "card.physics: 'bulk:Si' has Si, training frames have Cu only"),
        ({"structure": "nowhere.xyz"}, "no data file 'nowhere.xyz' in"),
    ],
)
def test_systems_are_checked_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("ase_segnn.training.run.fit_on", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_recipe(recipe(tmp_path, **card), tmp_path / "run")


def test_the_recipe_in_a_potential_file_names_systems(tmp_path: Path) -> None:
    from ase_segnn.potential_file import load_potential, read_header, save_potential

    source = path_of("si-pbe")
    provenance = read_header(source).provenance
    skipped = ["phonons", "elastic", "surfaces", "dynamics"]
    described = {**provenance.recipe, "card": {"physics": [{"structure": "bulk:Si", "skip": skipped}]}}
    changed = provenance.model_copy(update={"recipe": described})
    save_potential(load_potential(source), tmp_path / "mine.safetensors", provenance=changed)
    text = run(str(tmp_path / "mine.safetensors"))
    assert "| quantity | unit | mine | reference |" in text
    assert "| vacancy energy | eV |" in text


def test_atoms_of_a_system_are_not_changed() -> None:
    loaded = LoadedSystem.load(System(structure="bulk:Cu", duration_ps=0.02, skip=["phonons", "elastic", "surfaces"]))
    before: Atoms = loaded.atoms.copy()
    study(loaded, EMT())
    assert loaded.atoms == before
    assert loaded.atoms.calc is None
