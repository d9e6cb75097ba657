"""Devices: names checked against the machine, and errors of memory."""

from __future__ import annotations

import torch


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device by name; "auto" is a GPU if there is one, else the CPU.

    Raises
    ------
    ValueError
        If the name is no device, or the device is not available here.
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
    """Whether an error tells of too little memory."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )
