"""Adapters to programs that run potentials without ASE."""
