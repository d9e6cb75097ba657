"""Devices that are there, and the memory that they lack."""

from __future__ import annotations

import torch


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device by its name, "auto" for a GPU where there is one.

    Raises
    ------
    ValueError
        If there is no such device, or none of that name here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError):
        checked = None
    if checked is None or checked.type not in {"cpu", "cuda"}:
        raise ValueError(f"device is 'auto', 'cpu', 'cuda' or 'cuda:<number>', got {str(device)!r}")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if checked.type == "cuda" and (checked.index or 0) >= n_gpus:
        raise ValueError(
            f"device '{device}' is not available: torch {torch.__version__} finds {n_gpus} GPUs here; "
            "use device='cpu', or install torch for your GPU"
        )
    return checked


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )
