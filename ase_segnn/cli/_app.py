"""The command line's frame: options before the subcommand, and errors in one line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ase_segnn
from ase_segnn.files import reason_of

_SHOWN = (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class _Group(TyperGroup):
    """Group of subcommands that shows a user's errors in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _SHOWN as error:
            # typer's own way out is a RuntimeError as well
            if ctx.params.get("debug") or isinstance(error, typer.Exit | typer.Abort):
                raise
            typer.echo(f"error: {reason_of(error) if isinstance(error, OSError) else error}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(ase_segnn.__version__)
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Machine-learned interatomic potentials for ASE."""
