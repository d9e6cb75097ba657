"""Structures of molecules and complexes: conformers, turned torsions, stretched bonds, moved protons, contacts."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.spatial.transform import Rotation

from ase_segnn.smiles import atoms_of, conformer

from .molecules import SIZES, Molecule

_STEPS = 200  # of MMFF or UFF, few so that not all conformers are the same
_STRETCH = (0.85, 1.6)  # of a bond's length
_CONTACT, _BEYOND = (0.65, 1.2), (1.2, 2.0)  # of the sum of van der Waals radii, nearest pair of two molecules
_IN_CONTACT = 0.8  # share
_VDW = {"H": 1.10, "C": 1.70, "N": 1.55, "O": 1.52, "F": 1.47, "P": 1.80, "S": 1.80, "Cl": 1.75}  # Å, Bondi; Rowland
_ACCEPTORS = ("N", "O", "F", "S", "Cl")
_TORSION = Chem.MolFromSmarts("[!$(*#*)&!D1]-,=;!@[!$(*#*)&!D1]")
_WAYS, _CHANCES = ("conformer", "torsion", "stretch", "proton"), (0.5, 0.2, 0.2, 0.1)


def structure_of(molecule: Molecule, random: np.random.Generator) -> Atoms | None:
    """Return a conformer of a molecule, or one with a torsion turned, a bond stretched or a proton moved.

    In ``info``: "smiles", "charge" (e) and "kind". None where RDKit finds no conformer.
    """
    mol = conformer(molecule.smiles, int(random.integers(2**31)), _STEPS)
    if mol is None:
        return None
    kind = str(random.choice(_WAYS, p=_CHANCES))
    if kind == "torsion":
        kind = kind if _turn(mol, random) else "conformer"
    elif kind == "stretch":
        kind = kind if _stretch(mol, random) else "conformer"
    atoms = atoms_of(mol, molecule.smiles)
    if kind == "proton" and not _move_proton(atoms, random):
        kind = "conformer"
    atoms.info["kind"] = kind
    return atoms


def complex_of(molecules: list[Molecule], random: np.random.Generator) -> Atoms | None:
    """Return molecules in contact, one put beside those before; None where they are too many atoms, or no conformer."""
    whole: Atoms | None = None
    for molecule in molecules:
        mol = conformer(molecule.smiles, int(random.integers(2**31)), _STEPS)
        if mol is None:
            return None
        atoms = atoms_of(mol, molecule.smiles)
        if whole is None:
            whole = atoms
            continue
        charge, smiles = whole.info["charge"] + molecule.charge, f"{whole.info['smiles']}.{molecule.smiles}"
        whole += _beside(whole, atoms, random)
        whole.info = {"smiles": smiles, "charge": charge}
    if whole is None or len(whole) > SIZES[1]:
        return None
    kind = "complex"
    if random.random() < _CHANCES[3] and _move_proton(whole, random):
        kind = "proton"
    whole.info["kind"] = kind
    return whole


def _turn(mol: Chem.Mol, random: np.random.Generator) -> bool:
    """Set the torsion of a bond that is in no ring to a random angle, if there is one."""
    bonds = mol.GetSubstructMatches(_TORSION)
    if not bonds:
        return False
    j, k = bonds[random.integers(len(bonds))]
    i, m = (_neighbor(mol, atom, other) for atom, other in ((j, k), (k, j)))
    AllChem.SetDihedralDeg(mol.GetConformer(), i, j, k, m, float(random.uniform(-180, 180)))
    return _is_sane(mol.GetConformer().GetPositions(), mol)


def _stretch(mol: Chem.Mol, random: np.random.Generator) -> bool:
    """Change the length of a bond that is in no ring, if there is one."""
    bonds = [bond for bond in mol.GetBonds() if not bond.IsInRing()]
    if not bonds:
        return False
    bond = bonds[random.integers(len(bonds))]
    ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    place = mol.GetConformer()
    length = AllChem.GetBondLength(place, *ends)
    AllChem.SetBondLength(place, *ends, float(length * random.uniform(*_STRETCH)))
    return True


def _neighbor(mol: Chem.Mol, atom: int, other: int) -> int:
    return next(int(each.GetIdx()) for each in mol.GetAtomWithIdx(atom).GetNeighbors() if each.GetIdx() != other)


def _is_sane(positions: NDArray[np.float64], mol: Chem.Mol) -> bool:
    """Whether no two atoms that are not bonded came nearer than 0.6 of their van der Waals radii."""
    radii = np.array([_VDW[atom.GetSymbol()] for atom in mol.GetAtoms()])
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    near = Chem.GetDistanceMatrix(mol) <= 2  # bonds and angles
    return bool((near | (distances > 0.6 * (radii[:, None] + radii))).all())


def _move_proton(atoms: Atoms, random: np.random.Generator) -> bool:
    """Put a hydrogen of N, O or S somewhere between its atom and another one nearby, if there is one."""
    first, second, distances = neighbor_list("ijd", atoms, 3.2)
    symbols = np.array(atoms.get_chemical_symbols())
    bonds = {int(h): int(d) for h, d, x in zip(first, second, distances, strict=True) if symbols[h] == "H" and x < 1.45}
    ways = [
        (h, bonds[h], int(acceptor), float(x))
        for h, acceptor, x in zip(first.tolist(), second.tolist(), distances, strict=True)
        if h in bonds and symbols[bonds[h]] in ("N", "O", "S") and symbols[acceptor] in _ACCEPTORS
        if acceptor != bonds[h] and x < 2.6
    ]
    if not ways:
        return False
    h, donor, acceptor, _ = ways[random.integers(len(ways))]
    start, end = atoms.positions[donor], atoms.positions[acceptor]
    length = np.linalg.norm(end - start)
    nearest = 0.9 / length
    if nearest > 0.5:
        return False
    atoms.positions[h] = start + random.uniform(nearest, 1 - nearest) * (end - start)
    return True


def _beside(atoms: Atoms, other: Atoms, random: np.random.Generator) -> Atoms:
    """Turn a molecule at random, and move it from a random direction towards another until the nearest pair touches."""
    turned = Rotation.random(random_state=random).apply(other.positions - other.positions.mean(axis=0))
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    factor = random.uniform(*(_CONTACT if random.random() < _IN_CONTACT else _BEYOND))
    radii = [np.array([_VDW[symbol] for symbol in each.symbols]) for each in (atoms, other)]
    reach = factor * (radii[0][:, None] + radii[1])
    start = atoms.positions[random.integers(len(atoms))]
    # |start + t·direction + turned_j - x_i| = reach_ij: the largest t of all pairs is where they touch first
    apart = start + turned[None] - atoms.positions[:, None]
    along = apart @ direction
    root = along**2 - (apart**2).sum(axis=2) + reach**2
    t = float(np.max(-along + np.sqrt(np.maximum(root, 0.0)), where=root > 0, initial=0.0))
    moved: Atoms = other.copy()
    moved.positions = start + t * direction + turned
    return moved
