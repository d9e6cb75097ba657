"""What compiled code reads: tensors as it expects them, or an error; and memory that nobody else moves."""

from __future__ import annotations

import re
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems
from torch._subclasses import FakeTensorMode

from ase_segnn.engines.boundary import Packed, address, aligned
from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential

SYSTEMS = systems()


@pytest.fixture(scope="module")
def plain() -> Potential:
    return random_potential(NATIVE_CONFIGS["natural parity"]).double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def native(plain: Potential) -> NativePotential:
    return NativePotential(plain)


@pytest.fixture
def graph(plain: Potential) -> AtomicGraph:
    return AtomicGraph.from_atoms(SYSTEMS["mixed species"], plain.cutoff)


def test_an_address_is_that_of_the_first_number() -> None:
    tensor = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    assert address("x", tensor[2:], torch.float64, (2, 3)) == tensor.data_ptr() + 6 * 8


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x: x.float(), ValueError, "expects 'x' as contiguous torch.float64 of shape (4, 3), got torch.float32"),
        (lambda x: x[:3], ValueError, "got torch.float64 of shape (3, 3)"),
        (lambda x: x.T.contiguous().T, ValueError, "as contiguous"),
        (lambda x: x.flatten(), ValueError, "of shape (12,)"),
        (lambda x: torch.complex(x, x).conj().imag, ValueError, "as contiguous"),
        (lambda x: x.to("meta"), TypeError, "reads memory of the CPU, and 'x' is a Tensor on meta"),
        (lambda x: FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x), TypeError, "'x' is a FakeTensor on cpu"),
    ],
)
def test_everything_else_is_refused(change: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        address("x", change(torch.zeros(4, 3, dtype=torch.float64)), torch.float64, (4, 3))


def test_memory_starts_at_a_cache_line() -> None:
    for n in (0, 1, 100):
        assert aligned(n, torch.float32).data_ptr() % 64 == 0
        assert aligned(n, torch.float32).shape == (n,)


def test_packed_tensors_are_copies() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.full((5,), 2.0), "none": torch.zeros(0), "c": torch.eye(3).T}
    packed = Packed(tensors)
    addresses = packed.addresses()
    for name, tensor in tensors.items():
        start = packed.starts[name]
        assert torch.equal(packed.numbers[start : start + tensor.numel()].reshape(tensor.shape), tensor)
        assert addresses[name] % 64 == 0
    tensors["a"].zero_()
    assert packed.numbers[0] == 1


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [
        lambda g: replace(g, positions=g.positions.float()),
        lambda g: replace(g, positions=g.positions[:-1]),
        lambda g: replace(g, cell=g.cell.expand(2, 3, 3)),
        lambda g: replace(g, cell_shifts=g.cell_shifts.int()),
        lambda g: replace(g, cell_shifts=g.cell_shifts[:-1]),
        lambda g: replace(g, centers=g.centers.int()),
        lambda g: replace(g, neighbors=g.neighbors[1:]),
        lambda g: replace(g, neighbors=g.neighbors + g.n_atoms),
        lambda g: replace(g, neighbors=g.neighbors - 1),
        lambda g: replace(g, centers=g.centers + 1),
        lambda g: replace(g, centers=g.centers - 1),
        lambda g: replace(g, structure=g.structure + 1),
        lambda g: replace(g, structure=g.structure.flip(0) - 1),
        lambda g: replace(g, structure=g.structure[1:]),
        lambda g: replace(g, atomic_numbers=g.atomic_numbers[:-1]),
        lambda g: replace(g, atomic_numbers=g.atomic_numbers.int()),
    ],
)
def test_a_wrong_graph_is_an_error_and_harms_nothing(native: NativePotential, graph: AtomicGraph, change: Any) -> None:
    expected = native.evaluate(graph)
    with pytest.raises(ValueError, match=r"expects|(edges|edge|atom|structure) of the graph|the atoms of each"):
        native.evaluate(change(graph))
    again = native.evaluate(graph)
    assert torch.equal(again.forces, expected.forces)
    assert torch.equal(again.energy, expected.energy)


@needs_compiler
def test_numbers_that_change_in_place_are_seen(plain: Potential, native: NativePotential, graph: AtomicGraph) -> None:
    before = native.evaluate(graph)
    graph.atomic_numbers[0] = 29 if graph.atomic_numbers[0] != 29 else 1
    after = native.evaluate(graph)
    assert not torch.equal(before.atom_energies, after.atom_energies)
    torch.testing.assert_close(after.energy, plain.predict(graph).energy, rtol=0, atol=1e-9)
    graph.atomic_numbers[0] = 2
    with pytest.raises(IndexError, match="an element is none of the potential's, H, C, O, Si, Cu"):
        native.evaluate(graph)


@needs_compiler
def test_any_layout_of_the_graph_will_do(native: NativePotential, graph: AtomicGraph) -> None:
    def strided(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x], dim=-1)[..., 0]

    other = AtomicGraph(**{name: strided(tensor) for name, tensor in vars(graph).items()})
    assert not other.positions.is_contiguous()
    assert torch.equal(native.evaluate(other).forces, native.evaluate(graph).forces)


@needs_compiler
@pytest.mark.parametrize("share", [Potential.share_memory, ForkingPickler.dumps], ids=["share_memory", "pickled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_torch_moves_make_no_difference(graph: AtomicGraph, share: Any, dtype: torch.dtype) -> None:
    """Torch frees the memory of every tensor that it shares, and the next tensors are put there."""
    plain = random_potential(NATIVE_CONFIGS["natural parity"]).to(dtype).requires_grad_(False).eval()
    native = NativePotential(plain)
    before = native.evaluate(graph, stress=True)
    share(plain)
    kept = [torch.full((n,), torch.nan) for n in (64, 256, 1024, 4096, 16384) for _ in range(50)]
    after = native.evaluate(graph, stress=True)
    assert len(kept) == 250
    assert next(plain.parameters()).is_shared(), "torch has moved its tensors"
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
