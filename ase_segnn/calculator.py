"""The ASE calculator: convert the atoms, evaluate the potential, fill in the results."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    all_changes,
    all_properties,
    external_calculators,
    register_calculator_class,
)
from ase.data import atomic_numbers
from ase.outputs import Properties

from ase_segnn.checks import check_numbers, check_results, check_stress_exists
from ase_segnn.elements import check_elements
from ase_segnn.engines.choice import choose_engine
from ase_segnn.engines.devices import checked_device, is_out_of_memory
from ase_segnn.engines.engine import Engine
from ase_segnn.engines.surroundings import Lock, undisturbed
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.graphs.backends import BACKENDS
from ase_segnn.graphs.batches import batches
from ase_segnn.graphs.verlet import VerletGraphs
from ase_segnn.kept_atoms import KeptAtoms
from ase_segnn.model.by_value import PotentialByValue
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import load_potential
from ase_segnn.potentials import path_of
from ase_segnn.results import results_of
from ase_segnn.uncertainty import DeviationLimit

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
EDGES_TOGETHER = 4_000  # of structures that are evaluated together; more is no faster on a CPU
_DEVIATIONS = ["energy_std", "energies_std", "forces_std"]  # of committees


class SEGNNCalculator(Calculator):
    """Energy, forces and stress of a SEGNN potential, or of a committee of them, for any ASE workflow.

    ======================  ========  ==================================================
    property                shape     unit and meaning
    ======================  ========  ==================================================
    energy, free_energy     scalar    eV, the same number
    energies                (N,)      eV, per atom; they sum to the energy
    forces                  (N, 3)    eV/Å
    stress                  (6,)      eV/Å³, xx yy zz yz xz xy, positive in tension,
                                      if the cell has a volume
    energy_std              scalar    eV, these three for a committee only: standard
                                      deviations between its members
    energies_std            (N,)      eV
    forces_std              (N,)      eV/Å, comes with the forces
    ======================  ========  ==================================================

    A committee's energy is the mean of its members', and so are its derivatives; see
    `ase_segnn.model.committee.Committee` for what the deviations tell. It takes as many times longer as it has members.

    The energy alone is computed without derivatives. Forces and stress come together at the cost of either, so that
    dynamics at constant pressure takes one evaluation per structure. Atoms are never changed.

    The stress is the derivative of the energy with respect to a strain of cell and positions, divided by the volume.
    As with ASE's own calculators, it exists wherever the cell has a volume, periodic or not. Components along a
    direction that is not periodic hold the forces between the atoms alone, over a volume that counts the vacuum: for a
    slab in the plane xy use xx, yy and xy times the height of the cell.

    A calculator can be copied, pickled and moved between structures of any number of atoms, cell and periodicity.
    Threads may share it, and take turns. It works in processes that are started by spawn, forkserver and fork; where
    threads ran before a fork, evaluations move to a thread of the new process.

    Parameters
    ----------
    potential : name of a shipped potential, path of a potential file, or a `Potential` or `Committee`, which is copied
    device : "cpu", "cuda", "cuda:1" and so on, or "auto" for a GPU where there is one
    dtype : "float32" or "float64", of the network; positions and the sum of the energy are float64 in both. Tight
        relaxations and finite differences want "float64"
    skin : Å, the neighbor list reaches this far beyond the cutoff, and is reused until atoms or cell have moved so much
        that it could miss a pair; 0 builds it at every step. Results do not depend on it
    backend : of the neighbor list, see `ase_segnn.graphs.neighbors`
    compile : how the potential is evaluated; results are the same up to rounding, which is checked at first use.
        The attribute `engine` tells what was chosen and why

        - "auto": as compiled C++ on a CPU, if there is a compiler such as g++, or as Triton kernels on a GPU, if the
          messages of the network have one gate, which is the default; else in plain torch, with a warning. Compiling
          takes some seconds at the first evaluation on a machine, on a GPU a minute
        - True: the same, but where "auto" gives a warning, an error on a CPU, and on a GPU the operations of plain
          torch, recorded as a CUDA graph
        - False: plain torch
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
    nolabel = True  # ASE's commands give no label to calculators that have this
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
        self.use_cache = False  # or ASE would copy the atoms at every step, see `KeptAtoms`
        self._kept: KeptAtoms | None = None
        self._lock, self._choosing = Lock(), Lock()  # of what is kept from call to call; of the engine
        self._device = checked_device(device)
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
        else:
            source = str(potential)
            self._potential_name = f"potential '{source}'"
        self._potential = undisturbed(lambda: _frozen(potential, self._device, _DTYPES[dtype]))
        if isinstance(self._potential, Committee):
            self.implemented_properties = [*self.implemented_properties, *_DEVIATIONS]
        elif max_deviation is not None:
            raise ValueError(
                f"max_deviation is for committees, whose members may disagree, and {self._potential_name} is a single "
                "potential; leave it out, or use a committee"
            )
        self._elements = {atomic_numbers[symbol]: symbol for symbol in self._potential.elements}
        self._skin, self._backend = float(skin), backend
        self._graphs = self._new_graphs()
        self._compile: bool | Literal["auto"] = "auto" if isinstance(compile, str) else bool(compile)
        self._engine: Engine | None = None  # made at the first evaluation
        self.parameters.update(
            potential=source,
            device=str(self._device),
            dtype=dtype,
            skin=self._skin,
            backend=backend,
            compile=self._compile,
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

    @property
    def engine(self) -> Engine:
        """What evaluates the potential; its `name` and `reason` tell what it is and why. Compiled, if so, at first use.

        Raises
        ------
        ValueError, RuntimeError
            If `compile` is True and the potential cannot be compiled, or gives other results then.
        """
        with self._choosing.now:
            if self._engine is None:
                self._engine = undisturbed(lambda: choose_engine(self._potential, self._compile, self._potential_name))
            return self._engine

    @property
    def neighbor_builds(self) -> int:
        """How often neighbors were searched for by `calculate`, and not found in the list of an earlier call."""
        return self._graphs.builds

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse changes: ASE's base class would take note of them and go on with the old values."""
        if kwargs:
            raise ValueError(
                f"a SEGNNCalculator cannot be changed, got {', '.join(kwargs)}; make a new one with these arguments"
            )
        return {}

    def set_atoms(self, atoms: Atoms) -> None:
        """Check the elements; ASE calls this when the calculator is attached to atoms."""
        check_elements(atoms, self._elements, self._potential_name)

    def get_spin_polarized(self) -> bool:
        """Return False: these potentials know no spin."""
        return False

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return a property as ASE asks for it, while other threads wait."""
        with self._lock.now:
            return super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]  # ASE's

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """Return several properties as ASE asks for them, while other threads wait."""
        with self._lock.now:
            return super().calculate_properties(atoms, properties)  # type: ignore[no-untyped-call]  # ASE's

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
            If the stress is asked for and the cell has no volume.
        """
        with self._lock.now:
            atoms = self.atoms if atoms is None else atoms
            if atoms is None:
                raise ValueError("there are no atoms to calculate; attach the calculator: atoms.calc = calculator")
            if system_changes:
                self.atoms, self.results = None, {}
            self._check(atoms, properties)
            kept, self.atoms, self.results = self.results, None, {}
            engine = self.engine
            try:
                results = undisturbed(
                    lambda: self._results(engine, atoms, properties), torch_matters=engine.follows_torch
                )
            except BaseException:
                self._graphs.forget()  # they may be part of what was wrong, such as tensors of a mode of torch
                raise
            check_results(atoms, results, self._potential_name)
            self.results = kept | results
            self._kept = KeptAtoms(atoms) if self._kept is None else self._kept.renewed(atoms)
            self.atoms = self._kept.atoms
            self._check_deviations(atoms, results)

    def _check(self, atoms: Atoms, properties: Sequence[str]) -> None:
        check_elements(atoms, self._elements, self._potential_name)
        check_numbers(atoms)
        if "stress" in properties:
            check_stress_exists(atoms)

    def _results(self, engine: Engine, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        graph = self._graphs.graph(atoms, far_pairs=engine.takes_far_pairs)
        [results] = self._evaluate(engine, graph, derivatives=_need_derivatives(properties))
        return results

    def export_properties(self) -> Properties:
        """Return the results that ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_properties})

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """List what has changed since the last calculation, as ASE does, but exactly and in less time."""
        del tol
        return list(all_changes) if self.atoms is None or self._kept is None else self._kept.changes(atoms)

    def evaluate_many(
        self, structures: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
    ) -> Iterator[dict[str, Any]]:
        """Evaluate many structures, several at a time, which is faster than one by one where they are small.

        The calculator's own results and attached atoms stay as they are, and so do the structures. A potential that
        is recorded as a CUDA graph, see `compile`, takes them one at a time.

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
        for index, atoms in enumerate(structures):
            with _naming(index):
                self._check(atoms, properties)
        return self._evaluate_many(structures, derivatives=_need_derivatives(properties))

    def _evaluate_many(self, structures: Sequence[Atoms], *, derivatives: bool) -> Iterator[dict[str, Any]]:
        engine = self.engine
        most_edges = EDGES_TOGETHER if engine.takes_batches else 1
        graphs = batches(structures, self._potential.cutoff, most_edges, backend=self._backend, device=self._device)
        while (batch := undisturbed(lambda: next(graphs, None))) is not None:
            start, graph = batch
            results = undisturbed(partial(self._evaluate, engine, graph, derivatives=derivatives))
            for index, one in enumerate(results, start=start):
                with _naming(index):
                    check_results(structures[index], one, self._potential_name)
                    self._check_deviations(structures[index], one)
                yield one

    def _evaluate(self, engine: Engine, graph: AtomicGraph, *, derivatives: bool) -> list[dict[str, Any]]:
        """Results of each structure of a graph."""
        try:
            return results_of(graph, engine.evaluate(graph, forces=derivatives, stress=derivatives))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"out of memory on {self._device} for {graph.n_atoms} atoms and {graph.n_edges} edges; use a smaller "
                "structure, dtype='float32', or another device"
            ) from error

    def _check_deviations(self, atoms: Atoms, results: dict[str, Any]) -> None:
        if self._limit is not None and "forces_std" in results:
            self._limit.check(atoms, results["forces_std"])

    def __copy__(self) -> SEGNNCalculator:
        """Return a calculator of the same potential that shares nothing that changes."""
        twin = object.__new__(type(self))
        with self._lock.now:
            twin.__dict__.update(self.__dict__)
            twin._be_independent()  # of the same class
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = copy.copy(self).__dict__
        for name in ("_graphs", "_lock", "_choosing"):
            del state[name]
        return state | {"_potential": PotentialByValue.of(self._potential)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._potential = undisturbed(lambda: state["_potential"].potential(self._device))
        self._be_independent()

    def _be_independent(self) -> None:
        """Replace what a copy must not share with its original."""
        self._lock, self._choosing = Lock(), Lock()
        self.results = {name: copy.copy(value) for name, value in self.results.items()}
        self._kept = None if self.atoms is None else KeptAtoms(self.atoms)
        self.atoms = None if self._kept is None else self._kept.atoms
        self._limit = copy.copy(self._limit)
        self._engine = None
        self._graphs = self._new_graphs()

    def _new_graphs(self) -> VerletGraphs:
        return VerletGraphs(self._potential.cutoff, self._skin, self._backend, self._device)

    def _get_name(self) -> str:
        return "segnn"  # ASE writes it into trajectories and databases


def _need_derivatives(properties: Sequence[str]) -> bool:
    return any(name in properties for name in ("forces", "stress", "forces_std"))


def _frozen(
    potential: str | Path | Potential | Committee, device: torch.device, dtype: torch.dtype
) -> Potential | Committee:
    """Copy a potential, or load it, and get it ready to be evaluated."""
    own = (
        copy.deepcopy(potential) if isinstance(potential, Potential | Committee) else load_potential(path_of(potential))
    )
    return own.to(device=device, dtype=dtype).requires_grad_(False).eval()


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Say in an error which structure it is about."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        error.args = (f"structure {index}: {error}",)  # class and attributes stay
        raise


if "segnn" not in external_calculators:  # the name for `ase.calculators.calculator.get_calculator_class`
    register_calculator_class("segnn", SEGNNCalculator)
