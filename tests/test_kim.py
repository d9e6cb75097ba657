"""Portable models of the KIM API: ASE's KIM calculator and a LAMMPS without plugins get the calculator's results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from compiler import needs_compiler
from lammps_runs import check, results, results_wanted, write_data
from random_potentials import SHAPES, random_potential
from systems import ELEMENTS, systems
from typer.testing import CliRunner

from ase_segnn import SEGNNCalculator, save_potential
from ase_segnn.cli import app
from ase_segnn.integrations.lammps.inputs import boxed
from ase_segnn.potential_file import Provenance

INSTALLER = "kim-api-collections-management"
NAME, OTHER = "SEGNN_test", "SEGNN_other"
SYSTEMS = systems()
LMP = "/usr/bin/lmp"  # Debian's; that of the package lammps knows no KIM
pytestmark = needs_compiler
needs_kimpy = pytest.mark.skipif(find_spec("kimpy") is None, reason="needs kimpy")
needs_lammps = pytest.mark.skipif(not Path(LMP).exists(), reason="needs a LAMMPS with the package KIM")

_EVALUATE = """
import json, sys
from ase.calculators.kim import KIM
from ase.io import read

atoms = read(sys.argv[1])
atoms.calc = KIM(sys.argv[2])
results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
if atoms.cell.rank == 3:
    results["stress"] = atoms.get_stress().tolist()
json.dump(results, sys.stdout)
"""

_EVALUATE_SEVERAL = """
import json, sys
from ase.calculators.kim import KIM
from ase.io import read

atoms = read(sys.argv[1])
energies = []
for _ in range(2):  # one after another
    energies.append([])
    for name in sys.argv[2:]:
        with KIM(name) as calculator:
            energies[-1].append(calculator.get_potential_energy(atoms.copy()))
calculators = [KIM(name) for name in sys.argv[2:]]  # at the same time
energies.append([calculator.get_potential_energy(atoms.copy()) for calculator in calculators])
json.dump(energies, sys.stdout)
"""

_INPUT = """kim init {name} metal
boundary {boundary}
box tilt large
read_data structure.data
kim interactions {symbols}
{results_wanted}
"""


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run a command of ours, check its exit code and return what it printed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kim") / "potential.safetensors"
    save_potential(random_potential(SHAPES["natural parity"]), path, provenance=Provenance())
    return path


@pytest.fixture(scope="module")
def environment(file: Path) -> dict[str, str]:
    """Install models for a user whose home is a folder of this test."""
    if shutil.which(INSTALLER) is None:
        pytest.skip("needs the KIM API")
    other = file.with_name("other.safetensors")
    save_potential(random_potential(SHAPES["natural parity"], seed=6), other, provenance=Provenance())
    environment = {**os.environ, "HOME": str(file.parent), "OMP_NUM_THREADS": "1"}
    for potential, name in ((file, NAME), (other, OTHER)):
        run("kim", potential, "--output", file.parent / name, "--dtype", "float64")
        command = [INSTALLER, "install", "user", str(file.parent / name)]
        done = subprocess.run(command, env=environment, cwd=file.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


@needs_kimpy
@pytest.mark.parametrize("name", ["water", "skewed triclinic", "slab", "mixed species"])
def test_ase_gets_the_results_of_the_calculator(
    file: Path, environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    atoms = SYSTEMS[name].copy()
    atoms.wrap()  # ASE 3.29 with kimpy 2.1 gives other energies for atoms outside the cell
    write(tmp_path / "atoms.json", Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    command = [sys.executable, "-c", _EVALUATE, str(tmp_path / "atoms.json"), NAME]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    atoms.calc = SEGNNCalculator(file, device="cpu", dtype="float64", compile=False)
    np.testing.assert_allclose(results["energy"], atoms.get_potential_energy(), rtol=1e-11)
    forces = atoms.get_forces()
    np.testing.assert_allclose(results["forces"], forces, rtol=0, atol=1e-11 * max(1.0, np.abs(forces).max()))
    if atoms.cell.rank == 3:
        stress = atoms.get_stress()
        np.testing.assert_allclose(results["stress"], stress, rtol=0, atol=1e-11 * max(1.0, np.abs(stress).max()))


@needs_kimpy
def test_models_in_one_process_are_not_mixed_up(file: Path, environment: dict[str, str], tmp_path: Path) -> None:
    atoms = SYSTEMS["water"]
    write(tmp_path / "atoms.json", Atoms(atoms.numbers, atoms.positions))
    command = [sys.executable, "-c", _EVALUATE_SEVERAL, str(tmp_path / "atoms.json"), NAME, OTHER]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    energies = []
    for path in (file, file.with_name("other.safetensors")):
        calculator = SEGNNCalculator(path, device="cpu", dtype="float64", compile=False)
        energies.append(calculator.get_potential_energy(atoms))
    assert abs(energies[0] - energies[1]) > 1e-3
    np.testing.assert_allclose(json.loads(done.stdout), [energies] * 3, rtol=1e-11)


@needs_lammps
@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("name", ["one-atom cell", "mixed species", "slab"])
def test_lammps_gets_the_results_of_the_calculator(
    file: Path, environment: dict[str, str], tmp_path: Path, name: str, n_processes: int
) -> None:
    atoms = write_data(tmp_path, boxed(SYSTEMS[name]), list(ELEMENTS))
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    (tmp_path / "in.lammps").write_text(
        _INPUT.format(name=NAME, boundary=boundary, symbols=" ".join(ELEMENTS), results_wanted=results_wanted())
    )
    mpirun = ["/usr/bin/mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(n_processes)]
    command = [*mpirun, LMP, "-log", "none", "-in", "in.lammps"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    calculator = SEGNNCalculator(file, device="cpu", dtype="float64", compile=False)
    check(results(tmp_path, atoms, done.stdout), atoms, calculator)


def test_a_model_is_named_as_its_folder(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "SEGNN_other__MO_123456789012_000"
    output = run("kim", file, "--output", folder, "--march", "native")
    assert f"user {folder}" in output
    assert f"KIM('{folder.name}')" in output
    assert f"project({folder.name})" in (folder / "CMakeLists.txt").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["CMakeLists.txt", "model.so", "segnn.h", "segnn_kim.cpp"]


def test_wrong_names_and_existing_files_are_errors_before_any_work(file: Path, tmp_path: Path) -> None:
    output = run("kim", file, "--output", tmp_path / "not a name", code=2)
    assert "letters, digits and underscores after a letter, got 'not a name'" in output
    assert not (tmp_path / "not a name").exists()
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "segnn_kim.cpp").write_text("mine")
    assert "exists already" in run("kim", file, "--output", folder, code=2)
    assert [path.name for path in folder.iterdir()] == ["segnn_kim.cpp"]
