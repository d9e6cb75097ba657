"""Defects planted in sound data are found and named, and sound data are left in peace."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from ase_segnn.labels import LABELS, LabelReport, Remark
from ase_segnn.training.audit import Audit, Auditor
from ase_segnn.training.data.frames import Frame

WEIGHTS = {"energy": 10.0, "forces": 1.0, "stress": 1.0}
CUTOFF = 5.0
ELEMENTS = ("Cu", "Au")
N_TRAJECTORY, N_STRAINED = 24, 24


def labeled(atoms: Atoms, source: str, group: str) -> Frame:
    atoms.calc = EMT()
    atoms.info["config_type"] = group
    atoms.get_potential_energy()
    if atoms.pbc.all():
        atoms.get_stress()
    return Frame.from_atoms(atoms, source)


def isolated_atoms() -> list[Frame]:
    return [labeled(Atoms(symbol), f"atoms.xyz@{i}", "IsolatedAtom") for i, symbol in enumerate(ELEMENTS)]


REFERENCES = {symbol: frame.energy or 0.0 for symbol, frame in zip(ELEMENTS, isolated_atoms(), strict=True)}


def sound_frames() -> list[Frame]:
    """Return frames of trajectories of two sizes and compositions, and of a strained crystal."""
    rng = np.random.default_rng(1)
    frames = []
    for group, size, symbols in (("small", (2, 1, 1), "Cu5Au3"), ("large", (2, 2, 1), "Cu12Au4")):
        atoms = bulk("Cu", a=3.75, cubic=True).repeat(size)
        atoms.symbols = symbols
        rest, velocity = atoms.positions.copy(), rng.normal(0, 1, (2, len(atoms), 3))
        for step in range(N_TRAJECTORY):
            waves = np.sin(0.45 * step), np.cos(0.31 * step)
            atoms.positions = rest + 0.1 * (waves[0] * velocity[0] + waves[1] * velocity[1])
            frames.append(labeled(atoms, f"{group}.xyz@{step}", group))
    for index in range(N_STRAINED):
        atoms = bulk("Cu", a=3.6, cubic=True)
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        frames.append(labeled(atoms, f"strained.xyz@{index}", "strained"))
    return frames


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return sound_frames()


def audit(
    training: list[Frame],
    validation: list[Frame] | None = None,
    weights: dict[str, float] | None = None,
    references: dict[str, float] | None = None,
) -> Audit:
    auditor = Auditor(weights or WEIGHTS, CUTOFF)
    for data_set, part in (("training", training), ("validation", validation or [])):
        for frame in part:
            auditor.add(frame, data_set)
    return auditor.finish(references or REFERENCES, "isolated atoms")


def titles(result: Audit) -> list[tuple[str, str]]:
    return [(finding.severity, finding.title) for finding in result.findings]


def position_of(frames: list[Frame], source: str) -> int:
    return [frame.source for frame in frames].index(source)


def test_nothing_is_found_in_sound_data(frames: list[Frame]) -> None:
    result = audit(frames[::2] + frames[1::4], frames[3::4])
    assert titles(result) == []
    result.check()
    for label in ("forces", "stress"):  # the control of the checks below: there was something to compare
        assert result.slopes[label].is_clear
        assert result.slopes[label].slope == pytest.approx(1, abs=0.1)


# ---- a table of defects: what is done to one frame, and what must be found there

Change = Callable[[Frame], Frame]


def moved(frame: Frame, atom: int, displacement: list[float]) -> Frame:
    atoms = frame.atoms.copy()
    atoms.positions[atom] += displacement
    return replace(frame, atoms=atoms)


def with_forces(frame: Frame, change: Callable[[np.ndarray], np.ndarray]) -> Frame:
    assert frame.forces is not None
    return replace(frame, forces=change(frame.forces.copy()))


def without_first(forces: np.ndarray) -> np.ndarray:
    forces[0] = 0.0
    return forces


def lopsided(forces: np.ndarray) -> np.ndarray:
    forces[0] += [0.0, 1.0, 0.0]
    return forces


DEFECTS: dict[str, tuple[Change, str]] = {
    "an energy": (lambda frame: replace(frame, energy=(frame.energy or 0) - 20), "unusual energies"),
    "large forces": (lambda frame: with_forces(frame, lambda forces: 40 * forces), "unusually large forces"),
    "zero forces": (lambda frame: with_forces(frame, np.zeros_like), "forces that are exactly zero"),
    "a fixed atom": (lambda frame: with_forces(frame, without_first), "forces that are exactly zero"),
    "a net force": (lambda frame: with_forces(frame, lopsided), "forces do not sum to zero"),
    "a large stress": (lambda frame: replace(frame, stress=np.eye(3) * 5), "unusually large stresses"),
    "a zero stress": (lambda frame: replace(frame, stress=np.zeros((3, 3))), "stresses that are exactly zero"),
    "a collision": (lambda frame: moved(frame, 3, [0.0, 1.1, 1.0]), "atoms very close to each other"),
}


@pytest.mark.parametrize(("change", "title"), DEFECTS.values(), ids=DEFECTS)
def test_a_broken_frame_is_named(frames: list[Frame], change: Change, title: str) -> None:
    frames = list(frames)
    index = position_of(frames, "large.xyz@11")
    frames[index] = change(frames[index])
    found = {finding.title: finding for finding in audit(frames).findings}
    assert found[title].severity == "warning"
    assert found[title].frames == ("large.xyz@11",)


def test_atoms_on_top_of_each_other_are_refused(frames: list[Frame]) -> None:
    index = position_of(frames, "large.xyz@11")
    atoms = frames[index].atoms.copy()
    atoms.positions[3] = atoms.positions[0] + [0.0, 1e-3, 0.0]
    result = audit([*frames[:index], replace(frames[index], atoms=atoms), *frames[index + 1 :]])
    assert ("error", "atoms on top of each other") in titles(result)
    assert ("warning", "atoms very close to each other") not in titles(result)
    with pytest.raises(ValueError, match=r"on top of each other \(large\.xyz@11\)"):
        result.check()


def test_forces_and_stresses_that_are_not_learned_give_notes(frames: list[Frame]) -> None:
    frames = [with_forces(frame, np.zeros_like) if frame.group == "large" else frame for frame in frames]
    result = audit(frames, weights={"energy": 1.0})
    assert set(titles(result)) == {
        ("note", "not learned: forces"),
        ("note", "not learned: stress"),
        ("note", "forces that are exactly zero"),
    }
    assert len(result.findings[-1].frames) == N_TRAJECTORY


def test_symmetric_crystals_may_have_zero_forces() -> None:
    silicon = bulk("Si", cubic=True)
    slab = bulk("Cu", cubic=True).repeat((1, 1, 2))
    slab.center(vacuum=5.0, axis=2)  # four layers: an outer layer is pulled inwards
    for atoms, expected in ((silicon, 0), (slab, 1)):
        frame = Frame(atoms, "frame", energy=0.0, forces=np.zeros((len(atoms), 3)))
        found = [title for _, title in titles(audit([frame])) if title == "forces that are exactly zero"]
        assert len(found) == expected


# ---- labels


def test_labels_that_are_missing(frames: list[Frame]) -> None:
    bare = [replace(frame, stress=None) for frame in frames]
    result = audit(bare, bare[:2])
    assert ("error", "no training frame has stress") in titles(result)
    with pytest.raises(ValueError, match=r"no training frame has stress: .*Set its weight to 0"):
        result.check()
    partly = [replace(frame, stress=None) if i % 2 else frame for i, frame in enumerate(frames)]
    result = audit(partly, [replace(partly[0], energy=None)])
    assert ("note", "some frames lack stress") in titles(result)
    assert ("warning", "no validation frame has energy") in titles(result)
    missing = next(finding for finding in result.findings if "lack" in finding.title)
    assert missing.frames == tuple(frame.source for frame in frames[1::2])


def test_all_errors_are_listed_at_once(frames: list[Frame]) -> None:
    bare = [replace(frame, stress=None, forces=None) for frame in frames]
    argon = Frame(Atoms("Ar"), "argon.xyz@0", energy=0.0)
    with pytest.raises(ValueError, match="cannot be learned from") as error:
        audit(bare, [argon], references={"Cu": 3.5}).check()
    for text in ("has forces", "has stress", "elements missing in the training frames: Ar (argon", "energy of Au"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="no label 'force'; labels are energy"):
        Auditor({"force": 1.0}, CUTOFF)
    with pytest.raises(ValueError, match="no training frames"):
        audit([]).check()


def test_weights_of_frames_that_make_a_label_vanish(frames: list[Frame]) -> None:
    none = {"energy": 1.0, "forces": 0.0, "stress": 1.0}
    group = [replace(frame, weights=none) if frame.group == "small" else frame for frame in frames]
    assert titles(audit(group)) == [("note", "not learned in group 'small': forces")]
    result = audit([replace(frame, weights=none) for frame in frames])
    assert titles(result) == [("error", "no weight in any training frame: forces")]


def test_placeholders_are_found(frames: list[Frame]) -> None:
    """One number for all components, the same numbers for other structures, energies of zero."""
    rng = np.random.default_rng(0)
    one_tensor = rng.normal(0, 0.1, (3, 3))
    changes: dict[str, Change] = {
        "placeholders instead of stress": lambda frame: replace(frame, stress=np.full((3, 3), 7.0)),
        "placeholders instead of forces": lambda frame: with_forces(frame, lambda forces: np.full_like(forces, 0.5)),
        "energies that are exactly zero": lambda frame: replace(frame, energy=0.0),
    }
    for title, change in changes.items():
        broken = [change(frame) if i % 6 == 0 else frame for i, frame in enumerate(frames)]
        found = {finding.title: finding for finding in audit(broken).findings}
        assert found[title].frames == tuple(frame.source for frame in frames[::6])
    same = [replace(frame, stress=one_tensor + one_tensor.T) if i % 6 == 0 else frame for i, frame in enumerate(frames)]
    found = {finding.title: finding for finding in audit(same).findings}
    assert found["placeholders instead of stress"].frames == tuple(frame.source for frame in frames[::6])
    weightless = [
        replace(changes["placeholders instead of stress"](frame), weights={"energy": 1.0, "forces": 1.0, "stress": 0.0})
        if i % 6 == 0
        else frame
        for i, frame in enumerate(frames)
    ]
    result = audit(weightless)
    assert titles(result) == []
    assert sum(counts["stress"] for counts in result.frames.values()) == len(frames) - len(frames[::6])


def test_energies_of_another_computation_than_the_forces(frames: list[Frame]) -> None:
    rng = np.random.default_rng(0)
    mixed = [with_forces(frame, rng.permutation) for frame in frames]
    assert ("warning", "energies do not follow the forces") in titles(audit(mixed))
    tensors = rng.normal(0, 0.02, (len(frames), 3, 3))
    others = [replace(frame, stress=tensor + tensor.T) for frame, tensor in zip(frames, tensors, strict=True)]
    assert ("warning", "energies do not follow the stress") in titles(audit(others))
    assert "do not follow" not in audit(frames).to_text()


@pytest.mark.parametrize(
    ("factor", "diagnosis"),
    [(1.0, ""), (0.25, "energies are per atom"), (1 / units.Hartree, "energies are in Hartree")],
)
def test_energies_of_strained_crystals_whose_atoms_are_displaced(factor: float, diagnosis: str) -> None:
    rng = np.random.default_rng(0)
    strained = []
    for index in range(30):
        atoms = bulk("Cu", a=3.6, cubic=True)
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        frame = labeled(atoms, f"x@{index}", "")
        strained.append(replace(frame, energy=factor * (frame.energy or 0.0)))
    result = audit(strained, references={"Cu": -1.0} if diagnosis else REFERENCES)
    assert not result.slopes["stress"].is_clear
    told = [f.explanation for f in result.findings if f.title == "energies do not belong to forces and stresses"]
    assert len(told) == bool(diagnosis)
    assert all(diagnosis in text for text in told)


def test_what_was_told_about_files_is_in_the_audit(frames: list[Frame]) -> None:
    remark = Remark(severity="warning", title="not used: 'x'", text="40 frames have it", frames=("a@0",), n_frames=40)
    counts = dict.fromkeys(LABELS, 72)
    sources = {"energy": "'REF_energy'", "forces": "'REF_forces'"}
    auditor = Auditor(WEIGHTS, CUTOFF)
    auditor.add_labels(LabelReport(n_frames=72, counts=counts, sources=sources, remarks=(remark,)), "training")
    auditor.add_labels(LabelReport(n_frames=72, counts=counts, sources={**sources, "energy": "'energy'"}), "melt")
    for frame in frames:
        auditor.add(frame, "training")
    result = auditor.finish(REFERENCES, "isolated atoms")
    assert titles(result) == [("warning", "training: not used: 'x'"), ("warning", "melt has the energy from elsewhere")]
    page = result.to_markdown()
    assert "| training | energy | 72 | 'REF_energy' |" in page
    assert "| training | stress | 72 | none |" in page
    assert "The energy of melt is from 'energy', that of training from 'REF_energy'" in page
    assert "training: not used: 'x' (a@0 and 37 more)" in result.to_text()


# ---- structures that occur twice


def test_the_same_structure_is_recognized(frames: list[Frame]) -> None:
    frame = frames[position_of(frames, "small.xyz@7")]
    rng = np.random.default_rng(3)
    elsewhere = frame.atoms.copy()
    elsewhere.positions += rng.integers(-3, 4, (len(elsewhere), 3)) @ elsewhere.cell.array + [0.3, -0.2, 5.0]
    elsewhere.positions = np.round(elsewhere.positions, 8)
    order = np.array([0, 3, 1, 2, 4, 5, 6, 7])
    copy = replace(frame, atoms=elsewhere[order], source="copy@0", forces=np.asarray(frame.forces)[order])
    other_labels = replace(copy, source="copy@1", energy=(frame.energy or 0) + 0.1)
    result = audit([*frames, copy, other_labels])
    assert titles(result) == [("warning", "repeated structures"), ("warning", "same structure, different labels")]
    assert [finding.frames for finding in result.findings] == [("copy@0",), ("copy@1",)]
    assert result.findings[0].remarks == ("same as small.xyz@7",)
    result = audit(frames, [copy])
    assert titles(result) == [("warning", "validation overlaps training")]
    assert result.findings[0].frames == ("copy@0",)


def test_similar_structures_are_told_apart(frames: list[Frame]) -> None:
    """Displaced to either side of a symmetric site, mirrored, or with two atoms exchanged, they differ."""
    crystal = bulk("Cu", cubic=True).repeat(2)
    crystal.symbols[:16] = "Au"
    plus, minus, exchanged, strained = (crystal.copy() for _ in range(4))
    plus.positions[5] += [0.01, 0, 0]
    minus.positions[5] -= [0.01, 0, 0]
    exchanged.symbols[[3, 30]] = ["Cu", "Au"]
    strained.set_cell(strained.cell.array * 1.0005, scale_atoms=True)
    different = [labeled(atoms, f"x@{i}", "") for i, atoms in enumerate((crystal, plus, minus, exchanged, strained))]
    assert titles(audit(frames + different)) == []


# ---- energies


def test_energies_per_atom_are_recognized(frames: list[Frame]) -> None:
    wrong = [replace(frame, energy=(frame.energy or 0) / len(frame.atoms) - 5) for frame in frames]
    right = [replace(frame, energy=(frame.energy or 0) - 5 * len(frame.atoms)) for frame in frames]
    assert ("warning", "energies per atom") in titles(audit(wrong, weights={"energy": 1.0}))
    assert ("warning", "energies per atom") not in titles(audit(right, weights={"energy": 1.0}))


def test_one_energy_for_all_structures(frames: list[Frame]) -> None:
    stuck = [replace(frame, energy=-3.0) if frame.group == "small" else frame for frame in frames]
    found = {finding.title: finding for finding in audit(stuck).findings}
    assert len(found["the same energy for different structures"].frames) == N_TRAJECTORY


@pytest.mark.parametrize(("shift", "words"), [(-30.0, "above"), (30.0, "far below")])
def test_reference_energies_of_another_theory(frames: list[Frame], shift: float, words: str) -> None:
    references = {symbol: energy + shift for symbol, energy in REFERENCES.items()}
    result = audit([*frames, *isolated_atoms()], references=references)
    found = {finding.title: finding for finding in result.findings}
    assert words in found["reference energies do not fit the data"].explanation
    assert found["isolated atoms do not have the reference energies"].frames == ("atoms.xyz@0", "atoms.xyz@1")


def test_one_composition_does_not_determine_energies_per_element(frames: list[Frame]) -> None:
    one = [frame for frame in frames if frame.group == "large"]
    assert titles(audit(one)) == [("note", "energies per element are not determined")]
    assert titles(audit([*frames, *isolated_atoms()])) == [("note", "isolated atoms")]


def test_fit_to_compositions_ignores_outliers(frames: list[Frame]) -> None:
    exact = [
        replace(frame, energy=sum({"Cu": -3.0, "Au": -5.0}[symbol] for symbol in frame.atoms.symbols))
        for frame in frames
    ]
    exact[4] = replace(exact[4], energy=1e4)
    fitted = {symbol: energies[1] for symbol, energies in audit(exact).reference_energies.items()}
    assert fitted == pytest.approx({"Cu": -3.0, "Au": -5.0}, abs=1e-6)


# ---- signs, units and order, by the work done between similar frames


@pytest.mark.parametrize(
    ("energy", "forces", "diagnosis"),
    [
        (1.0, -1.0, "forces have the wrong sign"),
        (1 / units.Hartree, 1.0, "energies are in Hartree"),
        (1.0, units.Bohr / units.Hartree, "forces are in Hartree/Bohr"),
        (1.0, -units.Bohr / units.Hartree, "wrong sign and forces are in Hartree/Bohr"),
        (1 / units.Hartree, units.Bohr / units.Hartree, "energies are in Hartree and forces in Hartree/Bohr"),
    ],
)
def test_units_and_sign_of_forces(frames: list[Frame], energy: float, forces: float, diagnosis: str) -> None:
    wrong = [
        with_forces(replace(frame, energy=energy * (frame.energy or 0)), lambda values: forces * values)
        for frame in frames
    ]
    found = {finding.title: finding for finding in audit(wrong).findings}
    assert diagnosis in found["energy and forces do not belong together"].explanation


@pytest.mark.parametrize(
    ("factor", "diagnosis"),
    [
        (-1.0, "stresses have the wrong sign"),
        (10 / units.GPa, "stresses are in kbar"),
        (-10 / units.GPa, "stresses have the wrong sign and stresses are in kbar"),
        (1 / units.GPa, "stresses are in GPa"),
    ],
)
def test_units_and_sign_of_stresses(frames: list[Frame], factor: float, diagnosis: str) -> None:
    wrong = [replace(frame, stress=factor * np.asarray(frame.stress)) for frame in frames]
    found = {finding.title: finding for finding in audit(wrong).findings}
    assert diagnosis in found["energy and stress do not belong together"].explanation


def test_order_of_shear_stresses(frames: list[Frame]) -> None:
    """VASP's order, xx yy zz xy yz zx, taken for ASE's."""
    wrong = []
    for frame in frames:
        stress = np.asarray(frame.stress)
        swapped = np.diag(np.diag(stress))
        for place, component in (((1, 2), (0, 1)), ((0, 2), (1, 2)), ((0, 1), (0, 2))):
            swapped[place] = swapped[place[::-1]] = stress[component]
        wrong.append(replace(frame, stress=swapped))
    found = {finding.title: finding for finding in audit(wrong).findings}
    assert "seem to be xy, yz, xz" in found["shear stresses in another order"].explanation
    assert "energy and stress do not belong together" not in found


def _squeezed(constants: list[float]) -> list[Frame]:
    return [labeled(bulk("Cu", a=a, cubic=True), f"{a}.xyz", "squeezed") for a in constants]


@pytest.mark.parametrize("offset", [0.02, -0.01])
def test_stresses_that_are_off_by_a_pressure(offset: float) -> None:
    sound = _squeezed([3.7 * (1 + 0.02 * math.sin(index)) for index in range(40)])
    wrong = [replace(frame, stress=np.asarray(frame.stress) + offset * np.eye(3)) for frame in sound]
    assert "stresses are off by a constant pressure" not in {title for _, title in titles(audit(sound))}
    result = audit(wrong)
    assert result.slopes["stress"].offset == pytest.approx(offset, abs=0.001)
    assert ("warning", "stresses are off by a constant pressure") in titles(result)
    [told] = [finding.explanation for finding in result.findings if "pressure" in finding.title]
    assert f" GPa) too {'high' if offset > 0 else 'low'}." in told


def test_a_pressure_is_not_seen_in_pairs_of_large_strain(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the mean of two stresses is not exact: a crystal that gets stiffer looks as if it had a pressure."""
    found = _squeezed([3.7 * (0.93 if index % 2 else 1 - index / 2000) for index in range(40)])
    assert audit(found).slopes["stress"].is_clear
    assert audit(found).slopes["stress"].offset == 0
    monkeypatch.setattr("ase_segnn.training.audit.work._SMALL_STRAIN", 1)
    assert audit(found).slopes["stress"].offset != 0


@pytest.mark.parametrize(("factor", "n_found"), [(1.0, 0), (-1.0, 1), (10 / units.GPa, 1)])
def test_stress_by_volume_where_atoms_are_rattled(factor: float, n_found: int) -> None:
    rng = np.random.default_rng(4)
    frames = []
    for index, length in enumerate(np.linspace(3.5, 3.7, 30)):
        atoms = bulk("Cu", a=length, cubic=True).repeat((2, 1, 1))
        atoms.positions += rng.normal(0, 0.15, atoms.positions.shape)
        frame = labeled(atoms, f"rattled.xyz@{index}", "")
        frames.append(replace(frame, stress=factor * np.asarray(frame.stress)))
    result = audit(frames)
    assert result.slopes["stress"].n_pairs == 0
    assert [title for _, title in titles(result)].count("stress has a wrong sign or unit") == n_found


# ---- what is written


def test_page_and_summary_hold_numbers_and_names(frames: list[Frame]) -> None:
    broken = list(frames)
    broken[4] = replace(broken[4], energy=1e4)
    result = audit([replace(frame, stress=None) if i < 20 else frame for i, frame in enumerate(broken)], frames[:3])
    page = result.to_markdown()
    assert f"| training | strained | {N_STRAINED} | {N_STRAINED} | {N_STRAINED} | {N_STRAINED} |" in page
    n_gold = sum(frame.atoms.symbols.count("Au") for frame in [*frames, *frames[:3]])
    assert f"| Au | {n_gold} | {2 * N_TRAJECTORY + 3} |" in page
    assert "| validation | x, y, z | 3 |" in page
    assert "- `small.xyz@4` (" in page
    assert "- `small.xyz@11`\n- and 8 more" in page
    forces = np.concatenate([np.linalg.norm(np.asarray(frame.forces), axis=1) for frame in frames])
    expected = (forces.min(), forces.mean(), forces.max(), np.sqrt((forces**2).mean()))
    assert f"| training | force on an atom, eV/Å | {len(forces)} | " + " | ".join(f"{x:.5g}" for x in expected) in page
    summary = result.to_text().splitlines()
    assert summary[0] == "training: 72 frames of 4 to 16 atoms; energy 72, forces 72, stress 52"
    assert "warning: unusual energies (small.xyz@4)" in summary
    assert len(summary) < 12


def test_frames_are_not_kept(frames: list[Frame]) -> None:
    auditor = Auditor(WEIGHTS, CUTOFF)
    structures = []
    for index in range(20):
        atoms = frames[0].atoms.copy()
        structures.append(weakref.ref(atoms))
        auditor.add(replace(frames[0], atoms=atoms, source=f"x@{index}"), "training")
    del atoms
    gc.collect()
    assert [structure() is not None for structure in structures] == [False] * 19 + [True]  # to compare the next with
