"""The steerable layers against e3nn, which they must equal to rounding, and their second derivatives."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from ase_segnn._e3nn import o3
from ase_segnn.model.segnn import Edges, MessageNetwork
from ase_segnn.model.steerable import SIGMOID_NORM, SILU_NORM, Gate, SteerableLinear, Steering, flatten, split
from ase_segnn.model.wigner import wigner_3j

# What goes in, what steers, what comes out.
PRODUCTS = [
    ("8x0e", "1x0e+1x1o", "4x0e+2x1o"),
    ("4x0e+3x1o+2x2e", "1x0e+1x1o+1x2e", "5x0e+2x1o+3x2e"),
    ("3x0e+2x0o+2x1o+3x1e+2x2e+1x2o+1x3o+2x3e", "1x0e+1x1o+1x2e+1x3o", "4x0e+1x0o+2x1o+2x1e+1x2e+2x2o+2x3o+1x3e"),
    ("2x1o+3x0e+2x1o+1x0e", "2x0e+3x1o+1x0o+2x1e", "2x1e+3x0e+2x1o+1x0e+1x0o"),  # copies, several entries of one kind
    ("2x0e+2x1o+1x2e", "1x1o+2x2e", "2x0e+2x1o+1x2e"),  # nothing is steered by scalars
    ("3x1o+2x2e", "1x3o+1x1e", "2x0e+1x1o+2x2o+1x3e"),
]
UNREACHABLE = ("4x0e", "1x0e+1x1o", "3x0e+2x2e+2x0o+1x1o+2x1e")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(irreps_in: str, irreps_attributes: str, irreps_out: str) -> SteerableLinear:
    """Random float64 layer, with biases."""
    layer = SteerableLinear(o3.Irreps(irreps_in), o3.Irreps(irreps_attributes), o3.Irreps(irreps_out)).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return layer


def e3nn_product(layer: SteerableLinear):
    """e3nn's fully connected product in float64, with the weights of a layer given to it."""
    product = o3.FullyConnectedTensorProduct(
        layer.irreps_in,
        layer.irreps_attributes,
        layer.irreps_out,
        irrep_normalization="component",
        path_normalization="element",
        internal_weights=False,
        shared_weights=True,
    ).double()
    for name, buffer in product.named_buffers():  # made in float32
        if "_w3j_" in name:
            degrees = [int(degree) for degree in name.split("_w3j_")[1].split("_")]
            buffer.copy_(o3.wigner_3j(*degrees, dtype=torch.float64))
    assert (product.irreps_in1, product.irreps_in2, product.irreps_out) == (
        layer.irreps_in,
        layer.irreps_attributes,
        layer.irreps_out,
    )

    copies = [(entry, copy) for entry, (mul, _) in enumerate(layer.irreps_attributes) for copy in range(mul)]
    weight = torch.zeros(product.weight_numel, dtype=torch.float64)
    views = {
        (instruction.i_in1, instruction.i_in2, instruction.i_out): view
        for _, instruction, view in product.weight_views(weight, yield_instruction=True)
    }
    for entry_out, (paths, own) in enumerate(zip(layer.paths, layer.weights, strict=True)):
        for path in paths:
            entry_attribute, copy = copies[path.copy]
            degrees = (path.l_in, path.l_attribute, path.l_out)
            symbols = torch.from_numpy(wigner_3j(*degrees).copy())
            sign = (symbols * o3.wigner_3j(*degrees, dtype=torch.float64)).sum().sign()
            view = views[path.entry_in, entry_attribute, entry_out]
            view[:, copy] = own[path.rows].detach() * sign * math.sqrt(own.shape[0])
    assert (weight != 0).all(), "every path of e3nn is a path of the layer"
    return lambda features, attributes: product(features, attributes, weight)


def biases(layer: SteerableLinear) -> torch.Tensor:
    """Return what a layer adds, in the flat layout."""
    parts = [
        layer.biases[str(entry)] if str(entry) in layer.biases else torch.zeros(mul * ir.dim, dtype=torch.float64)
        for entry, (mul, ir) in enumerate(layer.irreps_out)
    ]
    return torch.cat(parts).detach()


@pytest.mark.parametrize("irreps", [*PRODUCTS, UNREACHABLE])
def test_linear_equals_e3nn(irreps):
    layer = linear(*irreps)
    features = randn(6, layer.irreps_in.dim, seed=1)
    attributes = randn(6, layer.irreps_attributes.dim, seed=2)
    steering = Steering(attributes, layer.irreps_attributes)
    result = flatten(layer(split(features, layer.irreps_in), steering)).detach()
    expected = e3nn_product(layer)(features, attributes)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected + biases(layer), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("irreps", [*PRODUCTS, UNREACHABLE])
def test_gathered_equals_forward_on_gathered_features(irreps):
    layer = linear(*irreps)
    n_nodes, n_edges = 4, 11
    indices = [
        None if entry % 3 == 2 else torch.randint(n_nodes, (n_edges,), generator=torch.Generator().manual_seed(entry))
        for entry in range(len(layer.irreps_in))
    ]
    features = tuple(
        randn(n_edges if index is None else n_nodes, ir.dim, mul, seed=entry)
        for entry, ((mul, ir), index) in enumerate(zip(layer.irreps_in, indices, strict=True))
    )
    gathered = tuple(x if index is None else x[index] for x, index in zip(features, indices, strict=True))
    steering = Steering(randn(n_edges, layer.irreps_attributes.dim), layer.irreps_attributes)
    result = flatten(layer.forward_gathered(features, indices, steering))
    torch.testing.assert_close(result, flatten(layer(gathered, steering)), rtol=1e-10, atol=1e-10)


def test_what_nothing_reaches_is_zero():
    layer = linear(*UNREACHABLE)
    features = split(randn(5, 4), layer.irreps_in)
    steering = Steering(randn(5, 4, seed=1), layer.irreps_attributes)
    for outputs in (layer(features, steering), layer.forward_gathered(features, [None], steering)):
        assert [tuple(x.shape) for x in outputs] == [(5, 1, 3), (5, 5, 2), (5, 1, 2), (5, 3, 1), (5, 3, 2)]
        assert [bool((x != 0).any()) for x in outputs] == [True, False, False, True, False]


def test_biases_go_to_even_scalars_only():
    layer = SteerableLinear(o3.Irreps("2x0e+1x1o"), o3.Irreps("1x0e+1x1o"), o3.Irreps("3x0e+2x0o+1x1o+1x0e"))
    assert {name: tuple(bias.shape) for name, bias in layer.biases.items()} == {"0": (3,), "3": (1,)}
    assert all((bias == 0).all() for bias in layer.biases.values())


def test_unit_scalar_skips_what_changes_nothing():
    layer = linear(*PRODUCTS[1])
    features = split(randn(6, layer.irreps_in.dim), layer.irreps_in)
    attributes = torch.cat([torch.ones(6, 1, dtype=torch.float64), randn(6, 8, seed=3)], dim=1)
    general, unit = (
        flatten(layer(features, Steering(attributes, layer.irreps_attributes, unit_scalar=unit)))
        for unit in (False, True)
    )
    torch.testing.assert_close(unit, general, rtol=1e-12, atol=1e-12)
    promise_broken = flatten(layer(features, Steering(2 * attributes, layer.irreps_attributes, unit_scalar=True)))
    assert not torch.allclose(
        promise_broken, flatten(layer(features, Steering(2 * attributes, layer.irreps_attributes)))
    )


@pytest.mark.parametrize("irreps", PRODUCTS[:5])
def test_outputs_start_with_unit_variance(irreps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # wide, so that the variance of the initial weights does not matter
        irreps_in, irreps_out = (o3.Irreps([(40 * mul, ir) for mul, ir in o3.Irreps(irreps[k])]) for k in (0, 2))
        layer = SteerableLinear(irreps_in, o3.Irreps(irreps[1]), irreps_out).double()
    steering = Steering(randn(500, layer.irreps_attributes.dim), layer.irreps_attributes)
    outputs = layer(split(randn(500, irreps_in.dim, seed=1), irreps_in), steering)
    assert [x.detach().square().mean().item() for x in outputs] == pytest.approx([1] * len(outputs), abs=0.2)


def test_split_and_flatten_are_inverse():
    irreps = o3.Irreps("3x0e+2x1o+1x2e+2x1o")
    flat = randn(4, irreps.dim)
    features = split(flat, irreps)
    assert [tuple(x.shape) for x in features] == [(4, 1, 3), (4, 3, 2), (4, 5, 1), (4, 3, 2)]
    assert torch.equal(features[1][:, :, 1], flat[:, 6:9])
    assert torch.equal(flatten(features), flat)


def test_no_rows():
    layer = linear(*PRODUCTS[2])
    steering = Steering(randn(0, layer.irreps_attributes.dim), layer.irreps_attributes)
    features = split(randn(0, layer.irreps_in.dim), layer.irreps_in)
    assert flatten(layer(features, steering)).shape == (0, layer.irreps_out.dim)


@pytest.mark.parametrize(
    ("function", "constant", "tolerance"),
    [
        (lambda z: z / (1 + np.exp(-z)), SILU_NORM, 1e-13),
        (lambda z: 1 / (1 + np.exp(-z)), SIGMOID_NORM, 1e-13),
    ],
)
def test_activations_keep_the_second_moment(function, constant, tolerance):
    z = np.linspace(-12, 12, 4001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    moment = np.sum(function(z) ** 2 * density) * (z[1] - z[0])
    assert constant == pytest.approx(moment**-0.5, rel=tolerance)


@pytest.mark.parametrize("irreps", ["4x0e+3x1o", "3x0e+2x0o+2x1o+1x1e+2x2e+1x3o"])
def test_gate_equals_e3nn(irreps):
    from e3nn.nn import Gate as E3nnGate  # after ase_segnn._e3nn, which makes the import work

    gate = Gate(o3.Irreps(irreps))
    (n_scalars, _), *gated = gate.irreps_out
    n_gates = sum(mul for mul, _ in gated)
    e3nn_gate = E3nnGate(
        f"{n_scalars}x0e",
        [torch.nn.functional.silu],
        f"{n_gates}x0e",
        [torch.sigmoid],
        o3.Irreps(gated),
    ).double()
    assert e3nn_gate.irreps_out == gate.irreps_out
    features = {ir: 2 * randn(7, ir.dim, mul, seed=k) for k, (mul, ir) in enumerate(gate.irreps_in)}
    sorted_as_in_e3nn = flatten(tuple(features[ir] for _, ir in e3nn_gate.irreps_in))

    # e3nn's own constants are estimated from a sample
    ratios = [SILU_NORM / e3nn_gate.act_scalars.acts[0].cst]
    ratios += [SIGMOID_NORM / e3nn_gate.act_gates.acts[0].cst] * len(gated)
    assert ratios == pytest.approx([1] * len(ratios), abs=5e-3)
    outputs = split(e3nn_gate(sorted_as_in_e3nn), gate.irreps_out)
    expected = tuple(y * ratio for y, ratio in zip(outputs, ratios, strict=True))
    torch.testing.assert_close(gate(tuple(features.values())), expected, rtol=1e-10, atol=1e-10)


def test_gate_of_scalars_alone_without_scalars_and_with_scalars_in_any_place():
    (scalars,) = Gate(o3.Irreps("5x0e"))((randn(3, 1, 5),))
    torch.testing.assert_close(scalars, torch.nn.functional.silu(randn(3, 1, 5)) * SILU_NORM)
    gate = Gate(o3.Irreps("2x1o"))
    gates, vectors = randn(3, 1, 2), randn(3, 3, 2)
    torch.testing.assert_close(gate((gates, vectors)), (vectors * torch.sigmoid(gates) * SIGMOID_NORM,))
    gate = Gate(o3.Irreps("2x1o+3x0e"))
    assert gate.irreps_in == o3.Irreps("5x0e+2x1o")
    outputs = gate((randn(3, 1, 5), vectors))
    assert [tuple(x.shape) for x in outputs] == [(3, 3, 2), (3, 1, 3)]


def require_grad(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


SMALL = ("2x0e+1x1o+1x1e+1x2e", "1x0e+1x1o+1x2e", "2x0e+1x1o+1x1e+1x2e")


@pytest.mark.parametrize("gathered", [False, True])
def test_second_derivatives_of_the_linear_layer(gathered):
    layer = linear(*SMALL)
    names = list(dict(layer.named_parameters()))
    indices = [torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), None, None]
    rows = [2, 2, 3, 3] if gathered else [3] * 4
    features = [
        randn(n, ir.dim, mul, seed=k) for k, (n, (mul, ir)) in enumerate(zip(rows, layer.irreps_in, strict=True))
    ]

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, attributes, *features):
            steering = Steering(attributes, layer.irreps_attributes)
            if gathered:
                return flatten(layer.forward_gathered(features, indices, steering))
            return flatten(layer(features, steering))

    flat = Flat()

    def function(attributes, *arguments):
        parameters = {f"layer.{name}": value for name, value in zip(names, arguments[4:], strict=True)}
        return functional_call(flat, parameters, (attributes, *arguments[:4]))

    inputs = require_grad(randn(3, layer.irreps_attributes.dim, seed=9), *features, *layer.parameters())
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_second_derivatives_of_the_gate():
    gate = Gate(o3.Irreps("2x0e+1x0o+2x1o"))
    inputs = require_grad(randn(2, 1, 5), randn(2, 1, 1, seed=1), randn(2, 3, 2, seed=2))
    assert gradcheck(lambda *features: gate(features), inputs)
    assert gradgradcheck(lambda *features: gate(features), inputs)


@pytest.mark.parametrize("gates", [0, 1, 2])
def test_second_derivatives_of_the_messages(gates):
    hidden, irreps_attributes = o3.Irreps("2x0e+1x1o+1x2e"), o3.Irreps("1x0e+1x1o+1x2e")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MessageNetwork(hidden, irreps_attributes, hidden, 3, (4,), gates=gates).double()
    centers, neighbors = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0])

    def messages(attributes, scalars, weights, *features):
        edges = Edges(centers, neighbors, Steering(attributes, irreps_attributes), scalars, weights)
        return flatten(network(features, edges))

    features = [randn(3, ir.dim, mul, seed=k) for k, (mul, ir) in enumerate(hidden)]
    inputs = require_grad(randn(4, irreps_attributes.dim, seed=4), randn(4, 3, seed=5), randn(4, seed=6), *features)
    assert gradcheck(messages, inputs, fast_mode=True)
    assert gradgradcheck(messages, inputs, fast_mode=True)
