"""Draw the pictures of `segnn.md`, from a trained potential: `python docs/glyphs.py`, in the folder of the repository."""

from pathlib import Path

import ase.io

from ase_segnn import Potential, load_potential
from ase_segnn.glyphs import SteerableVectors, glyph_figure, node_vectors
from ase_segnn.plots import save_figure
from ase_segnn.potentials import path_of

ROOT = Path(__file__).resolve().parents[1]
CHANNEL = 5
STAGES = ("after the embedding", "after round 1", "after round 2", "after round 3")


def main(folder: Path = ROOT / "docs") -> None:
    """Write three files."""
    potential = load_potential(path_of("acac-pbe"))
    assert isinstance(potential, Potential)
    potential.double()
    molecule = ase.io.read(ROOT / "tests/data/acetylacetone.xyz")
    turned = molecule.copy()
    turned.rotate(65, (0.3, -0.5, 1))
    structures = {"original": molecule, "rotated by 65°": turned}
    vectors = {name: node_vectors(potential, atoms) for name, atoms in structures.items()}

    neighborhood = [2, 1, 3, 10]  # a carbon atom and those bonded to it
    rows = {}
    for name, atoms in structures.items():
        values = vectors[name].attributes.values[neighborhood].clone()
        values[1:] = 0
        attribute = SteerableVectors(values, vectors[name].attributes.irreps)
        by_degree = {f"l = {degree}": attribute.degree(degree) for degree in range(3)} | {"sum": attribute}
        rows[name] = {column: (atoms[neighborhood], part) for column, part in by_degree.items()}
    figure = glyph_figure(rows, "The attribute of one carbon atom, degree by degree", size=0.42)
    save_figure(figure, folder / "glyphs-degrees.png")

    row = {name: (atoms, vectors[name].attributes) for name, atoms in structures.items()}
    figure = glyph_figure({"": row}, "Attributes of all atoms of acetylacetone: what steers")
    save_figure(figure, folder / "glyphs-attributes.png")

    rows = {
        stage: {name: (atoms, vectors[name].features[k].channel(CHANNEL)) for name, atoms in structures.items()}
        for k, stage in enumerate(STAGES)
    }
    figure = glyph_figure(rows, f"Features in acac-pbe: channel {CHANNEL}, l = 0 and l = 1, of the {64} at each atom")
    save_figure(figure, folder / "glyphs-features.png")


if __name__ == "__main__":
    main()
