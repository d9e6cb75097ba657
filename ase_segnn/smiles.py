"""Molecules from SMILES, by RDKit. Needs the extra ``smiles``."""

from __future__ import annotations

from typing import Any

from ase import Atoms

_N_CONFORMERS = 10
_ATTEMPTS = 30  # of RDKit, for a conformer
_STEPS = 500  # of MMFF or UFF


def from_smiles(smiles: str, seed: int = 0) -> Atoms:
    """Return a molecule in that conformer of ten that has the lowest energy by the force field MMFF94, or by UFF.

    Use `from_smiles` for a molecule of which there is no file; relax it with a potential.

    Parameters
    ----------
    smiles : of one molecule or ion, such as ``"CC(=O)O"``; hydrogen atoms are added
    seed : of the conformers

    Returns
    -------
    structure without a cell, Å; in ``info`` "smiles" and "charge" (e)

    Raises
    ------
    ImportError
        If RDKit is missing.
    ValueError
        If the SMILES is none, is of several molecules, or no conformer is found.

    Examples
    --------
    >>> from_smiles("CC(=O)[O-]").info["charge"]
    -1
    """
    chem = _rdkit()
    with chem.rdBase.BlockLogs():
        mol = chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        raise ValueError(f"'{smiles}' is no SMILES; it is such as CCO for ethanol, or c1ccccc1 for benzene")
    if len(chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"'{smiles}' has several molecules; build them one by one and add them up: a + b")
    conformers = [conformer(smiles, seed + number, _STEPS) for number in range(_N_CONFORMERS)]
    found = [each for each in conformers if each is not None]
    if not found:
        raise ValueError(f"RDKit finds no structure for '{smiles}'; give a file of the structure")
    return atoms_of(min(found, key=_energy), smiles)


def conformer(smiles: str, seed: int, steps: int) -> Any:
    """Return a molecule of RDKit with a random conformer, relaxed by a force field; None where RDKit finds none.

    Parameters
    ----------
    smiles : readable by RDKit
    seed : of the conformer
    steps : most steps of the relaxation
    """
    chem = _rdkit()
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles(smiles))
    settings = AllChem.ETKDGv3()
    settings.randomSeed, settings.maxIterations = seed, _ATTEMPTS
    with chem.rdBase.BlockLogs():
        if AllChem.EmbedMolecule(mol, settings) != 0:
            return None
        if AllChem.MMFFHasAllMoleculeParams(mol):
            AllChem.MMFFOptimizeMolecule(mol, maxIters=steps)
        elif AllChem.UFFHasAllMoleculeParams(mol):
            AllChem.UFFOptimizeMolecule(mol, maxIters=steps)
    return mol


def atoms_of(mol: Any, smiles: str) -> Atoms:
    """Return the atoms of a molecule of RDKit with a conformer, with "smiles" and "charge" in ``info``."""
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    told = "[H]F" if smiles == "F" else smiles  # readers of extended xyz take F for false
    info = {"smiles": told, "charge": int(_rdkit().GetFormalCharge(mol))}
    return Atoms(symbols, mol.GetConformer().GetPositions(), info=info)


def _energy(mol: Any) -> float:
    """Energy of a conformer by the force field that relaxed it, kcal/mol; 0 if none did."""
    from rdkit.Chem import AllChem

    if AllChem.MMFFHasAllMoleculeParams(mol):
        field = AllChem.MMFFGetMoleculeForceField(mol, AllChem.MMFFGetMoleculeProperties(mol))
    elif AllChem.UFFHasAllMoleculeParams(mol):
        field = AllChem.UFFGetMoleculeForceField(mol)
    else:
        return 0.0
    return float(field.CalcEnergy())


def _rdkit() -> Any:
    """RDKit's module of molecules."""
    try:
        from rdkit import Chem
    except ModuleNotFoundError as error:
        raise ImportError(
            f'a molecule from SMILES needs RDKit: pip install "ase-segnn[smiles]" (missing: {error.name})'
        ) from error
    return Chem
