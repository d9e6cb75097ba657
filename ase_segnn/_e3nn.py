"""The one place that imports e3nn, for those who build networks by hand or draw steerable vectors.

To import e3nn takes seconds, in which torch's compiler and sympy are imported. What a potential needs has therefore its
own small form in `ase_segnn.model.irreps` and `ase_segnn.model.wigner`, which tests compare with e3nn.

e3nn 0.4.4 needs two things for the length of its import under a current torch:

- It reads a table of constants with `torch.load`, which torch refuses from 2.6 on unless `slice` is allowed.
- It uses `torch.jit.script`, which torch 2.10 and later call deprecated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

# A program that has allow-listed `slice` itself keeps it: `safe_globals` would take it away at the end.
_allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
if slice not in torch.serialization.get_safe_globals():
    _allowed.append(slice)

with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed):
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.* is deprecated", category=DeprecationWarning)
    from e3nn import o3

__all__ = ["o3"]
