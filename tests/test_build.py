"""Compiled libraries: made once, kept in a folder of the user's own, and right for every kind of processor."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import bulk
from compiler import needs_compiler
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems

from ase_segnn import SEGNNCalculator
from ase_segnn.caches import Cache
from ase_segnn.engines import build
from ase_segnn.engines.build import NoCompilerError, load_library
from ase_segnn.engines.native import NativePotential
from ase_segnn.graphs.atomic_graph import AtomicGraph

SYSTEMS = systems()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start with an empty cache, and no library in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_loaded", {})
    return tmp_path / "ase-segnn" / "compiled"


def answer(number: int) -> str:
    return f'extern "C" int answer() {{ return {number}; }}'


def count_compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sources = []
    compile_it = build._compile

    def spy(source: str, *arguments: Any) -> Path:
        sources.append(source)
        return compile_it(source, *arguments)

    monkeypatch.setattr(build, "_compile", spy)
    return sources


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as a new process does."""
    monkeypatch.setattr(build, "_loaded", {})


@needs_compiler
def test_a_source_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = count_compiling(monkeypatch)
    for number, n_compiled in ((42, 1), (42, 1), (43, 2), (42, 2)):
        assert load_library(answer(number)).answer() == number
        assert len(sources) == n_compiled
        forget(monkeypatch)
    assert [path.suffix for path in folder.iterdir()] == [".so"] * 2
    assert folder.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize("what", ["_FLAGS", "_version", "_processor", "_compiler"])
def test_what_it_depends_on_is_compiled_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    load_library(answer(1))
    forget(monkeypatch)
    sources = count_compiling(monkeypatch)
    if what == "_FLAGS":
        monkeypatch.setattr(build, what, (*build._FLAGS, "-DOTHER"))
    elif what == "_compiler":
        monkeypatch.setenv("CXX", f"{build._compiler()[0]} -DOTHER")
    else:
        monkeypatch.setattr(build, what, lambda *_: "another")
    assert load_library(answer(1)).answer() == 1
    assert len(sources) == 1
    assert len(list(folder.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b[:-1], lambda b: b[:999] + b"?" + b[1000:]])
def test_a_damaged_library_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    load_library(answer(5))
    forget(monkeypatch)
    [path] = folder.iterdir()
    content = path.read_bytes()
    path.unlink()  # this process has it open
    path.write_bytes(damage(content))
    assert load_library(answer(5)).answer() == 5
    assert [other.read_bytes() for other in folder.iterdir()] == [content]


_TOGETHER = """
import sys
from pathlib import Path
from ase_segnn.engines import build

compile_it = build._compile
def spy(*arguments):
    with open(sys.argv[1], "a") as log:
        log.write("compiled ")
    return compile_it(*arguments)
build._compile = spy
sys.stdin.readline()
print(build.load_library('extern "C" int answer() { return 99; }').answer())
"""


@needs_compiler
def test_of_processes_that_need_it_at_once_one_compiles(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TOGETHER, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=300)[0] for process in processes] == ["99\n"] * 3
    assert log.read_text() == "compiled "
    assert [path.suffix for path in folder.iterdir()] == [".so"]


@needs_compiler
def test_the_cache_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library(answer(1))
    [old] = folder.iterdir()
    os.utime(old, (0, 0))
    monkeypatch.setattr(build, "Cache", lambda name: Cache(name, most_bytes=old.stat().st_size))
    load_library(answer(2))
    [left] = folder.iterdir()
    assert left != old


@needs_compiler
def test_without_a_home_it_works_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    forget(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert load_library(answer(7)).answer() == 7
    assert f"the cache folder '{tmp_path / 'file' / 'ase-segnn'}' cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'g++: error: unrecognized command line option -std=c++17' >&2; echo ' ' >&2; exit 1",
         "fails: g++: error: unrecognized command line option -std=c++17; compile=False does without"),
        ("seq 30 >&2; echo 'x.cpp:3:1: error: no' >&2; exit 1", "fails: x.cpp:3:1: error: no; compile=False"),
        ("exit 3", "fails: exit status 3; compile=False"),
        ('for last; do :; done; echo no library > "$last"', "the compiled library cannot be loaded: "),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{script}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NoCompilerError) as caught:
        load_library(answer(8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in folder.iterdir() if path.suffix != ".so"]


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(NoCompilerError, match="CXX names 'no-such-compiler', which is not there"):
        load_library(answer(9))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoCompilerError, match=r"there is none of g\+\+, clang\+\+, c\+\+; compile=False does without"):
        load_library(answer(9))


@needs_compiler
def test_without_openmp_one_thread_does_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the compiler knows no -fopenmp."""
    monkeypatch.setattr(build, "_TARGETS", (("-no-such-option",), ("-march=native",)))
    plain = random_potential(NATIVE_CONFIGS["natural parity"]).double().requires_grad_(False).eval()
    graph = AtomicGraph.from_atoms(SYSTEMS["bulk"], plain.cutoff)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        forces = NativePotential(plain).evaluate(graph).forces
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(forces, plain.predict(graph).forces, rtol=0, atol=1e-10)
    assert len(list(folder.iterdir())) == 1


def instructions() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return set()


@needs_compiler
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("target", "needed"), [("x86-64", "sse2"), ("x86-64-v3", "avx2"), ("x86-64-v4", "avx512vl")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_every_length_give_the_same(
    monkeypatch: pytest.MonkeyPatch, target: str, needed: str, dtype: torch.dtype
) -> None:
    if needed not in instructions():
        pytest.skip(f"needs a processor with {needed}")
    monkeypatch.setattr(build, "_TARGETS", ((f"-march={target}", "-fopenmp"),))
    plain = random_potential(NATIVE_CONFIGS["natural parity"]).to(dtype).requires_grad_(False).eval()
    native = NativePotential(plain)
    for name in ("mixed species", "slab", "water"):
        graph = AtomicGraph.from_atoms(SYSTEMS[name], plain.cutoff)
        result, expected = native.evaluate(graph), plain.predict(graph)
        atol = 1e-10 if dtype == torch.float64 else 2e-5 * float(expected.forces.abs().max())
        torch.testing.assert_close(result.forces, expected.forces, rtol=0, atol=atol)
        torch.testing.assert_close(result.energy, expected.energy, rtol=1e-6, atol=1e-10)


@needs_compiler
def test_the_calculator_goes_on_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    forget(monkeypatch)
    monkeypatch.setattr(build, "_from_cache", full)
    calculator = SEGNNCalculator("si-pbe", device="cpu")
    with caplog.at_level(logging.WARNING):
        calculator.get_property("energy", bulk("Si"))
    assert "many times slower: the compiled library cannot be kept: [Errno 28] No space left on device" in caplog.text
