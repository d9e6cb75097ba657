"""Physics that a potential predicts beyond energies and forces of frames, with any calculator of ASE.

`study` computes everything that applies to a `System`, as ``ase-segnn physics`` does. The modules have the single
quantities: `crystals`, `defects`, `phonons`, `fluids`, `molecules`, `dynamics`.
"""

from ase_segnn.physics.results import Finding, Results
from ase_segnn.physics.studies import study
from ase_segnn.physics.systems import LoadedSystem, System
from ase_segnn.physics.verdicts import Verdict

__all__ = ["Finding", "LoadedSystem", "Results", "System", "Verdict", "study"]
