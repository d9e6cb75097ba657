"""Draw the pictures of `segnn.md` from a trained potential: `python docs/glyphs.py`."""

from pathlib import Path

import ase.io

from ase_segnn import Potential, load_potential
from ase_segnn.glyphs import SteerableVectors, glyph_figure, node_vectors
from ase_segnn.plots import save_figure
from ase_segnn.potentials import path_of

ROOT = Path(__file__).resolve().parents[1]
CHANNEL = 19
STAGES = {"after the embedding": 0, "after round 1": 1, "after round 2, the last": 2}


def main(folder: Path = ROOT / "docs") -> None:
    """Write three files."""
    potential = load_potential(path_of("acac-pbe-fast"))
    assert isinstance(potential, Potential)
    potential.double()
    molecule = ase.io.read(ROOT / "tests/data/acetylacetone.xyz")
    turned = molecule.copy()
    turned.rotate(80, (1, 0.2, 0.5))
    structures = {"original": molecule, "rotated by 80°": turned}
    vectors = {name: node_vectors(potential, atoms) for name, atoms in structures.items()}

    neighborhood = [5, 1, 14]  # the oxygen atom of the hydroxyl group and those bonded to it
    rows = {}
    for name, atoms in structures.items():
        values = vectors[name].attributes.values[neighborhood].clone()
        values[1:] = 0
        attribute = SteerableVectors(values, vectors[name].attributes.irreps)
        by_degree = {f"l = {degree}": attribute.degree(degree) for degree in range(3)} | {"sum": attribute}
        rows[name] = {column: (atoms[neighborhood], part) for column, part in by_degree.items()}
    figure = glyph_figure(rows, "Attribute of the oxygen atom of the hydroxyl group, degree by degree", size=0.3)
    save_figure(figure, folder / "glyphs-degrees.png")

    row = {name: (atoms, vectors[name].attributes) for name, atoms in structures.items()}
    figure = glyph_figure({"": row}, "Attributes of the atoms of acetylacetone, l = 0 to 2")
    save_figure(figure, folder / "glyphs-attributes.png")

    rows = {
        stage: {name: (atoms, vectors[name].features[k].channel(CHANNEL)) for name, atoms in structures.items()}
        for stage, k in STAGES.items()
    }
    figure = glyph_figure(rows, f"Features inside acac-pbe-fast: channel {CHANNEL}, l = 0 and l = 1")
    save_figure(figure, folder / "glyphs-features.png")


if __name__ == "__main__":
    main()
