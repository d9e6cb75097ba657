"""What stands in for a CUDA graph where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


class RunEachTime:
    """What is recorded runs when it is recorded, and again at each replay but the first, into the same tensors.

    Attributes
    ----------
    recorded : how often something was recorded
    """

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, function: Callable[[], R], device: torch.device, /) -> tuple[R, Callable[[], None]]:
        """Return the results, and what renews them."""
        del device
        self.recorded += 1
        results, replays = function(), 0

        def replay() -> None:
            nonlocal replays
            replays += 1
            if replays > 1:
                for target, tensor in zip(_tensors(results), _tensors(function()), strict=True):
                    target.copy_(tensor)

        return results, replay


def _tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for part in results for tensor in _tensors(part)]
