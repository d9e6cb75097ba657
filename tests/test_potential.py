"""The potential by itself: options, dtypes, and what can be differentiated; the physics is in test_physics.py."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from ase import Atoms
from random_potentials import CONFIGS, random_potential
from systems import systems

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential

SYSTEMS = systems()
CONFIG = CONFIGS["with ZBL"]
DTYPES = (torch.float32, torch.float64)


def graph_of(name: str, potential: Potential) -> AtomicGraph:
    return AtomicGraph.from_atoms(SYSTEMS[name], potential.cutoff)


def changed(**changes) -> PotentialConfig:
    """Change the configuration; names of the network's options go there."""
    network = {name: changes.pop(name) for name in set(changes) & set(NetworkConfig.model_fields)}
    data = CONFIG.model_dump()
    return PotentialConfig(**{**data, **changes, "network": {**data["network"], **network}})


@pytest.mark.parametrize(
    "change",
    [
        {"cutoff": 4.0},
        {"irreps_hidden": "8x0e+3x1o"},
        {"l_max_attributes": 2},
        {"l_max_node_attributes": 0},
        {"n_layers": 1},
        {"n_radial": 5},
        {"radial_hidden": (16,)},
        {"envelope_power": 5},
        {"reference_energies": dict.fromkeys(CONFIG.elements, 0.5)},
        {"energy_shifts": {"H": 0.25}},
        {"energy_scale": 1.5},
        {"average_neighbors": 8.0},
        {"zbl": False},
        {"zbl_ends": {"O-Si": 1.0}},
        {"shortest_distances": {"O-Si": 3.0, "Si-Si": 4.0, "O-O": 4.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_option_changes_the_energy(change):
    assert changed() == CONFIG
    energies = []
    for config in (CONFIG, changed(**change)):
        potential = random_potential(config)
        energies.append(potential.predict(graph_of("skewed triclinic", potential)).energy.item())
    assert abs(energies[0] - energies[1]) > 1e-4


def test_attributes_of_nodes_have_no_more_degrees_than_those_of_edges():
    with pytest.raises(ValueError, match=r"l_max_node_attributes is 2, but .* degree l_max_attributes is 1"):
        changed(l_max_node_attributes=2)


def test_shift_and_scale_are_those_of_the_formula():
    """With weights of zero the network gives 0 and only the terms around it remain."""
    shifts = {"H": -0.3, "O": 0.9}
    potential = Potential(changed(zbl=False, energy_shifts=shifts)).double()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.zero_()
    distance = 0.4 * potential.cutoff
    atoms = Atoms("HO", [[0, 0, 0], [0, 0, distance]])
    energies = potential.predict(AtomicGraph.from_atoms(atoms, potential.cutoff)).atom_energies
    envelope = 1 - 28 * 0.4**6 + 48 * 0.4**7 - 21 * 0.4**8
    for symbol, energy in zip("HO", energies.tolist(), strict=True):
        expected = CONFIG.reference_energies[symbol] + (1 - math.exp(-envelope)) * shifts[symbol]
        assert energy == pytest.approx(expected, rel=1e-13)

    with torch.no_grad():
        next(bias for name, bias in potential.network.named_parameters() if "readout.linear_2.biases" in name).fill_(
            1.5
        )
    shifted = potential.predict(AtomicGraph.from_atoms(atoms, potential.cutoff)).atom_energies
    expected = torch.full((2,), (1 - math.exp(-envelope)) * CONFIG.energy_scale * 1.5, dtype=torch.float64)
    torch.testing.assert_close(shifted - energies, expected)


def test_zbl_adds_the_repulsion_to_both_atoms():
    with_zbl, without = (random_potential(changed(zbl=zbl)).double() for zbl in (True, False))
    without.load_state_dict(with_zbl.state_dict())
    graph = graph_of("short dimer", with_zbl)
    difference = with_zbl.predict(graph).atom_energies - without.predict(graph).atom_energies
    pair = with_zbl.zbl(torch.tensor([0.3], dtype=torch.float64), torch.tensor([0]), torch.tensor([0]))
    assert pair.item() > 5
    torch.testing.assert_close(difference, pair.expand(2) / 2)
    repulsion = with_zbl.predict(graph).forces - without.predict(graph).forces
    axis = graph.positions[1] - graph.positions[0]
    assert (repulsion[1] @ axis) > 10
    far = graph_of("water", with_zbl)  # bonds are as long as the covalent radii
    assert abs(with_zbl.predict(far).energy - without.predict(far).energy).item() < 0.2


def test_the_network_does_not_pull_at_atoms_closer_than_in_training():
    """Two atoms alone: as without a shortest distance r from 0.9 r on, and the repulsion alone below 0.6 r."""
    configs = [changed(shortest_distances=shortest) for shortest in (None, {"H-O": 2.0})]
    without, limited = (random_potential(config).double() for config in configs)
    repulsion = without.zbl
    for distance in (0.1, 0.5, 0.9, 1.19, 1.3, 1.5, 1.81, 2.1, 3.0):
        graph = AtomicGraph.from_atoms(Atoms("OH", [[0, 0, 0], [0, 0, distance]]), limited.cutoff)
        free, found = (potential.predict(graph).forces[1, 2].item() for potential in (without, limited))
        d = torch.tensor([distance], dtype=torch.float64, requires_grad=True)
        species = limited.species_of_number[[8]], limited.species_of_number[[1]]
        (slope,) = torch.autograd.grad(repulsion(d, *species).sum(), d)
        if distance > 1.8:
            assert found == free
        elif distance < 1.2:
            assert found == pytest.approx(-slope.item(), abs=1e-12)
            assert abs(found - free) > 1e-3
        else:
            assert abs(found + slope.item()) > 1e-4


@pytest.mark.parametrize("energy", [-29943.1 / 3, -13.587222780835477])
@pytest.mark.parametrize("path", ["float32", "double and back", "bfloat16 and back"])
def test_reference_energies_are_never_rounded(energy, path):
    potential = Potential(changed(reference_energies=dict.fromkeys(CONFIG.elements, energy)))
    if path != "float32":
        potential.to(torch.float64 if path.startswith("double") else torch.bfloat16).to(torch.float32)
    assert potential.dtype == torch.float32
    assert potential.predict(graph_of("lone atom", potential)).energy.item() == energy
    assert potential.predict(graph_of("far dimer", potential)).energy.item() == 2 * energy


def test_constants_are_exact_after_double():
    potential = random_potential(CONFIGS["mixed parity"]).double()
    single = copy.deepcopy(potential).to(torch.float32)
    assert potential.dtype == torch.float64
    assert potential.one_hot[0, 0].item() == math.sqrt(5)
    graph = graph_of("skewed triclinic", potential)
    before = potential.predict(graph).energy
    assert torch.equal(single.double().predict(graph).energy, before)  # weights are those of float32 anyway


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_state_holds_all_weights_and_nothing_else(dtype):
    potential = random_potential(CONFIG).to(dtype)
    state = potential.state_dict()
    assert set(state) == set(dict(potential.named_parameters()))
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    other = random_potential(CONFIG, seed=77).to(dtype)
    graph = graph_of("water", potential)
    energy = potential.predict(graph).energy
    assert not torch.equal(other.predict(graph).energy, energy)
    other.load_state_dict(state)
    assert torch.equal(other.predict(graph).energy, energy)


def test_a_copy_is_independent():
    potential = random_potential(CONFIG)
    graph = graph_of("water", potential)
    before = potential.predict(graph).energy
    other = copy.deepcopy(potential).double()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(other.predict(graph).energy, before)
    assert potential.dtype == torch.float32
    assert torch.equal(potential.predict(graph).energy, before)


def test_energies_alone_make_no_gradient():
    potential = random_potential(CONFIG)
    graph = graph_of("skewed triclinic", potential)
    recorded = []
    potential.network.register_forward_hook(lambda _module, _inputs, output: recorded.append(output.requires_grad))
    energies = potential.predict(graph, forces=False)
    assert (energies.forces, energies.stress) == (None, None)
    assert not energies.energy.requires_grad
    everything = potential.predict(graph, stress=True)
    stress_only = potential.predict(graph, forces=False, stress=True)
    assert recorded == [False, True, True]
    assert torch.equal(everything.energy, energies.energy)
    assert stress_only.forces is None
    assert torch.equal(stress_only.stress, everything.stress)
    assert all(parameter.grad is None for parameter in potential.parameters())
    assert not any(tensor.requires_grad for tensor in vars(everything).values())


def test_frozen_weights_and_surrounding_no_grad_are_no_obstacle():
    potential = random_potential(CONFIG)
    graph = graph_of("water", potential)
    forces = potential.predict(graph).forces
    with torch.no_grad():
        assert torch.equal(potential.predict(graph).forces, forces)
    potential.requires_grad_(False)
    assert torch.equal(potential.predict(graph).forces, forces)
    assert (potential.predict(graph_of("lone atom", potential)).forces == 0).all()


@pytest.mark.parametrize("what", ["energy", "forces", "stress"])
def test_training_gets_gradients_for_all_weights(what):
    potential = random_potential(CONFIG)
    graph = graph_of("mixed species", potential)
    prediction = potential.predict(graph, forces=what == "forces", stress=what == "stress", create_graph=True)
    getattr(prediction, what).square().sum().backward()
    # a constant that is added to every atom energy still moves forces, as it is multiplied by the factor s
    for name, parameter in potential.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_gradients_of_a_force_loss_equal_central_differences():
    potential = random_potential(CONFIG).double()
    graph = graph_of("water", potential)

    def loss(create_graph: bool = False) -> torch.Tensor:
        prediction = potential.predict(graph, stress=False, create_graph=create_graph)
        return prediction.forces.square().sum() + prediction.energy.sum()

    loss(create_graph=True).backward()
    parameters = list(potential.parameters())
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in parameters]
    expected = sum((p.grad * direction).sum() for p, direction in zip(parameters, directions, strict=True)).item()
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
            values.append(loss().item())
    assert abs(expected) > 1e-2
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-6)


def test_forward_gives_atom_energies_that_can_be_differentiated_by_positions():
    potential = random_potential(CONFIG).double()
    graph = graph_of("skewed triclinic", potential)
    graph.positions.requires_grad_()
    energies = potential(graph)
    (gradient,) = torch.autograd.grad(energies.sum(), graph.positions)
    graph.positions.requires_grad_(False)
    prediction = potential.predict(graph)
    torch.testing.assert_close(energies.detach(), prediction.atom_energies)
    torch.testing.assert_close(-gradient, prediction.forces)


@pytest.mark.parametrize("symbol", ["He", "Og"])  # between the known elements, and beyond the last
def test_an_unknown_element_is_an_error_and_no_other_element(symbol):
    potential = random_potential(CONFIG)
    assert symbol not in potential.elements
    with pytest.raises(IndexError, match="out of "):
        potential(
            AtomicGraph.from_atoms(Atoms([potential.elements[0], symbol], [(0, 0, 0), (0, 0, 1.5)]), potential.cutoff)
        )


def test_species_are_told_apart_by_symbol_not_by_order():
    graph = AtomicGraph.from_atoms(Atoms("OCH", [[0, 0, 0], [1.2, 0, 0], [1.8, 0.9, 0]]), CONFIG.network.cutoff)
    potential = random_potential(CONFIG).double()
    order = (4, 1, 0, 3, 2)
    other = random_potential(changed(elements=tuple(CONFIG.elements[k] for k in order))).double()
    state = potential.state_dict()
    rows = state["network.embedding.weights.0"].clone()
    assert rows.shape[0] == 5  # one row per element
    for name, value in state.items():
        if name.startswith("network.embedding.weights") and value.shape[0] == 5:
            state[name] = value[list(order)]
    other.load_state_dict(state)
    assert other.elements == ("Cu", "C", "H", "Si", "O")
    torch.testing.assert_close(other.predict(graph).atom_energies, potential.predict(graph).atom_energies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": ()}, "at least 1 item"),
        ({"elements": ("H", "Xx")}, "'Xx' is no chemical element; elements are symbols such as 'H', 'C', 'O'"),
        ({"elements": ("H", "C", "O", "Si", "Cu", "H")}, "elements are named twice: H, C, O, Si, Cu, H"),
        (
            {"reference_energies": {"H": 1.0}},
            "reference energies are needed for exactly the elements H, C, O, Si, Cu, got them for H",
        ),
        ({"reference_energies": {}}, "got them for none"),
        ({"reference_energies": dict.fromkeys(CONFIG.elements, math.nan)}, "finite"),
        ({"energy_shifts": {"Fe": 1.0, "Ar": 2.0}}, "energy shifts name Ar, Fe, which is none of the elements"),
        ({"zbl_ends": {"O-H": 1.0, "C-O": 1.0}}, "zbl_ends name O-H; pairs are named as 'H-Cu', of the elements"),
        ({"zbl_ends": {"H-O": 0.0}}, "greater than 0"),
        ({"shortest_distances": {"O-H": 1.0}}, "shortest_distances name O-H; pairs are named as 'H-Cu'"),
        ({"shortest_distances": {"H-O": -1.0}}, "greater than 0"),
        ({"energy_scale": 0.0}, "greater than 0"),
        ({"cutoff": -1.0}, "greater than 0"),
        ({"n_layers": 0}, "greater than or equal to 1"),
        ({"envelope_power": 2}, "greater than or equal to 3"),
        ({"irreps_hidden": "8x0e+"}, "is not a list of irreps, such as '64x0e"),
        ({"irreps_hidden": "8x1o"}, "'8x1o' has no even scalars '0e', and an energy is one"),
        ({"irreps_hidden": "8x0e+2x1o+2x0e"}, "names an irrep twice"),
        ({"layers": 3}, "layers: unknown key; known are elements, reference_energies"),
    ],
)
def test_wrong_configurations_are_errors(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        changed(**change)
    assert len(str(caught.value).splitlines()) == 1


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError, match="a PotentialConfig cannot be changed; make another one"):
        CONFIG.energy_scale = 3.0
    with pytest.raises(AttributeError, match=r"a NetworkConfig cannot be changed; .* \.model_copy\(update=\{'cutoff'"):
        CONFIG.network.cutoff = 3.0
