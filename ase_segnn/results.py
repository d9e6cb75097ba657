"""Results as ASE names them, from the arrays of an evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ase_segnn.graph import AtomicGraph

_VOIGT = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]  # rows and columns of xx yy zz yz xz xy


def results_of(graph: AtomicGraph, arrays: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Split the arrays of a prediction into ASE's results of each structure.

    Parameters
    ----------
    graph : of B structures
    arrays : as of `ase_segnn.engines.evaluator.Evaluator.evaluate`

    Returns
    -------
    B dictionaries with the names, shapes and units of `ase_segnn.SEGNNCalculator`; the stress only where the cell has a
    volume
    """
    ends = [graph.n_atoms]
    if graph.n_structures > 1:
        ends = torch.bincount(graph.structure, minlength=graph.n_structures).cumsum(0).tolist()
    all_results = []
    for index, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        energy = float(arrays["energy"][index])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": arrays["atom_energies"][start:end],
        }
        if "forces" in arrays:
            results["forces"] = arrays["forces"][start:end]
            stress = arrays["stress"][index]
            if not math.isnan(stress[0, 0]):  # there is a volume
                results["stress"] = stress[_VOIGT]
        if "energy_std" in arrays:
            results["energy_std"] = float(arrays["energy_std"][index])
            results["energies_std"] = arrays["atom_energies_std"][start:end]
        if "forces_std" in arrays:
            results["forces_std"] = arrays["forces_std"][start:end]
        all_results.append(results)
    return all_results
