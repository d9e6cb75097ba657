"""Fine-tuning: a potential with more elements predicts what it did before, energies adapt, frozen parts stay."""

from __future__ import annotations

import logging
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from compiler import needs_compiler
from random_potentials import CONFIGS, NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn import load_potential
from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential, Prediction
from ase_segnn.potential_file import Provenance, save_potential
from ase_segnn.potentials import path_of
from ase_segnn.training.fit.finetuning import adapt_energies, freeze, start_from

SYSTEMS = systems()
MOLECULE = Path(__file__).parent / "data" / "acetylacetone.xyz"
NEW_ENERGIES = {"N": -5.5, "Fe": 3.0}


def potential_of(config: PotentialConfig, *elements: str) -> Potential:
    """Make a random potential of some of the elements, in float64 and frozen, as it is loaded from a file."""
    kept = elements or config.elements
    raw = config.model_dump()
    for name in ("reference_energies", "energy_shifts"):
        raw[name] = {symbol: value for symbol, value in raw[name].items() if symbol in kept}
    return random_potential(PotentialConfig.model_validate({**raw, "elements": kept})).double().requires_grad_(False)


def predict(potential: Potential, atoms: Atoms) -> Prediction:
    return potential.predict(AtomicGraph.from_atoms(atoms, potential.cutoff))


def assert_same(result: Prediction, expected: Prediction, tolerance: float = 1e-10) -> None:
    for name in ("energy", "atom_energies", "forces"):
        value, target = getattr(result, name), getattr(expected, name)
        assert target.abs().max() > 1e-3, name
        torch.testing.assert_close(value, target, rtol=tolerance, atol=tolerance, msg=name)


def with_nitrogen(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.symbols[1] = "N"
    return atoms


# ---- more elements


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("new", [("N",), ("N", "Fe")], ids="+".join)
@pytest.mark.parametrize(
    ("known", "system"), [(("Si",), "unwrapped"), (("O", "H"), "water"), ((), "mixed species")], ids=["1", "2", "5"]
)
def test_known_elements_keep_energies_and_forces(
    name: str, new: tuple[str, ...], known: tuple[str, ...], system: str
) -> None:
    base = potential_of(CONFIGS[name], *known)
    before = predict(base, SYSTEMS[system])
    extended = start_from(base, (*new, base.elements[0]), {symbol: NEW_ENERGIES[symbol] for symbol in new})
    assert extended.elements == (*base.elements, *new)
    assert_same(predict(extended, SYSTEMS[system]), before)
    assert_same(predict(base, SYSTEMS[system]), before, 0)
    assert all(parameter.requires_grad for parameter in extended.parameters())

    prediction = predict(extended, with_nitrogen(SYSTEMS[system]))
    assert prediction.forces is not None
    assert prediction.forces.isfinite().all()
    assert prediction.forces[1].norm() > 1e-3
    assert predict(extended, Atoms("N")).energy.item() == NEW_ENERGIES["N"]


def test_a_new_element_starts_in_the_middle_of_those_known() -> None:
    base = potential_of(CONFIGS["mixed parity"], "Si")  # without repulsion of nuclei, which knows N from Si
    extended = start_from(base, ["N"], {"N": base.config.reference_energies["Si"]})
    assert_same(predict(extended, with_nitrogen(SYSTEMS["unwrapped"])), predict(base, SYSTEMS["unwrapped"]))

    base = potential_of(CONFIGS["mixed parity"])
    extended = start_from(base, ["N"], {"N": 0.0})
    assert extended.config.energy_shifts["N"] == pytest.approx(np.mean([-0.3, 0.7, 0, 0, 0]))
    inputs = torch.eye(6, dtype=torch.float64)
    embedded = [inputs @ weight for weight in extended.network.embedding.weights if weight.numel()]
    assert len(embedded) == 3  # 0e, 1o and 2e
    for rows in embedded:
        torch.testing.assert_close(rows[5], rows[:5].mean(0))


def test_new_elements_part_at_the_first_step() -> None:
    potential = start_from(potential_of(CONFIGS["with ZBL"], "Si"), ["N", "Fe"], NEW_ENERGIES)
    atoms = SYSTEMS["unwrapped"].copy()
    atoms.symbols[:4] = ["N", "Fe", "N", "Fe"]
    graph = AtomicGraph.from_atoms(atoms, potential.cutoff)
    forces = potential.predict(graph, create_graph=True).forces
    assert forces is not None
    forces.square().sum().backward()
    gradient = potential.network.embedding.weights[0].grad
    assert gradient is not None
    assert gradient.abs().amax(1).min() > 1e-6
    assert torch.linalg.matrix_rank(gradient) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shipped_potential_with_nitrogen(dtype: torch.dtype) -> None:
    base = load_potential(path_of("acac-pbe-fast")).to(dtype)
    atoms = ase.io.read(MOLECULE)
    atoms.rattle(0.05, seed=1)
    extended = start_from(base, ["N"], {"N": -1480.0})
    assert extended.dtype == dtype
    before, after = predict(base, atoms), predict(extended, atoms)
    assert_same(after, before, {torch.float64: 1e-10, torch.float32: 1e-4}[dtype])
    assert after.forces is not None
    assert after.forces.norm(dim=1).min() > 0.1
    assert_same(predict(start_from(base, ["C"], {}), atoms), before, 0)


@needs_compiler
def test_native_form_of_an_extended_potential() -> None:
    extended = start_from(potential_of(NATIVE_CONFIGS["natural parity"]), ["N"], {"N": -5.5}).requires_grad_(False)
    native = NativePotential(extended)
    for atoms in (SYSTEMS["mixed species"], with_nitrogen(SYSTEMS["mixed species"])):
        result = native.evaluate(AtomicGraph.from_atoms(atoms, extended.cutoff))
        assert_same(result, predict(extended, atoms))


def test_an_extended_potential_is_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "extended.safetensors"
    extended = start_from(potential_of(CONFIGS["mixed parity"], "H", "O"), ["N"], {"N": -5.5, "H": -13.0})
    save_potential(extended, path, provenance=Provenance())
    loaded = load_potential(path)
    assert loaded.config == extended.config
    assert loaded.config.reference_energies == {"H": -13.0, "O": -2.2, "N": -5.5}
    atoms = with_nitrogen(SYSTEMS["water"])
    assert_same(predict(loaded, atoms), predict(extended, atoms), 0)


def test_known_pairs_keep_where_their_repulsion_ends() -> None:
    base = potential_of(CONFIGS["with ZBL"].model_copy(update={"zbl_ends": {"H-O": 0.9}}), "H", "O")
    new = {"H-H": 0.5, "H-O": 0.8, "N-O": 1.0, "N-N": 1.9}
    extended = start_from(base, ["N"], {"N": -5.0}, shortest_distances=new)
    assert extended.config.zbl_ends == {"H-O": 0.9, "N-O": 0.8}
    assert extended.config.shortest_distances is None
    plain = potential_of(CONFIGS["with ZBL"].model_copy(update={"zbl": False}), "H", "O")
    assert start_from(plain, ["N"], {"N": -5.0}, shortest_distances=new).config.zbl_ends == {}


def test_shortest_distances_are_those_of_old_and_new_frames() -> None:
    config = CONFIGS["with ZBL"].model_copy(update={"shortest_distances": {"H-O": 0.9, "O-O": 2.2}})
    extended = start_from(
        potential_of(config, "H", "O"), ["N"], {"N": -5.0}, shortest_distances={"H-O": 1.1, "O-O": 2.0, "N-N": 1.2}
    )
    assert extended.config.shortest_distances == {"H-O": 0.9, "O-O": 2.0, "N-N": 1.2}


def test_random_numbers_of_the_caller_stay_as_they_are() -> None:
    base = potential_of(CONFIGS["with ZBL"], "H")
    state = torch.random.get_rng_state()
    first, second = (start_from(base, ["N"], {"N": 0.0}) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("elements", "energies", "shifts", "message"),
    [
        (["N"], {}, None, "reference energies are needed for exactly the elements H, O, N, got them for H, O"),
        (["N"], {"N": 1.0, "Fe": 1.0}, None, "exactly the elements H, O, N, got them for H, O, N, Fe"),
        (["N"], {"N": 1.0}, {"Fe": 1.0}, "energy shifts name Fe, which is none of the elements"),
        (["Nn"], {"Nn": 1.0}, None, "'Nn' is no chemical element"),
    ],
)
def test_energies_of_other_elements_are_refused(
    elements: list[str], energies: dict[str, float], shifts: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start_from(potential_of(CONFIGS["with ZBL"], "H", "O"), elements, energies, shifts)


# ---- other energies


def crystals() -> list[Atoms]:
    """Rattled crystals of several compositions of H, C and O; there is no Si, which the potential knows."""
    frames = []
    for index, symbols in enumerate(["HHCO", "HCCO", "HOOO", "HHHC"]):
        atoms = bulk("Cu", a=3.2, cubic=True) * (1 + index % 2, 1, 1)
        atoms.symbols[:] = list(symbols) * (len(atoms) // 4)
        atoms.rattle(0.05, seed=index)
        frames.append(atoms)
    return frames


def counts_of(frames: list[Atoms], potential: Potential) -> np.ndarray:
    return np.array([[atoms.symbols.count(symbol) for symbol in potential.elements] for atoms in frames], dtype=float)


def energies_of(potential: Potential, frames: list[Atoms]) -> np.ndarray:
    return np.array([predict(potential, atoms).energy.item() for atoms in frames])


@pytest.mark.parametrize("keep", [True, False], ids=["shifts", "reference energies"])
def test_a_constant_per_element_is_removed(keep: bool) -> None:
    base = potential_of(CONFIGS["with ZBL"], "O", "H", "Si", "C")
    frames, constants = crystals(), np.array([0.9, -0.3, 7.0, 0.2])
    counts, before = counts_of(frames, base), energies_of(base, frames)
    labels = before + counts @ constants
    adapted = adapt_energies(base, counts, labels, before, keep_reference_energies=keep)
    # the factor s of a shift is 1 to some digits in crystals
    np.testing.assert_allclose(energies_of(adapted, frames), labels, atol=1e-3 if keep else 1e-9)
    assert np.abs(before - labels).min() > 0.1
    old, new = base.config, adapted.config
    changed, unchanged = ("energy_shifts", "reference_energies")[:: 1 if keep else -1]
    differences = [getattr(new, changed)[s] - getattr(old, changed).get(s, 0.0) for s in base.elements]
    np.testing.assert_allclose(differences, [0.9, -0.3, 0.0, 0.2], atol=1e-9)  # no frame tells of Si
    for symbol in base.elements:
        assert getattr(new, unchanged)[symbol] == getattr(old, unchanged).get(symbol, 0.0)
    assert all(parameter.requires_grad for parameter in adapted.parameters())


def test_constants_of_another_code_do_not_change_forces() -> None:
    base = potential_of(CONFIGS["with ZBL"], "O", "H")
    frames = [SYSTEMS["water"]]
    counts, before = counts_of(frames, base), energies_of(base, frames)
    adapted = adapt_energies(base, counts, before - 2000.0, before, keep_reference_energies=False)
    result, expected = predict(adapted, frames[0]), predict(base, frames[0])
    assert result.energy.item() == pytest.approx(before[0] - 2000.0, abs=1e-9)
    torch.testing.assert_close(result.forces, expected.forces, rtol=0, atol=1e-12)


def test_what_constants_cannot_fit_leaves_no_mean_error() -> None:
    base = potential_of(CONFIGS["with ZBL"], "H", "C", "O")
    rng = np.random.default_rng(0)
    counts, predictions = rng.integers(1, 9, (20, 3)).astype(float), rng.normal(0, 30, 20)
    labels = predictions + counts @ [1.0, -2.0, 3.0] + rng.normal(0.5, 1, 20)
    adapted = adapt_energies(base, counts, labels, predictions, keep_reference_energies=False).config
    corrections = [adapted.reference_energies[s] - base.config.reference_energies[s] for s in base.elements]
    errors = labels - predictions - counts @ corrections
    assert np.abs(errors).max() > 0.5
    assert errors.mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n_frames", [1, 5])
def test_one_composition_is_corrected_equally(n_frames: int) -> None:
    base = potential_of(CONFIGS["with ZBL"], "H", "C", "O", "Cu")
    counts = np.tile([8.0, 5.0, 2.0, 0.0], (n_frames, 1))
    predictions = np.linspace(-40, -41, n_frames)
    adapted = adapt_energies(base, counts, predictions + 3.0, predictions, keep_reference_energies=True).config
    differences = {s: adapted.energy_shifts[s] - base.config.energy_shifts.get(s, 0.0) for s in base.elements}
    assert differences == pytest.approx({"H": 0.2, "C": 0.2, "O": 0.2, "Cu": 0.0})


def test_reference_energies_of_another_code_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    base = potential_of(CONFIGS["with ZBL"], "H")
    counts, predictions = np.array([[2.0], [3.0]]), np.array([-6.0, -9.0])
    for offset, expected in ((-9.0, False), (-11.0, True)):
        caplog.clear()
        adapt_energies(base, counts, predictions + counts[:, 0] * offset, predictions, keep_reference_energies=True)
        assert any(record.levelno == logging.WARNING for record in caplog.records) == expected
    assert "up to 11 eV per atom" in caplog.text
    assert "same code" in caplog.text


def test_energies_that_do_not_fit_are_refused() -> None:
    base = potential_of(CONFIGS["with ZBL"], "H", "O")
    counts, energies = np.ones((3, 2)), np.zeros(3)
    for wrong in (
        (counts[:, :1], energies, energies),
        (counts, energies, energies[:2]),
        (counts[:0], *[energies[:0]] * 2),
    ):
        with pytest.raises(ValueError, match="one per frame and each of H, O; got shapes"):
            adapt_energies(base, *wrong, keep_reference_energies=True)
    with pytest.raises(ValueError, match="prediction of frame 1 is not finite"):
        adapt_energies(base, counts, energies, np.array([0, np.nan, 0]), keep_reference_energies=True)


# ---- frozen parts


@pytest.mark.parametrize("names", [["embedding", "layers.0"], ["layers.1.message", "readout.linear_2"], ["layers"]])
def test_frozen_parts_stay_and_the_others_move(names: list[str]) -> None:
    potential = start_from(potential_of(CONFIGS["with ZBL"]), [], {})
    before = {name: parameter.detach().clone() for name, parameter in potential.network.named_parameters()}
    frozen = {name for name in before if name.startswith(tuple(names))}
    assert freeze(potential, names) == sum(before[name].numel() for name in frozen)
    optimizer = torch.optim.AdamW(potential.parameters(), lr=1e-3, weight_decay=0.1)
    graph = AtomicGraph.from_atoms(SYSTEMS["mixed species"], potential.cutoff)
    prediction = potential.predict(graph, create_graph=True)
    assert prediction.forces is not None
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    optimizer.step()
    for name, parameter in potential.network.named_parameters():
        if parameter.numel():
            assert torch.equal(parameter, before[name]) == (name in frozen), name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["embeding"],
            r"called 'embeding' \(did you mean 'embedding'\?\); its parts are embedding, layers.0, layers.1, ",
        ),
        (["readout", "layers.2"], r"called 'layers.2' \(did you mean 'layers"),
        (["layer"], "called 'layer'"),
        (["xyz"], "called 'xyz'; its parts are embedding, layers.0, layers.1, readout$"),
        ([""], "called ''"),
        (["readout", "layers", "embedding"], "freezing readout, layers, embedding leaves no weight to train"),
    ],
)
def test_what_cannot_be_frozen(names: list[str], message: str) -> None:
    potential = start_from(potential_of(CONFIGS["with ZBL"], "H"), [], {})
    with pytest.raises(ValueError, match=message):
        freeze(potential, names)
    assert all(parameter.requires_grad for parameter in potential.parameters())
