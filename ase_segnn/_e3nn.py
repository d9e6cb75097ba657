"""The one place that imports e3nn, which supplies irreps, spherical harmonics and Wigner 3j symbols.

Two things are put right for the length of the import, so that every e3nn from 0.4.4 on works with a current torch:

- e3nn 0.4.4 reads a table of constants with `torch.load`, which torch refuses from 2.6 on unless `slice` is allowed.
- e3nn 0.4.4 uses `torch.jit.script`, which torch 2.10 and later call deprecated.

Newer releases of e3nn pull in torch's compiler, which sets an environment variable; it is removed again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_environment = dict(os.environ)
# A program that has allow-listed `slice` itself keeps it: `safe_globals` would take it away at the end.
_allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
if slice not in torch.serialization.get_safe_globals():
    _allowed.append(slice)

with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed):
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.* is deprecated", category=DeprecationWarning)
    from e3nn import o3

for _name in os.environ.keys() - _environment.keys():
    del os.environ[_name]

__all__ = ["o3", "wigner_3j"]


def wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    r"""Real Wigner 3j symbols :math:`C^{l_1 l_2 l_3}_{m_1 m_2 m_3}`, with the same signs for every release of e3nn.

    Trained weights are worth nothing under another sign. For odd :math:`l_1 + l_2 + l_3` the releases differ: (1, 2, 2)
    and (1, 3, 3) among others changed sign after 0.4.4. Those symbols are given the sign that makes their first
    component that is not zero positive; the ones with an even sum are e3nn's own.

    Parameters
    ----------
    l1, l2, l3 : degrees that fulfil ``abs(l1 - l2) <= l3 <= l1 + l2``

    Returns
    -------
    (2 l1 + 1, 2 l2 + 1, 2 l3 + 1) float64 on the CPU, the squares sum to 1
    """
    with torch.device("cpu"):  # e3nn keeps what it computes, also inside `torch.device("meta")`
        symbols: Tensor = o3.wigner_3j(l1, l2, l3, dtype=torch.float64, device="cpu")
    if (l1 + l2 + l3) % 2 == 0:
        return symbols
    # Up to l = 6 the components are either above 0.005 or zero to rounding.
    first = symbols[symbols.abs() > 1e-6][0]
    return symbols * torch.sign(first)
