"""Potentials that ship with ase-segnn: each is ``<name>.safetensors`` here, with its card and its recipe beside it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

__all__ = ["path_of", "shipped_potentials"]


def shipped_potentials() -> dict[str, Path]:
    """Return the file of each shipped potential, by name in alphabetical order."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


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
