"""A mark for tests of what a C++ compiler makes; without one the library does without, as a test of its own checks."""

from __future__ import annotations

import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("g++", "clang++")), reason="needs a C++ compiler"
)
