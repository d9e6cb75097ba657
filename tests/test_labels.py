"""Names of labels: which are taken, from where, and what is said about those that are not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from labeled import NETWORK, labeled_crystals, recipe_for, write_frames

from ase_segnn.evaluation import evaluate
from ase_segnn.labels import LABELS, LabelChoice, LabelKeys, LabelReport, choose_labels
from ase_segnn.labels.names import looks_like_label, spelling, weighted_labels
from ase_segnn.structures import read_named, read_structures
from ase_segnn.training.api import train
from ase_segnn.training.data import TrainingData
from ase_segnn.training.data.frames import Frame, FrameFiles
from ase_segnn.training.data.sources import DataFile

N = 6


def crystals(n_frames: int = N) -> list[Atoms]:
    """Crystals with energy, forces and stress as results of a calculator."""
    frames = labeled_crystals(n_frames)
    for atoms in frames:
        results = {name: atoms.calc.results[name] for name in LABELS}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return frames


def renamed(atoms: Atoms, **names: str) -> Atoms:
    """Return a copy whose labels are in ``info`` and ``arrays``, under these names; others are left out."""
    copy = atoms.copy()
    for label, name in names.items():
        value = atoms.calc.results[label]
        if label == "stress" and "vir" in name.lower():
            value = -atoms.get_volume() * atoms.get_stress(voigt=False)
        (copy.arrays if label == "forces" else copy.info)[name] = value
    return copy


def with_results(atoms: Atoms, **results: Any) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def choose(frames: list[Atoms], keys: LabelKeys | None = None, **options: Any) -> LabelChoice:
    return choose_labels([(f"x@{index}", atoms) for index, atoms in enumerate(frames)], keys, **options)


def titles(report: LabelReport) -> list[str]:
    return [remark.title for remark in report.remarks]


def assert_labels(choice: LabelChoice, frames: list[Atoms], right: list[Atoms], *names: str) -> None:
    """Check that these labels, and no others, of `frames` are the results of `right`."""
    for atoms, expected in zip(frames, right, strict=True):
        found = choice.labels(atoms)
        assert tuple(label for label in LABELS if getattr(found, label) is not None) == names
        for name in names:
            value = expected.get_stress(voigt=False) if name == "stress" else expected.calc.results[name]
            np.testing.assert_allclose(getattr(found, name), value, atol=1e-7)  # as files round


# ---- the table


@pytest.mark.parametrize(
    ("names", "quantity", "family"),
    [
        (("REF_energy", "ref_energy", "RefEnergy", "REF-ENERGY", "energy_ref", "REF_total_energy"), "energy", "ref"),
        (("energy", "Energy", "TotEnergy", "total_energy", "potential_energy", "Etot", "E_tot", "TOTEN"), "energy", ""),
        (("dft_energy", "DFT_energy", "energy_dft", "DFT_Energy", "dft-total-energy"), "energy", "dft"),
        (("free_energy", "Free_Energy", "FreeEnergy"), "free", ""),
        (("REF_forces", "REF_force", "ref_force", "forces_ref"), "forces", "ref"),
        (("force", "forces", "Forces", "FORCE"), "forces", ""),
        (("REF_stress", "REF_virial", "REF_virials", "ref_virial"), "stress", "ref"),
        (("stress", "Stress", "virial", "virials", "Virial", "stress_tensor"), "stress", ""),
        (("dft_virial", "DFT_virials", "dft_stress"), "stress", "dft"),
        (("mace_energy", "energy_mace", "MACE_energy"), "energy", "mace"),
    ],
)
def test_spellings(names: tuple[str, ...], quantity: str, family: str) -> None:
    for name in names:
        found = spelling(name)
        assert found is not None, name
        assert (found.quantity, found.family) == (quantity, family)
        assert found.is_virial == ("virial" in name.lower())
        assert found.is_known == (family != "mace")


def test_names_that_are_no_labels() -> None:
    for name in ("config_type", "energy_std", "max_forces_std", "reforest", "enforced", "time", "pressure"):
        assert spelling(name) is None, name
    assert looks_like_label("energy_per_atom")
    assert not looks_like_label("forces_std")
    assert weighted_labels("CONFIG_ENERGY_WEIGHT") == ("energy",)
    assert weighted_labels("config_virials_weight") == weighted_labels("config_virial_weight") == ("virial",)
    assert weighted_labels("config_weight") == LABELS
    assert weighted_labels("config_type") == ()


@pytest.mark.parametrize(
    ("energy", "forces", "stress"),
    [
        ("REF_energy", "REF_forces", "REF_stress"),
        ("ref_energy", "REF_force", "REF_virial"),
        ("Energy", "force", "virials"),
        ("TotEnergy", "Forces", "Stress"),
        ("dft_energy", "dft_force", "dft_virial"),
        ("DFT_energy", "DFT_forces", "DFT_stress"),
        ("free_energy", "forces", "virial"),
    ],
)
def test_all_commands_take_the_same_names(
    tmp_path: Path, energy: str, forces: str, stress: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = crystals(8)
    frames = [renamed(atoms, energy=energy, forces=forces, stress=stress) for atoms in right]
    path = write_frames(tmp_path / "frames.xyz", frames)
    read = [atoms for _, atoms in read_named(path)]
    choice = choose(read)
    assert_labels(choice, read, right, *LABELS)
    assert energy in choice.report.sources["energy"]
    with caplog.at_level(logging.INFO):
        data = TrainingData.read(recipe_for(path).data, NETWORK.cutoff, 0)
    assert data.training.n_labels() == dict.fromkeys(LABELS, 5)
    assert f"train: 8 frames; {choice.report.line()}" in caplog.text

    errors = evaluate(LennardJones(sigma=2.3, epsilon=0.1, rc=6.0), read).errors()
    assert {name.partition("_")[0] for name in errors} == {"energy", "forces", "stress"}
    assert max(errors.values()) < 1e-3


# ---- what is taken, and said


def test_reference_labels_go_before_others_that_are_named() -> None:
    right = crystals()
    frames = [
        with_results(
            renamed(atoms, energy="REF_energy", forces="REF_forces"),
            energy=atoms.calc.results["energy"] + 100,
            forces=np.zeros((len(atoms), 3)),
        )
        for atoms in right
    ]
    choice = choose(frames)
    assert_labels(choice, frames, right, "energy", "forces")
    report = choice.report
    assert report.line() == f"energy of {N} frames from 'REF_energy'; forces of {N} frames from 'REF_forces'; no stress"
    told = {remark.title: remark for remark in report.remarks}
    energy = told["not used: 'energy' of the calculator results"]
    assert energy.severity == "warning"
    assert "the two differ in 6 of 6 frames, by up to 25 eV/atom" in energy.text
    assert "not used: 'forces' of the calculator results" in told


def test_a_stress_beside_reference_labels_is_taken() -> None:
    """As in files for MACE."""
    right = crystals()
    for name in ("stress", "virial", "REF_virial", "Stress"):
        frames = [renamed(atoms, energy="REF_energy", forces="REF_forces", stress=name) for atoms in right]
        assert_labels(choose(frames), frames, right, *LABELS)
    frames = [
        with_results(renamed(a, energy="REF_energy", forces="REF_forces"), stress=a.calc.results["stress"])
        for a in right
    ]
    choice = choose(frames)
    assert_labels(choice, frames, right, *LABELS)
    assert titles(choice.report) == ["stress from another place than the rest"]


def test_labels_of_another_computation_are_not_taken() -> None:
    right = crystals()
    frames = [
        with_results(
            renamed(atoms, energy="REF_energy"),
            **{**atoms.calc.results, "energy": atoms.calc.results["energy"] + 1},
        )
        for atoms in right
    ]
    choice = choose(frames)
    assert_labels(choice, frames, right, "energy")
    remark = choice.report.remarks[0]
    assert remark.title == "not used: 'forces' of the calculator results"
    assert "the energy beside it differs in 6 of 6 frames" in remark.text
    assert "give forces_key: forces" in remark.text
    choice = choose(frames, LabelKeys(forces="forces", stress="stress"))
    assert_labels(choice, frames, right, *LABELS)
    assert choice.report.sources["energy"] == "'REF_energy'"
    alike = [with_results(renamed(atoms, energy="REF_energy"), **atoms.calc.results) for atoms in right]
    assert_labels(choose(alike), alike, right, *LABELS)  # one computation, as the energies are the same


def test_a_key_brings_its_family() -> None:
    right = crystals()
    frames = []
    for atoms in right:
        copy = renamed(atoms, energy="xtb_energy", forces="xtb_forces")
        frames.append(with_results(copy, energy=0.5, forces=np.ones((len(atoms), 3))))
    assert choose(frames).report.sources["energy"] == "'energy' of the calculator results"
    assert "'xtb_energy' (6 frames), 'xtb_forces' (6 frames)" in choose(frames).report.remarks[-1].text
    choice = choose(frames, LabelKeys(energy="xtb_energy"))
    assert_labels(choice, frames, right, "energy", "forces")


def test_names_that_look_like_labels_are_named() -> None:
    frames = [renamed(a, energy="REF_energy", forces="REF_forces", stress="REF_strss") for a in crystals()]
    for atoms in frames[:4]:
        atoms.info |= {"REF_energy_per_atom": 1.0, "config_type": "bulk", "energy_weight": 0.0}
    [remark] = choose(frames).report.remarks
    assert "'REF_energy_per_atom' (4 frames)" in remark.text
    assert "'energy_weight' (4 frames)" in remark.text
    assert "config_type" not in remark.text


def test_the_free_energy_is_told() -> None:
    right = crystals()
    frames = [with_results(a.copy(), **a.calc.results, free_energy=a.calc.results["energy"] - 0.1) for a in right]
    choice = choose(frames)
    assert_labels(choice, frames, right, *LABELS)
    [remark] = choice.report.remarks
    assert remark.severity == "warning"
    assert "energy_key: free_energy takes it" in remark.text
    choice = choose(frames, LabelKeys(energy="free_energy"))
    assert choice.report.sources["energy"] == "'free_energy' of the calculator results"
    assert choice.labels(frames[0]).energy == frames[0].calc.results["free_energy"]
    same = [with_results(a.copy(), **a.calc.results, free_energy=a.calc.results["energy"]) for a in right]
    assert [remark.severity for remark in choose(same).report.remarks] == ["note"]


# ---- labels that are mixed


def test_frames_with_different_names_are_refused() -> None:
    right = crystals()
    mixed = [renamed(a, energy="REF_energy", forces="REF_forces") if i % 2 else a for i, a in enumerate(right)]
    message = (
        r"energy is 'REF_energy' in 3 frames, but 3 frames \(x@0, x@2, x@4\) have only 'energy' of the calculator "
        r"results; .*energy_key"
    )
    with pytest.raises(ValueError, match=message):
        choose(mixed)
    choice = choose(mixed, LabelKeys(energy="REF_energy", forces="REF_forces", stress="stress"))
    assert choice.report.counts == {"energy": 3, "forces": 3, "stress": 3}
    assert "3 frames (x@0, x@2, x@4) have no 'REF_energy'" in choice.report.remarks[0].text


def test_one_name_that_all_frames_have_is_taken_instead() -> None:
    right = crystals()
    frames = []
    for index, atoms in enumerate(right):
        copy = atoms.copy()
        copy.calc = atoms.calc
        if index % 2:
            copy.info["REF_energy"] = atoms.calc.results["energy"]
        frames.append(copy)
    choice = choose(frames)
    assert choice.report.sources["energy"] == "'energy' of the calculator results"
    assert_labels(choice, frames, right, *LABELS)
    frames[1].info["REF_energy"] += 0.5
    with pytest.raises(ValueError, match="labels of one data set must not be mixed"):
        choose(frames)


def test_spellings_of_one_family_are_one_source_and_named() -> None:
    right = crystals()
    frames = [renamed(a, energy="REF_energy" if i % 2 else "ref_energy", forces="force") for i, a in enumerate(right)]
    choice = choose(frames)
    assert_labels(choice, frames, right, "energy", "forces")
    told = {remark.title: remark for remark in choice.report.remarks}
    assert "'REF_energy' (3 frames), 'ref_energy' (3 frames)" in told["several names of the energy"].text


def test_two_spellings_in_one_frame() -> None:
    right = crystals()
    frames = [renamed(a, energy="REF_energy") for a in right]
    for atoms in frames:
        atoms.info["ref_energy"] = atoms.info["REF_energy"] + 1.0
    choice = choose(frames)
    assert_labels(choice, frames, right, "energy")
    assert choice.report.sources == {"energy": "'REF_energy'"}
    assert titles(choice.report) == ["not used: 'ref_energy'"]


def test_a_stress_goes_before_virials_that_are_placeholders() -> None:
    right = crystals()
    frames = [renamed(a, energy="REF_energy", forces="REF_forces", stress="REF_stress") for a in right]
    for index, atoms in enumerate(frames):
        atoms.info |= {"REF_virials": np.full((3, 3), 7.0), "config_virials_weight": 0.0}
        if index == 3:
            del atoms.info["REF_stress"]
    choice = choose(frames)
    assert choice.report.counts["stress"] == 5
    assert [choice.labels(atoms).weights["stress"] for atoms in frames] == [1, 1, 1, 0, 1, 1]
    told = {remark.title: remark for remark in choice.report.remarks}
    assert "1 of 1 frames have 'REF_virials' with a weight of zero" in told["stress of weight zero"].text
    assert "they differ" not in told["several names of the stress"].text


# ---- keys that are given


@pytest.mark.parametrize("label", LABELS)
def test_a_key_that_no_frame_has_is_refused(label: str) -> None:
    right = crystals()
    frames = [renamed(a, energy="REF_energy", forces="REF_forces", stress="REF_stress") for a in right]
    wrong = f"REF_{label[:-1]}z"
    message = f"no frame has '{wrong}', which {label}_key names; did you mean 'REF_{label}' \\(6 frames\\)"
    with pytest.raises(ValueError, match=message):
        choose(frames, LabelKeys(**{label: wrong}))
    other_capitals = choose(frames, LabelKeys(**{label: f"ref_{label}"}))
    assert_labels(other_capitals, frames, right, *LABELS)
    choice = choose(frames, LabelKeys(**{label: "nothing"}), required=False)
    assert f"no {label}" in titles(choice.report)
    assert choice.report.counts[label] == 0


def test_keys_are_required_of_training_frames_only(tmp_path: Path) -> None:
    frames = [renamed(a, energy="my_energy", forces="my_forces", stress="my_stress") for a in crystals(8)]
    path = write_frames(tmp_path / "frames.xyz", frames)
    write_frames(tmp_path / "test.xyz", crystals(2))
    keys = {"energy_key": "my_energy", "forces_key": "my_forces"}
    for stress_key, message in (("my_strss", "train: no frame has 'my_strss'.*did you mean 'my_stress'"), ("", "")):
        data = {**keys, "stress_key": stress_key or "my_stress", "test": {"t": "test.xyz"}}
        settings = recipe_for(path, data=data).data
        if message:
            for _ in range(2):  # nothing is kept of what was refused
                with pytest.raises(ValueError, match=message):
                    TrainingData.read(settings, NETWORK.cutoff, 0)
        else:
            read = TrainingData.read(settings, NETWORK.cutoff, 0)
            report = read.tests["t"].store.labels
            assert report is not None
            assert report.counts == dict.fromkeys(LABELS, 0)
            assert "no frame has 'my_energy', which data.energy_key names" in report.remarks[0].text


def test_a_kept_store_of_a_test_does_not_hide_a_wrong_key(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "frames.xyz", crystals(8))
    other = write_frames(tmp_path / "mine.xyz", [renamed(a, energy="my_energy", forces="force") for a in crystals(8)])
    keys = {"energy_key": "my_energy", "validation": 3}
    settings = recipe_for(other, data={**keys, "test": {"other": path.name}}).data
    assert len(TrainingData.read(settings, NETWORK.cutoff, 0).tests["other"]) == 8
    with pytest.raises(ValueError, match="no frame has 'my_energy'"):
        TrainingData.read(recipe_for(path, data=keys).data, NETWORK.cutoff, 0)


def test_energies_per_atom_are_refused_by_their_name() -> None:
    frames = crystals()
    for atoms in frames:
        atoms.info["energy_per_atom"] = -1.0
    with pytest.raises(ValueError, match=r"'energy_per_atom' is an energy per atom.*of the whole frame, in eV"):
        choose(frames, LabelKeys(energy="energy_per_atom"))


# ---- weights and placeholders


@pytest.mark.parametrize(
    ("name", "label", "source"),
    [
        ("config_weight", "energy", "REF_energy"),
        ("config_energy_weight", "energy", "REF_energy"),
        ("Config_Energy_Weight", "energy", "REF_energy"),
        ("config_forces_weight", "forces", "REF_forces"),
        ("config_force_weight", "forces", "REF_forces"),
        ("config_stress_weight", "stress", "REF_stress"),
        ("config_stress_weight", "stress", "REF_virials"),
        ("config_virials_weight", "stress", "REF_virials"),
        ("config_virial_weight", "stress", "virial"),
        ("CONFIG_VIRIALS_WEIGHT", "stress", "REF_virial"),
    ],
)
@pytest.mark.parametrize("placeholder", [7.0, np.nan])
def test_placeholders_of_weight_zero_do_not_count(name: str, label: str, source: str, placeholder: float) -> None:
    right = crystals()
    names = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress", label: source}
    frames = [renamed(atoms, **names) for atoms in right]
    for atoms in frames[::2]:
        place = atoms.arrays if label == "forces" else atoms.info
        place[source] = np.full_like(place[source], placeholder)
        atoms.info[name] = 0.0
    choice = choose(frames)
    assert choice.report.counts[label] == 3
    assert f"3 of 6 frames have '{source}' with a weight of zero ({name})" in str(choice.report.remarks)
    weights = [choice.labels(atoms).weights[label] for atoms in frames]
    assert weights == [0.0, 1.0] * 3


def test_virials_that_do_not_count_leave_a_stress_alone() -> None:
    frames = [renamed(atoms, energy="REF_energy", forces="REF_forces", stress="REF_stress") for atoms in crystals()]
    for atoms in frames:
        atoms.info["config_virials_weight"] = 0.0
    assert choose(frames).labels(frames[0]).weights["stress"] == 1.0


# ---- values


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("energy", np.nan, "'REF_energy' of 2 frames (x@1, x@4) is not finite"),
        ("energy", "low", "'REF_energy' of 2 frames (x@1, x@4) is no number or array of numbers but text: 'low'"),
        ("energy", "", "is no number or array of numbers but text"),
        ("energy", "-3.0", "is no number or array of numbers but text"),
        ("energy", None, "'REF_energy' of 2 frames (x@1, x@4) is None, expected numbers"),
        ("energy", True, "but a truth value"),
        ("energy", 1.0 + 2.0j, "but complex"),
        ("energy", np.array([True], dtype=object), "is no number or array of numbers"),
        ("energy", {"value": 1.0}, "is no number or array of numbers"),
        ("energy", [], "'REF_energy' of 2 frames (x@1, x@4) is empty"),
        ("energy", [1.0, 2.0], "has the shape (2,), expected one number"),
        ("forces", np.full((8, 3), np.inf), "'REF_forces' of 2 frames (x@1, x@4) is not finite"),
        ("forces", np.zeros((8, 2)), "'REF_forces' of 2 frames (x@1, x@4) has the shape (8, 2), expected (8, 3)"),
        ("forces", np.ones((8, 3), dtype=bool), "but a truth value"),
        ("stress", np.zeros(5), "'REF_stress' of 2 frames (x@1, x@4) has 5 values, expected 6"),
        ("stress", np.full((3, 3), np.nan), "'REF_stress' of 2 frames (x@1, x@4) is not finite"),
        ("stress", "1 2 3", "is no number or array of numbers but text"),
        ("stress", [[1.0, 2.0], [3.0]], "is no number or array of numbers"),
    ],
)
def test_wrong_values_are_named_together(name: str, value: Any, message: str) -> None:
    right = [crystals(2)[1]] * N
    frames = [renamed(a, energy="REF_energy", forces="REF_forces", stress="REF_stress") for a in right]
    for index in (1, 4):
        (frames[index].arrays if name == "forces" else frames[index].info)[f"REF_{name}"] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message has brackets
        choose(frames)
    assert message in str(error.value)
    assert "mend these labels, or leave them out" in str(error.value)


def test_whole_numbers_are_numbers() -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    atoms.info |= {"REF_energy": -3, "REF_stress": [1, 2, 3, 4, 5, 6]}
    atoms.arrays["REF_forces"] = np.arange(6).reshape(2, 3)
    found = choose([atoms]).labels(atoms)
    assert found.energy == -3.0
    np.testing.assert_array_equal(found.forces, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(found.stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    atoms.info["REF_virial"] = atoms.info.pop("REF_stress")
    np.testing.assert_allclose(choose([atoms]).labels(atoms).stress, -np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) / 64)


def test_results_of_another_structure_are_refused() -> None:
    frames = crystals()
    frames[2].positions += 0.1
    with pytest.raises(ValueError, match="'energy' of x@2 belongs to another structure"):
        choose(frames)
    shared = EMT()
    several = [Atoms("Cu2", [[0, 0, 0], [0, 0, z]]) for z in (2.2, 2.4, 2.6)]
    for atoms in several:
        atoms.calc = shared
        atoms.get_forces()
    with pytest.raises(ValueError, match=r"'energy' of 2 frames \(x@0, x@1\) belongs to another structure"):
        choose(several)


# ---- cells and volumes


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("Lattice=", "lattice=", "lattice"),
        ("Lattice=", "cell=", "cell"),
        ("Lattice=", "Cell=", "Cell"),
        ("Lattice=", "LATTICE=", "LATTICE"),
        ("Lattice=", "unit_cell=", "unit_cell"),
        ('pbc="T T T"', 'PBC="F F F"', "PBC"),
    ],
)
@pytest.mark.parametrize("periodic", [True, False])
def test_crystals_that_lost_their_cell_are_refused(
    tmp_path: Path, old: str, new: str, named: str, *, periodic: bool
) -> None:
    path = write_frames(tmp_path / "frames.xyz", crystals())
    text = path.read_text().replace(old, new)
    path.write_text(text if periodic else text.replace(' pbc="T T T"', ""))
    message = (
        rf"6 frames \(.*frames.xyz@0, .*frames.xyz@1, .*frames.xyz@2 and 3 more\) have '{named}' beside a structure"
    )
    with pytest.raises(ValueError, match=message):
        read_structures(path)
    with pytest.raises(ValueError, match=message):
        FrameFiles({"frames.xyz": DataFile(path, "")}).choose_labels()


def test_a_cell_that_is_there_may_be_said_twice() -> None:
    atoms = crystals(1)[0]
    atoms.info |= {"cell": atoms.cell.array, "pbc": [True, True, True]}
    assert choose([atoms]).report.counts["stress"] == 1
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=[9, 9, 9])
    with_results(molecule, energy=-31.0)
    molecule.info |= {"Cell": [9.0, 9.0, 9.0, 90.0, 90.0, 90.0], "pbc": "F F F", "box": "none"}
    assert choose([molecule]).report.counts["energy"] == 1
    molecule.info["Cell"] = [5.0] * 3
    with pytest.raises(ValueError, match="x@0 has 'Cell' beside a structure that is not periodic, with 3 cell vectors"):
        choose([molecule])


def test_stress_without_a_volume_is_counted_and_named() -> None:
    frames = crystals()
    for index in (1, 4):
        frames[index].pbc = [True, True, False]
    choice = choose(frames)
    assert choice.report.counts["stress"] == 4
    [remark] = choice.report.remarks
    assert (remark.severity, remark.n_frames) == ("warning", 2)
    assert "2 frames (x@1, x@4) have a stress, but no volume" in remark.text
    assert choice.labels(frames[1]).stress is None
    for index in (1, 4):
        frames[index].calc.results["stress"] = np.zeros(6)
    [remark] = choose(frames).report.remarks
    assert (remark.severity, "all of them zeros" in remark.text) == ("note", True)


def test_structures_without_numbers_are_named_together() -> None:
    frames = crystals()
    for index in (0, 2, 3, 5):
        frames[index].positions[0, 0] = np.nan
    message = r"4 frames \(x@0, x@2, x@3 and 1 more\) have positions or a cell that are not finite"
    with pytest.raises(ValueError, match=message):
        choose(frames)


# ---- files


def test_a_pattern_may_fit_a_broken_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_frames(tmp_path / name / "out.xyz", crystals(4))
    (tmp_path / "b" / "out.xyz").write_text("cut in its header\n")
    settings = recipe_for(tmp_path / "x.xyz", data={"train": ["*/out.xyz"], "validation": 2, "test": {}}).data
    for _ in range(2):  # built, and kept
        caplog.clear()
        data = TrainingData.read(settings, NETWORK.cutoff, 0)
        assert len(data.training) + len(data.validation) == 8
        assert "files left out: 1 of 3 files of a pattern cannot be read: b/out.xyz" in caplog.text
    explicit = recipe_for(tmp_path / "x.xyz", data={"train": ["a/out.xyz", "b/out.xyz"], "validation": 2, "test": {}})
    with pytest.raises(ValueError, match=r"train: ASE cannot read frame 0 of '.*b/out.xyz'"):
        TrainingData.read(explicit.data, NETWORK.cutoff, 0)
    for name in ("a", "c"):
        (tmp_path / name / "out.xyz").write_text("")
    with pytest.raises(ValueError, match="none of 3 files can be read"):
        TrainingData.read(settings, NETWORK.cutoff, 0)


def test_structures_have_their_index_in_the_file(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "frames.xyz", crystals())
    for selection, expected in (
        ("", range(6)),
        ("@2:", range(2, 6)),
        ("@1::2", range(1, 6, 2)),
        ("@-2:", range(4, 6)),
        ("@3", [3]),
        ("@-1", [5]),
        ("@:-3", range(3)),
        ("@::-1", range(5, -1, -1)),
    ):
        source = f"{path}{selection}"
        named = read_named(source)
        assert [name for name, _ in named] == [f"{path}@{index}" for index in expected], selection


def test_training_from_python_reads_all_names(caplog: pytest.LogCaptureFixture) -> None:
    frames = [renamed(a, energy="REF_energy", forces="REF_force", stress="REF_virial") for a in crystals(8)]
    for atoms in frames:
        atoms.info["mace_energy"] = 1.0
    with pytest.raises(ValueError, match="energy_key names"):
        train(frames, data={"energy_key": "REF_enrgy"})
    with pytest.raises(ValueError, match=r"no frame has 'x', which data\.stress_key names"):
        train(frames, data={"stress_key": "x"})
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="all 0; nothing would be learned"):
        train(frames, optimization={"energy_weight": 0.0, "forces_weight": 0.0, "stress_weight": 0.0})
    assert "train: 8 frames; energy of 8 frames from 'REF_energy'; forces of 8 frames from 'REF_force'" in caplog.text
    assert "'mace_energy' (8 frames)" in caplog.text


def test_a_frame_alone_is_a_data_set_of_its_own() -> None:
    atoms = renamed(crystals(1)[0], energy="Energy", forces="Forces")
    assert Frame.from_atoms(atoms, "x@0").labels == ("energy", "forces")
