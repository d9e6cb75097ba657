"""The command ``ase-segnn``, with each subcommand in the module of its name; nothing else imports this package."""

from ase_segnn.cli import cache, evaluate, export, info, md, physics, relax, select, train  # they register themselves
from ase_segnn.cli._app import app

__all__ = ["app", "cache", "evaluate", "export", "info", "md", "physics", "relax", "select", "train"]
