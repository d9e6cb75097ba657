"""Potentials with random weights, for tests of everything that does not depend on training."""

from __future__ import annotations

from typing import Any

import torch
from systems import CUTOFF, ELEMENTS

from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential


def _config(irreps: str, l_max: int, *, zbl: bool) -> PotentialConfig:
    return PotentialConfig(
        elements=ELEMENTS,
        reference_energies=dict(zip(ELEMENTS, (-1.1, -3.3, -2.2, -4.7, -0.4), strict=True)),
        energy_shifts={"H": -0.3, "C": 0.7},
        energy_scale=2.0,
        average_neighbors=12.0,
        zbl=zbl,
        network=NetworkConfig(
            cutoff=CUTOFF, irreps_hidden=irreps, l_max_attributes=l_max, n_layers=2, n_radial=6, correlation=1
        ),
    )


def _with(config: PotentialConfig, **network: Any) -> PotentialConfig:
    """Return the config with another network, checked anew."""
    return config.model_copy(update={"network": NetworkConfig(**{**config.network.model_dump(), **network})})


# "mixed parity" has features of every parity; "with ZBL" has the natural ones only, as potentials usually do; and
# "products" has products of sums of messages.
CONFIGS = {
    "mixed parity": _config("8x0e+2x0o+4x1o+2x1e+2x2e+2x2o", 2, zbl=False),
    "with ZBL": _config("8x0e+4x1o", 1, zbl=True),
    "products": _with(_config("8x0e+8x1o+8x2e", 2, zbl=False), correlation=3),
}
# With as many channels of each degree, which need no channels that are zero.
NATIVE_CONFIGS = {
    "natural parity": _config("16x0e+16x1o", 1, zbl=True),
    "all parities": _config("4x0e+4x0o+4x1o+4x1e+4x2e+4x2o", 2, zbl=False),
}

_NATURAL = NATIVE_CONFIGS["natural parity"]
# What programs are made of: all kinds of networks that have one.
SHAPES = {
    **CONFIGS,
    **NATIVE_CONFIGS,
    "one layer": _with(_NATURAL, n_layers=1),
    "three layers": _with(_NATURAL, n_layers=3, irreps_hidden="4x0e+4x1o"),
    "no network of the distance": _with(_NATURAL, radial_hidden=()),
    "attributes of nodes": _with(_NATURAL, l_max_attributes=2, l_max_node_attributes=1),
    "scalars alone": _with(_NATURAL, irreps_hidden="6x0e"),
    "products of order 2": _with(_NATURAL, correlation=2, n_layers=3, l_max_attributes=3, l_max_messages=2),
    "products without bounds": _with(_NATURAL, correlation=3, bounded_products=False, l_max_attributes=2),
    "products of order 4": _with(_NATURAL, correlation=4, n_layers=1),
    "shortest distances": _NATURAL.model_copy(update={"shortest_distances": {"H-H": 1.5, "H-O": 1.2, "Cu-Cu": 3.0}}),
    "both parities": _with(_NATURAL, irreps_hidden="6x0e+2x0o+4x1o+2x1e"),
    "odd first": _with(_NATURAL, irreps_hidden="4x1o+3x0o+5x0e", l_max_attributes=2),
}


def random_potential(config: PotentialConfig, *, seed: int = 5) -> Potential:
    """Build a potential whose biases, which start at zero, are random as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = Potential(config)
        with torch.no_grad():
            for name, parameter in potential.named_parameters():
                if "bias" in name:
                    parameter.normal_(std=0.3)
    return potential
