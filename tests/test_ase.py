"""ASE finds the calculator by its name, in its commands and in its list of plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import get_calculator_class

from ase_segnn import SEGNNCalculator

MOLECULE = Path(__file__).parent / "data" / "acetylacetone.xyz"


def test_the_class_has_a_name() -> None:
    assert get_calculator_class("segnn") is SEGNNCalculator


def test_importing_the_calculator_again_is_no_error() -> None:
    code = "import sys, ase_segnn.calculator; del sys.modules['ase_segnn.calculator']; import ase_segnn.calculator"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ase_run(tmp_path: Path) -> None:
    command = ["-m", "ase", "run", "segnn", str(MOLECULE), "--modify", "import ase_segnn.calculator"]
    options = ["-p", "potential=acac-pbe,compile=False,device=cpu", "--properties", "ef", "-o", "out.json"]
    subprocess.run([sys.executable, *command, *options], cwd=tmp_path, check=True)
    calculated, atoms = ase.io.read(tmp_path / "out.json"), ase.io.read(MOLECULE)
    atoms.calc = SEGNNCalculator("acac-pbe", compile=False, device="cpu")
    np.testing.assert_allclose(calculated.get_potential_energy(), atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(calculated.get_forces(), atoms.get_forces(), atol=1e-5)


def test_plugins_of_ase() -> None:
    import ase_segnn.integrations.ase_plugin  # noqa: F401  # before ASE does

    plugins = pytest.importorskip("ase._4.plugins").plugins
    [plugin] = plugins.by_package["ase_segnn"]
    assert (plugin.name, plugin.implementation) == ("segnn", SEGNNCalculator)
