"""Pages of the documentation: links lead to files and headings that exist, and recipes are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ase_segnn.training import Recipe
from ase_segnn.training.yaml12 import load_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "benchmarks", "potentials")
    for path in (ROOT / folder).glob("*.md")
)


def text_of(page: Path) -> str:
    """Text without blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Names by which links find the headings of a page on GitHub."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links to other places of the repository that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A control."""
    page = tmp_path / "page.md"
    page.write_text("# A `b`\n[1](#a-b) [2](#b) [3](other.md) [4](https://a.b/c) [5](page.md#a-b)\n", encoding="utf-8")
    assert broken_links(page) == ["#b", "other.md"]


RECIPES = [
    (page, recipe)
    for page in PAGES
    for recipe in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
]


@pytest.mark.parametrize(("page", "text"), RECIPES)
def test_recipes(page: str, text: str) -> None:
    """Whole ones, or some keys."""
    keys = load_yaml(text)
    recipe = Recipe.model_validate({"name": page.replace("/", "-"), "data": {"train": "frames.xyz"}} | keys)
    assert recipe.model_fields_set >= set(keys)


def test_there_are_recipes() -> None:
    """A control."""
    assert {"README.md", "docs/recipes.md"} <= {page for page, _ in RECIPES}
