"""Write the frames of `acac-pbe-fast.yaml` for `nequip_s_acac.yaml`: ``python benchmarks/nequip_frames.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io

from ase_segnn.training import load_recipe
from ase_segnn.training.data import read_frames, split
from ase_segnn.training.sources import locate

RECIPE = Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml"


def main() -> None:
    """Write four files into the folder given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(RECIPE)
    frames = read_frames(locate(recipe.data.train))
    training, validation = split(frames, recipe.data.validation, recipe.seed)
    ase.io.write(folder / "train.xyz", training)
    ase.io.write(folder / "validation.xyz", validation)
    for file in recipe.data.test.values():
        ase.io.write(folder / Path(file).name, read_frames(locate(file)))


if __name__ == "__main__":
    main()
