"""i-PI: ASE's socket client hands forces of the calculator to it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ipi") is None or not hasattr(__import__("socket"), "AF_UNIX"),
    reason="needs i-PI: pip install ipi",
)

INPUT = """<simulation verbosity="low">
  <output prefix="run">
    <properties filename="out" stride="1"> [step, conserved{electronvolt}, potential{electronvolt}] </properties>
  </output>
  <total_steps> 100 </total_steps>
  <prng><seed> 1 </seed></prng>
  <ffsocket mode="unix" name="segnn"><address> ADDRESS </address></ffsocket>
  <system>
    <initialize nbeads="1">
      <file mode="ase"> structure.extxyz </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces><force forcefield="segnn"/></forces>
    <motion mode="dynamics">
      <dynamics mode="nve"><timestep units="femtosecond"> 1 </timestep></dynamics>
    </motion>
  </system>
</simulation>
"""
CLIENT = """import sys, time
from ase.calculators.socketio import SocketClient
from ase.io import read
from ase_segnn import SEGNNCalculator

atoms = read("structure.extxyz")
atoms.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float64")
print(repr(atoms.get_potential_energy()))
for _ in range(300):
    try:
        client = SocketClient(unixsocket=sys.argv[1])
        break
    except (ConnectionRefusedError, FileNotFoundError):
        time.sleep(0.1)
client.run(atoms, use_stress=True)
"""


def test_a_hundred_steps(tmp_path: Path) -> None:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    write(tmp_path / "structure.extxyz", atoms)
    address = f"segnn-{tmp_path.name}-{tmp_path.stat().st_ino}"
    (tmp_path / "input.xml").write_text(INPUT.replace("ADDRESS", address))
    (tmp_path / "client.py").write_text(CLIENT)
    program = Path(sys.executable).with_name("i-pi")
    server = subprocess.Popen([program, "input.xml"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        client = subprocess.run(
            [sys.executable, "client.py", address],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        server.wait(60)
    finally:
        server.kill()
    table = np.loadtxt(tmp_path / "run.out")
    assert len(table) == 101, client.stderr
    assert table[0, 2] == pytest.approx(float(client.stdout.split()[0]), rel=2e-7)  # units
    assert np.ptp(table[:, 1]) < 1e-3
