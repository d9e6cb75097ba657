"""Molecules as SMILES: read from public lists, cut into fragments, charged, and divided by scaffold."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem, RDLogger
from rdkit.Chem import BRICS
from rdkit.Chem.MolStandardize import rdMolStandardize
from rdkit.Chem.Scaffolds import MurckoScaffold

ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl")
SIZES = (2, 50)  # least and most atoms, hydrogen included
_MOST_CHARGE = 1  # e, of a molecule, either sign
_UNSEEN = 20  # each such scaffold is never learned

# Of `ase_segnn.training.data.sources.PUBLIC_FILES`.
PUBLIC_LISTS = ("organic/muv.csv.gz", "organic/tox21.csv.gz", "organic/delaney-processed.csv")

# What lists of drugs lack: the smallest molecules and ions, amino acids, bases.
_SMALL = Path(__file__).with_name("small.smi")

# atoms that lose a proton, atoms that take one
_ACIDS = ("[OX2H1;$(OC=O),$(OP=O),$(OS(=O)=O),$(Oc)]", "[SX2H1]")
_BASES = ("[NX3;!$(N-[C,S,P]=[O,S,N]);!$(N-c);!$(N-[!#6;!#1])]", "[nX2]", "[NX2;$(N=C-N)]")


@dataclass(frozen=True)
class Molecule:
    """A molecule or ion.

    Parameters
    ----------
    smiles : canonical
    charge : e
    elements : symbols, sorted
    n_atoms : hydrogen included
    scaffold : SMILES of rings and what links them (Murcko), of an acyclic molecule itself
    """

    smiles: str
    charge: int
    elements: tuple[str, ...]
    n_atoms: int
    scaffold: str

    @property
    def is_unseen(self) -> bool:
        """Whether the molecule is never learned: one in twenty scaffolds, by a checksum."""
        return int(hashlib.sha256(self.scaffold.encode()).hexdigest(), 16) % _UNSEEN == 0


def molecule_of(smiles: str) -> Molecule | None:
    """Read a molecule; None if it is none of these elements, sizes and charges, a radical, or in several pieces."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None or "." in smiles:
        return None
    whole = Chem.AddHs(mol)
    elements = tuple(sorted({atom.GetSymbol() for atom in whole.GetAtoms()}))
    charge = Chem.GetFormalCharge(mol)
    fits = set(elements) <= set(ELEMENTS) and SIZES[0] <= whole.GetNumAtoms() <= SIZES[1]
    is_radical = any(atom.GetNumRadicalElectrons() for atom in whole.GetAtoms())
    is_isotope = any(atom.GetIsotope() for atom in whole.GetAtoms())
    if not fits or is_radical or is_isotope or abs(charge) > _MOST_CHARGE:
        return None
    canonical = Chem.MolToSmiles(mol)
    neutral = rdMolStandardize.Uncharger().uncharge(mol)  # so that ions are where their molecules are
    scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=neutral) or Chem.MolToSmiles(neutral, isomericSmiles=False)
    return Molecule(canonical, charge, elements, whole.GetNumAtoms(), scaffold)


def known_molecules(lists: Sequence[Path], seed: int, most: int) -> list[Molecule]:
    """Return the small molecules of this module, and random ones of lists, their fragments and ions.

    Parameters
    ----------
    lists : CSV files, also compressed by gzip, with a column "smiles"
    seed : of the choice
    most : molecules of each list, before fragments and ions

    Raises
    ------
    OSError, ValueError
        If a list cannot be read.
    """
    RDLogger.DisableLog("rdApp.*")
    random = np.random.default_rng(seed)
    found = dict.fromkeys(_SMALL.read_text(encoding="utf-8").split())
    for path in lists:
        listed = _read(path)
        for index in random.permutation(len(listed))[:most].tolist():
            for piece in _pieces(listed[index]):
                found[piece] = None
                found |= dict.fromkeys(_ions(piece))
    molecules = (molecule_of(smiles) for smiles in found)
    return list({molecule.smiles: molecule for molecule in molecules if molecule is not None}.values())


class Pool:
    """Molecules to draw from, so that rare elements and charges are frequent.

    Parameters
    ----------
    molecules : at least one
    """

    def __init__(self, molecules: Sequence[Molecule]) -> None:
        self.molecules = molecules
        kinds = [(*molecule.elements, f"charge {molecule.charge}") for molecule in molecules]
        counts = Counter(kind for each in kinds for kind in each)
        weights = np.array([sum(counts[kind] ** -0.5 for kind in each) for each in kinds])
        self._weights = weights / weights.sum()

    def draw(self, random: np.random.Generator) -> Molecule:
        """Draw a molecule."""
        return self.molecules[int(random.choice(len(self.molecules), p=self._weights))]


def _read(path: Path) -> list[str]:
    text = path.read_bytes()
    text = gzip.decompress(text) if path.suffix == ".gz" else text
    rows = list(csv.DictReader(text.decode().splitlines()))
    if not rows or "smiles" not in rows[0]:
        raise ValueError(f"'{path}' has no column 'smiles'")
    return [row["smiles"].strip() for row in rows]


def _pieces(smiles: str) -> Iterable[str]:
    """Yield the largest piece of a salt, and both sides of each bond that BRICS cuts, with hydrogen in its place."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return
    mol = max(Chem.GetMolFrags(mol, asMols=True), key=lambda piece: piece.GetNumAtoms())
    yield Chem.MolToSmiles(mol)
    if mol.GetNumHeavyAtoms() > SIZES[1]:
        return
    cut = [BRICS.BreakBRICSBonds(mol, [bond]) for bond in BRICS.FindBRICSBonds(mol)]
    for fragment in (fragment for each in cut for fragment in Chem.GetMolFrags(each, asMols=True)):
        capped = Chem.RWMol(fragment)
        for atom in capped.GetAtoms():
            if atom.GetAtomicNum() == 0:
                atom.SetAtomicNum(1)
                atom.SetIsotope(0)
        yield Chem.MolToSmiles(Chem.RemoveHs(capped))


def _ions(smiles: str) -> Iterable[str]:
    """Yield the molecule without a proton of an acid, and with one more at a base."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None or Chem.GetFormalCharge(mol) != 0:
        return
    for patterns, step in ((_ACIDS, -1), (_BASES, 1)):
        matches = [match[0] for pattern in patterns for match in mol.GetSubstructMatches(Chem.MolFromSmarts(pattern))]
        if matches:
            changed = Chem.RWMol(mol)
            atom = changed.GetAtomWithIdx(matches[0])
            atom.SetNumExplicitHs(atom.GetTotalNumHs() + step)
            atom.SetNoImplicit(True)
            atom.SetFormalCharge(step)
            try:
                Chem.SanitizeMol(changed)
            except Chem.MolSanitizeException:
                continue
            yield Chem.MolToSmiles(changed)
