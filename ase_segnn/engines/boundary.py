"""Arrays on their way to compiled code: an address is taken from a tensor that was checked right there.

Compiled code reads memory as it is told to. A tensor of another type, layout or length than it expects, or memory that
has been freed or moved, gives wrong numbers without an error. So whatever calls compiled code keeps to two rules: it
asks `address` for every pointer at every call, and it holds on to the tensor until the call is over.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LINE = 64  # bytes, of a cache


def address(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the address of the first number of a tensor in the memory of the CPU.

    Parameters
    ----------
    name : of the tensor, for messages
    tensor : to be kept alive as long as the address is used
    dtype, shape : that the compiled code expects

    Raises
    ------
    TypeError
        If it is no plain tensor with memory on the CPU, such as the fake tensors of a tracing torch.
    ValueError
        If it has another type, shape or layout.
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
    """Return a tensor of n numbers that starts at a cache line, not set to anything."""
    size = n * dtype.itemsize
    memory = torch.empty(size + _LINE, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % _LINE
    return memory[start : start + size].view(dtype)


class Packed:
    """Copies of some tensors of one dtype, one after another, in memory that nobody else has.

    Torch moves tensors in place when a module is shared with another process. What compiled code reads is kept apart.

    Parameters
    ----------
    tensors : by name

    Attributes
    ----------
    numbers : (n,) of all tensors, each from a cache line on
    starts : name -> where the tensor begins, in numbers
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
