"""The command ``ase-segnn``, with each subcommand in the module of its name; nothing else imports this package."""

from ase_segnn.cli import (  # they register themselves
    cache,
    evaluate,
    explore,
    export,
    info,
    kim,
    label,
    lammps,
    learn,
    md,
    physics,
    relax,
    select,
    train,
)
from ase_segnn.cli._app import app

__all__ = [
    "app",
    "cache",
    "evaluate",
    "explore",
    "export",
    "info",
    "kim",
    "label",
    "lammps",
    "learn",
    "md",
    "physics",
    "relax",
    "select",
    "train",
]
