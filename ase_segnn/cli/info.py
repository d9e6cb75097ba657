"""``ase-segnn info``: the shipped potentials, or one potential in detail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_segnn.cli._app import app
from ase_segnn.quantities import LABELS, shown_errors

if TYPE_CHECKING:
    from ase_segnn.potential_file import PotentialHeader


@app.command()
def info(
    potential: Annotated[
        str | None, typer.Argument(help="Name of a shipped potential, or a potential file; without it: a list.")
    ] = None,
) -> None:
    """List the shipped potentials, or describe one."""
    if potential is None:
        _list_shipped()
    else:
        _describe(potential)


def _list_shipped() -> None:
    from rich.console import Console
    from rich.table import Table

    from ase_segnn.potential_file import read_header
    from ase_segnn.potentials import shipped_potentials, stated_cost

    table = Table("name", "elements", "level of theory", "errors (RMSE)", "cost", show_lines=True)
    for name, path in shipped_potentials().items():
        header = read_header(path)
        table.add_row(
            name,
            ", ".join(header.config.elements),
            str(header.provenance.recipe.get("card", {}).get("level_of_theory", "")),
            "\n".join(_short(data, errors) for data, errors in header.provenance.errors.items()),
            stated_cost(path).partition(",")[0],
        )
    Console().print(table)


def _short(data: str, errors: dict[str, float]) -> str:
    return f"{data}: {', '.join(shown_errors(errors, LABELS))}"


def _describe(potential: str) -> None:
    from ase_segnn.potential_file import read_header
    from ase_segnn.potentials import path_of

    path = path_of(potential)
    for name, value in _facts(path, read_header(path)).items():
        typer.echo(f"{name + ':':24}{value}")
    card = path.with_suffix(".md")
    if card.is_file():
        typer.echo(f"\n--- {card.name} ---\n")
        typer.echo(card.read_text(encoding="utf-8").rstrip())


def _facts(path: Path, header: PotentialHeader) -> dict[str, object]:
    config, provenance = header.config, header.provenance
    facts: dict[str, object] = {
        "file": f"{path} ({path.stat().st_size / 1e6:.2f} MB, format {header.format_version}, {header.dtype})",
        "members": f"{header.n_members} (a committee)" if header.n_members > 1 else 1,
        "elements": ", ".join(config.elements),
        "cutoff": f"{config.network.cutoff:g} Å",
        "network": config.network.shape,
        "core repulsion": config.repulsion,
        "reference energies": ", ".join(f"{s} {e:.4f} eV" for s, e in config.reference_energies.items()),
        "units": ", ".join(f"{quantity} {unit}" for quantity, unit in header.units.items()),
        "created": provenance.created or "not recorded",
        "commit": provenance.commit or "not recorded",
        "seed": "not recorded" if provenance.seed is None else provenance.seed,
        "versions": ", ".join(f"{name} {number}" for name, number in provenance.versions.items()) or "not recorded",
    }
    for data, errors in provenance.errors.items():
        facts[f"RMSE, {data}"] = _short(data, errors).partition(": ")[2]
    return facts
