"""Recipes: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from labeled import recipe_for

from ase_segnn.training import load_recipe
from ase_segnn.training.recipe import parse_duration


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
        ("name: x\ndata: {train: a.xyz}\noptimization: {batch_size: 2, batch_edges: 9}", "give one of them"),
        (
            "name: x\ndata: {train: a.xyz}\noptimization: {energy_weight: 0, energy_weight_end: 1}",
            "energy_weight_end needs energy_weight, and not 0",
        ),
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
