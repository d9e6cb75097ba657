"""The table of rules: how each class of module writes down its steps, and which networks have no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn

from ase_segnn.codegen.builder import Builder

Module = TypeVar("Module", bound=nn.Module)


class _Rule(NamedTuple):
    build: Callable[..., Any]
    unless: Callable[[Any], str | None]


_RULES: dict[type[nn.Module], _Rule] = {}
# Parts of modules that have rules, evaluated by torch when a program is made.
_PARTS = (nn.ModuleList, nn.ParameterList, nn.ParameterDict, nn.Sequential, nn.Linear, nn.SiLU)


def builds(
    kind: type[nn.Module], unless: Callable[[Any], str | None] = lambda _: None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function (builder, module, ...) that writes down what modules of a class do.

    Parameters
    ----------
    kind : the class itself; classes that derive from it need a rule of their own
    unless : says why the rule does not hold for a module, or None if it does
    """

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        _RULES[kind] = _Rule(build, unless)
        return build

    return register


def build(builder: Builder, module: nn.Module, *arguments: Any) -> Any:
    """Write down what a module does, by the rule of its class."""
    return _RULES[type(module)].build(builder, module, *arguments)


def unsupported(network: nn.Module) -> str | None:
    """Say why there is no generated code for a network, neither for inference nor for training, or None if there is."""
    for module in network.modules():
        if isinstance(module, _PARTS):
            continue
        rule = _RULES.get(type(module))
        if rule is None:
            return f"there is no rule for its {type(module).__name__}"
        reason = rule.unless(module)
        if reason is not None:
            return reason
    return None


def check_supported(potential: nn.Module, *, device: str | None = None) -> None:
    """Check that there is generated code for a potential, and that it is on the kind of device that the code is for.

    Raises
    ------
    ValueError
    """
    reason = unsupported(potential)
    found = next(potential.parameters()).device
    if device is not None and found.type != device:
        reason = f"it is on {found}, and the code is for {device}"
    if reason is not None:
        raise ValueError(f"this potential has no compiled form: {reason}; plain torch evaluates and trains it")
