"""Options shared by several commands, the calculator they describe, and checks of output files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase_segnn.calculator import SEGNNCalculator
    from ase_segnn.model.potential import Potential


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
StructureArgument = Annotated[
    str, typer.Argument(help="Any file ASE reads; 'file@index' selects, default the last. Or smiles:CCO, bulk:Si.")
]
DeviceOption = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:1', or 'auto' for a GPU where there is one.")]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the network.")]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Insist on compiled C++; on a GPU launch all operations at once, as a CUDA graph."),
]
MarchOption = Annotated[
    str, typer.Option(help="Oldest processor to run on, as the compiler calls it, such as x86-64-v3.")
]
MemberOption = Annotated[int | None, typer.Option(min=0, help="Which potential of a committee.")]
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


@contextmanager
def with_extra_train(what: str) -> Iterator[None]:
    """Say what to install if an import inside the block lacks a package of the extra "train".

    Parameters
    ----------
    what : needs it, for the message

    Raises
    ------
    ImportError
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("ase_segnn"):
            raise
        raise ImportError(
            f'{what} needs the extra packages of: pip install "ase-segnn[train]" (missing: {error.name})'
        ) from error


def single_potential(potential: str, member: int | None, dtype: DType) -> tuple[Path, Potential, str]:
    """Return the file of a potential, the potential or member of a committee, and the SHA-256 of the file.

    Raises
    ------
    ValueError
        If it is a committee and no member of it is named, or a single potential and one is named.
    """
    import hashlib

    import torch

    from ase_segnn.model.committee import Committee
    from ase_segnn.potential_file import load_potential
    from ase_segnn.potentials import path_of

    source = path_of(potential)
    loaded = load_potential(source)
    if isinstance(loaded, Committee):
        last = len(loaded.members) - 1
        if member is None or member > last:
            raise ValueError(
                f"'{potential}' is a committee, and a library holds one potential; choose one, --member 0 to {last}"
            )
        loaded = loaded.members[member]
    elif member is not None:
        raise ValueError(f"--member is for committees, and '{potential}' is a single potential")
    precision = torch.float64 if dtype is DType.float64 else torch.float32
    return source, loaded.to(precision), hashlib.sha256(source.read_bytes()).hexdigest()


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
    """Return the stem of a structure's outputs: the name of its file without folder, suffix and selection.

    >>> name_of("md/run.traj@::10"), name_of("smiles:CC(=O)O")
    ('run', 'CC-O-O')
    """
    from ase_segnn.builders import is_built
    from ase_segnn.structures import split_source

    if is_built(source):
        return re.sub(r"[^A-Za-z0-9]+", "-", source.partition(":")[2]).strip("-")
    return Path(split_source(source)[0]).stem
