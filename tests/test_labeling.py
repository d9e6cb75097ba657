"""References that label structures, the file of their labels, and walkers that explore around known structures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from labeled import labeled_clusters, tiny_potential

import ase_segnn
from ase_segnn import SEGNNCalculator, save_potential
from ase_segnn.potential_file import Provenance
from ase_segnn.training.labeling import LabelFile, NoLabelError, Reference, Walkers, find_reference, label
from ase_segnn.training.labeling.references import GFN2, OneCalculator
from ase_segnn.training.labeling.worker import decoded, encoded

REFERENCE = """
from ase.calculators.lj import LennardJones

CALLS = []

def make_calculator():
    CALLS.append(1)
    return LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)

def three():
    return 3

def broken():
    raise OSError("no license")
"""


@pytest.fixture
def reference_file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.py"
    path.write_text(REFERENCE)
    return path


def starts() -> list[Atoms]:
    return [Atoms(atoms.numbers, atoms.positions) for atoms in labeled_clusters(4)]


# ---- references


def test_a_function_of_a_file_is_a_reference(reference_file: Path) -> None:
    reference = find_reference(f"{reference_file}:make_calculator")
    assert reference.description == "reference.py:make_calculator (LennardJones)"
    known, atoms = labeled_clusters()[1], starts()[1]
    reference.check([("a", atoms)])
    labeled = label(atoms, reference.calculator(atoms))
    assert labeled.get_potential_energy() == pytest.approx(known.get_potential_energy())
    np.testing.assert_allclose(labeled.get_forces(), known.get_forces())
    assert reference.calculator(starts()[0]) is reference.calculator(atoms)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gfn1", ValueError, r"a reference is gfn2, emt, FILE.py:FUNCTION, .* segnn:NAME or segnn:FILE; got 'gfn1'"),
        ("FILE", ValueError, "a reference is gfn2, emt"),
        ("mace", ValueError, "a reference is gfn2, emt"),
        ("mace:", ValueError, "a reference is gfn2, emt"),
        ("chgnet:", ValueError, "a reference is gfn2, emt"),
        ("none.py:make", FileNotFoundError, "no file 'none.py' with the reference 'make'"),
        ("FILE:other", ValueError, "has no function 'other' that makes a calculator"),
        ("FILE:CALLS", ValueError, "has no function 'CALLS'"),
        ("FILE:three", ValueError, "three' returned a int; an ASE calculator is needed"),
        ("FILE:broken", ValueError, "broken' made no calculator: OSError: no license"),
    ],
)
def test_what_is_no_reference_is_refused(reference_file: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_reference(name.replace("FILE", str(reference_file)))


def test_emt_is_a_reference() -> None:
    reference, copper = find_reference("emt"), bulk("Cu", cubic=True)
    assert reference.description == f"EMT (ase {ase.__version__})"
    assert label(copper, reference.calculator(copper)).get_potential_energy() == EMT().get_potential_energy(copper)
    assert reference.calculator(copper) is not reference.calculator(copper)
    reference.check([("a", copper)])
    message = "emt knows the elements H, C, N, O, Al, Ni, Cu, Pd, Ag, Pt, Au, b has Si, Ti; leave out such frames"
    with pytest.raises(ValueError, match=message):
        reference.check([("a", copper), ("b", Atoms("TiSi"))])


def test_a_class_of_a_module_is_a_reference() -> None:
    reference = find_reference("ase.calculators.lj:LennardJones")
    assert reference.description == f"ase.calculators.lj:LennardJones (ase {ase.__version__})"
    argon = Atoms("Ar2", [[0, 0, 0], [0, 0, 1.5]])
    assert isinstance(reference.calculator(argon), LennardJones)
    reference.check([("a", argon)])


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lj_module.py").write_text(REFERENCE)
    (tmp_path / "my_bad_module.py").write_text("import nothing_of_this_name")
    (tmp_path / "my_worse_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert find_reference("my_lj_module:make_calculator").description == "my_lj_module:make_calculator (LennardJones)"
    for name, error, message in (
        ("my_lj_module:other", ValueError, "the module 'my_lj_module' has no function or class 'other' that makes"),
        ("my_lj_module:broken", ValueError, "'my_lj_module:broken' made no calculator: OSError: no license$"),
        ("ase.atoms:Atom", ValueError, "'ase.atoms:Atom' returned a Atom; an ASE calculator is needed"),
        ("ase.calculators.mixing:SumCalculator", ValueError, "made no calculator: TypeError: .*positional argument"),
        ("ase.calculators.none:LJ", ImportError, "no module 'ase.calculators.none' for the reference .*; install the"),
        ("my_bad_module:make", ImportError, "'my_bad_module' of the reference .* cannot be imported: No module named"),
        ("my_worse_module:make", ValueError, "'my_worse_module' cannot be run: ZeroDivisionError: division by zero"),
    ):
        with pytest.raises(error, match=message):
            find_reference(name)
    assert sys.path == before


def test_potentials_of_this_package_are_references(tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    save_potential(tiny_potential(), file, provenance=Provenance())
    reference = find_reference(f"segnn:{file}")
    assert reference.description == f"SEGNN tiny.safetensors (ase-segnn {ase_segnn.__version__})"
    cluster = starts()[0]
    reference.check([("a", cluster)])
    with pytest.raises(ValueError, match="segnn knows the elements Ne, Ar, b has Cu; leave out such frames"):
        reference.check([("a", cluster), ("b", Atoms("Cu"))])
    exact = SEGNNCalculator(str(file), dtype="float64").get_potential_energy(cluster)
    assert label(cluster, reference.calculator(cluster)).get_potential_energy() == exact
    with pytest.raises(ValueError, match="'segnn:none' made no calculator: ValueError: potential 'none' is neither"):
        find_reference("segnn:none")


class Foreign(LennardJones):
    """Stands for a calculator of another package, and keeps what it is made with."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__()
        self.given, self.named = given, named


class ForeignModel:
    """Stands for CHGNet."""

    @staticmethod
    def load(**named: object) -> str:
        return f"model {named}"


def orb_of_old(**named: object) -> str:
    return f"model {named}"


def orb_of_today(**named: object) -> tuple[str, str]:
    return f"model {named}", "adapter"


@pytest.fixture
def foreign_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in {
        "mace": {},
        "mace.calculators": {"MACECalculator": Foreign},
        "sevenn": {},
        "sevenn.calculator": {"SevenNetCalculator": Foreign},
        "chgnet": {},
        "chgnet.model": {},
        "chgnet.model.dynamics": {"CHGNetCalculator": Foreign},
        "chgnet.model.model": {"CHGNet": ForeignModel},
        "so3krates_torch": {},
        "so3krates_torch.calculator": {},
        "so3krates_torch.calculator.so3": {"SO3LRCalculator": Foreign},
        "orb_models": {},
        "orb_models.forcefield": {},
        "orb_models.forcefield.pretrained": {"orb_v2": orb_of_old, "orb_v3": orb_of_today},
        "orb_models.forcefield.calculator": {"ORBCalculator": Foreign},
        "orb_models.forcefield.inference": {},
        "orb_models.forcefield.inference.calculator": {"ORBCalculator": Foreign},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("ase_segnn.training.labeling.references._device", lambda: "cpu")


@pytest.mark.usefixtures("foreign_packages")
@pytest.mark.parametrize(
    ("name", "description", "given", "named"),
    [
        (
            "mace:FILE",
            "MACE a.model (mace-torch)",
            (),
            {"model_paths": "FILE", "device": "cpu", "default_dtype": "float64"},
        ),
        ("sevennet:7net-0", "SevenNet 7net-0 (sevenn)", ("7net-0",), {}),
        ("chgnet", "CHGNet (chgnet)", ("model {'verbose': False}",), {}),
        ("chgnet:0.3.0", "CHGNet 0.3.0 (chgnet)", ("model {'verbose': False, 'model_name': '0.3.0'}",), {}),
        (
            "so3lr",
            "SO3LR (so3krates-torch)",
            (),
            {
                "r_max_lr": 12.0,
                "dispersion_energy_cutoff_lr_damping": 2.0,
                "default_dtype": "float64",
                "device": "cpu",
            },
        ),
        (
            "orb:orb_v2",
            "ORB orb_v2 (orb-models)",
            ("model {'device': 'cpu', 'precision': 'float64'}",),
            {"device": "cpu"},
        ),
        (
            "orb:orb-v3",
            "ORB orb-v3 (orb-models)",
            ("model {'device': 'cpu', 'precision': 'float64'}", "adapter"),
            {"device": "cpu"},
        ),
    ],
)
def test_potentials_of_other_packages_are_references(
    tmp_path: Path, name: str, description: str, given: tuple[object, ...], named: dict[str, object]
) -> None:
    file = tmp_path / "a.model"
    file.touch()
    reference = find_reference(name.replace("FILE", str(file)))
    assert reference.description == description
    assert not reference.knows_atoms
    calculator = reference.calculator(starts()[0])
    assert isinstance(calculator, Foreign)
    assert calculator.given == given
    assert calculator.named == {key: str(file) if value == "FILE" else value for key, value in named.items()}
    if name == "so3lr":
        with pytest.raises(ValueError, match="so3lr knows the elements H, C, N, O, F, P, S, Cl, a has Pu"):
            reference.check([("a", Atoms("Pu"))])
    else:
        reference.check([("a", Atoms("Pu"))])


@pytest.mark.usefixtures("foreign_packages")
def test_errors_of_other_packages_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'none.model' for the reference mace"):
        find_reference("mace:none.model")
    with pytest.raises(ValueError, match=r"'orb:none' made no calculator: .*pretrained has no 'none'; a name is such"):
        find_reference("orb:none")

    def fail(name: str) -> None:
        raise OSError(f"no checkpoint\n{name}")

    monkeypatch.setattr(sys.modules["sevenn.calculator"], "SevenNetCalculator", fail)
    with pytest.raises(ValueError, match=r"^'sevennet:a' made no calculator: OSError: no checkpoint a$"):
        find_reference("sevennet:a")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("mace:FILE", "mace", "mace-torch"),
        ("sevennet:7net-0", "sevenn", "sevenn"),
        ("chgnet", "chgnet", "chgnet"),
        ("orb:orb-v3", "orb_models", "orb-models"),
        ("so3lr", "so3krates_torch", "so3krates-torch"),
    ],
)
def test_a_package_that_is_missing_is_named(
    reference_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"the reference {name.partition(':')[0]} needs the package {package}: pip install {package} \(missing:"
    with pytest.raises(ImportError, match=message):
        find_reference(name.replace("FILE", str(reference_file)))


def test_a_file_that_does_not_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match=r"bad.py' cannot be run: ModuleNotFoundError: .*nothing_of_this_name"):
        find_reference(f"{tmp_path / 'bad.py'}:make")


def test_charge_and_multiplicity_are_for_gfn2(reference_file: Path) -> None:
    with pytest.raises(ValueError, match=r"are for the reference gfn2; for '.*' set them in the calculator itself"):
        find_reference(f"{reference_file}:make_calculator", charge=1)


def test_gfn2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(ImportError, match=r'needs the package tblite: pip install "ase-segnn\[learn\]"'):
        find_reference("gfn2")


def large_silicon() -> Atoms:
    return bulk("Si", cubic=True) * (2, 2, 2)


def ionized(info: dict[str, Any]) -> Atoms:
    atoms = molecule("H2O")
    atoms.info |= info
    return atoms


@pytest.mark.parametrize(
    ("atoms", "settings", "message"),
    [
        (
            Atoms("PuO", [[0, 0, 0], [0, 0, 1.8]]),
            {},
            "knows the elements from H to Rn, b has Pu; leave out such frames",
        ),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[12] * 3, pbc=[1, 1, 0]), {}, r"b has pbc \[True, True, False\]"),
        (bulk("Si", cubic=True), {}, "no k-points and needs cells of at least 10 Å .* b has 5.43 Å; leave out"),
        (molecule("H2O"), {"multiplicity": 2}, "multiplicity 2 does not go with the 10 electrons of b"),
        (molecule("H2O"), {"charge": 1, "multiplicity": 1}, "multiplicity 1 does not go with the 9 electrons of b"),
        (ionized({"charge": 1}), {"charge": 0}, "charge 0 is asked for, and b has 1; leave out the option"),
        (ionized({"spin": 3}), {"multiplicity": 1}, "multiplicity 1 is asked for, and b has 3"),
        (ionized({"charge": 1, "spin": 3}), {}, "multiplicity 3 does not go with the 9 electrons of b"),
        (ionized({"charge": 0.5}), {}, "b: the charge of a structure is a whole number, got 0.5"),
        (ionized({"charge": "many"}), {}, "b: the charge of a structure is a number, got 'many'"),
        (ionized({"multiplicity": 0}), {}, "b: a multiplicity is 1 or more, got 0"),
    ],
)
def test_gfn2_refuses_what_it_cannot_compute(
    atoms: Atoms, settings: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GFN2, "__post_init__", lambda _: None)
    reference = GFN2(**settings)
    fine = [("a", molecule("CH3CH2OH")), ("a", large_silicon())]
    GFN2().check(fine)
    with pytest.raises(ValueError, match=message):
        reference.check([*(fine if not settings else []), ("b", atoms)])


def test_gfn2_labels_molecules_and_radicals() -> None:
    pytest.importorskip("tblite")
    water, methyl = molecule("H2O"), molecule("CH3")
    reference = find_reference("gfn2")
    assert reference.description.startswith("GFN2-xTB (tblite ")
    labeled = label(water, reference.calculator(water))
    assert labeled.get_potential_energy() == pytest.approx(-137.96777594, abs=1e-4)  # of the documentation of tblite
    calculator = reference.calculator(methyl)
    assert calculator.parameters["multiplicity"] == 2
    assert label(methyl, calculator).get_potential_energy() < -90
    cation = find_reference("gfn2", charge=1)
    assert "charge +1" in cation.description
    of_cation = label(water, cation.calculator(water)).get_potential_energy()
    assert of_cation > labeled.get_potential_energy() + 5
    by_itself = ionized({"charge": 1})
    for atoms in (by_itself, decoded(encoded(by_itself))):  # as it travels to a process
        assert label(atoms, reference.calculator(atoms)).get_potential_energy() == pytest.approx(of_cation)
    water.set_initial_charges([0.6, 0.2, 0.2])
    assert label(water, reference.calculator(water)).get_potential_energy() == pytest.approx(of_cation)
    oxygen = molecule("O2")  # with initial magnetic moments of the triplet
    assert reference.calculator(oxygen).parameters["multiplicity"] == 3


class Ionic(LennardJones):
    """An energy that depends on the charge in ``info``."""

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] += atoms.info.get("charge", 0)


def test_a_calculator_sees_another_charge_of_the_same_structure() -> None:
    reference = OneCalculator("ionic", Ionic(sigma=0.5, epsilon=0.1), "ionic")
    neutral, cation = molecule("H2O"), ionized({"charge": 1})
    energies = [label(atoms, reference.calculator(atoms)).get_potential_energy() for atoms in (neutral, cation)]
    assert energies[1] == pytest.approx(energies[0] + 1)


# ---- labels


class Moody(LennardJones):
    """Fails, or returns what is no number, for a cluster of some numbers of atoms."""

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 3:
            raise RuntimeError("SCF not converged\nin 250 cycles")
        if len(atoms) == 4:
            self.results["forces"][0, 0] = np.nan


def test_failures_are_told_apart_from_labels() -> None:
    calculator = Moody(sigma=2.3, epsilon=0.1, rc=6.0)
    three, four, five, _ = starts()
    with pytest.raises(NoLabelError, match=r"^RuntimeError: SCF not converged in 250 cycles$"):
        label(three, calculator)
    with pytest.raises(NoLabelError, match=r"^forces not finite$"):
        label(four, calculator)
    assert label(five, calculator).calc.name == "unknown"
    five.positions[1] = five.positions[0] + [0.5, 0, 0]
    with pytest.raises(NoLabelError, match=r"^a force above 30 eV/Å$") as raised:
        label(five, calculator)
    assert not raised.value.again
    assert NoLabelError("license lost").again


def test_crystals_have_a_stress_if_the_calculator_has() -> None:
    crystal = bulk("Cu", cubic=True)
    np.testing.assert_allclose(label(crystal, EMT()).get_stress(), EMT().get_stress(bulk("Cu", cubic=True)))
    assert crystal.calc is None
    slab = crystal.copy()
    slab.pbc = [True, True, False]
    assert set(label(slab, EMT()).calc.results) == {"energy", "forces"}
    without = EMT()
    without.implemented_properties = ["energy", "forces"]
    assert set(label(crystal, without).calc.results) == {"energy", "forces"}


def test_the_file_keeps_whole_structures_whatever_ends_the_program(tmp_path: Path) -> None:
    path = tmp_path / "labels.xyz"
    file = LabelFile(path)
    assert file.frames == []
    for number, atoms in enumerate(labeled_clusters(3)):
        atoms.info["attempt"] = number
        read = file.append(label(atoms, LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)))
        assert read.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    contents = path.read_bytes()
    found = []
    for n_bytes in range(len(contents) - 1, 0, -41):
        path.write_bytes(contents[:n_bytes])
        again = LabelFile(path)
        kept = path.read_bytes()
        assert contents.startswith(kept)
        assert len(again.frames) == (0 if not kept else len(ase.io.read(path, ":")))
        found.append(len(again.frames))
    assert set(found) == {0, 1, 2}

    path.write_bytes(contents[:-1])  # a number may have lost digits
    assert len(LabelFile(path).frames) == 2
    assert LabelFile(path).append(labeled_clusters(3)[2]).get_potential_energy() == pytest.approx(
        labeled_clusters(3)[2].get_potential_energy()
    )
    assert len(LabelFile(path).frames) == 3


def test_the_file_is_sorted_by_whole_structures(tmp_path: Path) -> None:
    path = tmp_path / "labels.xyz"
    file = LabelFile(path)
    parts = []
    for number in (2, 0, 3, 1):
        atoms = labeled_clusters(4)[number]
        atoms.info["id"] = number
        before = path.read_text() if parts else ""
        file.append(atoms)
        parts.append(path.read_text().removeprefix(before))
    file.sort()
    assert path.read_text() == parts[1] + parts[3] + parts[0] + parts[2]
    assert [atoms.info["id"] for atoms in file.frames] == [0, 1, 2, 3]
    assert [len(atoms) for atoms in file.frames] == [len(atoms) for atoms in LabelFile(path).frames]


# ---- walkers


def reference_of(file: Path) -> Reference:
    return find_reference(f"{file}:make_calculator")


def test_walkers_take_turns_and_reach_the_temperature(reference_file: Path) -> None:
    crystal = bulk("Ar", "fcc", a=3.6, cubic=True) * (2, 2, 2)
    crystal.rattle(0.01, seed=0)
    walkers = Walkers([crystal, crystal * (1, 1, 1)], reference_of(reference_file), 40.0, seed=0)
    frames = []
    for _ in range(40):
        frames.append(walkers.attempt())
        walkers.keep(frames[-1])
    assert [frame.info["attempt"] for frame in frames] == list(range(40))
    assert all(frame.info["seconds"] > 0 for frame in frames)
    for first in frames[:2]:  # the structures themselves
        np.testing.assert_array_equal(first.positions, crystal.positions)
    for one, other in zip(frames[2:-2:2], frames[4::2], strict=True):  # one walker
        moved = np.abs(one.positions - other.positions).max()
        assert 1e-3 < moved < 1.0
    assert np.abs(frames[-1].positions - frames[-2].positions).max() > 1e-2
    kinetic = np.mean([frame.get_temperature() for frame in frames[20:]])
    assert 20 < kinetic < 60
    assert not frames[-1].constraints
    assert not frames[-1].has("masses")
    assert np.abs(frames[-1].get_momenta().sum(0)).max() < 1e-6
    assert crystal.calc is None


def test_walkers_depend_on_seed_and_temperature_alone(reference_file: Path) -> None:
    def walk(temperature: float, seed: int) -> Atoms:
        walkers = Walkers(starts(), reference_of(reference_file), temperature, seed)
        for _ in range(9):
            atoms = walkers.attempt()
            walkers.keep(atoms)
        return atoms

    first = walk(30.0, 0)
    np.testing.assert_array_equal(first.positions, walk(30.0, 0).positions)
    assert np.abs(first.positions - walk(30.0, 1).positions).max() > 1e-3
    start = starts()[0].positions
    assert np.abs(walk(120.0, 0).positions - start).max() > np.abs(first.positions - start).max()


def test_interrupted_walkers_go_on_as_if_nothing_had_happened(reference_file: Path, tmp_path: Path) -> None:
    def walk(path: Path, n: int) -> list[Atoms]:
        file = LabelFile(path)
        structures = starts()
        structures[1].info["charge"] = 1
        walkers = Walkers(structures, reference_of(reference_file), 60.0, 0)
        for atoms in file.frames:
            walkers.keep(atoms)
        while len(file.frames) < n:
            walkers.keep(file.append(walkers.attempt()))
        return file.frames

    whole = walk(tmp_path / "whole.xyz", 15)
    walk(tmp_path / "parts.xyz", 6)
    for one, other in zip(walk(tmp_path / "parts.xyz", 15), whole, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.get_forces(), other.get_forces())
    charges = {int(atoms.info["attempt"]) % len(starts()): atoms.info.get("charge") for atoms in whole}
    assert charges == {0: None, 1: 1, 2: None, 3: None}


class FailsOnce(LennardJones):
    """Fails when asked for the structure after the third evaluation."""

    n_evaluations = 0

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        self.n_evaluations += 1
        if self.n_evaluations == 4:
            raise RuntimeError("license lost")
        super().calculate(atoms, properties, system_changes)


class Fixed:
    """A reference of one calculator."""

    description = "fixed"

    def __init__(self, calculator: LennardJones) -> None:
        self._calculator = calculator

    def check(self, structures: object) -> None:
        pass

    def calculator(self, atoms: Atoms) -> LennardJones:  # noqa: ARG002
        return self._calculator


def test_a_walker_that_fails_begins_anew() -> None:
    start = starts()[2]
    walkers = Walkers([start], Fixed(FailsOnce(sigma=2.3, epsilon=0.1, rc=6.0)), 60.0, 0)
    walkers.keep(walkers.attempt())
    with pytest.raises(NoLabelError, match="RuntimeError: license lost"):
        walkers.attempt()
    assert walkers.n_attempts == 2
    again = walkers.attempt()
    assert again.info["attempt"] == 2
    # as if the attempts before had not been, but for the random numbers of the third
    other = Walkers([start], Fixed(LennardJones(sigma=2.3, epsilon=0.1, rc=6.0)), 60.0, 0)
    other.n_attempts = 2
    np.testing.assert_allclose(again.positions, other.attempt().positions, atol=1e-12)
