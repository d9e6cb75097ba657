"""The first call of each function of Intel's vector mathematics library, made by one thread.

torch hands elementwise functions of contiguous floats on a CPU to that library, a chunk per thread. The library chooses
the kernel of a function in its first call. Where two threads make the first call at once, versions before 2025.0, which
torch's wheels contain, can compute one of the chunks with a kernel of about 12 bits; later calls are right
(pytorch/pytorch#188792). For a potential this was an energy wrong by 10⁻⁶ of itself in one of thirty fresh processes.

Importing this module makes the first calls. It changes no setting of torch.
"""

from __future__ import annotations

import torch

# All functions that torch can hand over; one that a build of torch computes itself costs a microsecond here.
_FUNCTIONS = (
    *(torch.acos, torch.asin, torch.atan, torch.cos, torch.cosh, torch.sin, torch.sinh, torch.tan, torch.tanh),
    *(torch.exp, torch.exp2, torch.expm1, torch.log, torch.log10, torch.log1p, torch.log2, torch.sqrt, torch.rsqrt),
    *(torch.erf, torch.erfc, torch.erfinv, torch.lgamma, torch.ceil, torch.floor, torch.round, torch.trunc),
)


def _call_each_function_once() -> None:
    if not torch.backends.mkl.is_available():
        return
    for dtype in (torch.float32, torch.float64):
        some = torch.full((16,), 0.5, dtype=dtype, device="cpu")  # so few are never shared among threads
        for function in _FUNCTIONS:
            function(some)


_call_each_function_once()
