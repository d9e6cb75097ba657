"""``python -m ase_segnn`` is the command line."""

from ase_segnn.cli import app

app()
