"""Write the frames of `acac-pbe-fast.yaml` for `nequip_s_acac.yaml`: ``python benchmarks/nequip_frames.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io

from ase_segnn.training import load_recipe
from ase_segnn.training.data import TrainingData

RECIPE = Path(__file__).parents[1] / "potentials" / "acac-pbe-fast.yaml"


def main() -> None:
    """Write training, validation and test frames into the folder given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(RECIPE)
    data = TrainingData.read(recipe.data, recipe.network.cutoff, recipe.seed)
    names = {name: Path(file).stem for name, [file] in recipe.data.test.items()}
    for name, subset in {"train": data.training, **data.sets}.items():
        frames = [frame.labeled_atoms() for frame in subset.frames()]
        ase.io.write(folder / f"{names.get(name, name)}.xyz", frames)


if __name__ == "__main__":
    main()
