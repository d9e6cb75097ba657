"""A recorded potential gives what the plain one gives, for structures that come and go, and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_potentials import CONFIGS, random_potential
from systems import TOLERANCES, systems
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ase_segnn.engines import captured, choice
from ase_segnn.engines.captured import CapturedPotential
from ase_segnn.engines.choice import choose_engine
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

SYSTEMS = systems()
# Operations that copy from or to the host, or whose result has a size that the host must know: they cannot be recorded.
WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "bincount", "equal", "_linalg_det")


class RecordWithoutGpu:
    """Records a function by keeping it; replays into the tensors of its first results, as a CUDA graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(
        self, function: Callable[[], Prediction], device: torch.device
    ) -> tuple[Prediction, Callable[[], None]]:
        assert function().energy.device == device
        self.recorded += 1
        results = function()

        def replay() -> None:
            self.replayed += 1
            for name, tensor in vars(function()).items():
                if tensor is not None:
                    getattr(results, name).copy_(tensor)

        return results, replay


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def potential(request: pytest.FixtureRequest) -> Potential:
    return random_potential(CONFIGS["with ZBL"]).to(request.param).requires_grad_(False).eval()


def graph_of(name: str, potential: Potential) -> AtomicGraph:
    return AtomicGraph.from_atoms(SYSTEMS[name], potential.cutoff)


def assert_equal(result: Prediction, expected: Prediction, dtype: torch.dtype) -> None:
    for name, target in vars(expected).items():
        value = getattr(result, name)
        assert (value is None) == (target is None), name
        if target is not None:
            scale = max(target.abs().max().item(), 1.0)
            torch.testing.assert_close(value, target, rtol=0, atol=TOLERANCES[dtype] * scale, msg=name)


def test_every_system_has_the_plain_results(potential: Potential) -> None:
    recorded = CapturedPotential(potential, record=RecordWithoutGpu())
    for name, atoms in SYSTEMS.items():
        graph = graph_of(name, potential)
        has_volume = bool(atoms.cell.rank == 3)
        expected = potential.predict(graph, stress=has_volume)
        for _ in range(2):  # a replay as well
            result = recorded.evaluate(graph)
            assert result.stress.isfinite().all() == has_volume
            assert_equal(result if has_volume else replace(result, stress=None), expected, potential.dtype)


def test_along_dynamics_one_recording_serves_all_steps(potential: Potential) -> None:
    record = RecordWithoutGpu()
    recorded = CapturedPotential(potential, record=record)
    atoms = SYSTEMS["bulk"].copy()
    kept, n_edges = [], set()
    for seed in range(8):
        atoms.rattle(0.03, seed=seed)
        graph = AtomicGraph.from_atoms(atoms, potential.cutoff)
        n_edges.add(graph.n_edges)
        kept.append((recorded.evaluate(graph), potential.predict(graph, stress=True)))
    assert len(n_edges) > 1
    assert (record.recorded, record.replayed) == (1, 8)
    for result, expected in kept:  # earlier results are not those of the last step
        assert_equal(result, expected, potential.dtype)


def test_more_pairs_than_there_is_room_for_are_recorded_anew(potential: Potential) -> None:
    record = RecordWithoutGpu()
    recorded = CapturedPotential(potential, record=record)
    atoms = SYSTEMS["bulk"].copy()
    for factor, n_recordings in ((1.2, 1), (1.0, 2), (1.2, 2)):
        scaled = atoms.copy()
        scaled.set_cell(factor * atoms.cell, scale_atoms=True)
        graph = AtomicGraph.from_atoms(scaled, potential.cutoff)
        assert_equal(recorded.evaluate(graph), potential.predict(graph, stress=True), potential.dtype)
        assert record.recorded == n_recordings


class NothingWaits(TorchDispatchMode):
    """Stops at operations for which the host waits, or which come from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in WAITING), str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_recorded_waits_for_the_host(name: str) -> None:
    potential = random_potential(CONFIGS[name]).requires_grad_(False).eval()
    graph = graph_of("mixed species", potential)
    batch = AtomicGraph.batch([graph, AtomicGraph.padding(1, 5, potential.cutoff, 1)])
    with NothingWaits():
        result = potential.predict(batch, stress=True)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            result.energy[0].item()


def test_everything_is_on_the_device(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "compare_with_plain", lambda *_: None)
    graph = graph_of("mixed species", potential)
    with FakeTensorMode(allow_non_fake_inputs=True):
        recorded = CapturedPotential(potential.to("meta"), record=RecordWithoutGpu())
        for _ in range(2):
            for tensor in vars(recorded.evaluate(graph.to("meta"))).values():
                assert tensor.device.type == "meta"


def test_on_a_gpu_without_kernels_it_is_what_compile_asks_for(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Potential, "device", torch.device("cuda"))
    monkeypatch.setattr(choice, "unsupported", lambda _: "there is no rule for it")
    names = {mode: choose_engine(potential, mode, "this potential").name for mode in (True, "auto", False)}
    assert names == {True: "CUDA graph", "auto": "plain torch", False: "plain torch"}


def test_wrong_results_are_found_at_first_use(potential: Potential) -> None:
    def record(function: Callable[[], Prediction], _: torch.device) -> tuple[Prediction, Callable[[], None]]:
        results = function()
        assert results.forces is not None
        return replace(results, forces=1.01 * results.forces), lambda: None

    recorded = CapturedPotential(potential, record=record)
    for _ in range(2):  # and at every other
        with pytest.raises(RuntimeError, match="recorded forces differ from the plain ones"):
            recorded.evaluate(graph_of("mixed species", potential))


def test_batches_are_refused(potential: Potential) -> None:
    two = AtomicGraph.batch([graph_of("water", potential)] * 2)
    with pytest.raises(ValueError, match="one structure at a time, got 2"):
        CapturedPotential(potential, record=RecordWithoutGpu()).evaluate(two)
