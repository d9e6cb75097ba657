"""The C++ headers by themselves: no warnings, and right numbers on every kind of processor that runs here."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from compiler import COMPILERS, WARNINGS, compile_cpp, needs_compiler, runs_here
from interpreter import spline
from numpy.typing import NDArray
from random_potentials import SHAPES, random_potential

from ase_segnn import load_potential
from ase_segnn.codegen.cpp import HEADERS, preamble
from ase_segnn.codegen.inference import source_of
from ase_segnn.codegen.interface import INPUT, NUMBERS, struct
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.spline import spline_coefficients
from ase_segnn.codegen.training import training_program, training_source
from ase_segnn.engines.build import _FLAGS
from ase_segnn.potentials import shipped_potentials

pytestmark = needs_compiler
CHANNELS = 24
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Bytes of a vector: on what every x86-64 has, and on most of today's.
VECTOR_BYTES = {"x86-64": 16, "x86-64-v3": 32}
# Without OpenMP its pragmas are unknown, as they are meant to be. Nothing else is off.
OPENMP = {"threads": ("-fopenmp",), "no threads": ("-Wno-unknown-pragmas",)}
# What headers need before them; functions of a header that nothing calls are no fault of it.
_CALL = (
    '#include "exchange.hpp"\n'
    + struct("Input", INPUT)
    + struct("Constants", NUMBERS)
    + "static const double SMALLEST_VOLUME = 1e-6;\n"
)
NEEDS = {"threads": "", "vectors": "", "products": "", "splines": "", "frame": _CALL, "edges": "", "exchange": ""}


def assert_no_warnings(source: str, folder: Any, *flags: str) -> None:
    for compiler in COMPILERS:
        for target in ("native", *VECTOR_BYTES) if runs_here("x86-64") else ("native",):
            checks = ("-fsyntax-only", f"-march={target}", *WARNINGS, *flags)
            compile_cpp(source, folder, checks, compiler)


def test_every_header_is_tested() -> None:
    """The driver and the interface of libraries need functions that are generated, and are compiled with them."""
    assert {path.stem for path in HEADERS.glob("*.hpp")} == {*NEEDS, "driver", "library"}


@pytest.mark.parametrize(("dtype", "openmp"), [("float32", "no threads"), ("float64", "threads")])
@pytest.mark.parametrize("name", NEEDS)
def test_headers_compile_by_themselves(name: str, dtype: str, openmp: str, tmp_path: Any) -> None:
    source = preamble(DTYPES[dtype], CHANNELS) + NEEDS[name] + f'#include "{name}.hpp"\n#include "{name}.hpp"\n'
    assert_no_warnings(source, tmp_path, "-Wno-unused-function", *OPENMP[openmp])


def source_for(name: str, dtype: torch.dtype) -> str:
    return source_of(program_of(random_potential(SHAPES[name]).to(dtype).eval()), dtype)


@pytest.mark.parametrize(("dtype", "openmp"), [("float32", "no threads"), ("float64", "threads")])
@pytest.mark.parametrize("name", ["with ZBL", "one layer", "scalars alone"])
def test_generated_sources_compile_without_warnings(name: str, dtype: str, openmp: str, tmp_path: Any) -> None:
    assert_no_warnings(source_for(name, DTYPES[dtype]), tmp_path, *OPENMP[openmp])


@pytest.mark.parametrize(("dtype", "openmp"), [("float32", "no threads"), ("float64", "threads")])
@pytest.mark.parametrize("name", ["with ZBL", "products"])
def test_sources_for_training_compile_without_warnings(name: str, dtype: str, openmp: str, tmp_path: Any) -> None:
    program, _ = training_program(random_potential(SHAPES[name]).to(DTYPES[dtype]))
    assert_no_warnings(training_source(program, DTYPES[dtype]), tmp_path, *OPENMP[openmp])


@pytest.mark.parametrize("name", shipped_potentials())
def test_shipped_potentials_compile_without_warnings(name: str, tmp_path: Any) -> None:
    potential = load_potential(shipped_potentials()[name]).requires_grad_(False).eval()
    source = source_of(program_of(potential), potential.dtype)
    assert_no_warnings(source, tmp_path, "-fopenmp")


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_potentials())
def test_optimizers_have_no_warnings(name: str, tmp_path: Any) -> None:
    """Some warnings come only when the compiler looks at what is done with numbers."""
    potential = load_potential(shipped_potentials()[name]).requires_grad_(False).eval()
    source = source_of(program_of(potential), potential.dtype)
    for compiler in COMPILERS:
        compile_cpp(source, tmp_path, (*_FLAGS, "-march=native", "-fopenmp", *WARNINGS), compiler)


class Compiled:
    """The functions of tests/cpp/numbers.cpp for one precision and kind of processor."""

    def __init__(self, dtype: torch.dtype, target: str, folder: Any, channels: int = CHANNELS) -> None:
        source = preamble(dtype, channels) + '#include "numbers.cpp"\n'
        path = compile_cpp(source, folder, (*_FLAGS, f"-march={target}", *WARNINGS))
        self._library = ctypes.CDLL(str(path))
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.eps = float(np.finfo(self.dtype).eps)
        self.lanes = self.call("lanes")

    def call(self, name: str, *arguments: Any) -> int:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int64
        kinds: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_double}
        return int(
            function(*(kinds[type(x)](x) if type(x) in kinds else x.ctypes.data_as(ctypes.c_void_p) for x in arguments))
        )

    def of_each(self, name: str, x: NDArray[Any]) -> NDArray[Any]:
        """Return a function of numbers, as many as may be."""
        padded = np.zeros(-(-len(x) // self.lanes) * self.lanes, self.dtype)
        padded[: len(x)] = x
        result = np.full_like(padded, np.nan)
        self.call(name, padded, result, len(padded))
        return result[: len(x)]


@pytest.fixture(scope="module", params=[(dtype, target) for dtype in DTYPES for target in ("native", *VECTOR_BYTES)])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    dtype, target = request.param
    if not runs_here(target):
        pytest.skip(f"{target} does not run here")
    return Compiled(DTYPES[dtype], target, tmp_path_factory.mktemp("numbers"))


def test_exponentials(compiled: Compiled) -> None:
    low, high = {4: (-87, 88), 8: (-708, 709)}[compiled.dtype.itemsize]
    near = np.concatenate([np.linspace(-2, 2, 4001), np.linspace(low, high, 20001), np.log(2) * np.arange(-60, 60) / 2])
    x = np.concatenate([near, [0.0, -0.0, 1e-30, -1e-30, low, high]]).astype(compiled.dtype)
    expected = np.exp(x.astype(np.float64))
    # that of a rounded argument times its rounding, where the argument is large
    np.testing.assert_allclose(compiled.of_each("exponentials", x), expected, rtol=4 * compiled.eps)


def test_exponentials_beyond_what_numbers_hold(compiled: Compiled) -> None:
    low, high = {4: (-87, 88), 8: (-708, 709)}[compiled.dtype.itemsize]
    large = float(np.finfo(compiled.dtype).max)
    x = np.array([-np.inf, -large, 2 * low, np.inf, large, 2 * high], compiled.dtype)
    expected = np.exp(np.repeat(np.array([low, high], np.float64), 3))
    np.testing.assert_allclose(compiled.of_each("exponentials", x), expected, rtol=4 * compiled.eps)
    assert np.isnan(compiled.of_each("exponentials", np.array([np.nan], compiled.dtype))).all()


def test_sigmoids(compiled: Compiled) -> None:
    x = np.concatenate([np.linspace(-40, 40, 8001), [0.0, -0.0, -80, 80]]).astype(compiled.dtype)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(compiled.of_each("sigmoids", x), expected, rtol=6 * compiled.eps)
    far = np.array([np.inf, 1e30, 1000, -np.inf, -1e30, -1000], compiled.dtype)
    np.testing.assert_allclose(compiled.of_each("sigmoids", far), [1, 1, 1, 0, 0, 0], atol=1e-37)
    assert np.isnan(compiled.of_each("sigmoids", np.array([np.nan], compiled.dtype))).all()


def test_sums_and_additions(compiled: Compiled) -> None:
    x = np.random.default_rng(0).normal(size=(50, compiled.lanes)).astype(compiled.dtype)
    result = np.full(50, np.nan, compiled.dtype)
    compiled.call("sums", x, result, x.size)
    np.testing.assert_allclose(result, x.sum(1, dtype=np.float64), atol=8 * compiled.eps)
    total = x[::-1].copy()
    compiled.call("add_all", x, total, x.size)
    np.testing.assert_array_equal(total, x[::-1] + x)


@pytest.mark.parametrize("adds", [False, True])
def test_products_are_those_of_a_plain_loop(compiled: Compiled, adds: bool) -> None:
    rng = np.random.default_rng(0)
    guard = 64  # numbers before and after the result that nobody may change
    for m in (*range(21), 31, 32, 97):
        for k in (1, 2, 7, 24):
            for n in compiled.lanes * np.array([1, 2, 3, 4, 5, 7, 8, 11]):
                a, b = (rng.normal(size=shape).astype(compiled.dtype) for shape in ((m, k), (k, n)))
                memory = rng.normal(size=m * int(n) + 2 * guard).astype(compiled.dtype)
                before = memory.copy()
                result = memory[guard:-guard].reshape(m, n)
                expected = a.astype(np.float64) @ b + (result if adds else 0)
                compiled.call("product", m, k, int(n), a, b, memory[guard:], int(adds))
                np.testing.assert_allclose(result, expected, rtol=0, atol=20 * k * compiled.eps)
                np.testing.assert_array_equal(memory[:guard], before[:guard])
                np.testing.assert_array_equal(memory[-guard:], before[-guard:])


LENGTH, N_INTERVALS = 4.5, 40


def functions(distances: torch.Tensor) -> torch.Tensor:
    return torch.sin(distances[:, None] * torch.linspace(0.2, 2, 2 * CHANNELS, dtype=torch.float64))


def splines_at(compiled: Compiled, distances: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    table = np.ascontiguousarray(spline_coefficients(functions, LENGTH, N_INTERVALS), compiled.dtype)
    values, slopes = np.full((2, len(distances), 2 * CHANNELS), np.nan, compiled.dtype)
    per_length = N_INTERVALS / LENGTH
    compiled.call("splines_at", table, N_INTERVALS, per_length, distances, len(distances), values, slopes)
    return values, slopes


def test_splines_are_those_of_the_formula(compiled: Compiled) -> None:
    knots = np.arange(N_INTERVALS + 1) * (LENGTH / N_INTERVALS)
    distances = np.concatenate([np.linspace(0, LENGTH, 301), knots, np.nextafter(knots, 0)]).clip(0)
    table = spline_coefficients(functions, LENGTH, N_INTERVALS).numpy()
    values, slopes = splines_at(compiled, distances.astype(compiled.dtype))
    rounded = distances.astype(compiled.dtype).astype(np.float64).clip(0, LENGTH)
    assert np.abs(table).max() > 0.9
    np.testing.assert_allclose(values, spline(table, rounded, LENGTH), rtol=0, atol=60 * compiled.eps)
    np.testing.assert_allclose(slopes, spline(table, rounded, LENGTH, slope=True), rtol=0, atol=600 * compiled.eps)


def test_splines_end_at_the_last_knot(compiled: Compiled) -> None:
    """Distances beyond it, and those that are no numbers, are taken for the last knot, and no memory behind is read."""
    beyond = np.array([LENGTH, LENGTH * (1 + 1e-6), 2 * LENGTH, 1e30, np.inf, np.nan], compiled.dtype)
    values, slopes = splines_at(compiled, beyond)
    expected = functions(torch.tensor([LENGTH], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(
        values, np.broadcast_to(expected, values.shape), rtol=0, atol=max(1e-7, 60 * compiled.eps)
    )
    assert np.array_equal(slopes, np.broadcast_to(slopes[0], slopes.shape))


def test_slopes_are_those_of_the_values(compiled: Compiled) -> None:
    if compiled.dtype == np.float32:
        pytest.skip("differences of float32 tell little; the formula is the same")
    distances = np.linspace(0.01, LENGTH - 0.01, 97)
    _, slopes = splines_at(compiled, distances)
    up, down = (splines_at(compiled, distances + step)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(slopes, (up - down) / 2e-5, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", VECTOR_BYTES)
@pytest.mark.parametrize(("channels", "most"), [(64, 64), (24, 8), (20, 4)])
def test_vectors_fill_a_register_and_divide_the_channels(
    channels: int, most: int, target: str, dtype: str, tmp_path: Any
) -> None:
    if not runs_here("x86-64"):
        pytest.skip("these are processors of the kind x86-64")
    expected = min(most, VECTOR_BYTES[target] // DTYPES[dtype].itemsize)
    source = preamble(DTYPES[dtype], channels) + '#include "vectors.hpp"\n'
    check = f'static_assert(LANES == {expected} && sizeof(V) == LANES * sizeof(T), "lanes");\n'
    compile_cpp(source + check, tmp_path, ("-fsyntax-only", f"-march={target}", "-Wno-unused-function"))
