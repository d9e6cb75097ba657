"""Options shared by several commands, the calculator they describe, and checks of output files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase_segnn.calculator import SEGNNCalculator


def not_nan(value: float) -> float:
    """Refuse nan, which some releases of click accept in any range."""
    if math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


class DType(str, Enum):
    """Precision of the network."""

    float32 = "float32"
    float64 = "float64"


PotentialArgument = Annotated[str, typer.Argument(help="Name of a shipped potential, or a potential file.")]
StructureArgument = Annotated[str, typer.Argument(help="Any file ASE reads; 'file@index' selects, default the last.")]
DeviceOption = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:1', or 'auto' for a GPU where there is one.")]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the network.")]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Insist on compiled C++; on a GPU launch all operations at once, as a CUDA graph."),
]
MarchOption = Annotated[
    str, typer.Option(help="Oldest processor to run on, as the compiler calls it, such as x86-64-v3.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing output files.")]


def make_calculator(
    potential: str, device: str, dtype: DType, *, compile_it: bool = False, max_deviation: float | None = None
) -> SEGNNCalculator:
    """Return the calculator described by the options; a run stops above `max_deviation`, in eV/Å, if given."""
    from ase_segnn.calculator import SEGNNCalculator

    return SEGNNCalculator(
        potential,
        device=device,
        dtype=dtype.value,
        compile=True if compile_it else "auto",
        max_deviation=max_deviation,
        on_deviation="warn" if max_deviation is None else "stop",
    )


def check_outputs(paths: Iterable[Path], *, force: bool) -> None:
    """Refuse outputs that exist already or have no folder; call before any work.

    Raises
    ------
    FileExistsError, FileNotFoundError, IsADirectoryError
    """
    for path in paths:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder '{path.parent}' for '{path.name}'; create it first")
        if path.is_dir():
            raise IsADirectoryError(f"'{path}' is a folder; give the name of a file in it")
        if path.exists() and not force:
            raise FileExistsError(f"'{path}' exists already; choose another output, or replace it with --force")


def name_of(source: str) -> str:
    """Return the stem of a structure's outputs: the name of its file without folder, suffix and selection."""
    from ase_segnn.structures import split_source

    return Path(split_source(source)[0]).stem
