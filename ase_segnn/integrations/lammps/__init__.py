"""LAMMPS: ``pair_style segnn``, which runs potentials exported as libraries, on any number of processes.

`pair_segnn.cpp` is the pair style, and `plugin.cpp` makes it known to LAMMPS. They are compiled once for a LAMMPS, and
need neither Python nor torch when they run.
"""

from __future__ import annotations

import sys
from pathlib import Path

PLUGIN = "segnnplugin.so"  # LAMMPS loads files that end so


def plugin_folder() -> str:
    """Return the folder of the plugin for LAMMPS in this environment; need not exist.

    The command ``lmp`` of the package lammps asks for it, by the entry point "lammps.plugins", and has LAMMPS load the
    plugin in it.
    """
    return str(Path(sys.prefix) / "share" / "ase-segnn" / "lammps")
