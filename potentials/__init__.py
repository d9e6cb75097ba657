"""Potentials that ship with ase-segnn: each is ``<name>.safetensors`` here, with its card and its recipe beside it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from ase_segnn.potential_file import read_header

__all__ = ["fitting_potentials", "path_of", "shipped_potentials", "stated_cost"]

COST = "Cost"  # name of a line of a card


def shipped_potentials() -> dict[str, Path]:
    """Return the file of each shipped potential, by name in alphabetical order."""
    paths = Path(__file__).parent.glob("*.safetensors")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def fitting_potentials(elements: Iterable[str]) -> list[str]:
    """Return the names of the shipped potentials that know all these elements.

    >>> fitting_potentials(["Si"])
    ['si-pbe']
    """
    wanted = set(elements)
    return [name for name, path in shipped_potentials().items() if wanted <= set(read_header(path).config.elements)]


def stated_cost(path: Path) -> str:
    """Return the cost of a step that the card beside a potential file states; empty without such a card or line."""
    card, start = path.with_suffix(".md"), f"- {COST}: "
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), "")


def path_of(name: str | Path) -> Path:
    """Find a potential by the name it ships under or by its path; a name counts before a file of the same name.

    Raises
    ------
    ValueError
        If `name` is neither a shipped potential nor a file.
    """
    shipped = shipped_potentials()
    if isinstance(name, str) and name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    close = get_close_matches(str(name), shipped, n=1)
    suggestion = f" (did you mean '{close[0]}'?)" if close else ""
    raise ValueError(
        f"potential '{name}' is neither a shipped potential nor a file{suggestion}; "
        f"shipped: {', '.join(shipped) or 'none'}; 'ase-segnn info' lists them"
    )
