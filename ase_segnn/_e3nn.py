"""Import of e3nn, for networks built by hand and pictures of steerable vectors; the only place that imports it.

Importing e3nn takes seconds, for torch's compiler and sympy. Potentials therefore use the small forms of
`ase_segnn.model.irreps` and `ase_segnn.model.wigner`, which tests compare with e3nn.

Two things make e3nn 0.4.4 import under a current torch:

- `slice` is allowed in `torch.load`, with which e3nn reads a table of constants; torch refuses `slice` from 2.6 on.
- The warning about `torch.jit.script`, deprecated in torch 2.10 and later, is ignored.
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
