"""Potentials as compiled C++ for inference on a CPU: one function from positions and pairs to energies and forces.

The source is generated for each shape of network (`ase_segnn.codegen`) and compiled at first use
(`ase_segnn.engines.build`). No array of edges and channels is ever stored: a message is computed in registers, and once
more for its derivative. Functions of the distance are splines (`ase_segnn.codegen.spline`), and the slope of the spline
enters the forces.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ase_segnn.codegen.cpp import HEADERS
from ase_segnn.codegen.inference import constants_of, source_of
from ase_segnn.codegen.interface import INPUT, ctypes_struct
from ase_segnn.codegen.networks import INTERVALS
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.program import Program
from ase_segnn.codegen.rules import check_supported
from ase_segnn.engines.boundary import Packed, address, aligned
from ase_segnn.engines.build import load_library
from ase_segnn.engines.indices import checked_species
from ase_segnn.engines.surroundings import Lock, threads_may_run
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

_FEWEST_ATOMS = 32  # per thread; fewer gain little, and threads that wait for a busy processor lose much
_HALO_RESERVE = 8  # that part of the rows of a halo is there for more
_Input = ctypes_struct("Input", INPUT)
_SIZES = ("n_atoms", "n_edges", "n_threads", "forces_wanted", "halo_capacity")  # which the workspace depends on
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}  # relative; above rounding, below what wrong code gives


class NativePotential:
    """The same potential, evaluated without arrays of edges and channels.

    Several threads may evaluate it; they take turns. A pickled one is compiled or loaded anew where it arrives.

    Parameters
    ----------
    potential : on the CPU, float32 or float64; not changed, and not to be changed any more

    Raises
    ------
    ValueError
        If there is no generated code for it, see `ase_segnn.codegen.rules.unsupported`.
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
        check_supported(potential, device="cpu")
        self._potential = potential
        self._lock = Lock()
        with torch.device("cpu"):  # whatever the default of the caller is
            self.function = NativeFunction(potential)
            compare(potential, partial(self.evaluate, stress=True), "use compile=False, and ")

    def __reduce__(self) -> tuple[type[NativePotential], tuple[Potential]]:
        return NativePotential, (self._potential,)

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns; the stress of a structure whose cell has no volume is nan.

        The tensors are made where they are read: each call fills the processor's caches with weights, and functions
        of torch are slow after that.

        Raises
        ------
        ValueError, IndexError
            As of `ase_segnn.engines.indices.checked_species`, though edges between structures pass; or if a structure
            has no atoms.
        TypeError
            If the graph holds no tensors with memory on the CPU.
        """
        with self._lock.now:
            wrong, arrays = self.function(graph, derivatives=forces or stress)
        if wrong:
            checked_species(graph, self._potential)
            raise ValueError("a structure of the graph has no atoms")  # all else was right
        if forces != stress:  # they are computed together
            del arrays["stress" if forces else "forces"]
        return Prediction.from_arrays(arrays)


def compare(plain: Potential, predict: Callable[[AtomicGraph], Prediction], instead: str) -> None:
    """Stop if energies, forces or stress of a small crystal are not those of the plain potential.

    How much they may differ depends on how far the plain potential itself is from its values in float64: steep
    potentials magnify rounding.

    Parameters
    ----------
    plain : the potential
    predict : as compiled, with forces and stress
    instead : what can be done without compiled code, for the message

    Raises
    ------
    RuntimeError
    """
    rng = np.random.default_rng(0)
    spacing = 0.4 * plain.cutoff
    numbers = np.resize([atomic_numbers[symbol] for symbol in plain.elements], 12)
    sites = np.stack(np.meshgrid(range(3), range(2), range(2)), axis=-1).reshape(12, 3)
    positions = spacing * (sites + rng.uniform(-0.2, 0.2, (12, 3)))
    atoms = Atoms(numbers, positions, cell=spacing * np.array([3, 3, 3]), pbc=True)
    graph = AtomicGraph.from_atoms(atoms, plain.cutoff).to(plain.device)
    result, expected = predict(graph), plain.predict(graph, stress=True)
    exact = copy.deepcopy(plain).double().predict(graph, stress=True)
    for name in ("atom_energies", "forces", "stress"):
        value, rounded, target = (getattr(prediction, name) for prediction in (result, expected, exact))
        rounding = (rounded - target).abs().max()
        allowed = _TOLERANCES[plain.dtype] * target.abs().max() + 10 * rounding
        error = (value - target).abs().max()
        if target.isfinite().all() and not error <= allowed:
            raise RuntimeError(
                f"{name} of the compiled potential are wrong by {error:.2e}, at most {allowed:.2e} is allowed; "
                f"{instead}please report this with your versions of torch and of the C++ compiler"
            )


def constants(program: Program, potential: Potential) -> tuple[dict[str, int], list[Packed]]:
    """Return the numbers and the arrays of the struct Constants, which do not change from call to call."""
    numbers = {
        "n_species": len(potential.elements),
        "n_numbers": len(potential.species_of_number),
        "n_intervals": INTERVALS[potential.dtype],
    }
    tensors = {**program.weights, "species_of_number": potential.species_of_number}
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors.values())
    return numbers, [Packed({name: x for name, x in tensors.items() if x.dtype is dtype}) for dtype in dtypes]


class NativeFunction:
    """The compiled function of one program, for one call at a time.

    It keeps the memory it works in, which grows to what the largest structure needed, from one call to the next.

    Parameters
    ----------
    program : of the potential
    potential : whose numbers are copied

    Raises
    ------
    NoCompilerError
    """

    def __init__(self, potential: Potential) -> None:
        program = program_of(potential)
        self._library: Any = load_library(source_of(program, potential.dtype), HEADERS)
        for function in (self._library.workspace_size, self._library.evaluate, self._library.number_of_parts):
            function.restype = ctypes.c_int64
        self._workspace = aligned(0, torch.uint8)
        self._laid_out_for: tuple[int, ...] = ()
        self.halo_capacity = 0
        self._sizes: tuple[int, ...] = (0, 0, 1, 0, 0)  # of the last call
        self._constants_type = ctypes_struct("Constants", constants_of(program))
        self._numbers, self._packed = constants(program, potential)
        self._memory: list[int] = []  # where the numbers were when `_constants` was made
        self._constants: Any = None
        self.busy: NDArray[np.float64] | None = None  # (threads, parts) to which calls add the seconds of their work

    def __call__(self, graph: AtomicGraph, *, derivatives: bool) -> tuple[int, dict[str, NDArray[np.float64]]]:
        """Return 0, or the number of what is wrong with the indices of the graph, and the results.

        These are energy (B,), atom_energies (N,) and, with derivatives, forces (N, 3) and stress (B, 3, 3).

        Raises
        ------
        TypeError, ValueError
            If a tensor is not as the compiled code takes it.
        """
        n, n_edges, n_structures = graph.n_atoms, graph.n_edges, graph.n_structures
        arguments = _Input(n_atoms=n, n_edges=n_edges, n_structures=n_structures, forces_wanted=derivatives)
        kept = []
        for name, given, dtype, shape in (
            ("positions", graph.positions, torch.float64, (n, 3)),
            ("cells", graph.cell, torch.float64, (n_structures, 3, 3)),
            ("cell_shifts", graph.cell_shifts, torch.float64, (n_edges, 3)),
            ("centers", graph.centers, torch.int64, (n_edges,)),
            ("neighbors", graph.neighbors, torch.int64, (n_edges,)),
            ("structures", graph.structure, torch.int64, (n,)),
            ("atomic_numbers", graph.atomic_numbers, torch.int64, (n,)),
        ):
            tensor = given if given.is_contiguous() else given.contiguous()
            kept.append(tensor)  # as long as the call takes
            setattr(arguments, name, address(name, tensor, dtype, shape))
        # one array for all results: to allocate memory is fast, to ask where an array is is not
        memory = np.empty(n_structures + n + (3 * n + 9 * n_structures) * derivatives)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))  # type: ignore[arg-type]  # an array is a buffer
        results = {"energy": memory[:n_structures], "atom_energies": memory[n_structures:][:n]}
        arguments.energy, arguments.atom_energies = first, first + 8 * n_structures
        if derivatives:
            results["forces"] = memory[n_structures + n :][: 3 * n].reshape(n, 3)
            results["stress"] = memory[n_structures + 4 * n :].reshape(n_structures, 3, 3)
            arguments.forces, arguments.stress = first + 8 * (n_structures + n), first + 8 * (n_structures + 4 * n)
        if self.busy is not None:
            arguments.busy = self.busy.ctypes.data
        return self._run(arguments), results

    def _run(self, arguments: Any) -> int:
        """Call the function with as much memory as it needs."""
        n, n_edges, forces = arguments.n_atoms, arguments.n_edges, arguments.forces_wanted
        arguments.n_threads = self._n_threads(n)
        while True:
            arguments.halo_capacity = self.halo_capacity if arguments.n_threads > 1 and forces else 0
            sizes = (n, n_edges, arguments.n_threads, forces, arguments.halo_capacity)
            arguments.workspace_is_clean = sizes == self._laid_out_for
            self._sizes, self._laid_out_for = sizes, ()  # until this call has left the workspace clean
            if not arguments.workspace_is_clean:
                self._get_workspace(sizes)
            arguments.workspace = self._workspace.data_ptr()
            result: int = self._library.evaluate(ctypes.byref(arguments), ctypes.byref(self._with_weights()))
            if result >= 0:
                break
            self.halo_capacity = -result + -result // _HALO_RESERVE
        if result == 0:
            self._laid_out_for = sizes
        return result

    @property
    def n_parts(self) -> int:
        """Number of columns of `busy`: to prepare, and one per pass."""
        return int(self._library.number_of_parts())

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that the last call worked in, and how many of them only further threads need."""
        n_atoms, n_edges, _, forces, _ = self._sizes
        whole, one = map(self._workspace_size, (self._sizes, (n_atoms, n_edges, 1, forces, 0)))
        return whole, whole - one

    def _with_weights(self) -> Any:
        """Return the struct of all that does not change from call to call."""
        memory = [packed.numbers.data_ptr() for packed in self._packed]
        if memory != self._memory:
            places = {name: place for packed in self._packed for name, place in packed.addresses().items()}
            self._constants = self._constants_type(**self._numbers, **places)
            self._memory = memory
        return self._constants

    def _get_workspace(self, sizes: tuple[int, ...]) -> None:
        size = self._workspace_size(sizes)
        if size > self._workspace.numel():
            self._workspace = aligned(0, torch.uint8)  # so that both are never there at once
            self._workspace = aligned(size + size // 8, torch.uint8)

    def _workspace_size(self, sizes: tuple[int, ...]) -> int:
        return int(self._library.workspace_size(ctypes.byref(_Input(**dict(zip(_SIZES, sizes, strict=True))))))

    @staticmethod
    def _n_threads(n_atoms: int) -> int:
        return min(torch.get_num_threads(), max(1, n_atoms // _FEWEST_ATOMS)) if threads_may_run() else 1
