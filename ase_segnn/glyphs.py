"""Glyphs: pictures of steerable vectors as functions on the sphere, such as a network's features at each atom.

Pictures are drawn from a fixed direction into plain axes of matplotlib. Importing this module does not import
matplotlib; drawing does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_segnn._e3nn import o3
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.angular import SphericalHarmonics
from ase_segnn.model.potential import Potential
from ase_segnn.model.steerable import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

_Floats = NDArray[np.float64]

POSITIVE, NEGATIVE = "#e07b39", "#2f6f9f"  # colors of the sign of a function
_ZERO_COLOR = "#f3efe9"
_LARGEST_RADIUS = 0.62  # Å, less than half a bond between heavy atoms
_ATOM_RADIUS, _BOND_RADIUS = 0.11, 0.045  # Å
_BOND_COLOR = (0.62, 0.62, 0.62)
_BOND_STRETCH = 1.25  # longest bond over the sum of the covalent radii
_LIGHT = np.array([-0.4, 0.6, 0.7]) / np.linalg.norm([-0.4, 0.6, 0.7])  # towards the light, in the picture
_AMBIENT = 0.45
_MARGIN = 0.8  # Å around the atoms of a panel
_FIGURE_WIDTH = 8.4  # inches


@dataclass(frozen=True, eq=False)
class SteerableVectors:
    """Steerable vectors, one per row, all of the same irreps.

    Parameters
    ----------
    values : (n, irreps.dim) in e3nn's flat layout
    irreps : of each vector
    """

    values: Tensor
    irreps: o3.Irreps

    def channel(self, index: int) -> SteerableVectors:
        """Return one channel of each entry of the irreps with so many channels.

        Raises
        ------
        ValueError
            If no entry has the channel.
        """
        entries = list(zip(self.irreps.slices(), self.irreps, strict=True))
        chosen = [(s.start + index * ir.dim, ir) for s, (mul, ir) in entries if 0 <= index < mul]
        if not chosen:
            raise ValueError(f"no entry of {self.irreps} has a channel {index}; channels are counted from 0")
        return SteerableVectors(
            torch.cat([self.values[:, start : start + ir.dim] for start, ir in chosen], dim=1),
            o3.Irreps([(1, ir) for _, ir in chosen]),
        )

    def degree(self, degree: int) -> SteerableVectors:
        """Return the vectors with all other degrees set to zero."""
        kept = [float(ir.l == degree) for mul, ir in self.irreps for _ in range(mul * ir.dim)]
        return SteerableVectors(self.values * self.values.new_tensor(kept), self.irreps)

    def on_sphere(self, directions: Tensor) -> Tensor:
        r"""Return each vector h as a function of the direction.

        .. math:: f_h(\mathbf n) = \sum_l h_l \cdot Y_l(\mathbf n), \quad f_{Rh}(R \mathbf n) = f_h(\mathbf n)

        The function turns with the vector. Channels of one degree are added.

        Parameters
        ----------
        directions : (m, 3) float64, unit vectors

        Returns
        -------
        (n, m) float64

        Raises
        ------
        ValueError
            If an entry has another parity than the spherical harmonics of its degree, such as ``1e``: functions on the
            sphere cannot change in a reflection as such an entry does.
        """
        odd_ones = [str(ir) for _, ir in self.irreps if ir.p != (-1) ** ir.l]
        if odd_ones:
            raise ValueError(
                f"functions on the sphere have the irreps 0e, 1o, 2e, 3o, ..., got also {', '.join(odd_ones)}; "
                "choose entries of the others"
            )
        harmonics = SphericalHarmonics(self.irreps.lmax).double()(directions)  # (m, (l_max + 1)²)
        columns = [k for mul, ir in self.irreps for _ in range(mul) for k in range(ir.l**2, (ir.l + 1) ** 2)]
        values: Tensor = self.values.double() @ harmonics[:, columns].T
        return values


@dataclass(frozen=True, eq=False)
class NodeVectors:
    """What a network has at each of N atoms.

    Parameters
    ----------
    attributes : node attributes, which steer updates and readout
    features : node features after the embedding, then after each round of messages
    sums : sums of the messages of each round
    """

    attributes: SteerableVectors
    features: list[SteerableVectors]
    sums: list[SteerableVectors]


def node_vectors(potential: Potential, atoms: Atoms) -> NodeVectors:
    """Run a potential on a structure and return the attributes, features and sums of messages of its atoms.

    Parameters
    ----------
    potential : on any device and of any dtype, which the vectors share
    atoms : with elements of the potential

    Raises
    ------
    IndexError
        If an element is not among those of the potential.
    """
    network = potential.network
    inputs: list[Tensor] = []
    features: list[Tensor] = []
    sums: list[Tensor] = []
    recorded: dict[nn.Module, list[Tensor]] = dict.fromkeys((network.embedding, *network.rounds), features)
    recorded |= dict.fromkeys((layer.message for layer in network.rounds), sums)
    hooks = [network.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))]
    hooks += [
        module.register_forward_hook(lambda module, _arguments, output: recorded[module].append(flatten(output)))
        for module in recorded
    ]
    try:
        with torch.no_grad():
            potential(AtomicGraph.from_atoms(atoms, potential.cutoff, device=potential.one_hot.device))
    finally:
        for hook in hooks:
            hook.remove()
    _, attributes, *_ = inputs
    kinds = [network.embedding.irreps_out, *(shape.features_out for shape in network.shapes)]
    return NodeVectors(
        SteerableVectors(attributes, o3.Irreps(network.irreps_node_attributes)),
        [SteerableVectors(x, o3.Irreps(irreps)) for x, irreps in zip(features, kinds, strict=True)],
        [SteerableVectors(x, o3.Irreps(shape.messages)) for x, shape in zip(sums, network.shapes, strict=True)],
    )


def tilted_view(about_x: float = -38.0, about_z: float = 12.0) -> _Floats:
    """Return the axes of a picture of a structure turned about z, then about the picture's horizontal.

    Parameters
    ----------
    about_x, about_z : degrees

    Returns
    -------
    (3, 3), rows are the axes to the right, upwards and towards the viewer
    """
    x, z = np.radians([about_x, about_z])
    turn = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    view: _Floats = tilt @ turn
    return view


def plot_glyphs(
    axes: Axes,
    vectors: SteerableVectors,
    centers: _Floats,
    *,
    size: float | None = None,
    view: _Floats | None = None,
    resolution: int = 24,
) -> PolyCollection:
    """Draw each vector as a surface around its center.

    The distance of the surface from the center is the absolute value of the vector's function, the color its sign.

    Parameters
    ----------
    axes : plain axes; their scales are made equal
    vectors : see `SteerableVectors.on_sphere`
    centers : (n, 3) Å
    size : Å, distance of the surface where the function is 1 or -1; default: the farthest point is at 0.62 Å
    view : axes of the picture as of `tilted_view`
    resolution : facets from pole to pole
    """
    return _draw(axes, [_glyphs(vectors, centers, size, resolution)], tilted_view() if view is None else view)


def plot_molecule(
    axes: Axes,
    atoms: Atoms,
    vectors: SteerableVectors,
    *,
    size: float | None = None,
    view: _Floats | None = None,
    resolution: int = 24,
) -> PolyCollection:
    """Draw a molecule with one glyph at each atom; other arguments as of `plot_glyphs`.

    Parameters
    ----------
    atoms : drawn as they are, without periodic images
    vectors : one per atom

    Raises
    ------
    ValueError
        If the number of vectors is not the number of atoms.
    """
    if len(vectors.values) != len(atoms):
        raise ValueError(f"one vector per atom is needed, got {len(vectors.values)} for {len(atoms)} atoms")
    view = tilted_view() if view is None else view
    x = atoms.positions
    parts = [_glyphs(vectors, x, size, resolution), _balls(atoms), _tubes(x, _bonds(atoms))]
    axes.set_axis_off()
    return _draw(axes, parts, view)


def glyph_figure(
    panels: Mapping[str, Mapping[str, tuple[Atoms, SteerableVectors]]],
    title: str,
    *,
    size: float | None = None,
    view: _Floats | None = None,
    resolution: int = 24,
) -> Figure:
    """Draw molecules in rows and columns, all to one scale; other arguments as of `plot_glyphs`.

    Parameters
    ----------
    panels : row -> column -> structure and its vectors; all rows have the same columns
    title : of the figure
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    view = tilted_view() if view is None else view
    n_columns = len(next(iter(panels.values())))
    seen = [[atoms.positions @ view[:2].T for atoms, _ in row.values()] for row in panels.values()]
    half = np.max([np.ptp(points, axis=0) for row in seen for points in row], axis=0) / 2 + _MARGIN
    inches = np.array([1, half[1] / half[0]]) * _FIGURE_WIDTH / n_columns  # of one panel
    figure_size = (_FIGURE_WIDTH, float(len(panels) * inches[1]) + 1.0)
    figure = Figure(figsize=figure_size, dpi=90, layout="constrained")
    grid = figure.subplots(len(panels), n_columns, squeeze=False)
    for row, (name, of_row), points_of_row in zip(grid, panels.items(), seen, strict=True):
        for axes, (column, panel), points in zip(row, of_row.items(), points_of_row, strict=True):
            plot_molecule(axes, *panel, size=size, view=view, resolution=resolution)
            middle = (points.min(axis=0) + points.max(axis=0)) / 2
            (left, bottom), (right, top) = middle - half, middle + half
            axes.set(xlim=(left, right), ylim=(bottom, top))
            axes.set_title(f"{name}, {column}" if name else column, fontsize=10)
    figure.suptitle(title, fontsize=12)
    signs = [Patch(color=POSITIVE, label="f > 0"), Patch(color=NEGATIVE, label="f < 0")]
    figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


class _Facets:
    """Colored quadrangles in space, the facets of n surfaces.

    Parameters
    ----------
    points : (n, I, J, 3) Å, grids of points; seen from outside, I goes down and J to the right
    colors : red, green, blue from 0 to 1, broadcast to (n, I - 1, J - 1, 3)
    """

    def __init__(self, points: _Floats, colors: _Floats) -> None:
        n, i, j, _ = points.shape
        corners = (points[:, :-1, :-1], points[:, 1:, :-1], points[:, 1:, 1:], points[:, :-1, 1:])
        self.corners = np.stack(corners, axis=3).reshape(-1, 4, 3)
        self.colors = np.broadcast_to(colors, (n, i - 1, j - 1, 3)).reshape(-1, 3)


def _sphere(resolution: int) -> _Floats:
    """Return unit vectors on a grid from pole to pole and around, (resolution + 1, 2 resolution + 1, 3)."""
    polar = np.linspace(0, np.pi, resolution + 1)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, 2 * resolution + 1)
    z = np.broadcast_to(np.cos(polar), (resolution + 1, 2 * resolution + 1))
    return np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), z], axis=2)


def _glyphs(vectors: SteerableVectors, centers: _Floats, size: float | None, resolution: int) -> _Facets:
    from matplotlib.colors import LinearSegmentedColormap

    directions = _sphere(resolution)
    values = vectors.on_sphere(torch.from_numpy(directions).flatten(0, 1)).cpu().numpy()
    values = values.reshape(len(values), *directions.shape[:2])
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    radii = np.abs(values) * (_LARGEST_RADIUS / largest if size is None else size)
    points = centers[:, None, None, :] + radii[..., None] * directions
    middle = (values[:, :-1, :-1] + values[:, 1:, :-1] + values[:, 1:, 1:] + values[:, :-1, 1:]) / 4
    colormap = LinearSegmentedColormap.from_list("sign", [NEGATIVE, _ZERO_COLOR, POSITIVE])
    strength = np.sign(middle) * np.sqrt(np.abs(middle) / largest)  # the root gives small glyphs a color too
    return _Facets(points, colormap((1 + strength) / 2)[..., :3])


def _balls(atoms: Atoms, resolution: int = 12) -> _Facets:
    points = atoms.positions[:, None, None, :] + _ATOM_RADIUS * _sphere(resolution)
    return _Facets(points, jmol_colors[atoms.numbers][:, None, None, :])


def _bonds(atoms: Atoms) -> NDArray[np.int64]:
    """Return the pairs of bonded atoms, (n, 2)."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < _BOND_STRETCH * (radii[:, None] + radii)
    return np.argwhere(np.triu(near, k=1))


def _tubes(positions: _Floats, pairs: NDArray[np.int64], n_around: int = 8, n_along: int = 12) -> _Facets:
    starts, ends = positions[pairs[:, 0]], positions[pairs[:, 1]]
    along = (ends - starts) / np.linalg.norm(ends - starts, axis=1, keepdims=True)
    helper = np.eye(3)[np.abs(along).argmin(axis=1)]
    across = np.cross(along, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angles = np.linspace(0, -2 * np.pi, n_around + 1)[None, None, :, None]
    ring = across[:, None, None] * np.cos(angles) + np.cross(along, across)[:, None, None] * np.sin(angles)
    fractions = np.linspace(0, 1, n_along + 1)[None, :, None, None]
    axis = starts[:, None, None] * (1 - fractions) + ends[:, None, None] * fractions
    return _Facets(axis + _BOND_RADIUS * ring, np.array(_BOND_COLOR))


def _draw(axes: Axes, parts: list[_Facets], view: _Floats) -> PolyCollection:
    """Draw the outer sides of facets, shaded, from back to front."""
    from matplotlib.collections import PolyCollection

    corners = np.concatenate([part.corners for part in parts]) @ view.T
    colors = np.concatenate([part.colors for part in parts])
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    seen = normals[:, 2] > 0
    corners, colors, normals = corners[seen], colors[seen], normals[seen]
    order = np.argsort(corners[:, :, 2].mean(axis=1))
    corners, colors, normals = corners[order], colors[order], normals[order]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shade = _AMBIENT + (1 - _AMBIENT) * np.clip(normals @ _LIGHT, 0, None)
    options: dict[str, Any] = {"facecolors": colors * shade[:, None], "edgecolors": "face", "linewidths": 0.6}
    collection = PolyCollection(corners[:, :, :2], **options)
    axes.add_collection(collection)
    axes.set_aspect("equal")
    axes.autoscale_view()
    return collection
