"""Potentials as compiled C++ for inference on a CPU: one function from positions and pairs to energies and forces.

The source is made for each shape of network (`ase_segnn.model.native_source`) and compiled at first use
(`ase_segnn.engines.build`). With the weights of both layers of a message taken to the nodes, what happens along an edge
works on each channel alone: add what center and neighbor send, steer, gate, multiply by functions of the distance,
steer again, and add up. One loop does all of this in registers, so that no array of edges and channels is ever stored.
The derivative computes the message again. Functions of the distance are splines, see `ase_segnn.model.spline`, and what
enters the forces is the slope of the spline.
"""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray
from torch import Tensor

from ase_segnn.engines.boundary import Packed, address, aligned
from ase_segnn.engines.build import load_library
from ase_segnn.engines.surroundings import Lock, threads_may_run
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.edge_layout import Layout, edge_functions, why_not_along_edges
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.native_source import ARGUMENTS, NativeSource
from ase_segnn.model.padding import with_equal_channels
from ase_segnn.model.potential import Potential, Prediction
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
# What the compiled function returns, as numbered in its source.
_WRONG = {
    1: (ValueError, "the edges of the graph are not sorted by their centers"),
    2: (ValueError, "an edge of the graph joins atoms that are not there"),
    3: (ValueError, "the atoms of each structure of the graph do not follow each other, or a structure has no atoms"),
    4: (IndexError, "an element is none of the potential's, {elements}"),
}


def why_not_native(potential: Potential) -> str | None:
    """Say why a potential has no such function, or None if it has."""
    return why_not_along_edges(potential.network.rounds[0].message)


class NativePotential:
    """The same potential, evaluated without arrays of edges and channels.

    Several threads may evaluate it; they take turns. A pickled one is compiled or loaded anew where it arrives.

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

    name = "compiled C++"
    reason = ""
    takes_far_pairs = True
    takes_batches = True
    follows_torch = False

    def __init__(self, potential: Potential) -> None:
        reason = why_not_native(potential)
        if reason is not None:
            raise ValueError(f"this potential has no native form: {reason}")
        self._potential = potential
        self._lock = Lock()
        with torch.device("cpu"):  # whatever the default of the caller is
            self._function = _function(potential)
            self._compare()

    def __reduce__(self) -> tuple[type[NativePotential], tuple[Potential]]:
        return NativePotential, (self._potential,)

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns; the stress of a structure whose cell has no volume is nan.

        The tensors are made where they are read: each call fills the processor's caches with weights, and functions
        of torch are slow after that.

        Raises
        ------
        ValueError
            If edges are not sorted by their centers, or the graph is not as it should be otherwise.
        IndexError
            If an element is not among those of the potential.
        TypeError
            If the graph holds no tensors with memory on the CPU.
        """
        with self._lock.now:
            wrong, arrays = self._function(graph, derivatives=forces or stress)
        if wrong:
            kind, message = _WRONG[wrong]
            raise kind(message.format(elements=", ".join(self._potential.elements)))
        if forces != stress:  # they are computed together
            del arrays["stress" if forces else "forces"]
        return Prediction.from_arrays(arrays)

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
        result, expected = self.evaluate(graph), plain.predict(graph)
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
    """The compiled function of one source, for one call at a time.

    It keeps the memory it works in, which grows to what the largest structure needed, from one call to the next.

    Parameters
    ----------
    source : see `ase_segnn.model.native_source`
    numbers : that do not change from call to call, by their names there
    constants : arrays that do not change, likewise
    learned : weights, then tables

    Raises
    ------
    NoCompilerError
    """

    def __init__(self, source: str, numbers: dict[str, float], constants: list[Packed], learned: Packed) -> None:
        self._library: Any = load_library(source)
        self._library.workspace_size.restype = self._library.evaluate.restype = ctypes.c_int64
        self._workspace = aligned(0, torch.uint8)
        self._laid_out_for: tuple[int, ...] = ()
        self._numbers, self._constants, self._learned = numbers, constants, learned
        self._memory: list[int] = []  # where the constants were when `_template` was made
        self._template = b""

    def __call__(self, graph: AtomicGraph, *, derivatives: bool) -> tuple[int, dict[str, NDArray[np.float64]]]:
        """Return 0, or the number of what is wrong with the indices of the graph, and the results.

        These are energy (B,), atom_energies (N,) and, with derivatives, forces (N, 3) and stress (B, 3, 3).

        Raises
        ------
        TypeError, ValueError
            If a tensor is not as the compiled code takes it.
        """
        n, n_edges, n_structures = graph.n_atoms, graph.n_edges, graph.n_structures
        kept, places = [], {}
        for name, given, dtype, shape in (
            ("positions", graph.positions, torch.float64, (n, 3)),
            ("cells", graph.cell, torch.float64, (n_structures, 3, 3)),
            ("cell_shifts", graph.cell_shifts, torch.float64, (n_edges, 3)),
            ("centers", graph.centers, torch.int64, (n_edges,)),
            ("neighbors", graph.neighbors, torch.int64, (n_edges,)),
            ("structure", graph.structure, torch.int64, (n,)),
            ("atomic_numbers", graph.atomic_numbers, torch.int64, (n,)),
        ):
            tensor = given if given.is_contiguous() else given.contiguous()
            kept.append(tensor)  # as long as the call takes
            places[name] = address(name, tensor, dtype, shape)
        sizes = (n, n_edges, self._n_threads(n, n_edges, derivatives), int(derivatives))
        clean = sizes == self._laid_out_for
        self._laid_out_for = ()  # until this call has left the workspace clean
        if not clean:
            self._get_workspace(sizes)
        arguments = _Input.from_buffer_copy(self._with_constants())
        arguments.n_atoms, arguments.n_edges, arguments.n_threads, arguments.forces_wanted = sizes
        arguments.n_structures, arguments.workspace_is_clean = n_structures, clean
        arguments.workspace = self._workspace.data_ptr()
        for name, place in places.items():
            setattr(arguments, name, place)
        # one array for all results: to allocate memory is fast, to ask where an array is is not
        memory = np.empty(n_structures + n + (3 * n + 9 * n_structures) * derivatives)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))  # type: ignore[arg-type]  # an array is a buffer
        results = {"energy": memory[:n_structures], "atom_energies": memory[n_structures:][:n]}
        arguments.energy, arguments.atom_energies = first, first + 8 * n_structures
        if derivatives:
            results["forces"] = memory[n_structures + n :][: 3 * n].reshape(n, 3)
            results["stress"] = memory[n_structures + 4 * n :].reshape(n_structures, 3, 3)
            arguments.forces, arguments.stress = first + 8 * (n_structures + n), first + 8 * (n_structures + 4 * n)
        wrong: int = self._library.evaluate(ctypes.byref(arguments))
        if not wrong:
            self._laid_out_for = sizes
        return wrong, results

    def _with_constants(self) -> bytes:
        """Return the input with all that does not change from call to call."""
        memory = [packed.numbers.data_ptr() for packed in (*self._constants, self._learned)]
        if memory != self._memory:
            places = {name: place for packed in self._constants for name, place in packed.addresses().items()}
            self._template = bytes(_Input(**self._numbers, **places, learned=memory[-1]))
            self._memory = memory
        return self._template

    def _get_workspace(self, sizes: tuple[int, int, int, int]) -> None:
        size = self._library.workspace_size(*map(ctypes.c_int64, sizes))
        if size > self._workspace.numel():
            self._workspace = aligned(0, torch.uint8)  # so that both are never there at once
            self._workspace = aligned(size + size // 8, torch.uint8)

    def _n_threads(self, n_atoms: int, n_edges: int, derivatives: bool) -> int:
        n_threads = min(torch.get_num_threads(), max(1, n_atoms // _FEWEST_ATOMS)) if threads_may_run() else 1
        if n_threads == 1 or not derivatives:
            return n_threads
        one, two = (self._library.workspace_size(*map(ctypes.c_int64, (n_atoms, n_edges, n, 1))) for n in (1, 2))
        return min(n_threads, 1 + int(_MOST_EXTRA_BYTES // (two - one)))


def _function(potential: Potential) -> NativeFunction:
    """Compile a potential, and take copies of its numbers."""
    dtype = potential.dtype
    wide = with_equal_channels(potential)
    rounds = wide.network.rounds
    updates = [_merged(layer) for layer in rounds]
    source = NativeSource(wide, updates, dtype)
    numbers = {
        "n_intervals": _INTERVALS[dtype],
        "n_species": len(potential.elements),
        "n_numbers": len(potential.species_of_number),
        "cutoff": potential.cutoff,
        "average_neighbors": potential.config.average_neighbors,
        "energy_scale": potential.config.energy_scale,
    }
    reals = {"reference_energies": potential.reference_energies, "energy_shifts": potential.energy_shifts}
    if potential.zbl is not None:
        reals["repulsion"] = potential.zbl.pairs
    weights = source.weights(wide, updates)
    tables = [_table(wide, layer.message) for layer in rounds]
    learned = Packed({str(k): tensor for k, tensor in enumerate([*weights, *tables])})
    assert learned.numbers.dtype is dtype
    starts = torch.tensor(list(learned.starts.values()))
    indices = {
        "species_of_number": potential.species_of_number,
        "starts_of_weights": starts[: len(weights)],
        "starts_of_tables": starts[len(weights) :],
    }
    return NativeFunction(source.source, numbers, [Packed(reals), Packed(indices)], learned)


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
