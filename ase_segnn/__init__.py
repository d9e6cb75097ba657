"""Steerable E(3)-equivariant graph networks (SEGNN) as interatomic potentials for ASE.

`SEGNNCalculator` runs a potential in ASE, and `evaluate` tells its errors. `ase_segnn.training.train`, which needs the
extra ``[train]``, makes one. Each public name is imported at first use, so that `import ase_segnn` costs nothing and
changes nothing.

Examples
--------
>>> import ase_segnn
>>> sorted(ase_segnn.shipped_potentials())
['3bpa-wb97x', 'acac-pbe', 'acac-pbe-fast', 'cu-pbe', 'si-pbe']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase_segnn.calculator import SEGNNCalculator
    from ase_segnn.engines.build import NoCompilerError
    from ase_segnn.evaluation import Evaluation, evaluate
    from ase_segnn.graphs.atomic_graph import AtomicGraph
    from ase_segnn.labels.names import LabelKeys
    from ase_segnn.model.committee import Committee, CommitteePrediction
    from ase_segnn.model.config import NetworkConfig, PotentialConfig
    from ase_segnn.model.potential import Potential, Prediction
    from ase_segnn.model.segnn import SEGNN
    from ase_segnn.potential_file import (
        PotentialFileError,
        PotentialHeader,
        Provenance,
        load_potential,
        read_header,
        save_potential,
    )
    from ase_segnn.potentials import shipped_potentials
    from ase_segnn.selection import Selection, select_frames
    from ase_segnn.uncertainty import UncertaintyError

__version__ = "0.1.0"

__all__ = [
    "SEGNN",
    "AtomicGraph",
    "Committee",
    "CommitteePrediction",
    "Evaluation",
    "LabelKeys",
    "NetworkConfig",
    "NoCompilerError",
    "Potential",
    "PotentialConfig",
    "PotentialFileError",
    "PotentialHeader",
    "Prediction",
    "Provenance",
    "SEGNNCalculator",
    "Selection",
    "UncertaintyError",
    "__version__",
    "evaluate",
    "load_potential",
    "read_header",
    "save_potential",
    "select_frames",
    "shipped_potentials",
]

_MODULE_OF = {
    "SEGNN": "ase_segnn.model.segnn",
    "AtomicGraph": "ase_segnn.graphs.atomic_graph",
    "Committee": "ase_segnn.model.committee",
    "CommitteePrediction": "ase_segnn.model.committee",
    "Evaluation": "ase_segnn.evaluation",
    "LabelKeys": "ase_segnn.labels.names",
    "NetworkConfig": "ase_segnn.model.config",
    "NoCompilerError": "ase_segnn.engines.build",
    "Potential": "ase_segnn.model.potential",
    "PotentialConfig": "ase_segnn.model.config",
    "PotentialFileError": "ase_segnn.potential_file",
    "PotentialHeader": "ase_segnn.potential_file",
    "Prediction": "ase_segnn.model.potential",
    "Provenance": "ase_segnn.potential_file",
    "SEGNNCalculator": "ase_segnn.calculator",
    "Selection": "ase_segnn.selection",
    "UncertaintyError": "ase_segnn.uncertainty",
    "evaluate": "ase_segnn.evaluation",
    "load_potential": "ase_segnn.potential_file",
    "read_header": "ase_segnn.potential_file",
    "save_potential": "ase_segnn.potential_file",
    "select_frames": "ase_segnn.selection",
    "shipped_potentials": "ase_segnn.potentials",
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
