"""Structures built from texts, and molecules from SMILES."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from ase_segnn.builders import built, is_built
from ase_segnn.cli._options import name_of
from ase_segnn.physics.bonds import bonds_of, n_pieces
from ase_segnn.smiles import from_smiles
from ase_segnn.structures import read_named, read_structure


def test_structures_are_built_by_name() -> None:
    assert len(built("bulk:Mo")) == 2
    assert built("bulk:Mg").get_chemical_formula() == "Mg2"
    assert built("molecule:H2O") == molecule("H2O")
    assert not is_built("somewhere/bulk.xyz")


@pytest.mark.parametrize("text", ["bulk:Cu:fcc:wide", "molecule:water", "bulk:nothing"])
def test_what_cannot_be_built_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=rf"ASE cannot build '{text}': .*; write bulk:SYMBOLS, .* or smiles:SMILES"):
        built(text)
    with pytest.raises(ValueError, match="'molecule:H2O:2' has too many parts; write bulk:SYMBOLS"):
        built("molecule:H2O:2")


def test_texts_stand_for_files_wherever_structures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_structure("bulk:Si").get_chemical_formula() == "Si8"
    [(name, atoms)] = read_named("smiles:C[C@H](N)C(=O)O")
    assert name == "smiles:C[C@H](N)C(=O)O@0"
    assert atoms.get_chemical_formula() == "C3H7NO2"
    assert name_of("smiles:C[C@H](N)C(=O)O") == "C-C-H-N-C-O-O"


def test_molecules_from_smiles(tmp_path: Path) -> None:
    aspirin, acetate = from_smiles("CC(=O)Oc1ccccc1C(=O)O"), from_smiles("CC(=O)[O-]")
    assert (aspirin.get_chemical_formula(), aspirin.info["charge"], acetate.info["charge"]) == ("C9H8O4", 0, -1)
    assert n_pieces(aspirin) == 1
    assert len(bonds_of(aspirin)) == 21
    np.testing.assert_array_equal(from_smiles("CC(=O)[O-]").positions, acetate.positions)
    ase.io.write(tmp_path / "a.xyz", from_smiles("F"), format="extxyz")
    assert ase.io.read(tmp_path / "a.xyz").info["smiles"] == "[H]F"
    butane = from_smiles("CCCC")
    assert abs(butane.get_dihedral(0, 1, 2, 3) - 180) < 5  # trans is lower than gauche


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("water", "'water' is no SMILES; it is such as CCO"),
        ("", "'' is no SMILES"),
        ("O.O", "'O.O' has several molecules; build them one by one"),
    ],
)
def test_what_is_no_molecule_is_refused(smiles: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        from_smiles(smiles)
    assert not capfd.readouterr().err


def test_without_rdkit_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r'needs RDKit: pip install "ase-segnn\[smiles\]" \(missing: rdkit\)'):
        from_smiles("CCO")
