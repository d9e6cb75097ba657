"""Structures of organic molecules to learn from."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("rdkit")

from ase_segnn.physics.bonds import n_pieces
from ase_segnn.training.organic.molecules import SIZES, Molecule, Pool, known_molecules, molecule_of
from ase_segnn.training.organic.structures import complex_of, structure_of

ACETATE = "CC(=O)[O-]"
LISTS = {
    "muv.csv.gz": [
        "CC(=O)Oc1ccccc1C(=O)O",
        "CCN(CC)CCOC(=O)c1ccc(N)cc1",
        "[Na+].CC(=O)[O-]",
        "C[Si](C)(C)C",
        "nonsense",
    ],
    "tox21.csv.gz": ["COP(=S)(OC)OC", "Clc1ccc(Cl)cc1", "CCCCCCCCCCCCCCCCCC(=O)O"],
    "delaney-processed.csv": ["c1ccc2[nH]ccc2c1 ", "FC(F)(F)c1ccccc1", "C[CH2]", "[2H]OC"],
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lists")
    for name, smiles in LISTS.items():
        text = "\n".join(["number,smiles", *(f"{k},{each}" for k, each in enumerate(smiles))]).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return [folder / name for name in LISTS]


def of(smiles: str) -> Molecule:
    molecule = molecule_of(smiles)
    assert molecule is not None
    return molecule


def test_molecules_know_charge_elements_and_scaffold() -> None:
    assert of("OC(C)=O") == Molecule("CC(=O)O", 0, ("C", "H", "O"), 8, "CC(=O)O")
    assert of(ACETATE) == Molecule(ACETATE, -1, ("C", "H", "O"), 7, "CC(=O)O")
    assert of("Cc1ccccc1CCl").scaffold == of("c1ccccc1N").scaffold == "c1ccccc1"
    assert of(ACETATE).is_unseen == of("CC(=O)O").is_unseen


@pytest.mark.parametrize(
    "smiles", ["C[Si](C)(C)C", "C[CH2]", "[2H]OC", "CO.CO", "[He]", "CCCCCCCCCCCCCCCCCC", "C[N+](C)(C)CC[NH3+]", "x"]
)
def test_what_is_no_molecule_of_this_kind_is_passed_over(smiles: str) -> None:
    assert molecule_of(smiles) is None


def test_lists_give_molecules_their_fragments_and_their_ions(lists: list[Path]) -> None:
    molecules = {molecule.smiles: molecule for molecule in known_molecules(lists, 0, 100)}
    for smiles in ("CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Oc1ccccc1C(=O)[O-]", ACETATE, "COP(=S)(OC)OC", "[OH3+]", "O"):
        assert smiles in molecules
    assert "CCN(CC)CCO" in molecules  # a fragment
    assert molecules["CC[NH+](CC)CCOC(=O)c1ccc(N)cc1"].charge == 1
    assert all(
        SIZES[0] <= molecule.n_atoms <= SIZES[1] and abs(molecule.charge) <= 1 for molecule in molecules.values()
    )
    assert [m.smiles for m in known_molecules(lists, 0, 100)] == list(molecules)
    lists[0].with_name("other.csv").write_text("name\nC")
    with pytest.raises(ValueError, match=r"other.csv' has no column 'smiles'"):
        known_molecules([lists[0].with_name("other.csv")], 0, 100)


def test_rare_elements_are_drawn_often() -> None:
    random = np.random.default_rng(0)
    pool = Pool([of("C" * n) for n in range(2, 16)] * 7 + [of("CP")])
    assert sum("P" in pool.draw(random).elements for _ in range(2000)) > 3 * 2000 / 99


def test_structures_are_sane() -> None:
    random = np.random.default_rng(1)
    kinds = set()
    for smiles in ["CC(=O)Oc1ccccc1C(=O)O", "OCCN", ACETATE, "O=CC=CO", "[H][H]", "[Cl-]"] * 6:
        molecule = of(smiles) if smiles != "[Cl-]" else Molecule("[Cl-]", -1, ("Cl",), 1, "")
        atoms = structure_of(molecule, random)
        assert atoms is not None
        kinds.add(atoms.info["kind"])
        assert len(atoms) == molecule.n_atoms
        assert atoms.info["charge"] == molecule.charge
        assert shortest(atoms) > 0.5
    assert kinds == {"conformer", "torsion", "stretch", "proton"}


def test_complexes_touch_and_do_not_overlap() -> None:
    random = np.random.default_rng(2)
    water, acetate, benzene = of("O"), of(ACETATE), of("c1ccccc1")
    for molecules in ([water] * 5, [acetate, water, water], [benzene, benzene], [benzene, acetate]) * 4:
        atoms = complex_of(molecules, random)
        assert atoms is not None
        assert len(atoms) == sum(molecule.n_atoms for molecule in molecules)
        assert atoms.info["charge"] == sum(molecule.charge for molecule in molecules)
        if atoms.info["kind"] == "complex":
            assert n_pieces(atoms, 1.15) == len(molecules)
            assert n_pieces(atoms, 7.2) == 1  # hydrogen atoms are at most 4.4 Å apart
    assert complex_of([of("CCCCCCCCCC")] * 2, random) is None  # more atoms than are allowed


@pytest.mark.slow
def test_the_command_writes_what_is_learned_and_what_is_not(lists: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ase_segnn.training.organic", "out", "--number", "30", "--unseen", "5"]
    command += ["--lists", *map(str, lists)]
    subprocess.run(command, cwd=tmp_path, check=True)
    learned, unseen = (ase.io.read(tmp_path / "out" / f"{name}.xyz", ":") for name in ("learned", "unseen"))
    assert (len(learned), len(unseen)) == (30, 5)
    first = (tmp_path / "out" / "learned.xyz").read_bytes()
    known, other = (
        {of(each).scaffold for atoms in part for each in atoms.info["smiles"].split(".") if each != "O"}
        for part in (learned, unseen)
    )
    assert not known & other
    again = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists; choose another folder" in again.stderr
    command[3] = "again"
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "again" / "learned.xyz").read_bytes() == first


def shortest(atoms: Atoms) -> float:
    distances = atoms.get_all_distances()
    return float(distances[~np.eye(len(atoms), dtype=bool)].min(initial=np.inf))
