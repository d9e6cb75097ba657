"""C++ that is compiled at run time and kept on disk by torch for other processes."""

from __future__ import annotations

from typing import Any

from torch._inductor.codecache import CppCodeCache


class NoCompilerError(RuntimeError):
    """There is no C++ compiler, or it fails."""


def load_cpp(source: str) -> Any:
    """Compile a source, unless that was done before, and load its library for ctypes.

    Raises
    ------
    NoCompilerError
    """
    try:
        return CppCodeCache.load(source, extra_flags=("-ffp-contract=fast",))
    except (RuntimeError, OSError) as error:
        raise NoCompilerError(
            f"compiling needs a C++ compiler such as g++: {error}; compile=False does without"
        ) from error
