"""YAML 1.2, the language of recipes: ``1e-3`` is a number, and ``no`` is a text."""

from __future__ import annotations

import re
from typing import Any

import yaml

# Kind of value -> form of its texts, and the letters that these begin with.
_FORMS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _kind, (_form, _letters) in _FORMS.items():
    for _letter in _letters:
        _RESOLVERS.setdefault(_letter, []).append((f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_form})$")))


class _Loader(yaml.SafeLoader):
    """Reads plain data; a key that is given twice is an error."""

    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if names.count(key.value) > 1 and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes plain data so that `_Loader` reads the same."""

    yaml_implicit_resolvers = _RESOLVERS


def load_yaml(text: str) -> Any:
    """Return the plain data of a YAML text.

    >>> load_yaml("validation: 1e-1")
    {'validation': 0.1}

    Raises
    ------
    yaml.YAMLError
        If it is no YAML, or gives a key twice.
    """
    return yaml.load(text, _Loader)  # which is safe


def dump_yaml(data: Any) -> str:
    """Return plain data as a YAML text, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
