"""Write portable models of the KIM API."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ase_segnn.engines.export import HEADER, export_library
from ase_segnn.files import written_whole
from ase_segnn.model.potential import Potential

_FOLDER = Path(__file__).parent
_SOURCE, _CMAKE = "segnn_kim.cpp", "CMakeLists.txt"


def model_name(name: str) -> str:
    """Return what a model of this potential is called in KIM: an identifier of C, such as SEGNN_si_pbe."""
    return "SEGNN_" + re.sub(r"\W", "_", name, flags=re.ASCII)


def checked_name(kim_name: str) -> str:
    """Return the name of a model in KIM, or raise a ValueError if it is no identifier of C."""
    if not re.fullmatch(r"[A-Za-z]\w*", kim_name, flags=re.ASCII):
        raise ValueError(f"names in KIM are letters, digits and underscores after a letter, got '{kim_name}'")
    return kim_name


def model_files(folder: Path) -> list[Path]:
    """Return the paths that `write_model` writes to."""
    return [folder / name for name in ("model.so", HEADER.name, _SOURCE, _CMAKE)]


def write_model(
    folder: Path, potential: Potential, *, name: str, kim_name: str, fingerprint: str = "", march: str = "native"
) -> None:
    """Write what ``kim-api-collections-management install user FOLDER`` makes a portable model from.

    Parameters
    ----------
    folder : is there already
    potential, name, fingerprint, march : as of `ase_segnn.engines.export.export_library`
    kim_name : of the model, an identifier of C

    Raises
    ------
    ValueError
        If `kim_name` is no identifier, or there is no generated code for the potential.
    NoCompilerError, RuntimeError, OSError
        As of `export_library`.
    """
    checked_name(kim_name)
    library, header, source, cmake = model_files(folder)
    export_library(potential, library, name=name, fingerprint=fingerprint, march=march, header=header)
    with written_whole(source) as temporary:
        shutil.copyfile(_FOLDER / _SOURCE, temporary)
    text = (_FOLDER / _CMAKE).read_text(encoding="utf-8").replace("@NAME@", kim_name)
    with written_whole(cmake) as temporary:
        temporary.write_text(text, encoding="utf-8")
