"""Mathematics in torch: steerable layers, the network, and the potential on top of it."""

import ase_segnn._mkl  # noqa: F401  # before any function of a potential runs in several threads
