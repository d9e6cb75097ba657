"""Recipes: what is read, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from labeled import recipe_for

from ase_segnn.training import load_recipe
from ase_segnn.training.fit import check_machine
from ase_segnn.training.recipe import OptimizationSection, Recipe, key_and_value, make_recipe, parse_duration
from ase_segnn.training.yaml12 import dump_yaml, load_yaml


def test_recipe_is_read_from_yaml(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "frames.xyz", optimization={"max_time": "1h30m"})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe
    assert recipe.optimization.max_time == 5400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {train: a.xyz}\nsead: 1", "sead: unknown key; did you mean 'seed'"),
        (
            "name: x\ndata: {train: a.xyz}\noptimization: {learning_rat: 1}",
            r"optimization.learning_rat: .*'learning_rate'",
        ),
        ("name: x\ndata: {train: a.xyz}\nqqqq: 1", "qqqq: unknown key; known are name, optimization"),
        ("name: x", "data: missing, a value is needed"),
        ("name: ../x\ndata: {train: a.xyz}", "name: String should match"),
        ("name: x\ndata: {train: a.xyz, validation: 1.0}", "data.validation.*less than 1"),
        ("name: x\ndata: {train: a.xyz, held_out: 1.0}", "data.held_out.*less than 1"),
        ("name: x\ndata: {train: []}", "data.train: .* at least 1 item"),
        ("name: x\ndata: {train: a.xyz}\nnetwork: {irreps_hidden: 8y0e}", "is not a list of irreps"),
        ("name: x\ndata: {train: a.xyz}\nnetwork: {irreps_hidden: 8x1o}", "no even scalars"),
        ("name: x\ndata: {train: a.xyz}\noptimization: {max_time: 2 hours}", "'2 hours' is no duration"),
        ("name: x\ndata: {train: a.xyz}\nfrozen: [embedding]", "there is no base"),
        ("name: x\ndata: {train: a.xyz}\nbase: b\nnetwork: {cutoff: 3}", "a base brings its own network"),
        ("name: x\ndata: {train: a.xyz}\nbase: b\ncommittee: 2", "set bootstrap: true"),
        ("name: x\ndata: {train: a.xyz, test: {validation: b.xyz}}", "a test cannot be called 'validation'"),
        ("name: x\ndata: {train: a.xyz}\nbootstrap: true", "bootstrap is for the members of a committee"),
        ("- 1", "must be a YAML mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_errors_in_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2.5h", 9000), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(seconds) == seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("1E3", 1000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("100", 100),
        ("+7", 7),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1e3'", "1e3"),
        ("{No: 1.0, a: [1e2, x]}", {"No": 1.0, "a": [100.0, "x"]}),
    ],
)
def test_numbers_and_texts_of_yaml(text: str, value: object) -> None:
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)
    assert key_and_value(f"a.b={text}") == ("a.b", value)
    assert load_yaml(dump_yaml({"a": value})) == {"a": value}


def test_fractions_may_have_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\ndata: {train: a.xyz, validation: 1e-1}\noptimization: {learning_rate: 1e-3, epochs: 1e2}")
    recipe = load_recipe(path)
    assert (recipe.data.validation, recipe.optimization.learning_rate, recipe.optimization.epochs) == (0.1, 1e-3, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {train: a.xyz}\ncutoff: 4", "cutoff: unknown key; did you mean 'network.cutoff'"),
        ("name: x\ndata: {train: a.xyz, seed: 4}", "data.seed: unknown key; did you mean 'seed'"),
        ("name: x\ntrain: a.xyz", "data: missing, a value is needed; train: unknown key; did you mean 'data.train'"),
        (
            "name: x\ndata: {train: a.xyz}\nnetwork: {cutoff: 1e9}",
            "network.cutoff: should be less than or equal to 50, got 1000000000.0",
        ),
        (
            "name: x\ndata: {train: a.xyz, validation: 0}",
            "data.validation: should be a number of frames, a fraction greater than 0 and less than 1, or files, got 0",
        ),
        ("name: x\ndata: {train: a.xyz, validation: {a: 1}}", "or files, got {'a': 1}"),
        (
            "name: x\ndata: {train: a.xyz, held_out: some}",
            "data.held_out: should be a number of frames, or a fraction greater than 0 and less than 1, got 'some'",
        ),
        (
            "name: x\ndata: {train: a.xyz, reference_energies: {Cu: x}}",
            "data.reference_energies: should be eV per element",
        ),
        ("name: x\ndata: {train: a.xyz}\ncompile: maybe", "compile: should be true, false or auto, got 'maybe'"),
        (
            "name: x\ndata: 5\nnetwork: [1]",
            "mapping of keys to values, got 5; network: should be a mapping of keys to values, got [1]",
        ),
        ("name: x\ndata:", "data: should be a mapping of keys to values, got None"),
        ("name: x\ndata: {train: {a: b}}", "data.train: should be a valid list, got {'a': 'b'}"),
        ("name: x\ndata: {train: a.xyz}\nseed: 99999999999999999999", "seed: should be less than 4294967296"),
        ("name: x\ndata: {train: a.xyz}\nseed: 1\nseed: 2", "'seed' is given twice"),
        ("", "must be a YAML mapping"),
        ("name: !!python/object/apply:os.system [ls]", "is not YAML: could not determine a constructor"),
    ],
)
def test_errors_in_recipes_are_one_line_without_names_of_types(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_recipe(path)
    error = str(caught.value)
    assert "\n" not in error
    assert not re.search(r"function-|constrained-|Section|NetworkConfig|pydantic", error)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("batch_size: 5", "no key any more; write batch_edges, about the number of edges per step; 1 takes one frame"),
        ("batch_size: null", "no key any more; write batch_edges"),
        ("patience: 3", "no key any more; schedule: plateau always waits for 10 validations without improvement"),
        ("energy_weight_end: 10", "no key any more; write start and end as two numbers, such as energy_weight: [0.1"),
        ("forces_weight_end: 10", "no key any more; write start and end as two numbers, such as forces_weight: [0.1"),
        ("stress_weight_end: 10", "no key any more; write start and end as two numbers, such as stress_weight: [0.1"),
    ],
)
def test_keys_of_earlier_versions_are_refused_with_what_to_write_now(removed: str, message: str) -> None:
    [(key, value)] = load_yaml(removed).items()
    raw = {"name": "x", "data": {"train": "a.xyz"}}
    with pytest.raises(ValueError, match=re.escape(f"this: optimization.{key}: {message}")):
        make_recipe({**raw, "optimization": {key: value}}, "this", Recipe)
    with pytest.raises(ValueError, match=re.escape(f"this: {key}: {message}")):
        make_recipe({**raw, key: value}, "this", Recipe)  # in the wrong place, too


def test_weights_lead_from_start_to_end() -> None:
    section = OptimizationSection(energy_weight=[0.1, 10.0], forces_weight=2)
    assert section.weights() == {"energy": 0.1, "forces": 2.0, "stress": 0.0}
    assert section.weights(0.5) == pytest.approx({"energy": 1.0, "forces": 2.0, "stress": 0.0})
    assert section.weights(1.0) == pytest.approx({"energy": 10.0, "forces": 2.0, "stress": 0.0})
    for wrong in ([0.0, 1.0], [1.0], [1.0, 2.0, 3.0], -1.0, "much", [1.0, float("inf")]):
        with pytest.raises(ValueError, match=r"energy_weight: should be a number, or two, at the start and at the end"):
            OptimizationSection(energy_weight=wrong)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    recipe = make_recipe({"name": "x", "data": {"train": "a.xyz"}, "device": "cuda"}, "this", Recipe)
    with pytest.raises(ValueError, match=r"device: cuda is not available, torch .* finds no GPU here"):
        check_machine(recipe)
