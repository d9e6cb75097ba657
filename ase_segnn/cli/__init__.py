"""The command ``ase-segnn``: a leaf that nothing else imports. Each command is in the module of its name."""

from ase_segnn.cli import cache, evaluate, info, md, relax, select, train  # they register themselves
from ase_segnn.cli._app import app

__all__ = ["app", "cache", "evaluate", "info", "md", "relax", "select", "train"]
