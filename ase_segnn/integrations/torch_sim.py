"""torch-sim: dynamics and relaxation of many structures in one batch.

Examples
--------
>>> import torch_sim as ts  # doctest: +SKIP
>>> from ase_segnn.integrations.torch_sim import SEGNNModel  # doctest: +SKIP
>>> final = ts.optimize(system=molecules, model=SEGNNModel("acac-pbe"), optimizer=ts.optimizers.fire)  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.elements import check_elements
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.graphs.verlet import VerletGraphs
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential

_UNCHANGED = ("atomic_numbers", "system_idx", "cell")
_DTYPES: dict[torch.dtype, Literal["float32", "float64"]] = {torch.float32: "float32", torch.float64: "float64"}


class SEGNNModel(ModelInterface):  # type: ignore[misc]  # torch-sim has no types
    """A potential for torch-sim.

    All structures of a state are evaluated together. The pairs of each are kept from step to step and searched for
    again when one could be missing. Results do not depend on what else is in the state.

    Parameters
    ----------
    potential : name of a shipped potential, path of a potential file, or a `Potential` or `Committee`
    device : "cpu", "cuda" and so on, or "auto" for a GPU where there is one
    dtype : of the network, torch.float32 or torch.float64. States that torch-sim makes have float64 in any case: in
        float32 the energy of a molecule would be rounded to 1 meV. Results have the dtype of the state's positions
    skin, compile : as of `SEGNNCalculator`

    Raises
    ------
    ValueError
        As of `SEGNNCalculator`; at evaluation, if a structure has elements that the potential does not know.
    """

    def __init__(
        self,
        potential: str | Path | Potential | Committee,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        *,
        skin: float = 1.0,
        compile: bool | Literal["auto"] = "auto",  # noqa: A002  # torch's word for it
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ValueError(f"dtype is torch.float32 or torch.float64, got {dtype}")
        calculator = SEGNNCalculator(potential, device=device, dtype=_DTYPES[dtype], skin=skin, compile=compile)
        self._calculator, self._skin = calculator, skin
        self._cutoff = calculator.potential.cutoff
        self._elements = {atomic_numbers[symbol]: symbol for symbol in calculator.potential.elements}
        self._device, self._dtype = torch.device(calculator.parameters["device"]), torch.float64
        self._compute_stress = self._compute_forces = True
        self._atoms: list[Atoms] = []
        self._lists: list[VerletGraphs] = []
        self._graphs: list[AtomicGraph] = []
        self._batch: AtomicGraph | None = None
        self._kept: _Kept | None = None

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Return energies, forces and stresses of the structures of a state.

        Parameters
        ----------
        state : of torch-sim; a dictionary has the arguments of `torch_sim.state.SimState`

        Returns
        -------
        energy (B,), eV; forces (N, 3), eV/Å; stress (B, 3, 3), eV/Å³, positive under tension, zero for a cell without a
        volume. Of a committee also forces_std (N,), eV/Å, and energy_std (B,), eV
        """
        if isinstance(state, dict):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), "pbc": True, **state})
        graph = self._graph_of(state)
        engine = self._calculator.engine
        prediction = engine.evaluate(graph, forces=True, stress=True)
        names = ["energy", "forces", "stress", "energy_std", "forces_std"]
        found = {name: getattr(prediction, name) for name in names if getattr(prediction, name, None) is not None}
        found["stress"] = found["stress"].nan_to_num(0.0)
        positions = state.positions
        return {name: value.detach().to(positions.device, positions.dtype) for name, value in found.items()}

    def _graph_of(self, state: SimState) -> AtomicGraph:
        """Return the graph of all structures, with the pairs of the last one where they hold."""
        if self._kept is not None and self._kept.holds(state):
            assert self._batch is not None
            return self._batch.moved(
                state.positions.detach().to(self._device, torch.float64),
                state.row_vector_cell.detach().to(self._device, torch.float64),
            )
        self._kept = None
        positions = state.positions.detach().cpu().double().numpy()
        cells = state.row_vector_cell.detach().cpu().double().numpy()
        numbers = state.atomic_numbers.detach().cpu().numpy()
        pbc = torch.as_tensor(state.pbc).cpu().numpy()
        ends = state.n_atoms_per_system.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        while len(self._lists) < len(ends):
            self._lists.append(VerletGraphs(self._cutoff, self._skin, device=self._device))
            self._atoms.append(Atoms())
        far_pairs = self._calculator.engine.takes_far_pairs
        graphs = []
        for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if np.array_equal(self._atoms[k].numbers, numbers[start:end]):  # to make new atoms takes long
                atoms = self._atoms[k]
                atoms.positions[:] = positions[start:end]
                atoms.cell[:], atoms.pbc[:] = cells[k], pbc
            else:
                atoms = Atoms(numbers[start:end], positions[start:end], cell=cells[k], pbc=pbc)
                check_elements(atoms, self._elements, "this potential")
                self._atoms[k] = atoms
            graphs.append(self._lists[k].graph(atoms, far_pairs=far_pairs))
        same = len(graphs) == len(self._graphs) and all(map(_have_the_same_pairs, graphs, self._graphs))
        if self._batch is None or not same:
            self._batch = AtomicGraph.batch(graphs)
        else:
            moved, cell = (torch.cat([getattr(x, name) for x in graphs]) for name in ("positions", "cell"))
            self._batch = self._batch.moved(moved, cell)
        self._graphs = graphs
        references = [verlet.reference for verlet in self._lists[: len(ends)]]
        known = [positions for positions in references if positions is not None]
        if far_pairs and len(known) == len(references):
            start = torch.as_tensor(np.concatenate(known), device=state.positions.device)
            unchanged = tuple(getattr(state, name).clone() for name in _UNCHANGED)
            self._kept = _Kept(start, unchanged, torch.as_tensor(state.pbc).clone(), self._skin / 2)
        return self._batch


class _Kept(NamedTuple):
    """What the pairs of a batch were searched for, where the state is: no copy from a GPU tells whether they hold.

    Parameters
    ----------
    positions : (N, 3)
    unchanged : tensors of the state by the names in `_UNCHANGED`
    pbc : of the state
    farthest : Å, that an atom may have moved
    """

    positions: Tensor
    unchanged: tuple[Tensor, ...]
    pbc: Tensor
    farthest: float

    def holds(self, state: SimState) -> bool:
        """Whether no pair can be missing: nothing but positions has changed, and these by little."""
        now = [getattr(state, name) for name in _UNCHANGED]
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(now, self.unchanged, strict=True)):
            return False
        if not torch.equal(torch.as_tensor(state.pbc), self.pbc):
            return False
        moved = (state.positions.detach().double() - self.positions).square().sum(1).max()
        return bool(moved <= self.farthest**2)  # not if one is not a number


def _have_the_same_pairs(a: AtomicGraph, b: AtomicGraph) -> bool:
    """Whether all but positions and cell are the same tensors."""
    names = ("centers", "neighbors", "cell_shifts", "atomic_numbers")
    return all(getattr(a, name) is getattr(b, name) for name in names)
