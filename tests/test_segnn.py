"""The general network: equivariance for any irreps, both tasks, and what each option does."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from rotations import ROTATIONS, orthogonal_matrix, randn, transform
from torch import Tensor

from ase_segnn._e3nn import o3
from ase_segnn.model.segnn import SEGNN, Edges
from ase_segnn.model.steerable import Steering, flatten, split


def network(*irreps: str, **options) -> SEGNN:
    """Float64 network whose biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = SEGNN(*irreps, **options).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.normal_()
    return model


@dataclass
class Inputs:
    """Random inputs of a network on two graphs of 3 and 4 nodes; the last node has no neighbors."""

    node_features: Tensor
    node_attributes: Tensor
    edge_attributes: Tensor
    centers: Tensor
    neighbors: Tensor
    message_scalars: Tensor | None
    edge_weights: Tensor | None
    graph_of_node: Tensor
    n_graphs: int = 2

    @classmethod
    def random(cls, model: SEGNN) -> "Inputs":
        centers = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 5, 5])
        n_edges = len(centers)
        scalars = randn(n_edges, model.n_message_scalars, seed=4) if model.n_message_scalars else None
        return cls(
            node_features=randn(7, model.irreps_in.dim, seed=1),
            node_attributes=randn(7, model.irreps_node_attributes.dim, seed=2),
            edge_attributes=randn(n_edges, model.irreps_edge_attributes.dim, seed=3),
            centers=centers,
            neighbors=torch.tensor([1, 2, 0, 2, 0, 4, 5, 3, 3, 4]),
            message_scalars=scalars,
            edge_weights=randn(n_edges, seed=5).abs(),
            graph_of_node=torch.tensor([0, 0, 0, 1, 1, 1, 1]),
        )

    def transformed(self, model: SEGNN, matrix: Tensor) -> "Inputs":
        return replace(
            self,
            node_features=transform(self.node_features, model.irreps_in, matrix),
            node_attributes=transform(self.node_attributes, model.irreps_node_attributes, matrix),
            edge_attributes=transform(self.edge_attributes, model.irreps_edge_attributes, matrix),
        )

    def graph(self, index: int) -> "Inputs":
        nodes = self.graph_of_node == index
        edges = nodes[self.centers]
        first = int(nodes.nonzero()[0])
        return Inputs(
            node_features=self.node_features[nodes],
            node_attributes=self.node_attributes[nodes],
            edge_attributes=self.edge_attributes[edges],
            centers=self.centers[edges] - first,
            neighbors=self.neighbors[edges] - first,
            message_scalars=None if self.message_scalars is None else self.message_scalars[edges],
            edge_weights=None if self.edge_weights is None else self.edge_weights[edges],
            graph_of_node=torch.zeros(int(nodes.sum()), dtype=torch.int64),
            n_graphs=1,
        )


def run(model: SEGNN, inputs: Inputs, **changes) -> Tensor:
    with torch.no_grad():
        return model(**{**vars(inputs), **changes})


MIXED = (
    "2x0e+1x0o+1x1o+2x1e+1x2e+1x3o",
    "4x0e+2x0o+3x1o+2x1e+2x2e+1x2o+1x3o+1x3e",
    "2x1o+1x0e+1x0o+1x1e+1x2e+1x2o+1x3o+1x3e",
    "1x0e+1x1o+1x2e+1x3o",
    "1x0e+1x1o+1x2e+1x3o",
)
NETWORKS = {
    "invariants": ("3x0e", "6x0e", "2x0e", "1x0e", "1x0e"),
    "scalars to vectors": ("3x0e", "6x0e+3x1o", "2x0e+1x1o", "1x0e+1x1o", "1x0e+1x1o"),
    "all parities up to l = 3": MIXED,
    "cues beside geometry": ("1x0e+1x1o", "6x0e+3x1o+2x1e", "1x1o+1x1e", "2x0e+2x1o+1x1e", "1x0e+1x1o+1x2e"),
    "hidden out of order": ("1x1o+2x0e", "2x1o+4x0e+1x1o+2x2e", "1x2e+1x0e", "1x0e+1x1o", "1x1o+1x0e"),
}
MESSAGES = {
    "linear": {"message_gates": 0},
    "gated once": {"message_gates": 1},
    "gated twice": {"message_gates": 2},
    "invariant": {"message_gates": 2, "irreps_messages": "4x0e"},
}
TASKS = [{"task": "node"}, {"task": "graph", "pooling": "sum"}, {"task": "graph", "pooling": "mean"}]


@pytest.mark.parametrize("kind", ROTATIONS)
@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("messages", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("irreps", NETWORKS.values(), ids=NETWORKS)
def test_equivariance(irreps, messages, task, kind):
    model = network(*irreps, n_layers=2, n_message_scalars=3, message_weights_hidden=(4,), **messages, **task)
    matrix = orthogonal_matrix(kind)
    inputs = Inputs.random(model)
    outputs = run(model, inputs)
    assert outputs.shape == (7 if task["task"] == "node" else 2, model.irreps_out.dim)
    for entry in model.irreps_out.slices():
        assert outputs[:, entry].abs().max() > 1e-4
    expected = transform(outputs, model.irreps_out, matrix)
    torch.testing.assert_close(run(model, inputs.transformed(model, matrix)), expected, rtol=1e-9, atol=1e-9)
    if any(ir.p == -1 or (ir.l and kind != "inversion") for _, ir in model.irreps_out):
        assert (expected - outputs).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ROTATIONS)
def test_accelerations_of_charged_bodies(kind):
    """Positions and velocities in, vectors out, with velocities as features and as cues that steer."""
    irreps_attributes = o3.Irreps.spherical_harmonics(2)
    model = network("1x0e+1x1o", "8x0e+4x1o+2x2e", "1x1o", irreps_attributes, irreps_attributes, n_message_scalars=2)
    centers, neighbors = torch.nonzero(~torch.eye(5, dtype=torch.bool), as_tuple=True)
    charges = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)[:, None]

    def accelerations(positions: Tensor, velocities: Tensor) -> Tensor:
        vectors = positions[neighbors] - positions[centers]
        edge_attributes = o3.spherical_harmonics(irreps_attributes, vectors, normalize=True)
        cues = o3.spherical_harmonics(irreps_attributes, velocities, normalize=False)  # |v|^l Y(v/|v|)
        means = torch.zeros(5, 9, dtype=torch.float64).index_add(0, centers, edge_attributes) / 4
        scalars = torch.stack([vectors.norm(dim=1), (charges[centers] * charges[neighbors])[:, 0]], dim=1)
        features = torch.cat([velocities.norm(dim=1, keepdim=True), velocities], dim=1)
        with torch.no_grad():
            return model(features, means + cues, edge_attributes, centers, neighbors, message_scalars=scalars)

    positions, velocities, matrix = randn(5, 3), randn(5, 3, seed=1), orthogonal_matrix(kind)
    result = accelerations(positions, velocities)
    assert result.abs().min() > 1e-6
    torch.testing.assert_close(accelerations(positions @ matrix.T + 7, velocities @ matrix.T), result @ matrix.T)
    assert (accelerations(positions, -velocities) - result).abs().max() > 1e-3
    assert accelerations(positions, 0 * velocities).isfinite().all()


@pytest.fixture(params=MESSAGES.values(), ids=MESSAGES)
def model(request: pytest.FixtureRequest) -> SEGNN:
    return network(*MIXED, n_layers=2, n_message_scalars=3, message_weights_hidden=(4,), **request.param)


@pytest.mark.parametrize("messages", MESSAGES)
def test_messages_are_what_they_are_called(messages):
    """Linear ones depend on features linearly, invariant ones are scalars."""
    hidden, attributes = o3.Irreps("4x0e+2x1o"), o3.Irreps("1x0e+1x1o")
    model = network(hidden, hidden, hidden, attributes, attributes, n_layers=1, **MESSAGES[messages])
    message = model.rounds[0].message
    steering = Steering(randn(3, 4), attributes)
    edges = Edges(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]), steering, None, None)

    def sums(factor: float) -> Tensor:
        with torch.no_grad():
            zero = message(split(torch.zeros(3, 10, dtype=torch.float64), hidden), edges)
            return flatten(message(split(factor * randn(3, 10, seed=1), hidden), edges)) - flatten(zero)

    assert sums(1.0).shape[1] == (4 if messages == "invariant" else 10)
    assert torch.allclose(sums(2.0), 2 * sums(1.0)) == (messages == "linear")


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_batch_equals_single(task):
    model = network(*MIXED, n_layers=2, **task)
    inputs = Inputs.random(model)
    singles = torch.cat([run(model, inputs.graph(index)) for index in range(2)])
    torch.testing.assert_close(run(model, inputs), singles, rtol=1e-12, atol=1e-12)


def test_a_single_graph_needs_no_index():
    model = network(*MIXED, n_layers=1, task="graph")
    single = Inputs.random(model).graph(0)
    assert torch.equal(run(model, single, graph_of_node=None), run(model, single))


def test_permutation_of_nodes_and_edges(model):
    inputs = Inputs.random(model)
    nodes = torch.tensor([4, 2, 6, 0, 5, 1, 3])
    edges = torch.tensor([7, 3, 0, 9, 1, 8, 2, 6, 5, 4])
    new_number = torch.argsort(nodes)
    permuted = replace(
        inputs,
        node_features=inputs.node_features[nodes],
        node_attributes=inputs.node_attributes[nodes],
        edge_attributes=inputs.edge_attributes[edges],
        centers=new_number[inputs.centers][edges],
        neighbors=new_number[inputs.neighbors][edges],
        message_scalars=inputs.message_scalars[edges],
        edge_weights=inputs.edge_weights[edges],
        graph_of_node=inputs.graph_of_node[nodes],
    )
    expected = run(model, inputs)[nodes]
    assert (expected[1:] - expected[:-1]).abs().max() > 1e-3
    torch.testing.assert_close(run(model, permuted), expected, rtol=1e-12, atol=1e-12)


def test_pooling_follows_the_readout():
    node, total, mean = (network(*MIXED, n_layers=1, **task) for task in TASKS)
    inputs = Inputs.random(node)
    outputs = run(node, inputs)
    sums = torch.stack([outputs[:3].sum(0), outputs[3:].sum(0)])
    torch.testing.assert_close(run(total, inputs), sums)
    torch.testing.assert_close(run(mean, inputs), sums / torch.tensor([[3.0], [4.0]], dtype=torch.float64))
    for model in (total, mean):
        assert (run(model, inputs, n_graphs=3)[2] == 0).all()


def test_a_message_goes_from_neighbor_to_center():
    model = network(*MIXED, n_layers=1)
    inputs = Inputs.random(model)
    before = run(model, inputs)
    features = inputs.node_features.clone()
    features[5] += 1
    changed = (run(model, inputs, node_features=features) - before).abs().amax(1) > 1e-9
    assert changed.tolist() == [False, False, False, True, False, True, False]  # only 3 has the neighbor 5


@pytest.mark.parametrize("widths", [(), (4,), (5, 4)])
def test_message_scalars_matter(widths):
    model = network(*MIXED, n_layers=1, n_message_scalars=3, message_weights_hidden=widths)
    inputs = Inputs.random(model)
    difference = run(model, inputs, message_scalars=inputs.message_scalars + 0.1) - run(model, inputs)
    assert (difference[:6].abs().amax(1) > 1e-4).all()
    assert (difference[6] == 0).all()
    has_weights = any(name.startswith("layers.0.message.weights") for name in model.state_dict())
    assert has_weights == (len(widths) > 0)


def test_edge_weights_scale_messages(model):
    inputs = Inputs.random(model)
    ones = torch.ones_like(inputs.edge_weights)
    outputs = run(model, inputs, edge_weights=ones)
    assert torch.equal(run(model, inputs, edge_weights=None), outputs)
    assert (run(model, inputs) - outputs).abs().max() > 1e-3
    # a weight of 0 removes the edge
    kept = inputs.centers != 3
    removed = replace(
        inputs,
        edge_attributes=inputs.edge_attributes[kept],
        centers=inputs.centers[kept],
        neighbors=inputs.neighbors[kept],
        message_scalars=inputs.message_scalars[kept],
        edge_weights=ones[kept],
    )
    torch.testing.assert_close(run(model, inputs, edge_weights=ones * kept), run(model, removed))
    assert (run(model, removed) - outputs).abs().max() > 1e-3


def test_no_edges(model):
    inputs = Inputs.random(model)
    none = torch.zeros(10, dtype=torch.bool)
    names = ("edge_attributes", "centers", "neighbors", "message_scalars", "edge_weights")
    outputs = run(model, inputs, **{name: getattr(inputs, name)[none] for name in names})
    assert outputs.isfinite().all()
    torch.testing.assert_close(outputs[6], run(model, inputs)[6])  # which has no neighbors anyway
    assert not torch.allclose(outputs[0], run(model, inputs)[0])


def test_unit_scalar_attributes_change_nothing_where_scalars_are_1():
    options = {"n_layers": 2, "n_message_scalars": 3}
    general, unit = (network(*MIXED, **options, unit_scalar_attributes=unit) for unit in (False, True))
    inputs = Inputs.random(general)
    ones = {}
    for name in ("node_attributes", "edge_attributes"):
        ones[name] = getattr(inputs, name).clone()
        ones[name][:, 0] = 1
    torch.testing.assert_close(run(unit, inputs, **ones), run(general, inputs, **ones), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(run(unit, inputs), run(general, inputs))


def test_linear_messages_are_summed_before_their_weights_act():
    """The sum of messages is that of the messages one by one."""
    model = network(*MIXED, n_layers=1, n_message_scalars=3, message_weights_hidden=(4,))
    inputs = Inputs.random(model)
    features = split(randn(7, model.irreps_hidden.dim, seed=8), model.irreps_hidden)

    def summed(edges: Tensor) -> Tensor:
        steering = Steering(inputs.edge_attributes[edges], model.irreps_edge_attributes)
        chosen = (x[edges] for x in (inputs.message_scalars, inputs.edge_weights))
        return flatten(
            model.layers[0].message(features, Edges(inputs.centers[edges], inputs.neighbors[edges], steering, *chosen))
        )

    every = torch.arange(10)
    one_by_one = sum(summed(every[k : k + 1]) for k in every)
    assert one_by_one[:6].abs().amax(1).min() > 1e-3
    torch.testing.assert_close(summed(every), one_by_one, rtol=1e-12, atol=1e-12)


def test_nothing_is_changed_in_place(model):
    inputs = Inputs.random(model)
    before = copy.deepcopy(inputs)
    run(model, inputs)
    for name, value in vars(before).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(inputs, name)))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_every_layer_is_used(n_layers):
    model = network(
        *NETWORKS["scalars to vectors"], n_layers=n_layers, n_message_scalars=2, message_weights_hidden=(4,)
    )
    assert len(model.layers) == n_layers
    model(**vars(Inputs.random(model))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "edge"}, "task must be 'node' or 'graph', got 'edge'"),
        ({"pooling": "max"}, "pooling must be 'sum' or 'mean', got 'max'"),
    ],
)
def test_unknown_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SEGNN(*MIXED, **options)


@pytest.mark.parametrize(("n", "given", "message"), [(3, None, "got 0"), (3, 2, "got 2"), (0, 1, "got 1")])
def test_the_number_of_message_scalars_is_checked(n, given, message):
    model = network(*MIXED, n_layers=1, n_message_scalars=n)
    scalars = None if given is None else randn(10, given)
    with pytest.raises(ValueError, match=f"this network takes {n} message scalars per edge, {message}"):
        run(model, Inputs.random(model), message_scalars=scalars)
