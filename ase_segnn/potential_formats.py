"""Formats of potential files: which one a potential is written in, and headers of each format.

======  ==================================================================================
format  holds
======  ==================================================================================
1       one potential; the first files name the one width of hidden layers `n_radial_hidden`
2       one potential
3       a committee
4       one potential or a committee, with products at nodes
5       the same, with the shortest distances of the training
6       the same, with bounded products
======  ==================================================================================

A potential is written in the lowest format from 2 on that can hold it, so that older versions of ase-segnn read it.
Bounded products of format 5, written for some days between two releases, had another bound; they are refused.
"""

from __future__ import annotations

from typing import Any

from ase_segnn.model.config import PotentialConfig

NEWEST = 6
_FIRST_WITH_COMMITTEES = 3
_FIRST_WITH_PRODUCTS = 4
_FIRST_WITH_DISTANCES = 5
_SINCE_PRODUCTS = ("correlation", "l_max_messages", "l_max_hidden")  # keys of the network


def format_for(config: PotentialConfig, n_members: int) -> int:
    """Return the lowest format that can hold potentials of this config."""
    if config.network.correlation > 1 and config.network.bounded_products:
        return NEWEST
    if config.shortest_distances is not None:
        return _FIRST_WITH_DISTANCES
    if config.network.correlation > 1:
        return _FIRST_WITH_PRODUCTS
    return _FIRST_WITH_COMMITTEES if n_members > 1 else 2


def check_fits(version: int, config: PotentialConfig, n_members: int) -> None:
    """Check that a format can hold potentials of this config.

    Raises
    ------
    ValueError
    """
    if version <= _FIRST_WITH_COMMITTEES and (n_members > 1) != (version == _FIRST_WITH_COMMITTEES):
        raise ValueError(f"n_members is {n_members}, formats 1 and 2 hold one potential, format 3 several")
    if version < _FIRST_WITH_PRODUCTS and config.network.correlation > 1:
        raise ValueError(f"correlation is {config.network.correlation}, and there is none before format 4")
    if version < _FIRST_WITH_DISTANCES and config.network.correlation > 1 and config.network.bounded_products:
        raise ValueError("bounded_products is True, and there are none before format 6")
    if version < _FIRST_WITH_DISTANCES and config.shortest_distances is not None:
        raise ValueError("shortest_distances are given, and there are none before format 5")


def has_an_old_bound(version: int, config: PotentialConfig) -> bool:
    """Tell whether products have the bound of format 5, which is no longer there."""
    return version == _FIRST_WITH_DISTANCES and config.network.correlation > 1 and config.network.bounded_products


def to_format(header: dict[str, Any], version: int) -> dict[str, Any]:
    """Return a header of today with the keys of an older format.

    Parameters
    ----------
    header : as plain data, with all keys of the newest format; not changed
    version : of the format, 2 or later, that can hold the potential
    """
    header = dict(header)
    config = dict(header["config"])
    if version < _FIRST_WITH_DISTANCES:
        dropped = _SINCE_PRODUCTS if version < _FIRST_WITH_PRODUCTS else ()
        del config["shortest_distances"]
        config["network"] = {
            key: value for key, value in config["network"].items() if key not in (*dropped, "bounded_products")
        }
    header["config"] = config
    if version < _FIRST_WITH_COMMITTEES:
        del header["n_members"]
    return header


def from_format(header: dict[str, Any], version: int) -> dict[str, Any]:
    """Return the header of a file with the keys of the newest format.

    Parameters
    ----------
    header : as read from the file, not checked yet, so that any key may be missing or hold anything; not changed
    version : of the file's format
    """
    config = header.get("config")
    network = config.get("network") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(network, dict) or version >= _FIRST_WITH_DISTANCES:
        return header
    if version < _FIRST_WITH_PRODUCTS:
        network = {"correlation": 1, **network}
    else:
        network = {"bounded_products": False, **network}
    if version == 1 and "n_radial_hidden" in network:
        # all networks had gated messages and one hidden layer between radial basis and weights
        width = network.pop("n_radial_hidden")
        network |= {"gated_messages": True, "radial_hidden": [width]}
    return {**header, "config": {**config, "network": network}}
