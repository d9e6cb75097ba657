"""Results as ASE names them, from what an engine returns."""

from __future__ import annotations

import math
from typing import Any

import torch

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Prediction

_VOIGT = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]  # rows and columns of xx yy zz yz xz xy


def results_of(graph: AtomicGraph, prediction: Prediction) -> list[dict[str, Any]]:
    """Split a prediction into ASE's results of each structure.

    Parameters
    ----------
    graph : of B structures
    prediction : of that graph, with forces and stress or without both; a `CommitteePrediction` has deviations as well

    Returns
    -------
    B dictionaries with the names, shapes and units of `ase_segnn.SEGNNCalculator`; the stress only where the cell has a
    volume
    """
    arrays = prediction.arrays()
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
