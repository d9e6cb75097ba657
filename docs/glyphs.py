"""Draw the pictures of `segnn.md`: `python docs/glyphs.py`."""

from pathlib import Path

import ase.io

from ase_segnn import NetworkConfig, Potential, PotentialConfig, load_potential
from ase_segnn.glyphs import SteerableVectors, glyph_figure, node_vectors
from ase_segnn.plots import save_figure
from ase_segnn.potentials import path_of

ROOT = Path(__file__).resolve().parents[1]
CHANNEL = 3


def main(folder: Path = ROOT / "docs") -> None:
    """Write three files."""
    molecule = ase.io.read(ROOT / "tests/data/acetylacetone.xyz")
    turned = molecule.copy()
    turned.rotate(80, (1, 0.2, 0.5))
    structures = {"original": molecule, "rotated by 80°": turned}

    # attributes depend on no weight, so that the potential need not be trained
    config = PotentialConfig(
        elements=("H", "C", "O"),
        reference_energies=dict.fromkeys(("H", "C", "O"), 0.0),
        network=NetworkConfig(irreps_hidden="8x0e+8x1o", correlation=1, l_max_attributes=2),
    )
    potential = Potential(config).double()
    attributes = {name: node_vectors(potential, atoms).attributes for name, atoms in structures.items()}

    neighborhood = [5, 1, 14]  # the oxygen atom of the hydroxyl group and those bonded to it
    rows = {}
    for name, atoms in structures.items():
        values = attributes[name].values[neighborhood].clone()
        values[1:] = 0
        attribute = SteerableVectors(values, attributes[name].irreps)
        by_degree = {f"l = {degree}": attribute.degree(degree) for degree in range(3)} | {"sum": attribute}
        rows[name] = {column: (atoms[neighborhood], part) for column, part in by_degree.items()}
    figure = glyph_figure(rows, "Attribute of the oxygen atom of the hydroxyl group, degree by degree", size=0.3)
    save_figure(figure, folder / "glyphs-degrees.png")

    row = {name: (atoms, attributes[name]) for name, atoms in structures.items()}
    figure = glyph_figure({"": row}, "Attributes of the atoms of acetylacetone, l = 0 to 2")
    save_figure(figure, folder / "glyphs-attributes.png")

    trained = load_potential(path_of("acac-pbe-fast"))
    assert isinstance(trained, Potential)
    stages: dict[str, dict[str, SteerableVectors]] = {}
    for name, atoms in structures.items():
        vectors = node_vectors(trained, atoms)
        stages.setdefault("messages of round 1", {})[name] = vectors.sums[0]
        stages.setdefault("features after it", {})[name] = vectors.features[1]
        stages.setdefault("messages of round 2", {})[name] = vectors.sums[1]
    rows = {
        stage: {name: (atoms, found[name].channel(CHANNEL)) for name, atoms in structures.items()}
        for stage, found in stages.items()
    }
    figure = glyph_figure(rows, f"Channel {CHANNEL} inside acac-pbe-fast, all degrees")
    save_figure(figure, folder / "glyphs-features.png")


if __name__ == "__main__":
    main()
