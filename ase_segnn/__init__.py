"""Steerable E(3)-equivariant graph networks (SEGNN) as interatomic potentials for ASE.

Each public name is imported when it is first used, so that `import ase_segnn` costs nothing and changes nothing.

Examples
--------
>>> import ase_segnn
>>> sorted(ase_segnn.__all__)  # doctest: +NORMALIZE_WHITESPACE
['AtomicGraph', 'Committee', 'Potential', 'PotentialConfig', 'SEGNN', 'SEGNNCalculator', 'UncertaintyError',
 '__version__', 'load_potential', 'save_potential', 'select_frames']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase_segnn.calculator import SEGNNCalculator
    from ase_segnn.graph import AtomicGraph
    from ase_segnn.model.committee import Committee
    from ase_segnn.model.config import PotentialConfig
    from ase_segnn.model.potential import Potential
    from ase_segnn.model.segnn import SEGNN
    from ase_segnn.potential_file import load_potential, save_potential
    from ase_segnn.selection import select_frames
    from ase_segnn.uncertainty import UncertaintyError

__version__ = "0.1.0"

__all__ = [
    "SEGNN",
    "AtomicGraph",
    "Committee",
    "Potential",
    "PotentialConfig",
    "SEGNNCalculator",
    "UncertaintyError",
    "__version__",
    "load_potential",
    "save_potential",
    "select_frames",
]

_MODULE_OF = {
    "SEGNN": "ase_segnn.model.segnn",
    "AtomicGraph": "ase_segnn.graph",
    "Committee": "ase_segnn.model.committee",
    "Potential": "ase_segnn.model.potential",
    "PotentialConfig": "ase_segnn.model.config",
    "SEGNNCalculator": "ase_segnn.calculator",
    "UncertaintyError": "ase_segnn.uncertainty",
    "load_potential": "ase_segnn.potential_file",
    "save_potential": "ase_segnn.potential_file",
    "select_frames": "ase_segnn.selection",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ase_segnn' has no attribute {name!r}; public names are {', '.join(__all__)}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
