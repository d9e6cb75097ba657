"""Checked addresses of tensors for compiled code.

A tensor of an unexpected type, layout or length, or memory that was freed or moved, gives compiled code wrong numbers
without an error. Callers of compiled code therefore keep two rules:

- ask `address` for each pointer at each call;
- keep each tensor alive until the call is over.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LINE = 64  # bytes, of a cache


def address(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the address of a tensor's first number, after a check of type, shape and layout.

    Parameters
    ----------
    name : of the tensor, for messages
    tensor : on the CPU; keep it alive as long as the address is used
    dtype, shape : expected by the compiled code

    Raises
    ------
    TypeError
        If `tensor` is no plain tensor with memory on the CPU, such as a fake tensor of torch's tracing.
    ValueError
        If `tensor` has another type or shape, or is not contiguous.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.is_cpu:
        raise TypeError(
            f"compiled code reads memory of the CPU, and '{name}' is a {type(tensor).__name__} on {tensor.device}; "
            "evaluate outside of torch's tracing, fake and function modes, or use compile=False"
        )
    if tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous() and not tensor.is_neg():
        return tensor.data_ptr()
    raise ValueError(
        f"compiled code expects '{name}' as contiguous {dtype} of shape {shape}, got {tensor.dtype} of shape "
        f"{tuple(tensor.shape)}; use compile=False, and please report this"
    )


def aligned(n: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor of n numbers that starts at a cache line."""
    size = n * dtype.itemsize
    memory = torch.empty(size + _LINE, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % _LINE
    return memory[start : start + size].view(dtype)


class Packed:
    """Copies of tensors of one dtype in one block of memory, for compiled code.

    Torch moves a module's tensors in place when the module is shared with another process; these copies stay.

    Parameters
    ----------
    tensors : by name

    Attributes
    ----------
    numbers : (n,) numbers of all tensors in order, each tensor from a cache line on
    starts : name of a tensor -> index of its first number
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        [dtype] = {tensor.dtype for tensor in tensors.values()}
        step = _LINE // dtype.itemsize
        self.starts: dict[str, int] = {}
        n = 0
        for name, tensor in tensors.items():
            self.starts[name] = n
            n += -(-tensor.numel() // step) * step
        self.numbers = aligned(n, dtype).zero_()
        for name, tensor in tensors.items():
            self.numbers[self.starts[name] :][: tensor.numel()] = tensor.detach().flatten()

    def addresses(self) -> dict[str, int]:
        """Return the address of each tensor."""
        first, size = self.numbers.data_ptr(), self.numbers.itemsize
        return {name: first + start * size for name, start in self.starts.items()}
