"""Shared libraries from generated C++, compiled at first use and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ase_segnn.caches import Cache

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# Flags for the processor, tried in order: for x86 and most others, for some others, and plain C++. Without OpenMP one
# thread does all the work.
_TARGETS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
_COMPILERS = ("g++", "clang++", "c++")
_ONLY_MARCH = ("x86_64", "AMD64", "i686")  # machines where -mcpu says something else
_LONGEST = 600.0  # seconds to wait for another process; compiling takes a few

_loaded: dict[str, Any] = {}  # key -> library


class NoCompilerError(RuntimeError):
    """There is no C++ compiler, the compiler fails, or the compiled library cannot be kept or loaded."""


def load_library(source: str, headers: Path | None = None) -> Any:
    """Return a library for ctypes from C++17 source, compiled or taken from the cache.

    The compiler is named by the environment variable CXX; default: the first available of g++, clang++ and c++.
    Libraries are kept in the cache "compiled" (see `ase_segnn.caches.Cache`), one per source, flags, version of the
    compiler and processor. If several processes need the same library, the first compiles and the others wait. A
    damaged library is compiled again.

    Parameters
    ----------
    source : C++ that includes only the standard library, omp.h and headers of a folder
    headers : the folder

    Raises
    ------
    NoCompilerError
    """
    try:
        return _load_or_compile(source, headers)
    except NoCompilerError as error:
        raise NoCompilerError(f"{error}; compile=False does without") from error


def compile_library(source: str, headers: Path, folder: Path, march: str) -> Path:
    """Compile C++17 for a kind of processor, with OpenMP, and return the path of the library in a folder.

    All names are hidden but those that the source itself makes visible.

    Parameters
    ----------
    source, headers : as of `load_library`
    folder : to which files are written
    march : of the compiler's option -march, or -mcpu where there are both; "native" for the processor of this machine

    Raises
    ------
    NoCompilerError
    """
    options = ("-march",) if platform.machine() in _ONLY_MARCH else ("-march", "-mcpu")
    targets = [(f"{option}={march}", "-fopenmp", "-fvisibility=hidden") for option in options]
    return _compile(source, headers, _compiler(), folder, targets)


def compile_files(files: Sequence[Path], options: Sequence[str], library: Path) -> None:
    """Compile files of C++17 into a library whose names are hidden but those that the files make visible.

    Parameters
    ----------
    files : to be compiled together
    options : of the compiler besides, such as folders of headers
    library : to be written

    Raises
    ------
    NoCompilerError
    """
    message = _run(_compiler(), [*_FLAGS, "-fvisibility=hidden", *options, *map(str, files), "-o", str(library)])
    if message:
        raise NoCompilerError(message)


def _load_or_compile(source: str, headers: Path | None) -> Any:
    compiler = _compiler()
    included = [] if headers is None else [path.read_text("utf-8") for path in sorted(headers.glob("*.hpp"))]
    parts = [source, *included, *map(str, _FLAGS + _TARGETS), _version(compiler), _processor()]
    key = hashlib.sha256("\0".join(parts).encode())
    name = key.hexdigest()[:32]
    if name not in _loaded:
        try:
            _loaded[name] = _from_cache(name, source, headers, compiler)
        except OSError as error:
            raise NoCompilerError(f"the compiled library cannot be kept: {error}") from error
    return _loaded[name]


def _from_cache(name: str, source: str, headers: Path | None, compiler: tuple[str, ...]) -> Any:
    cache = Cache("compiled")
    folder = cache.folder
    found = _load(folder, name)
    if found is not None:
        return found
    with _locked(folder / f".{name}.lock"):
        found = _load(folder, name)  # another process may have compiled it meanwhile
        if found is not None:
            return found
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
            library = _compile(source, headers, compiler, Path(temporary), _TARGETS)
            path = folder / _file_name(name, library.read_bytes())
            library.replace(path)
    cache.trim(keep=[path])
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompilerError(
            f"the compiled library cannot be loaded: {error}; set XDG_CACHE_HOME to a folder from which "
            "programs may run"
        ) from error


def _load(folder: Path, name: str) -> Any:
    """Return a library from the cache, or None; remove damaged ones."""
    for path in folder.glob(f"{name}-*.so"):
        with suppress(OSError):
            if path.name == _file_name(name, path.read_bytes()):
                library = ctypes.CDLL(str(path))
                Cache.touch(path)
                return library
            path.unlink()
    return None


def _file_name(name: str, content: bytes) -> str:
    """Return the file name of a library, with a hash of its contents: a damaged library does not fit its name."""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:32]}.so"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out of the block, by a lock or, if the file system has no locks, by a file."""
    lock: filelock.BaseFileLock = filelock.FileLock(path, timeout=_LONGEST)
    try:
        lock.acquire()
    except NotImplementedError:
        lock = filelock.SoftFileLock(path, timeout=_LONGEST)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # a waiting process then looks for the library first
        lock.release()


def _compile(
    source: str,
    headers: Path | None,
    compiler: tuple[str, ...],
    folder: Path,
    targets: Sequence[tuple[str, ...]],
) -> Path:
    """Compile into a folder and return the path of the library."""
    file, library = folder / "source.cpp", folder / "library.so"
    file.write_text(source, encoding="utf-8")
    include = [] if headers is None else ["-I", str(headers)]
    messages = []
    for target in targets:
        message = _run(compiler, [*_FLAGS, *target, *include, str(file), "-o", str(library)])
        if not message:
            return library
        messages.append(message)
    raise NoCompilerError(messages[0])


def _run(compiler: tuple[str, ...], options: Sequence[str]) -> str:
    """Run a compiler and return why it fails, "" if it does not.

    Raises
    ------
    NoCompilerError
        If there is none.
    """
    try:
        run = subprocess.run([*compiler, *options], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise NoCompilerError(f"compiling needs a C++ compiler such as g++: {error}") from error
    if run.returncode == 0:
        return ""
    first = _first_error(run.stderr) or f"exit status {run.returncode}"
    return f"the C++ compiler '{shlex.join(compiler)}' fails: {first}"


def _first_error(text: str) -> str:
    """Return the first error in the messages of a compiler."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\berror\b", line)]
    return (wrong or lines or [""])[0]


def _compiler() -> tuple[str, ...]:
    """Return the command of the compiler.

    Raises
    ------
    NoCompilerError
    """
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]) is not None:
            return tuple(command)
    what = f"CXX names '{given[0]}', which is not there" if given else f"there is none of {', '.join(_COMPILERS)}"
    raise NoCompilerError(f"compiling needs a C++ compiler, and {what}")


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    """Return the command of a compiler and its version message."""
    try:
        run = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise NoCompilerError(f"the C++ compiler '{shlex.join(compiler)}' cannot be run: {error}") from error
    return f"{shlex.join(compiler)}\n{run.stdout}"


@functools.cache
def _processor() -> str:
    """Return a text that differs between processors with different instructions."""
    lines: list[str] = []
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        first = text.partition("\n\n")[0].splitlines()
        kinds = ("model name", "flags", "Features", "CPU part", "isa")
        lines = sorted(line for line in first if line.startswith(kinds))
    return "\n".join([platform.machine(), *(lines or [platform.processor()])])
