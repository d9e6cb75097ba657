"""Potentials as Triton kernels for a GPU, for what happens at atoms and along their edges; torch multiplies matrices.

No array of edges and channels is ever stored (`ase_segnn.codegen.triton`). Arrays of atoms share memory where they are
not needed at the same time. All that an evaluation launches is recorded once for each class of sizes and launched
together.
"""

from __future__ import annotations

import copy
import hashlib
import linecache
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ase_segnn.codegen.arrays import Array
from ase_segnn.codegen.expressions import Tape
from ase_segnn.codegen.geometry import VECTORS, VIRIALS
from ase_segnn.codegen.networks import INTERVALS
from ase_segnn.codegen.potentials import ATOM_ENERGIES, COUNTED, FORCES, program_of
from ase_segnn.codegen.program import Loop, Product, Program, Step, Total
from ase_segnn.codegen.rules import check_supported
from ase_segnn.codegen.schedule import places
from ase_segnn.codegen.triton import Kernels, arrays_of, n_programs, n_warps
from ase_segnn.engines.captured import Recorder, record_cuda_graph
from ase_segnn.engines.indices import checked_species
from ase_segnn.engines.native import compare
from ase_segnn.engines.surroundings import Lock
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction, stress_of, sum_structures

_LANES = 32  # of programs that select pairs
_CLASSES = 8  # of sizes between a power of 2 and the next
_SMALLEST = 4


class Sizes(NamedTuple):
    """Numbers of atoms, edges and structures that there is room for."""

    atoms: int
    edges: int
    structures: int


def class_of(n: int) -> int:
    """Return the smallest size of a class that is not less than n; there are eight between powers of 2."""
    step = max(_SMALLEST, (1 << max(0, n - 1).bit_length()) // (2 * _CLASSES))
    return max(_SMALLEST, -(-n // step) * step)


class KernelProgram:
    """Steps of a program, in memory for atoms and edges.

    Parameters
    ----------
    tape, steps : of the program, without totals
    potential : whose program it is; dtype, device, cutoff and number of elements count
    kept : arrays that are not only needed between two steps, such as results
    cleared : arrays that are zero before anything is added to them

    Attributes
    ----------
    memory : array of atoms or edges -> what it holds, (rows, numbers of a row)
    weights : name -> tensor on the device, to be set before `run`
    """

    def __init__(
        self, tape: Tape, steps: Sequence[Step], potential: Potential, kept: Iterable[Array], cleared: Iterable[Array]
    ) -> None:
        self._steps, self._dtype, self.device = steps, potential.dtype, potential.device
        self._n_species, self._n_intervals = len(potential.elements), INTERVALS[potential.dtype]
        per_length = self._n_intervals / potential.cutoff
        self._per_length = torch.tensor([per_length], dtype=self._dtype, device=self.device)
        self._cutoff = torch.tensor([potential.cutoff], dtype=torch.float64, device=self.device)
        self.weights: Mapping[str, Tensor] = {}
        self._kernels = Kernels(tape, self._dtype)
        self._names = {step: self._kernels.name(step) for step in self._steps if isinstance(step, Loop)}
        self._module = load_kernels(self._kernels.source())
        used = dict.fromkeys(array for step in self._steps for array, _ in [*step.reads, *step.writes])
        kept = set(kept)
        self._kept = [x for x in kept if x.rows in ("node", "edge")]
        self._places = {
            rows: places(self._steps, {x for x in used if x.rows == rows} - kept, self._size_of)
            for rows in ("node", "edge")
        }
        self._cleared_before: dict[int, list[Array]] = {}
        for array in dict.fromkeys(cleared):
            self._cleared_before.setdefault(self._first_writer(array), []).append(array)
        self.memory: dict[Array, Tensor] = {}
        self._sizes = Sizes(0, 0, 0)
        # end of the near pairs of each atom, and the neighbors of pairs, the near ones of each atom first
        self._ends = self._neighbors = torch.empty(0, dtype=torch.int64, device=self.device)

    @property
    def bytes_of_row(self) -> dict[str, int]:
        """Bytes that an atom takes, and an edge."""
        lasting = {
            rows: sum(self._size_of(x) for x in self._kept if x.rows == rows) + self._size_of_shared(rows)
            for rows in self._places
        }
        return {rows: size * self._dtype.itemsize for rows, size in lasting.items()}

    def reserve(self, sizes: Sizes) -> None:
        """Have memory for so many atoms and edges, each a multiple of 4; what was in it is lost."""
        self._sizes, self.memory = sizes, {}
        n_rows = {"node": sizes.atoms, "edge": sizes.edges}
        for rows, n in n_rows.items():
            shared = torch.empty(self._size_of_shared(rows) * n, dtype=self._dtype, device=self.device)
            for array, start in self._places[rows].items():
                numbers = shared[start * n : (start + self._size_of(array)) * n]
                double = numbers.view(torch.float64) if array.is_double else numbers
                self.memory[array] = double[: n * array.stride].view(n, array.stride)
        for array in self._kept:
            dtype = torch.float64 if array.is_double else self._dtype
            self.memory[array] = torch.empty(n_rows[array.rows], array.stride, dtype=dtype, device=self.device)
        empty = partial(torch.empty, dtype=torch.int64, device=self.device)
        self._ends, self._neighbors = empty(sizes.atoms), empty(sizes.edges)

    def select_pairs(self, graph: AtomicGraph, rows: Tensor) -> None:
        """Put the pairs of each atom first that are closer than the cutoff."""
        self._module["select_pairs"][(self._sizes.atoms,)](
            rows,
            graph.neighbors,
            graph.structure,
            graph.positions,
            graph.cell,
            graph.cell_shifts,
            self._cutoff,
            self._ends,
            self._neighbors,
            self.memory[VECTORS],
            LANES=_LANES,
            num_warps=1,
        )

    def run(self, rows: Tensor, species: Tensor, first: int = 0, end: int | None = None) -> None:
        """Run the steps, or those from the first to before the end, for the pairs that were selected."""
        n_atoms = self._sizes.atoms
        numbers = (n_atoms, self._n_species, self._n_intervals, self._per_length)
        head = (rows, self._ends, self._neighbors, species, *numbers)
        for number, step in enumerate(self._steps[first:end], start=first):
            for array in self._cleared_before.get(number, []):
                self.memory[array].zero_()
            if isinstance(step, Product):
                self._multiply(step)
            elif isinstance(step, Loop):
                arrays = [self.memory[x] if x in self.memory else self.weights[x.identifier] for x in arrays_of(step)]
                kernel = self._module[self._names[step]]
                kernel[(n_programs(step, n_atoms),)](*head, *arrays, num_warps=n_warps(step))

    def _multiply(self, step: Product) -> None:
        source, target = (self.memory[array].view(-1, array.width) for array in (step.source, step.target))
        weight = self.weights[step.weight]
        if step.adds:
            target.addmm_(source, weight)
        else:
            torch.mm(source, weight, out=target)

    def _first_writer(self, array: Array) -> int:
        return next(k for k, step in enumerate(self._steps) if any(array == one for one, _ in step.writes))

    def _size_of(self, array: Array) -> int:
        """Numbers of the network's precision that a row takes; with rows in fours all arrays begin at 16 bytes."""
        n_bytes = array.stride * (8 if array.is_double else self._dtype.itemsize)
        return -(-n_bytes // self._dtype.itemsize)

    def _size_of_shared(self, rows: str) -> int:
        return max((start + self._size_of(array) for array, start in self._places[rows].items()), default=0)


class TritonPotential:
    """The same potential, evaluated by kernels.

    Several threads may evaluate it; they take turns.

    Parameters
    ----------
    potential : on a GPU, frozen, in evaluation mode, and not to be changed any more
    record : what records a function and can run it again, as `record_cuda_graph` does

    Raises
    ------
    ValueError
        If there is no generated code for it, see `ase_segnn.codegen.rules.unsupported`.
    ImportError
        If Triton is not installed.
    RuntimeError
        If the kernels give other results for a small structure than the plain potential.
    """

    name = "Triton kernels"
    reason = ""
    takes_far_pairs = True
    takes_batches = True
    follows_torch = True

    def __init__(self, potential: Potential, *, record: Recorder = record_cuda_graph) -> None:
        check_supported(potential)
        check_triton()
        self._potential, self._record = potential, record
        self._lock = Lock()
        self.program, self._n_forward = inference_kernels(potential)
        self._taken: tuple[Tensor, ...] = ()  # what the indices of the last graph were
        self._graph: AtomicGraph | None = None  # which everything recorded acts on
        self._rows = self._species = torch.empty(0, dtype=torch.int64, device=potential.device)
        self._recordings: dict[bool, tuple[Tensor, Callable[[], None]]] = {}
        self._sizes = Sizes(0, 0, 0)
        compare(potential, partial(self.evaluate, stress=True), "use compile=False, and ")

    def evaluate(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Return what `Potential.predict` returns, on the device; the stress of a cell without a volume is nan.

        Raises
        ------
        ValueError, IndexError
            As of `ase_segnn.engines.indices.checked_species`.
        """
        with self._lock.now:
            self._take(graph)
            derivatives = forces or stress
            if derivatives not in self._recordings:
                self._recordings[derivatives] = self._record(partial(self._run, derivatives), self.program.device)
            results, replay = self._recordings[derivatives]
            replay()
            return self._prediction(results.clone(), graph, forces=forces, stress=stress)

    def _take(self, graph: AtomicGraph) -> None:
        """Copy a graph to where everything recorded finds it, filled up with lone atoms of a further structure."""
        indices = (graph.atomic_numbers, graph.centers, graph.neighbors, graph.cell_shifts, graph.structure)
        n, n_edges, n_structures = graph.n_atoms, graph.n_edges, graph.n_structures
        if not self._taken or any(map(operator.is_not, indices, self._taken)):
            self._taken = ()
            species = checked_species(graph, self._potential)
            sizes = Sizes(class_of(n), class_of(n_edges), n_structures)
            if sizes != self._sizes:
                self._make_room(sizes)
            still = self._graph
            assert still is not None
            for target, values, rest in (
                (self._species, species, 0),
                (still.structure, graph.structure, n_structures),
                (still.neighbors, graph.neighbors, 0),
                (still.cell_shifts, graph.cell_shifts, 0),
            ):
                target[: len(values)] = values
                target[len(values) :] = rest
            firsts = torch.arange(self._sizes.atoms + 1, device=self.program.device)
            torch.searchsorted(graph.centers, firsts, out=self._rows)
            self._taken = indices
        assert self._graph is not None
        self._graph.positions[:n] = graph.positions
        self._graph.cell[:n_structures] = graph.cell

    def _make_room(self, sizes: Sizes) -> None:
        self._recordings.clear()  # nothing holds the memory any more
        self._sizes, device = sizes, self.program.device
        n, n_edges, n_structures = sizes
        self.program.reserve(sizes)
        self.program.memory[COUNTED].fill_(1)
        integers = partial(torch.zeros, dtype=torch.int64, device=device)
        doubles = partial(torch.zeros, dtype=torch.float64, device=device)
        self._rows, self._species = integers(n + 1), integers(n)
        self._graph = AtomicGraph(
            positions=doubles(n, 3),
            atomic_numbers=integers(n),
            cell=doubles(n_structures + 1, 3, 3),
            pbc=torch.zeros(n_structures + 1, 3, dtype=torch.bool, device=device),
            centers=integers(0),
            neighbors=integers(n_edges),
            cell_shifts=doubles(n_edges, 3),
            structure=integers(n),
        )

    def _run(self, derivatives: bool) -> Tensor:  # only to be recorded
        """Return all results one after another."""
        graph, program = self._graph, self.program
        assert graph is not None
        program.select_pairs(graph, self._rows)
        program.run(self._rows, self._species, end=None if derivatives else self._n_forward)
        energies = program.memory[ATOM_ENERGIES][:, 0]
        results = [sum_structures(graph, graph.structure, energies), energies]
        if derivatives:
            virials = sum_structures(graph, graph.structure, program.memory[VIRIALS])
            results += [program.memory[FORCES].flatten(), stress_of(graph, virials).flatten()]
        return torch.cat(results)

    def _prediction(self, results: Tensor, graph: AtomicGraph, *, forces: bool, stress: bool) -> Prediction:
        n, n_structures = self._sizes.atoms, self._sizes.structures + 1
        energy, energies, rest = results.tensor_split([n_structures, n_structures + n])
        of_atoms, stresses = rest.tensor_split([3 * n])
        return Prediction(
            energy[: graph.n_structures],
            energies[: graph.n_atoms],
            of_atoms.view(-1, 3)[: graph.n_atoms] if forces else None,
            stresses.view(-1, 3, 3)[: graph.n_structures] if stress else None,
        )


def inference_kernels(potential: Potential) -> tuple[KernelProgram, int]:
    """Return the steps of energies, forces and virials, and how many of them the energies need."""
    program = _program(potential)
    steps = [step for step in program.steps if not isinstance(step, Total)]
    scattered = [array for step in steps for array, at in step.writes if at == "neighbor"]
    kept = (ATOM_ENERGIES, COUNTED, FORCES, VIRIALS)
    kernels = KernelProgram(program.tape, steps, potential, kept, scattered)
    kernels.weights = {name: weight.to(potential.device) for name, weight in program.weights.items()}
    return kernels, sum(not isinstance(step, Total) for step in program.steps[: program.n_forward])


def _program(potential: Potential) -> Program:
    """Return the program of a potential, made on the CPU, where splines are solved for."""
    return program_of(copy.deepcopy(potential).cpu())


def check_triton() -> None:
    """Check that Triton is installed.

    Raises
    ------
    ImportError
    """
    if find_spec("triton") is None:
        raise ImportError("Triton is not installed: pip install triton")


def load_kernels(source: str) -> dict[str, Any]:
    """Return what a module of kernels defines; Triton reads its source again."""
    name = f"<kernels {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    defined: dict[str, Any] = {"__name__": name}
    exec(compile(source, name, "exec"), defined)  # our own source
    return defined
