"""The table of quantities: errors have one name and one unit everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import all_properties
from ase.stress import full_3x3_to_voigt_6_stress

from ase_segnn.quantities import COMPONENTS, LABELS, MEASURES, QUANTITIES, SIZE_INDEPENDENT, VOIGT, shown_errors

ROOT = Path(__file__).resolve().parents[1]
HOME = "ase_segnn/quantities.py"


def test_names_of_errors_are_those_in_potential_files() -> None:
    names = [QUANTITIES[name].error_name(measure) for name in QUANTITIES for measure in MEASURES]
    assert names == [
        "energy_MAE_meV",
        "energy_RMSE_meV",
        "energy_per_atom_MAE_meV",
        "energy_per_atom_RMSE_meV",
        "forces_MAE_meV_per_A",
        "forces_RMSE_meV_per_A",
        "stress_MAE_meV_per_A3",
        "stress_RMSE_meV_per_A3",
    ]


def test_headings_tell_units() -> None:
    assert [quantity.heading for quantity in QUANTITIES.values()] == [
        "energy, eV",
        "energy, eV/atom",
        "force components, eV/Å",
        "stress, eV/Å³",
    ]
    assert [quantity.error_heading for quantity in QUANTITIES.values()] == [
        "energy, meV",
        "energy, meV/atom",
        "force components, meV/Å",
        "stress, meV/Å³",
    ]


def test_labels_are_quantities_with_the_shapes_of_ase() -> None:
    assert set(LABELS) <= set(all_properties)
    assert {*LABELS, *SIZE_INDEPENDENT} == set(QUANTITIES)
    assert [QUANTITIES[label].shape(7) for label in LABELS] == [(), (7, 3), (6,)]
    tensor = np.arange(9.0).reshape(3, 3)
    tensor = tensor + tensor.T
    assert tensor[VOIGT].tolist() == full_3x3_to_voigt_6_stress(tensor).tolist()
    named = ["xyz"[i] + "xyz"[j] for i, j in zip(*VOIGT, strict=True)]
    assert [sorted(name) for name in named] == [sorted(name) for name in COMPONENTS]


def test_errors_are_shown_in_the_order_asked_for() -> None:
    errors = {"energy_RMSE_meV": 4.0, "forces_RMSE_meV_per_A": 2.345, "energy_MAE_meV": 1.0, "other": 3.0}
    assert shown_errors(errors, ("forces", "stress", "energy")) == ["2.35 meV/Å", "4.00 meV"]
    assert shown_errors({}) == []


@pytest.mark.parametrize("folder", ["ase_segnn", "training"])
def test_no_other_module_writes_names_or_units_of_errors(folder: str) -> None:
    pattern = re.compile(r"_(MAE|RMSE)_meV|meV_per_A|meV/Å")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line) and path != ROOT / HOME
    ]
    assert found == []
