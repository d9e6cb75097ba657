"""Products of sums of messages at nodes: their values, symmetry and scale, and which networks may have them."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labeled import NETWORK, labeled_clusters, recipe_for, write_frames
from random_potentials import SHAPES, random_potential
from rotations import ROTATIONS, orthogonal_matrix, randn, transform
from systems import systems
from torch import Tensor

from ase_segnn import Committee, load_potential
from ase_segnn._e3nn import o3
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.by_value import PotentialByValue
from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.potential import Potential
from ase_segnn.model.products import NodeProducts
from ase_segnn.model.steerable import Features, flatten, split
from ase_segnn.potential_file import Provenance, save_potential
from ase_segnn.training import run_recipe
from ase_segnn.training.fit.finetuning import start_from

N = 5
C = 3
# irreps of the sums, highest degree of products and of what is returned
KINDS: dict[str, tuple[str, int, int]] = {
    "scalars alone": ("3x0e", 2, 0),
    "vectors": ("3x0e+3x1o", 2, 1),
    "returned up to l = 0": ("3x0e+3x1o+3x2e", 2, 0),
    "sums of a higher degree than products": ("3x0e+3x1o+3x2e+3x3o", 2, 1),
    "all degrees": ("3x0e+3x1o+3x2e+3x3o", 3, 3),
}
PRODUCTS = NetworkConfig(
    cutoff=4.0, irreps_hidden="4x0e+4x1o", l_max_attributes=1, correlation=3, n_radial=4, radial_hidden=(4,)
)


def products_of(kind: str, correlation: int) -> NodeProducts:
    """Make products in float64 with scales that are not 1."""
    irreps, l_max, l_max_out = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = NodeProducts(Irreps(irreps), correlation, l_max, l_max_out, bounded=True).double()
    made.scale.copy_(0.5 + randn(*made.scale.shape, seed=2).abs())
    return made


def sums_of(products: NodeProducts, seed: int = 3) -> Features:
    return split(randn(N, products.irreps.dim, seed=seed), products.irreps)


def e3nn_products(products: NodeProducts, sums: Features) -> list[dict[int, Tensor]]:
    """Return the products of each order per entry, by the formula and the symbols of e3nn."""
    n, scale, irreps = len(products.irreps), products.scale, o3.Irreps(str(products.irreps))
    first = {entry: x * scale[0, entry] for entry, x in enumerate(sums)}
    squares = sum(x.square().sum(1, keepdim=True) for x in first.values()) / sum(ir.dim for _, ir in irreps)
    first = {entry: x / (1 + squares / 16).sqrt() for entry, x in first.items()}
    orders = [first]
    for order, (paths, weights) in enumerate(zip(products.paths, products.weights, strict=True), 1):
        weight_of = dict(zip(paths, weights, strict=True))
        found: dict[int, Tensor] = {}
        for a, b, c in product(range(n), repeat=3):
            if (a, b, c) not in weight_of:
                continue
            assert irreps[c].ir in irreps[a].ir * irreps[b].ir
            symbols = o3.wigner_3j(irreps[a].ir.l, irreps[b].ir.l, irreps[c].ir.l, dtype=torch.float64)
            coupled = torch.einsum("abc,nak,nbk->nck", symbols, orders[-1][a], first[b])
            term = math.sqrt(irreps[c].ir.dim) * coupled * weight_of[a, b, c] * scale[order, c]
            found[c] = found[c] + term if c in found else term
        orders.append(found)
    return orders


# ---- values


@pytest.mark.parametrize("correlation", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_e3nn(kind: str, correlation: int) -> None:
    products = products_of(kind, correlation)
    sums = sums_of(products)
    expected = [
        order[entry]
        for order, kept in zip(e3nn_products(products, sums), products.returned, strict=True)
        for entry in kept
    ]
    found = products(sums)
    assert Irreps([(x.shape[2], (x.shape[1] // 2, (-1) ** (x.shape[1] // 2))) for x in found]) == products.irreps_out
    for value, target in zip(found, expected, strict=True):
        assert target.abs().max() > 1e-3
        torch.testing.assert_close(value, target, rtol=1e-7, atol=1e-7)  # e3nn's symbols are in float32 at their origin


@pytest.mark.parametrize("correlation", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_couplings_that_do_not_vanish_are_there(kind: str, correlation: int) -> None:
    """In natural parity these are the triples of degrees that form a triangle and have an even sum."""
    irreps, l_max, l_max_out = KINDS[kind]
    products = products_of(kind, correlation)
    n = len(o3.Irreps(irreps))  # entry k has the degree k
    before = set(range(n))
    for order, paths in enumerate(products.paths, 2):
        highest = min(l_max, l_max_out) if order == correlation else l_max
        expected = {
            (a, b, c)
            for a, b, c in product(before, range(n), range(n))
            if abs(a - b) <= c <= min(a + b, highest) and (a + b + c) % 2 == 0 and (order > 2 or a <= b)
        }
        assert {tuple(path) for path in paths} == expected
        assert len(paths) == len(expected)
        before = {c for _, _, c in expected}


def test_pseudovectors_do_not_come_of_a_vector_with_itself() -> None:
    """Sums of mixed parity would allow the cross product, which is zero."""
    products = NodeProducts(Irreps("3x0e+3x1o+3x1e"), 2, 2, 2, bounded=True)
    assert (1, 1, 2) not in products.paths[0]
    assert (1, 1, 0) in products.paths[0]
    assert (2, 2, 0) in products.paths[0]
    assert not any(sum(products.irreps[entry].ir.l for entry in path) % 2 for path in products.paths[0])


def test_what_is_returned() -> None:
    products = NodeProducts(Irreps("4x0e+4x1o+4x2e"), 3, 2, 1, bounded=True)
    assert products.returned == [[0, 1], [0, 1], [0, 1]]
    assert products.irreps_out == Irreps("4x0e+4x1o+4x0e+4x1o+4x0e+4x1o")
    assert {path.entry_out for path in products.paths[0]} == {0, 1, 2}  # on the way to order 3
    scalars = NodeProducts(Irreps("4x0e+4x1o"), 2, 2, 0, bounded=True)
    assert scalars.irreps_out == Irreps("4x0e+4x0e")
    assert [weights.shape for weights in scalars.weights] == [(2, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_large_sums_are_bounded(kind: str) -> None:
    """The root mean square of a channel grows with that of the sums, but to 4 at most."""
    products = products_of(kind, 2)
    previous = torch.zeros(N, C)
    typical = tuple(x / s for x, s in zip(sums_of(products), products.scale[0], strict=True))  # of mean square 1
    n = len(products.returned[0])
    for factor in (0.01, 1.0, 4.0, 10.0, 1e3):
        sums = tuple(factor * x for x in typical)
        found, free = products(sums), tuple(x * s for x, s in zip(sums, products.scale[0], strict=True))
        squares = sum(x.square().sum(1) for x in free) / products.irreps.dim * C
        bounded = sum(x.square().sum(1) for x in found[:n])
        assert (bounded <= 4**2 * products.irreps.dim / C).all()
        for x, y in zip(found[:n], free, strict=False):
            torch.testing.assert_close(x, y / (1 + squares / 16).sqrt()[:, None])
        assert (bounded > previous).all()
        previous = bounded
    assert all(torch.isfinite(x).all() for x in products(tuple(1e200 * x for x in typical)))


def test_channels_do_not_mix() -> None:
    products = products_of("all degrees", 3)
    sums = sums_of(products)
    changed = tuple(torch.cat([x[:, :, :1] + 0.1, x[:, :, 1:]], dim=2) for x in sums)
    for before, after in zip(products(sums), products(changed), strict=True):
        assert not torch.allclose(before[:, :, 0], after[:, :, 0])
        assert torch.equal(before[:, :, 1:], after[:, :, 1:])


@pytest.mark.parametrize("matrix", ROTATIONS)
@pytest.mark.parametrize("correlation", [2, 3, 4])
@pytest.mark.parametrize("kind", ["returned up to l = 0", "all degrees"])
def test_products_turn_with_the_sums(kind: str, correlation: int, matrix: str) -> None:
    products = products_of(kind, correlation)
    before, after = (o3.Irreps(str(irreps)) for irreps in (products.irreps, products.irreps_out))
    sums, q = sums_of(products), orthogonal_matrix(matrix)
    turned = transform(flatten(sums), before, q)
    assert (turned - flatten(sums)).abs().max() > 0.1
    expected = transform(flatten(products(sums)), after, q)
    found = flatten(products(split(turned, products.irreps)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # an order knows no more of a sign than its number of factors has
    opposite = products(tuple(-x for x in sums))
    orders = [order for order, kept in enumerate(products.returned, 1) for _ in kept]
    for order, x, y in zip(orders, products(sums), opposite, strict=True):
        torch.testing.assert_close(y, (-1) ** order * x, rtol=1e-10, atol=1e-12)


# ---- scale


def graph_for(potential: Potential, *names: str) -> AtomicGraph:
    return AtomicGraph.batch([AtomicGraph.from_atoms(systems()[name], potential.cutoff) for name in names])


def mean_squares(potential: Potential, graph: AtomicGraph) -> list[list[float]]:
    """Return the mean square of each product that a round hands on."""
    found: list[list[float]] = []
    handles = []
    for layer in potential.network.rounds:
        assert layer.products is not None
        handles.append(
            layer.products.register_forward_hook(
                lambda _module, _inputs, outputs: found.append([float(x.detach().square().mean()) for x in outputs])
            )
        )
    potential(graph)
    for handle in handles:
        handle.remove()
    return found


def scales(potential: Potential) -> list[Tensor]:
    return [layer.products.scale for layer in potential.network.rounds if layer.products is not None]


@pytest.fixture
def calibrated() -> Potential:
    """Potential of H, C, O, Si, Cu whose scales are those of a graph."""
    potential = random_potential(SHAPES["products"])
    potential.calibrate(graph_for(potential, "mixed species", "slab"))
    return potential


@pytest.mark.parametrize("name", ["products", "products of order 2", "products of order 4"])
def test_products_have_a_mean_square_of_one_where_they_were_calibrated(name: str) -> None:
    """Before they are bounded."""
    network = SHAPES[name].network.model_copy(update={"bounded_products": False})
    potential = random_potential(SHAPES[name].model_copy(update={"network": network}))
    graph = graph_for(potential, "mixed species", "slab")
    before = mean_squares(potential, graph)
    potential.calibrate(graph)
    after = mean_squares(potential, graph)
    assert len(after) == SHAPES[name].network.n_layers
    assert max(abs(x - 1) for found in before for x in found) > 0.5
    np.testing.assert_allclose(np.concatenate(after), 1, rtol=1e-5)
    values = [scale.clone() for scale in scales(potential)]
    potential.calibrate(graph)
    for value, again in zip(values, scales(potential), strict=True):
        torch.testing.assert_close(again, value, rtol=1e-5, atol=0)
    values = [scale.clone() for scale in scales(potential)]
    potential.predict(graph_for(potential, "water"))  # what comes later changes nothing
    assert_scales(potential, values)


def assert_scales(potential: Potential, expected: list[Tensor]) -> None:
    found = scales(potential)
    assert len(found) == len(expected) > 0
    for scale, values in zip(found, expected, strict=True):
        assert torch.equal(scale, values)
        assert (scale != 1).any()


def test_networks_without_products_have_no_scale() -> None:
    potential = random_potential(SHAPES["with ZBL"])
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    potential.calibrate(graph_for(potential, "mixed species"))
    after = potential.state_dict()
    assert before.keys() == after.keys() == dict(potential.named_parameters()).keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_saved(calibrated: Potential, dtype: torch.dtype, tmp_path: Path) -> None:
    calibrated.to(dtype)
    save_potential(calibrated, tmp_path / "one.safetensors", provenance=Provenance())
    state = torch.get_rng_state()
    loaded = load_potential(tmp_path / "one.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # weights are read, not drawn
    assert isinstance(loaded, Potential)
    assert_scales(loaded, scales(calibrated))
    graph = graph_for(calibrated, "water")
    assert torch.equal(loaded.predict(graph).energy, calibrated.predict(graph).energy)
    by_value = PotentialByValue.of(calibrated).potential(torch.device("cpu"))
    assert isinstance(by_value, Potential)
    assert_scales(by_value, scales(calibrated))


def test_members_of_a_committee_have_their_own_scales(calibrated: Potential, tmp_path: Path) -> None:
    other = random_potential(calibrated.config, seed=6)
    other.calibrate(graph_for(other, "water"))
    save_potential(Committee([calibrated, other]), tmp_path / "two.safetensors", provenance=Provenance())
    loaded = load_potential(tmp_path / "two.safetensors")
    assert isinstance(loaded, Committee)
    for member, expected in zip(loaded.members, (calibrated, other), strict=True):
        assert_scales(member, scales(expected))
    assert not torch.equal(scales(calibrated)[0], scales(other)[0])


def test_fine_tuning_starts_with_the_scales_of_the_base(calibrated: Potential) -> None:
    extended = start_from(calibrated, ("N", "Fe"), {"N": -5.5, "Fe": 3.0})
    assert_scales(extended, scales(calibrated))
    graph = graph_for(calibrated, "mixed species")
    expected, found = (potential.double().predict(graph) for potential in (calibrated, extended))
    assert expected.forces is not None
    assert found.forces is not None
    assert expected.forces.abs().max() > 0.1
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_report")
def test_training_does_not_change_the_scales(tmp_path: Path) -> None:
    """Neither steps nor averages of the weights nor a checkpoint, from which a finished run is taken up again."""
    frames = write_frames(tmp_path / "frames.xyz", labeled_clusters())
    scales_after, weights_after = [], []
    for epochs in (1, 3):
        recipe = recipe_for(frames, network=PRODUCTS.model_dump(), optimization={"epochs": epochs}, data={"test": {}})
        result = run_recipe(recipe, tmp_path / str(epochs))
        again = run_recipe(recipe, tmp_path / str(epochs), resume=True)
        assert isinstance(result.potential, Potential)
        assert isinstance(again.potential, Potential)
        assert_scales(again.potential, scales(result.potential))
        scales_after.append(scales(result.potential))
        weights_after.append(next(result.potential.parameters()))
    for one, other in zip(*scales_after, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*weights_after)


# ---- configuration


def network(**changes: Any) -> NetworkConfig:
    return NetworkConfig.model_validate({**PRODUCTS.model_dump(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"correlation": 1, "l_max_messages": 1},
            (
                "l_max_messages is for networks with products, and correlation is 1; set correlation to 2 or more, or "
                "leave l_max_messages out"
            ),
        ),
        (
            {"correlation": 1, "l_max_hidden": 0},
            (
                "l_max_hidden is for networks with products, and correlation is 1; set correlation to 2 or more, or "
                "leave l_max_hidden out"
            ),
        ),
        (
            {"gated_messages": True},
            (
                "gated_messages is for networks without products, and correlation is 3; set correlation to 1, or leave "
                "gated_messages out"
            ),
        ),
        (
            {"l_max_node_attributes": 1},
            (
                "l_max_node_attributes above 0 is for networks without products, and correlation is 3; set correlation "
                "to 1, or leave l_max_node_attributes out; with products, node attributes are of degree 0"
            ),
        ),
        (
            {"l_max_messages": 2},
            (
                "l_max_messages is 2, but the first messages are as the attributes of edges, whose highest degree "
                "l_max_attributes is 1; lower the first or raise the second"
            ),
        ),
        (
            {"irreps_hidden": "4x0e+4x0o"},
            (
                "irreps_hidden '4x0e+4x0o' has 0o, which products of messages do not reach; take 0e, 1o, 2e, 3o and so "
                "on only, or set correlation to 1"
            ),
        ),
        ({"irreps_hidden": "4x0e+4x1o+4x1e"}, "irreps_hidden '4x0e+4x1o+4x1e' has 1e, which products of messages"),
        (
            {"irreps_hidden": "4x0e+4x1o+4x2e"},
            (
                "irreps_hidden '4x0e+4x1o+4x2e' has the degree 2, but with products features are made from messages, "
                "whose highest degree is 1; leave higher degrees out, or raise l_max_messages"
            ),
        ),
        ({"l_max_messages": 0}, "has the degree 1, but with products features are made from messages, whose highest "),
        (
            {"l_max_hidden": 3},
            "l_max_hidden is 3, but features up to degree 1 times attributes up to degree 1 reach 2; lower l_max",
        ),
        (
            {"n_layers": 1, "l_max_hidden": 1},
            (
                "l_max_hidden is for the second and later layers, and n_layers is 1; set n_layers to 2 or more, or "
                "leave l_max_hidden out"
            ),
        ),
        ({"correlation": 0}, "correlation: should be greater than or equal to 1, got 0"),
        ({"correlation": 5}, "correlation: should be less than or equal to 4, got 5"),
    ],
)
def test_what_a_network_cannot_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        NetworkConfig(**{**PRODUCTS.model_dump(), **changes})
    assert "\n" not in str(caught.value)


def test_a_recipe_tells_the_same(tmp_path: Path) -> None:
    frames = tmp_path / "frames.xyz"
    with pytest.raises(ValueError, match="gated_messages is for networks without products"):
        recipe_for(frames, network={**PRODUCTS.model_dump(), "gated_messages": True})


@pytest.mark.parametrize(
    "changes",
    [
        {"correlation": 2},
        {"correlation": 4},
        {"irreps_hidden": "4x0e+2x1o"},
        {"irreps_hidden": "2x0e+4x1o"},
        {"irreps_hidden": "4x0e"},
        {"irreps_hidden": "4x0e", "l_max_messages": 0},
        {"l_max_attributes": 2, "l_max_messages": 1},
        {"l_max_attributes": 2, "irreps_hidden": "4x0e+4x2e"},
        {"l_max_hidden": 0},
        {"l_max_hidden": 2},
        {"n_layers": 3},
        {"n_layers": 1},
    ],
    ids=str,
)
def test_each_option_makes_another_network(changes: dict[str, Any]) -> None:
    """Weights, and with them energies, are others, and all weights and sums are of use."""
    config = PotentialConfig(elements=("Si",), reference_energies={"Si": -1.0}, network=network(**changes))
    usual = config.model_copy(update={"network": PRODUCTS})
    potential = random_potential(config).double()
    graph = graph_for(potential, "unwrapped")
    potential.calibrate(graph)
    assert all(scale.max() < 500 for scale in scales(potential))  # of what is zero it is 1000
    prediction = potential.predict(graph, create_graph=True)
    shapes = [parameter.shape for parameter in potential.parameters()]
    assert shapes != [parameter.shape for parameter in random_potential(usual).parameters()]
    assert prediction.forces is not None
    learned = {name: parameter for name, parameter in potential.named_parameters() if parameter.numel()}
    gradients = torch.autograd.grad(prediction.forces.square().sum() + prediction.energy.sum(), learned.values())
    for name, gradient in zip(learned, gradients, strict=True):
        assert gradient.abs().max() > 0, name


def test_node_attributes_of_degree_0_may_be_named() -> None:
    assert network(l_max_node_attributes=0).degree_of_nodes == PRODUCTS.degree_of_nodes == 0


def test_rounds_with_and_without_products() -> None:
    plain = NetworkConfig(irreps_hidden="8x0e+4x1o", correlation=1).rounds()
    features = Irreps("8x0e+4x1o")
    assert [tuple(each) for each in plain] == [(features, features, features, features, 1, True)] * 2
    first, second = NetworkConfig(irreps_hidden="8x0e+4x1o", correlation=2, l_max_hidden=0).rounds()
    scalars, messages = Irreps("8x0e"), Irreps("8x0e+8x1o+8x2e")
    assert tuple(first) == (scalars, scalars, messages, features, 2, True)
    assert tuple(second) == (features, scalars, messages, scalars, 2, True)


def test_the_shape_in_words_tells_of_products() -> None:
    assert PRODUCTS.shape == "2 layers, 4x0e+4x1o, attributes up to l = 1, products up to order 3"
    assert "products" not in NETWORK.shape
