"""Pages of the documentation: links lead to files and headings that exist, and recipes are recipes."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ase_segnn.training
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


def test_every_public_name_has_a_page() -> None:
    listed = set((ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split())
    public = {*ase_segnn.__all__, *ase_segnn.training.__all__} - {"__version__"}
    assert public <= listed


def test_every_page_is_in_the_site() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(text.split())


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules beside the settings of Sphinx."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return import_module


def test_links_of_copied_pages_lead_where_they_did(extension: Callable[[str], ModuleType]) -> None:
    pages, card = extension("pages"), ROOT / "potentials" / "si-pbe.md"
    text = "[a](../benchmarks/README.md#accuracy) [b](https://a.b) [c](../pyproject.toml) [`d`](cu-pbe.md) [e](#x)"
    place = ROOT / "docs" / "made" / "si-pbe.md"
    assert (
        pages.rewritten(text, card, place)
        == "[a](benchmarks.md#accuracy) [b](https://a.b) `c` [`d`](cu-pbe.md) [e](#x)"
    )
    assert pages.rewritten("[a](../README.md)", card, place) == "[a](../index.md)"


def test_pages_of_commands_and_keys_are_whole(extension: Callable[[str], ModuleType]) -> None:
    pages = extension("pages")
    commands, keys = pages.command_line(), pages.recipe_keys()
    assert "## ase-segnn\n" in commands
    assert "| `POTENTIAL` | Name of a shipped potential, or a potential file. |" in commands
    assert "| `--force` | Replace existing output files. |" in commands
    assert "### ase-segnn learn\n" in commands
    assert "#### ase-segnn lammps build\n" in commands
    assert "| `network.cutoff` | `5.0` | Å" in keys
    assert "see the class" not in keys
    rows = [line.split(" | ") for line in keys.splitlines() if line.startswith("| `")]
    assert all(row[2].strip(" |") for row in rows)


def test_descriptions_in_docstrings_are_no_types(extension: Callable[[str], ModuleType]) -> None:
    lines = ["Parameters", "----------", "a, b : of frames,", "    at most", "", "Returns", "-------", "(N,) eV : all"]
    result = [
        "Parameters",
        "----------",
        "a, b",
        "    of frames,",
        "    at most",
        "",
        "Result",
        "------",
        "(N,) eV : all",
    ]
    assert extension("docstrings").converted(lines) == result


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
    assert {"docs/training.md", "docs/recipes.md"} <= {page for page, _ in RECIPES}
