"""Glyphs: what is drawn turns with the structure, by numbers, and the figures hold what they should."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from random_potentials import CONFIGS, random_potential
from rotations import ROTATIONS, orthogonal_matrix, randn, transform
from systems import systems
from torch import Tensor

from ase_segnn._e3nn import o3
from ase_segnn.glyphs import (
    NodeVectors,
    SteerableVectors,
    glyph_figure,
    node_vectors,
    plot_glyphs,
    plot_molecule,
    tilted_view,
)
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import load_potential
from ase_segnn.potentials import path_of

ROOT = Path(__file__).resolve().parents[1]
NATURAL = o3.Irreps("2x0e+3x1o+1x2e+2x3o")


@pytest.fixture(scope="module")
def acac() -> Potential:
    potential = load_potential(path_of("acac-pbe-fast"))
    assert isinstance(potential, Potential)
    return potential.double()


def molecule() -> Atoms:
    return ase.io.read(ROOT / "tests" / "data" / "acetylacetone.xyz")


def turned(atoms: Atoms, matrix: Tensor) -> Atoms:
    copy = atoms.copy()
    copy.positions = atoms.positions @ matrix.numpy().T + [3.0, -1.0, 0.5]
    copy.cell = atoms.cell.array @ matrix.numpy().T
    return copy


def all_vectors(found: NodeVectors) -> list[SteerableVectors]:
    return [found.attributes, *found.features, *found.sums]


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def assert_equivariant(potential: Potential, atoms: Atoms, kind: str) -> None:
    matrix = orthogonal_matrix(kind)
    before, after = (all_vectors(node_vectors(potential, x)) for x in (atoms, turned(atoms, matrix)))
    assert len(before) == 2 + 2 * potential.config.network.n_layers
    for old, new in zip(before, after, strict=True):
        assert old.values.shape == (len(atoms), old.irreps.dim)
        if old.irreps.lmax:  # the last entry turns
            assert old.values[:, -3:].abs().max() > 1e-3
            assert (new.values - old.values).abs().max() > 1e-3
        torch.testing.assert_close(new.values, transform(old.values, old.irreps, matrix), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_vectors_of_the_shipped_potential_turn_with_the_molecule(acac, kind):
    assert_equivariant(acac, molecule(), kind)


@pytest.mark.parametrize("name", ["water", "skewed triclinic"])
@pytest.mark.parametrize("kind", ROTATIONS)
def test_vectors_of_all_parities_turn_with_the_structure(name, kind):
    assert_equivariant(random_potential(CONFIGS["mixed parity"]).double(), systems()[name], kind)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_functions_turn_with_their_vectors(kind):
    matrix, directions = orthogonal_matrix(kind), unit(randn(40, 3, seed=1))
    h = SteerableVectors(randn(5, NATURAL.dim), NATURAL)
    rotated = SteerableVectors(transform(h.values, NATURAL, matrix), NATURAL)
    expected = h.on_sphere(directions)
    assert (h.on_sphere(directions @ matrix.T) - expected).abs().max() > 0.1
    torch.testing.assert_close(rotated.on_sphere(directions @ matrix.T), expected, rtol=1e-9, atol=1e-9)


def test_the_function_is_a_sum_over_spherical_harmonics():
    directions = unit(randn(6, 3))
    h = SteerableVectors(randn(4, NATURAL.dim), NATURAL)
    expected = sum(
        h.values[:, k : k + ir.dim] @ o3.spherical_harmonics(ir.l, directions, True, "component").T
        for s, (mul, ir) in zip(NATURAL.slices(), NATURAL, strict=True)
        for k in range(s.start, s.stop, ir.dim)
    )
    torch.testing.assert_close(h.on_sphere(directions), expected)
    scalar = SteerableVectors(torch.tensor([[2.0], [-3.0]]), o3.Irreps("1x0e"))
    torch.testing.assert_close(scalar.on_sphere(directions)[:, 0], torch.tensor([2.0, -3.0], dtype=torch.float64))


def test_channels_and_degrees_are_parts():
    h = SteerableVectors(randn(3, NATURAL.dim), NATURAL)
    second = h.channel(1)
    assert second.irreps == o3.Irreps("1x0e+1x1o+1x3o")
    assert torch.equal(second.values, h.values[:, [1, 5, 6, 7, 23, 24, 25, 26, 27, 28, 29]])
    channels = sum(h.channel(k).on_sphere(unit(randn(7, 3))) for k in range(3))
    degrees = sum(h.degree(degree).on_sphere(unit(randn(7, 3))) for degree in range(4))
    torch.testing.assert_close(channels, h.on_sphere(unit(randn(7, 3))))
    torch.testing.assert_close(degrees, channels)
    assert (h.degree(2).values != 0).any(0).nonzero()[:, 0].tolist() == list(range(11, 16))


def test_errors_say_what_is_wrong():
    h = SteerableVectors(randn(3, 7), o3.Irreps("1x0e+1x1o+1x1e"))
    with pytest.raises(ValueError, match=r"irreps 0e, 1o, 2e, 3o, \.\.\., got also 1e"):
        h.on_sphere(unit(randn(2, 3)))
    for index in (1, -1):
        with pytest.raises(ValueError, match=rf"no entry of 1x0e\+1x1o\+1x1e has a channel {index}"):
            h.channel(index)
    with pytest.raises(ValueError, match="got 3 for 15 atoms"):
        plot_molecule(Figure().subplots(), molecule(), h)


def test_an_unknown_element_is_an_error(acac):
    with pytest.raises(IndexError):
        node_vectors(acac, Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]))
    assert not acac.network._forward_pre_hooks


def test_recording_changes_nothing(acac):
    atoms = molecule()
    first, second = (all_vectors(node_vectors(acac, atoms)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.values, b.values)
    network = acac.network
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert (first[0].values[:, 0] == 1).all()  # the fixed scalar
    assert not any(x.values.requires_grad for x in first)


def outline(vectors: SteerableVectors, view: np.ndarray, size: float | None = None) -> np.ndarray:
    """Farthest point in the picture of the first vector's glyph, (2,)."""
    axes = Figure().subplots()
    collection = plot_glyphs(axes, vectors, np.zeros((1, 3)), size=size, view=view, resolution=16)
    points = np.concatenate([path.vertices for path in collection.get_paths()])
    return points[np.linalg.norm(points, axis=1).argmax()]


def test_a_glyph_points_where_its_function_is_large():
    """A vector in l = 1 is drawn along itself, twice as long where `size` is twice as large."""
    irreps, front = o3.Irreps("1x0e+1x1o"), np.eye(3)
    values = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    h = SteerableVectors(values, irreps)
    np.testing.assert_allclose(outline(h, front, size=0.5), [0.5 * (1 + 3**0.5), 0], atol=1e-12)
    np.testing.assert_allclose(outline(h, front, size=1.0), [1 + 3**0.5, 0], atol=1e-12)
    np.testing.assert_allclose(outline(h, front), [0.62, 0], atol=1e-12)
    quarter_turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(outline(h, quarter_turn), [0, 0.62], atol=1e-12)


def test_a_lone_atom_is_a_sphere():
    atoms, potential = systems()["lone atom"], random_potential(CONFIGS["with ZBL"])
    attributes = node_vectors(potential, atoms).attributes
    assert attributes.values.tolist() == [[1, 0, 0, 0]]
    axes = Figure().subplots()
    drawn = plot_molecule(axes, atoms, attributes, size=0.4)
    points = np.concatenate([path.vertices for path in drawn.get_paths()])
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(0.4, rel=0.01)


def test_views_are_rotations():
    view = tilted_view(-30, 40)
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view) > 0
    np.testing.assert_allclose(tilted_view(0, 0), np.eye(3), atol=1e-12)


def test_a_figure_has_a_titled_panel_for_each_structure(acac, tmp_path):
    structures = {"original": molecule(), "rotated": turned(molecule(), orthogonal_matrix("rotation"))}
    found = {name: node_vectors(acac, atoms) for name, atoms in structures.items()}
    panels = {
        "features": {name: (atoms, found[name].features[1].channel(2)) for name, atoms in structures.items()},
        "sums": {name: (atoms, found[name].sums[-1].channel(2)) for name, atoms in structures.items()},
    }
    figure = glyph_figure(panels, "Acetylacetone", resolution=4)
    assert [text.get_text() for text in figure.texts] == ["Acetylacetone"]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{row}, {column}" for row in panels for column in structures]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["f > 0", "f < 0"]
    alone = Figure().subplots()
    plot_molecule(alone, *panels["sums"]["rotated"], resolution=4)
    for axes in (*figure.axes, alone):
        [drawn] = axes.collections
        assert isinstance(drawn, PolyCollection)
        assert axes.get_aspect() == 1
        points = np.concatenate([path.vertices for path in drawn.get_paths()])
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert ((points > [left, bottom]) & (points < [right, top])).all()
        blue, red = drawn.get_facecolors()[:, 2], drawn.get_facecolors()[:, 0]
        assert (blue > red + 0.1).any()
        assert (red > blue + 0.1).any()
    figure.savefig(tmp_path / "glyphs.png", dpi=20)
    assert (tmp_path / "glyphs.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_pictures_of_the_documentation(tmp_path, monkeypatch):
    """The script draws all that the page shows, in small files, and the page's own code runs."""
    page = (ROOT / "docs" / "segnn.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\((glyphs-[a-z]+\.png)\)", page))
    runpy.run_path(str(ROOT / "docs" / "glyphs.py"))["main"](tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == shown
    assert all(path.stat().st_size < 200_000 for path in tmp_path.iterdir())
    monkeypatch.chdir(ROOT)
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    [name] = re.findall(r'"([a-z]+\.png)"', code)
    exec(code.replace(name, str(tmp_path / name)), {})
    assert (tmp_path / name).is_file()
