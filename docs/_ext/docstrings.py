"""Docstrings of this project for napoleon: ``name : what it is`` is a description here, not a type."""

from __future__ import annotations

import re
from typing import Any

_OF_NAMES = {"Parameters", "Attributes"}
_PROSE = {"Returns", "Yields"}  # what napoleon would take for types
_ENTRY = re.compile(r"^(?P<names>[\w*]+(?:, [\w*]+)*) : (?P<text>.*)$")


def setup(app: Any) -> dict[str, Any]:
    """Connect to autodoc, before napoleon does."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}


def _process(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
    lines[:] = converted(lines)


def converted(lines: list[str]) -> list[str]:
    """Return a docstring whose descriptions stand below their names.

    >>> converted(["Parameters", "----------", "number : of frames,", "    at most"])
    ['Parameters', '----------', 'number', '    of frames,', '    at most']
    """
    result: list[str] = []
    section = ""
    for index, line in enumerate(lines):
        following = lines[index + 1].strip() if index + 1 < len(lines) else ""
        if following and set(following) == {"-"} and line.strip():
            section = line.strip()
            result.append("Result" if section in _PROSE else line)
            continue
        if section in _PROSE and line.strip() == len(section) * "-":
            result.append(6 * "-")
            continue
        entry = _ENTRY.match(line) if section in _OF_NAMES else None
        if entry is None:
            result.append(line)
        else:
            result += [entry["names"], f"    {entry['text']}"]
    return result
