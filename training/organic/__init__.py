"""Structures of organic molecules, ions and complexes to learn a potential from, by RDKit (extra ``organic``)."""
