"""Configurations that are refused: one line with key, value and what is allowed, wherever they are made."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from ase_segnn import NetworkConfig, PotentialConfig, Provenance
from ase_segnn.configuration import checked
from ase_segnn.training.data.frames import LabelKeys
from ase_segnn.training.recipe import DataSection, OptimizationSection, Recipe

REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: NetworkConfig(cutof=4), "NetworkConfig: cutof: unknown key; did you mean 'cutoff'?"),
    (
        lambda: NetworkConfig(cutoff=-4, n_layers="x"),
        "NetworkConfig: cutoff: should be greater than 0, got -4; n_layers: should be a valid integer, got 'x'",
    ),
    (
        lambda: NetworkConfig(radial_hidden=[4, 0]),
        "NetworkConfig: radial_hidden.1: should be greater than or equal to 1, got 0",
    ),
    (
        lambda: NetworkConfig(irreps_hidden="4x1o"),
        "NetworkConfig: irreps_hidden: '4x1o' has no even scalars '0e', and an energy is one",
    ),
    (lambda: PotentialConfig(elements=("H",)), "PotentialConfig: reference_energies: missing, a value is needed"),
    (
        lambda: PotentialConfig(elements="H", reference_energies={"H": float("nan")}, network={"cutof": 3}),
        (
            "PotentialConfig: elements: should be a valid tuple, got 'H'; reference_energies.H: should be a finite "
            "number, got nan; network.cutof: unknown key; did you mean 'cutoff'?"
        ),
    ),
    (
        lambda: PotentialConfig(elements=["H"], reference_energies={"H": 1.0}, network=5),
        "PotentialConfig: network: should be a mapping of keys to values, got 5",
    ),
    (lambda: LabelKeys(enrgy="E"), "LabelKeys: enrgy: unknown key; did you mean 'energy'?"),
    (lambda: LabelKeys(energy=list(range(40))), "LabelKeys: energy: should be a valid string, got [0, 1, 2, 3,"),
    (
        lambda: Provenance(qqqq=1),
        "Provenance: qqqq: unknown key; known are recipe, data, commit, seed, versions, created, errors",
    ),
    (
        lambda: OptimizationSection(loss="mae"),
        "OptimizationSection: loss: should be 'mse', 'l1' or 'huber', got 'mae'",
    ),
    (
        lambda: DataSection(train="a.xyz", validation=1.0),
        (
            "DataSection: validation: should be a number of frames, a fraction greater than 0 and less than 1, or "
            "files, got 1.0"
        ),
    ),
    (lambda: DataSection(train="a.xyz", folder=3), "DataSection: folder: should be a path, got 3"),
    (
        lambda: checked(Recipe, {"name": "x", "data": {"train": "a", "reference_energies": {"H": "x"}}}, "my recipe"),
        (
            "my recipe: data.reference_energies: should be eV per element, a file of isolated atoms, "
            "'least-squares' or 'auto', got 'x'"
        ),
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_refused_is_told_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make()
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_of_pydantic_is_printed() -> None:
    code = "from ase_segnn import NetworkConfig; NetworkConfig(cutof=4)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("ValueError: NetworkConfig: cutof: unknown key; did you mean 'cutoff'?\n")
    assert "errors.pydantic.dev" not in result.stderr


def test_allowed_values_are_kept_and_nested_ones_converted() -> None:
    config = PotentialConfig(elements=["H"], reference_energies={"H": 1}, network={"cutoff": 4, "radial_hidden": [8]})
    assert config.network == NetworkConfig(cutoff=4.0, radial_hidden=(8,))
    assert PotentialConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_copy(update={"energy_scale": 2.0}).energy_scale == 2.0
