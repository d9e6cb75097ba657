"""Potentials as compiled C++ for inference on a CPU: one function from positions and pairs to energies and forces.

The source is made for each shape of network (`native_source`), compiled at first use and kept on disk by torch for
other processes. With the weights of both layers of a message taken to the nodes, what happens along an edge works on
each channel alone: add what center and neighbor send, steer, gate, multiply by functions of the distance, steer again,
and add up. One loop does all of this in registers, so that no array of edges and channels is ever stored. The
derivative computes the message again. Functions of the distance are splines, see `ase_segnn.model.spline`, and what
enters the forces is the slope of the spline.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.cpp import load_cpp
from ase_segnn.model.edge_layout import Layout, edge_functions, why_no_loops
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.native_source import ARGUMENTS, NativeSource
from ase_segnn.model.potential import Potential, Prediction, sum_structures
from ase_segnn.model.segnn import MessageNetwork, SEGNNLayer
from ase_segnn.model.spline import spline_coefficients
from ase_segnn.model.steerable import SteerableLinear

_FEWEST_ATOMS = 32  # per thread; fewer gain little, and threads that wait for a busy processor lose much
_MOST_EXTRA_BYTES = 4 * 2**30  # of workspace for threads beyond the first; more than that allows are not used
_TYPES: dict[str, Any] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
# Intervals of the splines of radial functions, for errors below those of rounding.
_INTERVALS = {torch.float32: 128, torch.float64: 1024}
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative; above rounding, below what wrong code gives
_SMALLEST = 1e-9  # Å, instead of the distance 0, where Bessel functions are 0 / 0


def why_not_native(potential: Potential) -> str | None:
    """Say why a potential has no such function, or None if it has."""
    return why_no_loops(potential.network.rounds[0].message)


class NativePotential:
    """The same potential, evaluated without arrays of edges and channels.

    Parameters
    ----------
    potential : on the CPU, float32 or float64; not changed, and not to be changed any more

    Raises
    ------
    ValueError
        If it has no such form, see `why_not_native`.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    RuntimeError
        If what was compiled gives other results for a small structure than the plain potential.
    """

    def __init__(self, potential: Potential) -> None:
        reason = why_not_native(potential)
        if reason is not None:
            raise ValueError(f"this potential has no native form: {reason}")
        self._potential = potential
        config, dtype = potential.config, potential.dtype
        rounds = potential.network.rounds
        updates = [_merged(layer) for layer in rounds]
        source = NativeSource(potential, updates, dtype)
        constants = {
            "n_intervals": _INTERVALS[dtype],
            "n_species": len(potential.elements),
            "cutoff": potential.cutoff,
            "average_neighbors": config.average_neighbors,
            "energy_scale": config.energy_scale,
            "reference_energies": potential.reference_energies,
            "energy_shifts": potential.energy_shifts,
            "repulsion": None if potential.zbl is None else potential.zbl.pairs,
            "weights": source.weights(potential, updates),
            "tables": [_table(potential, layer.message) for layer in rounds],
        }
        self._function = NativeFunction(source.source, constants)
        self._last_numbers = self._last_species = torch.empty(0, dtype=torch.int64)
        self._compare()

    def predict(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns, detached."""
        arrays = self.evaluate(graph, forces=forces, stress=stress)
        return Prediction(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def evaluate(
        self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False
    ) -> dict[str, NDArray[np.float64]]:
        """Return the same as arrays by the same names, without what is not asked for.

        For few atoms this is faster: each call fills the caches with weights, and then every function of torch is slow.
        """
        n = graph.n_atoms
        arrays = {"energy": np.zeros(graph.n_structures), "atom_energies": np.empty(n)}
        if forces or stress:
            arrays |= {"forces": np.empty((n, 3)), "virials": np.empty((n, 3, 3))}
        self._function(graph, self._species(graph), arrays)
        virials = arrays.pop("virials", None)
        if stress and virials is not None:
            virial = sum_structures(graph, graph.structure, torch.from_numpy(virials).flatten(1)).unflatten(1, (3, 3))
            arrays["stress"] = ((virial + virial.mT) / (2 * graph.volumes()[:, None, None])).numpy()
        if not forces:
            arrays.pop("forces", None)
        return arrays

    def _species(self, graph: AtomicGraph) -> Tensor:
        """Return the index of each atom's element, (N,) int64; along dynamics it stays the same."""
        if graph.atomic_numbers is not self._last_numbers:
            species = self._potential.species_of_number[graph.atomic_numbers]
            if (species >= len(self._potential.elements)).any():
                raise IndexError(f"an element is none of the potential's, {', '.join(self._potential.elements)}")
            self._last_numbers, self._last_species = graph.atomic_numbers, species
        return self._last_species

    def _compare(self) -> None:
        """Stop if energies or forces of a small crystal are not those of the plain potential.

        How much they may differ depends on how far the plain potential itself is from its values in float64: steep
        potentials magnify rounding.
        """
        plain = self._potential
        rng = np.random.default_rng(0)
        spacing = 0.4 * plain.cutoff
        numbers = np.resize([atomic_numbers[symbol] for symbol in plain.elements], 12)
        sites = np.stack(np.meshgrid(range(3), range(2), range(2)), axis=-1).reshape(12, 3)
        positions = spacing * (sites + rng.uniform(-0.2, 0.2, (12, 3)))
        atoms = Atoms(numbers, positions, cell=spacing * np.array([3, 3, 3]), pbc=True)
        graph = AtomicGraph.from_atoms(atoms, plain.cutoff)
        result, expected = self.predict(graph), plain.predict(graph)
        exact = copy.deepcopy(plain).double().predict(graph)
        for name in ("atom_energies", "forces"):
            value, rounded, target = (getattr(prediction, name) for prediction in (result, expected, exact))
            rounding = (rounded - target).abs().max()
            allowed = _TOLERANCES[plain.dtype] * target.abs().max() + 10 * rounding
            error = (value - target).abs().max()
            if target.isfinite().all() and not error <= allowed:
                raise RuntimeError(
                    f"{name} of the compiled potential are wrong by {error:.2e}, at most {allowed:.2e} is allowed; use "
                    "compile=False, and please report this with your versions of torch and of the C++ compiler"
                )


class _Input(ctypes.Structure):
    _fields_ = [(name, _TYPES.get(kind, ctypes.c_void_p)) for name, kind in ARGUMENTS.items()]


class NativeFunction:
    """The compiled function of one source.

    It keeps the memory it works in, which grows to what the largest structure needed, from one call to the next.

    Parameters
    ----------
    source : see `native_source`
    constants : what does not change from call to call: numbers, tensors or None, lists of tensors, by their names there

    Raises
    ------
    NoCompilerError
    """

    def __init__(self, source: str, constants: dict[str, Any]) -> None:
        self._library: Any = load_cpp(source)
        self._library.workspace_size.restype = self._library.evaluate.restype = ctypes.c_int64
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._laid_out_for: tuple[int, ...] = ()
        self._constants = constants  # keeps the tensors alive
        self._input = _Input()
        for name, value in constants.items():
            setattr(self._input, name, _as_argument(value))

    def __call__(self, graph: AtomicGraph, species: Tensor, results: dict[str, NDArray[np.float64]]) -> None:
        """Fill in energy (B,), which is zero before, atom_energies (N,), forces (N, 3) and virials (N, 3, 3).

        The latter two may both be left out. The virial of an atom is the sum over its pairs of the outer product of
        vector and derivative of the energy.

        Raises
        ------
        ValueError
            If the pairs are not sorted by their centers.
        """
        n, forces = graph.n_atoms, "forces" in results
        sizes = (n, graph.n_edges, self._n_threads(n, graph.n_edges, forces=forces), int(forces))
        if sizes != self._laid_out_for:
            self._lay_out(sizes)
        tensors = {
            "positions": graph.positions.contiguous(),
            "cells": graph.cell.contiguous(),
            "cell_shifts": graph.cell_shifts.contiguous(),
            "centers": graph.centers.contiguous(),
            "neighbors": graph.neighbors.contiguous(),
            "structure": graph.structure.contiguous(),
            "species": species,
            **{name: torch.from_numpy(array) for name, array in results.items()},
        }
        for name, tensor in tensors.items():
            setattr(self._input, name, tensor.data_ptr())
        self._input.workspace_is_clean = int(sizes == self._laid_out_for)
        if self._library.evaluate(ctypes.byref(self._input)):
            raise ValueError("the edges of the graph are not sorted by their centers")
        self._laid_out_for = sizes

    def _lay_out(self, sizes: tuple[int, int, int, int]) -> None:
        """Take note of the sizes, and get the memory to work in."""
        self._laid_out_for = ()
        size = self._library.workspace_size(*map(ctypes.c_int64, sizes))
        if size > self._workspace.numel():
            self._workspace = torch.empty(0, dtype=torch.uint8)  # so that both are never there at once
            self._workspace = torch.empty(size + size // 8, dtype=torch.uint8)
        arguments = self._input
        arguments.n_atoms, arguments.n_edges, arguments.n_threads, arguments.forces_wanted = sizes
        arguments.workspace = self._workspace.data_ptr()

    def _n_threads(self, n_atoms: int, n_edges: int, *, forces: bool) -> int:
        n_threads = min(torch.get_num_threads(), max(1, n_atoms // _FEWEST_ATOMS))
        if n_threads == 1 or not forces:
            return n_threads
        one, two = (self._library.workspace_size(*map(ctypes.c_int64, (n_atoms, n_edges, n, 1))) for n in (1, 2))
        return min(n_threads, 1 + int(_MOST_EXTRA_BYTES // (two - one)))


def _as_argument(value: float | Tensor | Sequence[Tensor] | None) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if value is None or isinstance(value, (int, float)):
        return value
    pointers = (ctypes.c_void_p * len(value))(*[x.data_ptr() for x in value])
    return ctypes.cast(pointers, ctypes.c_void_p)


def _table(potential: Potential, message: MessageNetwork) -> Tensor:
    """Splines of the functions of the distance, (intervals + 5, functions * C); see `Layout`."""
    exact = copy.deepcopy(message).double()
    layout = Layout(exact, potential.network.embedding)

    def functions(distances: Tensor) -> Tensor:
        scalars, _ = potential.radial_functions(distances.where(distances != 0, _SMALLEST))
        return torch.cat(edge_functions(layout, exact, scalars), dim=1)

    with torch.no_grad():
        table = spline_coefficients(functions, potential.cutoff, _INTERVALS[potential.dtype])
    return table.to(potential.dtype).contiguous()


def _merged(layer: SEGNNLayer) -> SEGNNLayer:
    """Return the same layer, to update from the sums along edges.

    The second layer of the messages and the first of the update are both linear, so one matrix does what two did.
    """
    message, update = layer.message.linear_2, layer.update.linear_1
    n = len(message.irreps_out)
    merged = copy.deepcopy(layer)
    widths = [(weight.shape[0], ir) for weight, (_, ir) in zip(message.weights, message.irreps_out, strict=True)]
    with torch.random.fork_rng(devices=[]):
        first = SteerableLinear(message.irreps_out + Irreps(widths), update.irreps_attributes, update.irreps_out)
    first.to(message.weights[0].dtype)
    for new, weight, paths, old in zip(first.weights, update.weights, first.paths, update.paths, strict=True):
        rows = {(path.entry_in, path.copy): weight[path.rows] for path in old}
        for path in paths:
            matrix = rows[path.entry_in, path.copy]
            new.data[path.rows] = matrix if path.entry_in < n else message.weights[path.entry_in - n] @ matrix
    first.biases = update.biases
    merged.update.linear_1 = first.requires_grad_(False)
    return merged
