"""Labels of frames under all their names, with weights and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from labeled import labeled_clusters, labeled_crystals

from ase_segnn.training.data.frames import Frame, LabelKeys, read_frames


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db"])
def test_labels_survive_the_formats_of_ase(tmp_path: Path, suffix: str) -> None:
    frames = labeled_crystals(3)
    path = tmp_path / f"frames.{suffix}"
    if suffix == "db":
        with ase.db.connect(path) as database:
            for atoms in frames:
                database.write(atoms)
    else:
        ase.io.write(path, frames)
    read = list(read_frames(path))
    assert [frame.source for frame in read] == [f"frames.{suffix}@{index}" for index in range(3)]
    for frame, atoms in zip(read, frames, strict=True):
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-6)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-6)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-6)
        assert frame.atoms.calc is None


def crystal(results: dict[str, Any], info: dict[str, Any], arrays: dict[str, Any]) -> Atoms:
    atoms = Atoms("Ar2", [[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= info
    for name, values in arrays.items():
        atoms.new_array(name, np.asarray(values, dtype=float))
    return atoms


FORCES = np.arange(6.0).reshape(2, 3)
STRESS = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
TENSOR = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])


def test_reference_labels_go_before_those_of_a_calculator() -> None:
    results = {"energy": 1.0, "forces": -FORCES, "stress": -STRESS}
    atoms = crystal(results, {"REF_energy": 2.0, "REF_virials": -64 * TENSOR}, {"REF_forces": FORCES})
    frame = Frame.from_atoms(atoms, "x@0")
    assert frame.energy == 2.0
    np.testing.assert_array_equal(frame.forces, FORCES)
    np.testing.assert_allclose(frame.stress, TENSOR)  # minus the virial over 64 Å³
    partly = Frame.from_atoms(crystal(results, {"REF_energy": 2.0}, {}), "x@0")
    assert partly.labels == ("energy",)  # the forces are of something else
    plain = Frame.from_atoms(crystal(results, {}, {}), "x@0")
    assert plain.energy == 1.0
    np.testing.assert_array_equal(plain.stress, -TENSOR)


def test_labels_by_their_own_keys() -> None:
    atoms = crystal({"energy": 1.0, "forces": FORCES}, {"dft": 3.0, "sigma": TENSOR.ravel()}, {"gradient": 2 * FORCES})
    frame = Frame.from_atoms(atoms, "x@0", LabelKeys(energy="dft", forces="gradient", stress="sigma"))
    assert frame.energy == 3.0
    np.testing.assert_array_equal(frame.forces, 2 * FORCES)
    np.testing.assert_array_equal(frame.stress, TENSOR)
    assert Frame.from_atoms(atoms, "x@0", LabelKeys(energy="missing")).labels == ("forces",)
    assert Frame.from_atoms(crystal({}, {"energy": 4.0, "virial": -64 * TENSOR}, {}), "x@0").labels == (
        "energy",
        "stress",
    )


def test_groups_and_weights() -> None:
    info = {"config_type": "bulk", "config_weight": 2.0, "config_forces_weight": 0.5}
    frame = Frame.from_atoms(crystal({"energy": 1.0}, info, {}), "x@0")
    assert frame.group == "bulk"
    assert frame.weights == {"energy": 2.0, "forces": 1.0, "stress": 2.0}
    assert not frame.is_isolated_atom
    assert Frame.from_atoms(Atoms("Ar"), "x@0").is_isolated_atom
    boxed = Atoms("Ar", cell=[9, 9, 9], pbc=True)
    assert not Frame.from_atoms(boxed, "x@0").is_isolated_atom
    boxed.info["config_type"] = "IsolatedAtom"
    assert Frame.from_atoms(boxed, "x@0").is_isolated_atom


def test_a_slab_has_no_stress() -> None:
    atoms = crystal({"stress": STRESS, "energy": 1.0}, {}, {})
    atoms.pbc = [True, True, False]
    atoms.calc.atoms.pbc = atoms.pbc
    assert Frame.from_atoms(atoms, "x@0").labels == ("energy",)


@pytest.mark.parametrize(
    ("info", "arrays", "message"),
    [
        ({"energy": np.nan}, {}, "'energy' of x@7 is not finite"),
        ({"energy": "low"}, {}, "'energy' of x@7 is no number"),
        ({"energy": [1.0, 2.0]}, {}, r"'energy' of x@7 has the shape \(2,\), expected one number"),
        ({"REF_forces": FORCES[:1]}, {}, r"'REF_forces' of x@7 has the shape \(1, 3\), expected \(2, 3\)"),
        ({"stress": [1.0, 2.0]}, {}, "'stress' of x@7 has 2 values, expected 6"),
        ({"energy": 1.0, "config_weight": -1.0}, {}, "x@7 has a negative weight 'config_weight': -1"),
    ],
)
def test_wrong_labels_are_named(info: dict[str, Any], arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame.from_atoms(crystal({}, info, arrays), "x@7")


def test_structures_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match="x@1 has no atoms"):
        Frame.from_atoms(Atoms(), "x@1")
    with pytest.raises(ValueError, match="x@1 has positions or a cell that are not finite"):
        Frame.from_atoms(Atoms("Ar", [[0, np.inf, 0]]), "x@1")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "frames.xyz"
    ase.io.write(path, labeled_clusters(2))
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(ValueError, match=r"ASE cannot read frame 1 of .*; the 1 before it can be read"):
        list(read_frames(path))
    path.write_text("")
    with pytest.raises(ValueError, match=r"holds no frames|cannot read frame 0"):
        list(read_frames(path))


def test_labels_go_back_into_atoms() -> None:
    [atoms] = labeled_crystals(1)
    again = Frame.from_atoms(Frame.from_atoms(atoms, "x@0").labeled_atoms(), "x@0")
    assert again.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(again.forces, atoms.get_forces())
    np.testing.assert_allclose(again.stress, atoms.get_stress(voigt=False), rtol=1e-12)
