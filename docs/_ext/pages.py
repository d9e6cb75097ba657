"""Pages that are made: results, cards and the changelog of the repository, the command line, the keys of a recipe.

Links of a page to files of the repository become links to their pages; other files are named and not linked.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
MADE = DOCS / "made"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def copied_pages() -> dict[Path, str]:
    """Pages of the repository outside this folder -> their names here."""
    pages = {
        ROOT / "benchmarks" / "README.md": "made/benchmarks",
        ROOT / "benchmarks" / "REJECTED.md": "made/rejected",
        ROOT / "CHANGELOG.md": "made/changelog",
        ROOT / "CONTRIBUTING.md": "made/contributing",
    }
    return pages | {card: f"made/{card.stem}" for card in sorted((ROOT / "potentials").glob("*.md"))}


def setup(app: Any) -> dict[str, Any]:
    """Make the pages, and rewrite links where pages are read."""
    MADE.mkdir(exist_ok=True)
    for path, name in copied_pages().items():
        _write(f"{name}.md", rewritten(path.read_text(encoding="utf-8"), path, DOCS / f"{name}.md"))
    _write("made/command_line.md", command_line())
    _write("made/recipe.md", recipe_keys())
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(app: Any, name: str, source: list[str]) -> None:  # noqa: ARG001
    path = DOCS / f"{name}.md"
    if path.exists() and not name.startswith("made/"):
        source[0] = rewritten(source[0], path, path)


def rewritten(text: str, origin: Path, place: Path) -> str:
    """Return a page whose relative links lead where they did, from another place.

    Parameters
    ----------
    text : Markdown
    origin : file that the text is of
    place : file that it will be in
    """
    pages = {path: DOCS / f"{name}.md" for path, name in copied_pages().items()}

    def link(match: re.Match[str]) -> str:
        picture, shown, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        file, _, anchor = target.partition("#")
        path = (origin.parent / file).resolve()
        path = pages.get(path, path)
        if path == ROOT / "README.md":
            path = DOCS / "index.md"
        if not path.is_relative_to(DOCS) and not picture:
            return shown if "`" in shown else f"`{shown}`"
        relative = os.path.relpath(path, place.parent)
        return f"{picture}[{shown}]({relative}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(link, text)


def command_line() -> str:
    """Return a page with the help of all commands."""
    import typer
    from typer.main import get_command

    from ase_segnn.cli import app

    lines = ["# Command line", "", "`ase-segnn COMMAND --help` prints the same.", ""]

    def add(command: Any, context: Any, level: int) -> None:
        lines.extend([f"{'#' * level} {context.command_path}", "", inspect.cleandoc(command.help or ""), ""])
        usage = " ".join(command.collect_usage_pieces(context))
        lines.extend(["```sh", f"{context.command_path} {usage}", "```", ""])
        records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
        arguments = [
            (each.name.upper(), getattr(each, "help", "") or "")
            for each in command.get_params(context)
            if each.param_type_name == "argument"
        ]
        rows = arguments + [record for record in records if record[0].startswith("-")]
        if rows:
            lines.extend(["| | |", "|---|---|"])
            lines.extend(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows if name != "--help")
            lines.append("")
        for name, each in getattr(command, "commands", {}).items():
            if not each.hidden:
                add(each, typer.Context(each, parent=context, info_name=name), level + 1)

    command = get_command(app)
    add(command, typer.Context(command, info_name="ase-segnn"), 2)
    return "\n".join(lines)


def recipe_keys() -> str:
    """Return a page with all keys of a recipe, their defaults and meanings."""
    from ase_segnn.training.recipe import Recipe

    lines = ["# Keys of a recipe", "", "`ase-segnn train recipe.yaml` reads them; `--set KEY=VALUE` sets one.", ""]

    def add(model: Any, prefix: str) -> None:
        meanings = described(model)
        sections = []
        lines.extend(
            [f"## {prefix.rstrip('.') or 'recipe'}", "", _summary(model), "", "| key | default | |", "|---|---|---|"]
        )
        for name, field in model.model_fields.items():
            section = _section_of(field.annotation)
            if section is not None:
                sections.append((section, f"{prefix}{name}."))
            anchor = f"{prefix}{name}".replace(".", "")
            default = "required" if field.is_required() else _default(field)
            meaning = (
                _cell(meanings.get(name, "")) if section is None else f"{_cell(_summary(section))} [Keys](#{anchor})"
            )
            lines.append(f"| `{prefix}{name}` | {default} | {meaning} |")
        lines.append("")
        for section, path in sections:
            add(section, path)

    add(Recipe, "")
    return "\n".join(lines)


def described(model: Any) -> dict[str, str]:
    """Name -> description, from the section of parameters in a docstring and those it inherits."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        _, _, parameters = text.partition("Parameters\n----------\n")
        names: list[str] = []
        for line in parameters.split("\n\n")[0].splitlines():
            entry = re.match(r"^([\w*]+(?:, [\w*]+)*) : (.*)$", line)
            if entry:
                names = entry[1].split(", ")
                found.update(dict.fromkeys(names, entry[2]))
            else:
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def _summary(model: Any) -> str:
    """First sentences of a docstring, without what is about the code alone."""
    text = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r" These keys are added to those of `\w+`\.", "", text)


def _section_of(annotation: Any) -> Any:
    from typing import get_args

    from pydantic import BaseModel

    for each in (annotation, *get_args(annotation)):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
    return None


def _default(field: Any) -> str:
    from pydantic import BaseModel

    value = field.get_default(call_default_factory=True)
    return "" if value is None or isinstance(value, BaseModel) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", r"\|")


def _write(name: str, text: str) -> None:
    path = DOCS / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
