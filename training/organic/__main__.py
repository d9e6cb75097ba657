"""Write structures of organic molecules to learn from, and others that are never learned.

``python -m ase_segnn.training.organic FOLDER --number 6000`` writes ``learned.xyz`` for `ase-segnn learn`, and
``unseen.xyz`` with molecules of scaffolds that it does not have. Needs the extra ``organic``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ase_segnn.files import written_whole

from ..data.sources import locate
from .molecules import PUBLIC_LISTS, Molecule, Pool, known_molecules, molecule_of
from .structures import complex_of, structure_of

_ALONE = 0.65  # share of the structures that are one molecule; others are complexes
_WATER = "O"
_SMALL = 16  # atoms, of most partners in a complex
_MOST_PARTNERS = 8


def main() -> None:
    """Draw molecules, build structures, write files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=6000, help="structures to learn from")
    parser.add_argument("--unseen", type=int, default=400, help="structures that are never learned")
    parser.add_argument("--lists", type=Path, nargs="+", help='CSV files with a column "smiles"; default: public lists')
    parser.add_argument("--data-folder", type=Path, help="first place to look for the public lists")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {"learned": arguments.number, "unseen": arguments.unseen}
    for name in outputs:
        if (folder / f"{name}.xyz").exists():
            parser.error(f"'{folder / name}.xyz' exists; choose another folder")
    lists = arguments.lists or [locate(name, arguments.data_folder) for name in PUBLIC_LISTS]
    molecules = known_molecules(lists, arguments.seed, 2 * arguments.number)
    for name, number in outputs.items():
        of_use = [molecule for molecule in molecules if molecule.is_unseen == (name == "unseen")]
        random = np.random.default_rng([arguments.seed, len(name)])
        structures = list(_structures(of_use, number, random))
        with written_whole(folder / f"{name}.xyz") as path:
            ase.io.write(path, structures, format="extxyz")
        kinds = ", ".join(
            f"{n} x {kind}" for kind, n in Counter(each.info["kind"] for each in structures).most_common()
        )
        size = np.mean([len(atoms) for atoms in structures])
        print(f"{name}: {len(structures)} structures of {len(of_use)} molecules, {size:.1f} atoms on average; {kinds}")


def _structures(molecules: list[Molecule], number: int, random: np.random.Generator) -> Iterator[Atoms]:
    water = molecule_of(_WATER)
    assert water is not None
    pool, small = Pool(molecules), Pool([molecule for molecule in molecules if molecule.n_atoms <= _SMALL])
    made = 0
    while made < number:
        if random.random() < _ALONE:
            atoms = structure_of(pool.draw(random), random)
        else:
            atoms = complex_of(_partners(pool, small, water, random), random)
        if atoms is not None:
            made += 1
            yield atoms


def _partners(pool: Pool, small: Pool, water: Molecule, random: np.random.Generator) -> list[Molecule]:
    """Draw the molecules of a complex: water alone, a molecule in water, or two small molecules."""
    way = random.random()
    if way < 0.1:
        return [water] * int(random.integers(2, _MOST_PARTNERS + 1))
    if way < 0.35:
        first = (small if random.random() < 0.7 else pool).draw(random)
        return [first] + [water] * int(random.integers(1, _MOST_PARTNERS))
    return [small.draw(random), small.draw(random)]


if __name__ == "__main__":
    main()
