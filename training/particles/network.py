"""The network of the SEGNN paper for particles: its attributes, its inputs, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ase_segnn._e3nn import o3
from ase_segnn.configuration import checked
from ase_segnn.files import written_whole
from ase_segnn.model.angular import SphericalHarmonics
from ase_segnn.model.segnn import SEGNN
from ase_segnn.model.steerable import SteerableLinear, sum_to

from .graphs import ParticleGraphs
from .recipe import NetworkSection

_INTEGRAL = 1 / math.sqrt(4 * math.pi)  # from e3nn's "component" to its "integral" normalization of the harmonics
_GATES: dict[str, Literal[0, 1, 2]] = {"steerable": 2, "linear": 0, "invariant": 2}


def balanced_irreps(width: int, l_max: int, l_max_attributes: int) -> o3.Irreps:
    """Find the "weight-balanced" features of the SEGNN paper, appendix C.

    As many copies of each degree up to `l_max`, with the parity of spherical harmonics, as are needed to give their
    product with the attributes, to features alike, at least `width`² weights, like a linear layer of that width.

    >>> balanced_irreps(64, 1, 1)
    32x0e+32x1o
    """
    degrees = range(l_max + 1)
    harmonics = [o3.Irrep(degree, (-1) ** degree) for degree in range(max(l_max, l_max_attributes) + 1)]
    ways = sum(
        harmonics[l_out] in harmonics[l_in] * harmonics[l_attribute]
        for l_in, l_attribute, l_out in product(degrees, range(l_max_attributes + 1), degrees)
    )
    return o3.Irreps([(math.ceil(width / math.sqrt(ways)), harmonics[degree]) for degree in degrees])


class ParticleNetwork(nn.Module):
    """Predicts one vector per particle from positions, velocities and charges or masses, in any frame of reference.

    The features of a node are its position relative to the center of mass, its velocity and its speed. Distance and
    product of strengths are additional scalars of a message. The direction of an edge steers its message. The mean of
    the attributes of its edges steers a node; `physics` adds the attributes of the direction of v. The scalar of
    attributes is 1. Harmonics are orthonormal on the sphere, as in the paper's code: training at the paper's learning
    rate is unstable with larger ones, as potentials have them. Messages are summed.

    Parameters
    ----------
    settings : see the class
    scale : of the vectors that are predicted
    """

    def __init__(self, settings: NetworkSection, scale: float = 1.0) -> None:
        super().__init__()
        self.settings, self.scale = settings, scale
        hidden = balanced_irreps(settings.width, settings.l_max, settings.l_max_attributes)
        attributes = o3.Irreps.spherical_harmonics(settings.l_max_attributes)
        self.harmonics = SphericalHarmonics(settings.l_max_attributes)
        self.segnn = SEGNN(
            "2x1o+1x0e",
            hidden,
            "1x1o",
            attributes,
            attributes,
            n_layers=settings.n_layers,
            n_message_scalars=2,
            message_weights_hidden=settings.message_weights_hidden,
            irreps_messages=f"{settings.width}x0e" if settings.messages == "invariant" else None,
            message_gates=_GATES[settings.messages],
        )
        for module in self.modules():
            if isinstance(module, SteerableLinear):
                _initialize(module)

    def forward(self, graphs: ParticleGraphs) -> Tensor:
        """Predict vectors (B, n, 3)."""
        n_graphs, n_particles, n_neighbors = graphs.neighbors.shape
        first = n_particles * torch.arange(n_graphs, device=graphs.neighbors.device)
        neighbors = (graphs.neighbors + first[:, None, None]).flatten()
        centers = torch.arange(n_graphs * n_particles, device=neighbors.device).repeat_interleave(n_neighbors)
        positions, velocities = graphs.positions.flatten(0, 1), graphs.velocities.flatten(0, 1)
        strengths = graphs.strengths.flatten()
        vectors = positions[neighbors] - positions[centers]
        distances = vectors.norm(dim=1, keepdim=True)
        edge_attributes = _INTEGRAL * self.harmonics(vectors / distances)
        node_attributes = sum_to(n_graphs * n_particles, centers, edge_attributes) / n_neighbors
        squares = velocities.square().sum(1, keepdim=True)
        if self.settings.physics:
            node_attributes = node_attributes + _INTEGRAL * self.harmonics(nn.functional.normalize(velocities))
        node_attributes = torch.cat([torch.ones_like(squares), node_attributes[:, 1:]], dim=1)
        outputs: Tensor = self.segnn(
            torch.cat(
                [(graphs.positions - graphs.positions.mean(1, keepdim=True)).flatten(0, 1), velocities, squares.sqrt()],
                dim=1,
            ),
            node_attributes,
            edge_attributes,
            centers,
            neighbors,
            message_scalars=torch.cat([distances, (strengths[centers] * strengths[neighbors])[:, None]], dim=1),
        )
        return self.scale * outputs.reshape(n_graphs, n_particles, 3)


def _initialize(layer: SteerableLinear) -> None:
    """Draw weights and biases as torch.nn.Linear does, and the paper's code: uniform, up to 1 / √(number of inputs)."""
    for entry, weight in enumerate(layer.weights):
        bound = 1 / math.sqrt(max(len(weight), 1))
        nn.init.uniform_(weight, -bound, bound)
        if str(entry) in layer.biases:
            nn.init.uniform_(layer.biases[str(entry)], -bound, bound)


def save_network(network: ParticleNetwork, path: Path, about: Mapping[str, object]) -> None:
    """Write a network to a safetensors file, whole or not at all, with plain data about its origin in the header."""
    header = {"network": network.settings.model_dump(mode="json"), "scale": network.scale, **about}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"ase-segnn": json.dumps(header)}))


def load_network(path: Path | str) -> ParticleNetwork:
    """Read a network that `save_network` has written; nothing in the file is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["ase-segnn"])
            network = ParticleNetwork(checked(NetworkSection, header["network"], "network"), header["scale"])
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"'{path}' holds no network for particles: {error}") from error
    return network.requires_grad_(False).eval()
