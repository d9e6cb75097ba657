"""Constants of a module that stay exact when the module changes its dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class ModuleWithConstants(nn.Module):
    """A module with constants, made anew from float64 values at each change of dtype or device.

    Use a constant instead of a buffer for numbers that must stay exact. A buffer keeps the rounding of float32 when the
    module goes to float64, and a total energy in float32 loses its digits. Constants are not part of the
    ``state_dict``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[str, tuple[NDArray[np.float64], bool]] = {}

    def register_constant(self, name: str, value: NDArray[np.float64], *, always_float64: bool = False) -> None:
        """Add the tensor ``self.<name>``, in the module's dtype or `always_float64`."""
        self._constants[name] = (np.array(value, dtype=np.float64), always_float64)
        dtype = torch.float64 if always_float64 else torch.float32
        self.register_buffer(name, torch.tensor(value, dtype=dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        for name, (value, always_float64) in self._constants.items():
            moved: Tensor = getattr(self, name)
            dtype = torch.float64 if always_float64 else moved.dtype
            self._buffers[name] = torch.tensor(value, dtype=dtype, device=moved.device)
        return self
