"""A mark for tests of what a C++ compiler makes, and how they compile.

Without a compiler the library does without, as a test of its own checks.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ase_segnn.codegen.cpp import HEADERS

COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name) is not None]
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="needs a C++ compiler")
_V3 = {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compile_cpp(source: str, folder: Path, flags: Sequence[str], compiler: str = "") -> Path:
    """Compile C++ that includes the headers and the sources of the tests, and return the path of what was made.

    Raises
    ------
    AssertionError
        With what the compiler says, warnings among it if `flags` make them errors.
    """
    file, made = folder / "source.cpp", folder / "made.so"
    file.write_text(source, encoding="utf-8")
    include = ["-I", str(HEADERS), "-I", str(Path(__file__).parent / "cpp")]
    command = [compiler or COMPILERS[0], "-std=c++17", *flags, *include, str(file), "-o", str(made)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return made


def runs_here(target: str) -> bool:
    """Whether programs for a kind of processor run on this one."""
    if target == "native":
        return True
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    flags = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    return flags >= {"x86-64": {"sse2"}, "x86-64-v3": _V3}[target]
