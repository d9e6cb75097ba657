"""``ase-segnn cache``: show the files kept between runs, or remove them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from ase_segnn.cli._app import app


class Kind(str, Enum):
    """Name of a cache, or all."""

    compiled = "compiled"
    graphs = "graphs"
    trajectories = "trajectories"
    downloads = "downloads"
    all = "all"


@app.command()
def cache(
    empty: Annotated[Kind | None, typer.Option(help="Remove the files of this cache.")] = None,
) -> None:
    """Show or empty the caches: compiled code, graphs of training data, simulated trajectories, downloads."""
    from ase_segnn.caches import MOST_BYTES, Cache

    for name in MOST_BYTES:
        found = Cache(name)
        if empty is not None and empty.value in (name, Kind.all.value):
            n_files, n_bytes = found.empty()
            typer.echo(f"{name}: removed {n_files} files, {_size(n_bytes)}")
        elif empty is None:
            entries = found.entries()
            size = _size(sum(entry.n_bytes for entry in entries))
            typer.echo(
                f"{name + ':':14}{len(entries):6} files, {size:>9} of at most {_size(found.most_bytes)}, {found.folder}"
            )


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
