"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Tests run in as many processes as there are cores. More threads than cores make the small ones many times slower. Set
# before torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Kernels run in Python, without a GPU. Triton looks at this when it is imported.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep graphs of frames out of the user's cache folder."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    (folder / "torch" / "kernels").mkdir(parents=True, exist_ok=True)  # of a GPU; torch warns if it has to make it
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report of training runs, which takes longer than the tiny runs themselves, but in slow tests."""
    if request.node.get_closest_marker("slow") is not None:
        return

    def write_nothing(path: Path, *_: Any, **__: Any) -> list[Any]:
        path.write_text("no report")
        return []

    monkeypatch.setattr("ase_segnn.training.conclusion.write_report", write_nothing)
