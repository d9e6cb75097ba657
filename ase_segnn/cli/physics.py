"""``ase-segnn physics``: crystals, liquids and molecules as a potential sees them, beside values of the reference."""

from __future__ import annotations

import json
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    DeviceOption,
    DType,
    ForceOption,
    PotentialArgument,
    check_outputs,
    make_calculator,
)
from ase_segnn.files import written_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.status import Status

    from ase_segnn.physics import Results, System


class Kind(str, Enum):
    """Kind of a system."""

    crystal = "crystal"
    liquid = "liquid"
    molecule = "molecule"


class Part(str, Enum):
    """Part of a study."""

    elastic = "elastic"
    vacancy = "vacancy"
    surfaces = "surfaces"
    phonons = "phonons"
    vibrations = "vibrations"
    torsions = "torsions"
    stretching = "stretching"
    dynamics = "dynamics"


@app.command()
def physics(
    potential: PotentialArgument,
    structures: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files ASE reads, 'file@index' selects; or bulk:Si, bulk:NaCl:rocksalt:5.64, molecule:H2O. Without: "
            "the systems in the recipe of the potential."
        ),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Default: a periodic structure is a crystal, another one a molecule.")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="K, of dynamics; may be given several times. Default: 300 and 600."),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration-ps", help="ps, of dynamics at each temperature. Default: 100; 1000 for molecules."),
    ] = None,
    melt: Annotated[float | None, typer.Option(help="K, of a run that a crystal is expected to melt in.")] = None,
    frames: Annotated[
        list[str] | None, typer.Option(help="File of labeled frames of the reference. Give it once per file.")
    ] = None,
    strained: Annotated[
        str | None, typer.Option(help="Group of frames that are a perfect cubic crystal, strained.")
    ] = None,
    skip: Annotated[list[Part] | None, typer.Option(help="Leave out a part. Give it once per part.")] = None,
    output: Annotated[Path | None, typer.Option(help="File of the results, .md or .json.")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Compute physics with POTENTIAL.

    Crystals: lattice and elastic constants, vacancy, surfaces, phonons. Liquids: radial distribution functions and
    diffusion. Molecules: vibrations, bond stretching, torsions. All: dynamics with a thermostat and without.
    """
    from rich.console import Console

    from ase_segnn.physics import LoadedSystem, study
    from ase_segnn.physics.results import to_markdown
    from ase_segnn.physics.studies import check_extras

    if output is not None and output.suffix not in {".md", ".json"}:
        raise ValueError(f"results are written to .md or .json, got '{output}'")
    check_outputs([output] if output is not None else [], force=force)
    options: dict[str, Any] = {
        "kind": kind and kind.value,
        "temperatures": temperature,
        "duration_ps": duration,
        "melt": melt,
        "frames": frames,
        "strained": strained,
        "skip": skip and [part.value for part in skip],
    }
    given = {name: value for name, value in options.items() if value is not None}
    loaded = [LoadedSystem.load(system) for system in _systems(potential, structures or [], given)]
    static = make_calculator(potential, device, DType.float64)
    moving = make_calculator(potential, device, DType.float32)
    for each in loaded:
        check_extras(each)
        static.set_atoms(each.atoms)  # checks the elements
    results = []
    with Console(stderr=True).status("") as status:
        for each in loaded:
            results.append(study(each, static, moving, partial(_tell, status, each.system.structure)))
            if output is not None:  # after each system, since the next may take hours
                with written_whole(output) as path:
                    path.write_text(_content(output, results, potential), encoding="utf-8")
    typer.echo(to_markdown(results, _name(potential)))
    if output is not None:
        typer.echo(f"results: {output}")


def _tell(status: Status, name: str, part: str) -> None:
    status.update(f"{name}: {part}")


def _systems(potential: str, structures: Sequence[str], options: dict[str, Any]) -> list[System]:
    """Return the systems that are asked for, or those in the recipe of the potential with the options changed."""
    from ase_segnn.configuration import checked
    from ase_segnn.physics import System
    from ase_segnn.potential_file import read_header
    from ase_segnn.potentials import path_of

    source = "these options"
    described = [{"structure": structure} for structure in structures]
    if not described:
        described = read_header(path_of(potential)).provenance.recipe.get("card", {}).get("physics", [])
        source = f"recipe of potential '{potential}'"
    if not described:
        raise ValueError(
            f"the {source} names no systems; give structures, such as 'ase-segnn physics {potential} bulk:Si'"
        )
    return [checked(System, {**each, **options}, source) for each in described]


def _content(output: Path, results: list[Results], potential: str) -> str:
    from ase_segnn.physics.results import to_markdown

    if output.suffix == ".json":
        return json.dumps(
            {"potential": potential, "systems": [each.to_dict() for each in results]}, indent=1, ensure_ascii=False
        )
    return to_markdown(results, _name(potential)) + "\n"


def _name(potential: str) -> str:
    return Path(potential).stem if potential.endswith(".safetensors") else potential
