"""The ASE calculator: convert the atoms, evaluate the potential, fill in the results."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes, all_properties
from ase.data import atomic_numbers, chemical_symbols
from ase.outputs import Properties
from numpy.typing import NDArray

from ase_segnn.checks import check_numbers, check_results, check_stress_exists
from ase_segnn.evaluator import Evaluator
from ase_segnn.graph import AtomicGraph
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.neighbors import BACKENDS, NeighborList, VerletList
from ase_segnn.potential_file import load_potential
from ase_segnn.potentials import path_of
from ase_segnn.uncertainty import DeviationLimit

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_EDGES_TOGETHER = 4_000  # of structures that are evaluated together; more is no faster on a CPU
_DEVIATIONS = ["energy_std", "energies_std", "forces_std"]  # of committees
_State = tuple[bytes, bytes, bytes, bytes]  # positions, numbers, cell and pbc of atoms
_VOIGT = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]  # rows and columns of xx yy zz yz xz xy


class SEGNNCalculator(Calculator):
    """Energy, forces and stress of a SEGNN potential, or of a committee of them, for any ASE workflow.

    ======================  ========  ==================================================
    property                shape     unit and meaning
    ======================  ========  ==================================================
    energy, free_energy     scalar    eV, the same number
    energies                (N,)      eV, per atom; they sum to the energy
    forces                  (N, 3)    eV/Å
    stress                  (6,)      eV/Å³, xx yy zz yz xz xy, positive in tension;
                                      for structures periodic along all three vectors
    energy_std              scalar    eV, these three for a committee only: standard
                                      deviations between its members
    energies_std            (N,)      eV
    forces_std              (N,)      eV/Å, comes with the forces
    ======================  ========  ==================================================

    A committee's energy is the mean of its members', and so are its derivatives; see
    `ase_segnn.model.committee.Committee` for what the deviations tell. It takes as many times longer as it has members.

    Only what is asked for is computed: the energy alone needs no derivative, and the stress is left out unless
    wanted. Atoms are never changed. A calculator can be copied, pickled and moved between structures of any number of
    atoms, cell and periodicity.

    Parameters
    ----------
    potential : name of a shipped potential, path of a potential file, or a `Potential` or `Committee`, which is copied
    device : "cpu", "cuda", "cuda:1" and so on, or "auto" for a GPU where there is one
    dtype : "float32" or "float64", of the network; positions and the sum of the energy are float64 in both. Tight
        relaxations and finite differences want "float64"
    skin : Å, the neighbor list reaches this far beyond the cutoff, and is reused until atoms or cell have moved so much
        that it could miss a pair; 0 builds it at every step. Results do not depend on it
    backend : of the neighbor list, see `ase_segnn.neighbors`
    compile : "auto" runs the potential as compiled C++ where it has that form (on a CPU, with as many channels of each
        degree and messages that are not gated): a few seconds at the first evaluation on a machine, much less time
        and memory afterwards. It needs a C++ compiler such as g++, and goes on without where there is none. True
        insists on a compiler, and has torch compile a potential that lacks that form, which takes up to two minutes
        at the first evaluation and again at the first stress. On a GPU, True records all operations and launches them
        together from then on, as a CUDA graph. False does nothing of that. Results are the same up to rounding, which
        is checked at first use
    max_deviation : eV/Å, for a committee: where `forces_std` of an atom exceeds it, the structure is unlike the
        training data. Looked at whenever forces are computed
    on_deviation : "warn" logs the 1st, 10th, 100th, ... structure with such an atom. "stop" raises an error; the
        calculator's results stay, to see which atoms it is about

    Raises
    ------
    ValueError
        If an argument has a value that is not allowed, the potential is not found, or its file is damaged; later, when
        atoms are attached or evaluated, if they have elements that the potential does not know, no atoms, or a
        position or cell that is not finite.
    RuntimeError
        At evaluation, if the energy or a force is not finite, or compiling fails.
    UncertaintyError
        At evaluation, a `RuntimeError`: a deviation exceeds `max_deviation`, and `on_deviation` is "stop".
    MemoryError
        At evaluation, if the memory of the device does not suffice.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012  # ASE's name
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012  # ASE's name

    def __init__(
        self,
        potential: str | Path | Potential | Committee,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        skin: float = 1.0,
        backend: str = "auto",
        compile: bool | Literal["auto"] = "auto",  # noqa: A002  # torch's word for it
        max_deviation: float | None = None,
        on_deviation: Literal["warn", "stop"] = "warn",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # ASE's
        self.use_cache = False  # or ASE would copy the atoms at every step; `calculate` moves those of an old copy
        self._copied: Atoms | None = None
        self._state: _State | None = None  # of `_copied`
        self._device = _checked_device(device)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype is 'float32' or 'float64', got {dtype!r}")
        if not (math.isfinite(skin) and skin >= 0):
            raise ValueError(f"skin is a length in Å, zero or more, got {skin!r}; the default is 1.0")
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile is True, False or 'auto', got {compile!r}")
        if backend != "auto" and backend not in BACKENDS:
            raise ValueError(f"backend is 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
        if max_deviation is None and on_deviation != "warn":
            raise ValueError(f"on_deviation={on_deviation!r} needs max_deviation, in eV/Å")
        self._limit = None if max_deviation is None else DeviationLimit(max_deviation, on_deviation)
        if isinstance(potential, Potential | Committee):
            source = type(potential).__name__
            self._potential_name = f"this {source.lower()}"
            potential = copy.deepcopy(potential)
        else:
            source = str(potential)
            self._potential_name = f"potential '{source}'"
            potential = load_potential(path_of(potential))
        if isinstance(potential, Committee):
            self.implemented_properties = [*self.implemented_properties, *_DEVIATIONS]
        elif max_deviation is not None:
            raise ValueError(
                f"max_deviation is for committees, whose members may disagree, and {self._potential_name} is a single "
                "potential; leave it out, or use a committee"
            )
        self._potential: Potential | Committee = (
            potential.to(device=self._device, dtype=_DTYPES[dtype]).requires_grad_(False).eval()
        )
        self._known = frozenset(atomic_numbers[symbol] for symbol in potential.elements)
        self._skin, self._backend = float(skin), backend
        self._verlet_list = self._new_verlet_list()
        self._last_graph: AtomicGraph | None = None  # holds as long as pairs and elements stay the same
        self._last_pairs: NeighborList | None = None
        self._last_numbers = b""
        self._compile: bool | Literal["auto"] = compile
        self._evaluator: Evaluator | None = None  # made at the first evaluation
        self.parameters.update(
            potential=source, device=str(self._device), dtype=dtype, skin=self._skin, backend=backend, compile=compile
        )
        if max_deviation is not None:
            self.parameters.update(max_deviation=max_deviation, on_deviation=on_deviation)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items() if name != "potential")
        members = f"{len(self._potential.members)} x " if isinstance(self._potential, Committee) else ""
        return f"SEGNNCalculator({self._potential_name}: {members}{self._potential.config.summary}; {options})"

    @property
    def potential(self) -> Potential | Committee:
        """What is evaluated, on the calculator's device and in its dtype; not to be changed."""
        return self._potential

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse changes: ASE's base class would take note of them and go on with the old values."""
        if kwargs:
            raise ValueError(
                f"a SEGNNCalculator cannot be changed, got {', '.join(kwargs)}; make a new one with these arguments"
            )
        return {}

    def set_atoms(self, atoms: Atoms) -> None:
        """Check the elements; ASE calls this when the calculator is attached to atoms."""
        self._check_elements(atoms)

    def get_spin_polarized(self) -> bool:
        """Return False: these potentials know no spin."""
        return False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``self.results`` with `properties` and what comes with them at no cost.

        Raises
        ------
        ValueError, RuntimeError, MemoryError
            As listed for the class; no results are left behind then, except by an `UncertaintyError`.
        PropertyNotImplementedError
            If the stress is asked for and the structure is not periodic along all three vectors.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("there are no atoms to calculate; attach the calculator first: atoms.calc = calculator")
        kept = {} if system_changes else self.results
        self.atoms, self.results = None, {}
        self._check_elements(atoms)
        check_numbers(atoms)
        if "stress" in properties:
            check_stress_exists(atoms)
        evaluator = self._get_evaluator()
        graph = self._graph(atoms, all_pairs=evaluator.takes_far_pairs)
        [results] = self._evaluate(graph, stress="stress" in properties, forces=_need_forces(properties))
        check_results(atoms, results, self._potential_name)
        self.results = kept | results
        self.atoms = self._copy(atoms)
        self._check_deviations(atoms, results)

    def export_properties(self) -> Properties:
        """Return the results that ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_properties})

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """List what has changed since the last calculation, as ASE does, but exactly and in less time."""
        del tol
        if self.atoms is None or self._state is None:
            return list(all_changes)
        return _changes(_state(atoms), self._state)

    def evaluate_many(
        self, structures: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
    ) -> Iterator[dict[str, Any]]:
        """Evaluate many structures, several at a time, which is faster than one by one where they are small.

        The calculator's own results and attached atoms stay as they are, and so do the structures. A potential that
        torch has compiled or recorded, see `compile`, takes them one at a time.

        Parameters
        ----------
        structures : all are checked before the first is evaluated
        properties : as for `calculate`

        Yields
        ------
        results of each structure in the order given: property -> value, with shapes and units as in the table above

        Raises
        ------
        ValueError, RuntimeError, MemoryError, PropertyNotImplementedError
            As for `calculate`; the error of a structure names its index.
        """
        stress = "stress" in properties
        for index, atoms in enumerate(structures):
            with _naming(index):
                self._check_elements(atoms)
                check_numbers(atoms)
                if stress:
                    check_stress_exists(atoms)
        return self._evaluate_many(structures, forces=_need_forces(properties), stress=stress)

    def _evaluate_many(self, structures: Sequence[Atoms], *, forces: bool, stress: bool) -> Iterator[dict[str, Any]]:
        most_edges = _EDGES_TOGETHER if self._get_evaluator().takes_batches else 1
        for start, graphs in self._batches(structures, most_edges):
            whole = graphs[0] if len(graphs) == 1 else AtomicGraph.batch(graphs)
            results = self._evaluate(whole, forces=forces, stress=stress)
            for index, one in enumerate(results, start=start):
                with _naming(index):
                    check_results(structures[index], one, self._potential_name)
                    self._check_deviations(structures[index], one)
                yield one

    def _batches(self, structures: Sequence[Atoms], most_edges: int) -> Iterator[tuple[int, list[AtomicGraph]]]:
        """Put consecutive structures together as long as they have at most `most_edges` edges, and at least one."""
        start, n_edges = 0, 0
        graphs: list[AtomicGraph] = []
        for index, atoms in enumerate(structures):
            graph = AtomicGraph.from_atoms(atoms, self._potential.cutoff, backend=self._backend, device=self._device)
            if graphs and n_edges + graph.n_edges > most_edges:
                yield start, graphs
                start, n_edges, graphs = index, 0, []
            graphs.append(graph)
            n_edges += graph.n_edges
        if graphs:
            yield start, graphs

    def _evaluate(self, graph: AtomicGraph, *, forces: bool, stress: bool) -> list[dict[str, Any]]:
        """Results of each structure of a graph."""
        evaluator = self._get_evaluator()
        try:
            # with the stress the forces come for free, and whoever relaxes a cell asks for both
            return _results(graph, evaluator.evaluate(graph, forces=forces or stress, stress=stress))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory on {self._device} for {graph.n_atoms} atoms and {graph.n_edges} edges; use a smaller "
                "structure, dtype='float32', or another device"
            ) from error

    def _get_evaluator(self) -> Evaluator:
        if self._evaluator is None:
            self._evaluator = Evaluator(self._potential, self._compile, self._potential_name)
        return self._evaluator

    def _copy(self, atoms: Atoms) -> Atoms:
        """Copy the atoms, or move the last copy to where they are."""
        state = _state(atoms)
        if self._copied is not None and self._state is not None and set(_changes(state, self._state)) <= {"positions"}:
            self._copied.positions[:] = atoms.positions
        else:
            self._copied = atoms.copy()
        self._state = state
        return self._copied

    def _check_deviations(self, atoms: Atoms, results: dict[str, Any]) -> None:
        if self._limit is not None and "forces_std" in results:
            self._limit.check(atoms, results["forces_std"])

    def _graph(self, atoms: Atoms, *, all_pairs: bool = False) -> AtomicGraph:
        """Make the graph of the pairs within the cutoff, or of all that are kept, for those who look themselves."""
        update = self._verlet_list.update_all if all_pairs else self._verlet_list.update
        pairs = update(atoms.positions, atoms.cell.array, atoms.pbc)
        device = self._device
        positions = torch.from_numpy(atoms.positions.copy()).to(device)
        cell = torch.from_numpy(atoms.cell.array[None].copy()).to(device)
        numbers = atoms.numbers.tobytes()
        last = self._last_graph
        if last is not None and pairs is self._last_pairs and numbers == self._last_numbers:
            return last.moved(positions, cell)
        self._last_pairs, self._last_numbers = pairs, numbers
        self._last_graph = AtomicGraph(
            positions=positions,
            atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.int64, device=device),
            cell=cell,
            pbc=torch.tensor(atoms.pbc[None], device=device),
            centers=pairs.centers,
            neighbors=pairs.neighbors,
            cell_shifts=pairs.cell_shifts.to(torch.float64),
            structure=torch.zeros(len(atoms), dtype=torch.int64, device=device),
        )
        return self._last_graph

    def _new_verlet_list(self) -> VerletList:
        return VerletList(self._potential.cutoff, self._skin, self._backend, self._device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the neighbor list and what was compiled: every copy has its own."""
        state = self.__dict__.copy()
        del state["_verlet_list"]
        state["_evaluator"] = state["_last_graph"] = state["_last_pairs"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.results = dict(self.results)
        self._limit = copy.copy(self._limit)
        self._verlet_list = self._new_verlet_list()

    def _get_name(self) -> str:
        return "segnn"  # ASE writes it into trajectories and databases

    def _check_elements(self, atoms: Atoms) -> None:
        unknown = sorted(set(atoms.numbers.tolist()) - self._known)
        if unknown:
            symbols = [chemical_symbols[z] if 0 <= z < len(chemical_symbols) else f"Z={z}" for z in unknown]
            raise ValueError(
                f"{self._potential_name} knows {', '.join(self._potential.elements)} only, this structure also has "
                f"{', '.join(symbols)}; 'ase-segnn info' lists the shipped potentials"
            )


def _state(atoms: Atoms) -> _State:
    """Return what results depend on, as bytes: to compare them is much faster than arrays of few numbers."""
    return atoms.positions.tobytes(), atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes()


def _changes(now: _State, then: _State) -> list[str]:
    """Name what is not the same, bit by bit."""
    if now == then:
        return []
    names = ("positions", "numbers", "cell", "pbc")
    return [name for name, a, b in zip(names, now, then, strict=True) if a != b]


def _need_forces(properties: Sequence[str]) -> bool:
    return "forces" in properties or "forces_std" in properties


def _results(graph: AtomicGraph, arrays: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Split the arrays of a prediction into ASE's results of each structure."""
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
        if "stress" in arrays:
            results["stress"] = arrays["stress"][index][_VOIGT]
        if "energy_std" in arrays:
            results["energy_std"] = float(arrays["energy_std"][index])
            results["energies_std"] = arrays["atom_energies_std"][start:end]
        if "forces_std" in arrays:
            results["forces_std"] = arrays["forces_std"][start:end]
        all_results.append(results)
    return all_results


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Say in an error which structure it is about."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"structure {index}: {error}") from error


def _checked_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError):
        checked = None
    if checked is None or checked.type not in {"cpu", "cuda"}:
        raise ValueError(f"device is 'auto', 'cpu', 'cuda' or 'cuda:<number>', got {str(device)!r}")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if checked.type == "cuda" and (checked.index or 0) >= n_gpus:
        raise ValueError(
            f"device '{device}' is not available: torch {torch.__version__} finds {n_gpus} GPUs here; "
            "use device='cpu', or install torch for your GPU"
        )
    return checked


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )
