"""Exported libraries: a program in C gets the calculator's results, without Python; wrong calls change nothing."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from compiler import needs_compiler
from numpy.typing import NDArray
from random_potentials import NATIVE_CONFIGS, random_potential
from systems import systems
from typer.testing import CliRunner

from ase_segnn import Committee, SEGNNCalculator, __version__, save_potential
from ase_segnn.cli import app
from ase_segnn.engines import export
from ase_segnn.engines.exported import _Call
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = systems()
CONFIG = NATIVE_CONFIGS["natural parity"]
IS_X86 = platform.machine() == "x86_64"
CC = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "no C compiler")
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror")
OK, NEEDS_ROOM, WRONG_VERSION, WRONG_SIZE, MISSING, NOT_SORTED, OUT_OF_RANGE, UNKNOWN_ELEMENT, NO_EXCHANGE = range(9)

needs_c_compiler = pytest.mark.skipif(shutil.which(CC) is None, reason="needs a C compiler")


def run(*arguments: str | Path, code: int = 0) -> str:
    """Run a command, check its exit code and return what it printed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


@dataclass
class Exported:
    """A library, the file it is from, the same potential, and how exact its results are."""

    path: Path
    file: Path
    potential: Potential
    rtol: float

    @property
    def library(self) -> ctypes.CDLL:
        library = ctypes.CDLL(str(self.path))
        library.segnn_workspace_size.restype = library.segnn_interface_version.restype = ctypes.c_int64
        library.segnn_error_text.restype = ctypes.c_char_p
        library.segnn_get_info.restype = ctypes.POINTER(Info)
        return library

    def calculator(self) -> SEGNNCalculator:
        dtype = "float64" if self.potential.dtype is torch.float64 else "float32"
        return SEGNNCalculator(self.potential, device="cpu", dtype=dtype, compile=False)


class Info(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("name", "fingerprint", "made_by", "precision")),
        ("cutoff", ctypes.c_double),
        ("n_layers", ctypes.c_int64),
        ("n_elements", ctypes.c_int64),
        ("atomic_numbers", ctypes.POINTER(ctypes.c_int64)),
        ("most_exchanged", ctypes.c_int64),
        ("reach", ctypes.c_int64),
        ("symbols", ctypes.POINTER(ctypes.c_char_p)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Exported:
    file = folder / "single.safetensors"
    save_potential(random_potential(CONFIG), file, provenance=Provenance())
    path = folder / "model.so"
    output = run("export", file, "-o", path, "--dtype", "float64")
    assert output.splitlines()[0].startswith(f"library: {path} (H, C, O, Si, Cu; float64, native, ")
    assert output.splitlines()[1:] == [f"header: {folder / 'model.h'}"]
    return Exported(path, file, random_potential(CONFIG).double(), 1e-12)


@pytest.fixture(scope="module")
def single_precision(folder: Path) -> Exported:
    """Export the second member of a committee for an old processor; the names are awkward for a compiler."""
    file = folder / 'a "b" \\n %s ?? é.safetensors'
    members = [random_potential(CONFIG, seed=seed) for seed in (1, 2)]
    save_potential(Committee(members), file, provenance=Provenance())
    path = folder / 'an (o)ther, "c" \\n %s' / "model.so"
    path.parent.mkdir()
    run("export", file, "--output", path, "--member", "1", "--march", "x86-64-v2" if IS_X86 else "armv8-a")
    return Exported(path, file, members[1], 1e-5)


@pytest.fixture(params=["exact", "single_precision"])
def exported(request: pytest.FixtureRequest) -> Exported:
    result: Exported = request.getfixturevalue(request.param)
    return result


class Call:
    """A call for a structure; `results` are what is wanted, filled with sevens at first."""

    def __init__(self, exported: Exported, atoms: Atoms, *, n_threads: int = 1) -> None:
        graph = AtomicGraph.from_atoms(atoms, exported.potential.cutoff + 0.5)
        names = ("positions", "cell", "atomic_numbers", "centers", "neighbors", "cell_shifts")
        self.inputs = {name: getattr(graph, name).numpy().copy() for name in names}
        n = len(atoms)
        shapes: dict[str, tuple[int, ...]] = {
            "energy": (),
            "atom_energies": (n,),
            "forces": (n, 3),
            "stress": (3, 3),
        }
        self.results: dict[str, NDArray[np.float64]] = {name: np.full(shape, 7.0) for name, shape in shapes.items()}
        self.workspace = np.empty(0, np.uint8)
        places = {name: array.ctypes.data for name, array in (self.inputs | self.results).items()}
        self.struct = _Call(version=3, n_atoms=n, n_pairs=graph.n_edges, n_threads=n_threads, **places)
        self.library = exported.library

    def once(self) -> int:
        return int(self.library.segnn_evaluate(ctypes.byref(self.struct)))

    def __call__(self) -> int:
        while (code := self.once()) == NEEDS_ROOM:
            self.workspace = np.full(self.struct.workspace_size, 0xFF, np.uint8)
            self.struct.workspace = self.workspace.ctypes.data
        return code


def assert_close(value: Any, target: Any, rtol: float) -> None:
    """Compare with the largest number of its kind."""
    target = np.asarray(target)
    assert np.abs(target).max() > 0
    np.testing.assert_allclose(value, target, rtol=0, atol=rtol * np.abs(target).max())


# ---- from C


@needs_compiler
@needs_c_compiler
def test_a_program_in_c_gets_the_calculators_results(exported: Exported, tmp_path: Path) -> None:
    program = tmp_path / "crystal"
    folder = exported.path.parent
    source = ROOT / "docs" / "crystal.c"
    subprocess.run([CC, "-std=c99", *STRICT, source, exported.path, "-I", folder, "-lm", "-o", program], check=True)

    a = 5.43
    sites = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]])
    positions = a / 4 * sites + 0.1 * np.sin(3 * np.arange(8)[:, None] + np.arange(3))
    atoms = Atoms("Si8", positions, cell=[a, a, a], pbc=True, calculator=exported.calculator())
    for n_threads in ("1", "3"):
        done = subprocess.run([program, n_threads], capture_output=True, text=True, check=True)
        lines = [(line.split()[0], list(map(float, line.split()[1:-1]))) for line in done.stdout.splitlines()]
        printed = {what: np.array([row for name, row in lines if name == what]) for what, _ in lines}
        assert_close(printed["energy"][0], [atoms.get_potential_energy()], exported.rtol)
        assert_close(printed["force"], atoms.get_forces(), exported.rtol)
        assert_close(printed["stress"], atoms.get_stress(voigt=False), exported.rtol)


@needs_compiler
def test_the_library_needs_no_python(exported: Exported) -> None:
    dynamic = subprocess.run(["readelf", "-d", exported.path], capture_output=True, text=True, check=True).stdout
    needed = {line.partition("[")[2].partition(".")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert "libm" in needed
    assert needed <= {"libstdc++", "libm", "libgomp", "libc", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64"}
    command = ["nm", "-D", "--defined-only", exported.path]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2::3]
    functions = ("interface_version", "get_info", "evaluate", "workspace_size", "error_text")
    assert sorted(symbols) == sorted(f"segnn_{name}" for name in functions)


@needs_compiler
@needs_c_compiler
@pytest.mark.parametrize("language", ["c -std=c99", "c -std=c11", "c++ -std=c++98 -Wno-long-long", "c++ -std=c++20"])
def test_the_header_is_c_and_cpp(language: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    code = '#define __STDC_CONSTANT_MACROS\n#include "segnn.h"\n#include "segnn.h"\nint f(segnn_call* c) { return '
    source.write_text(f"{code}c->n_pairs > SEGNN_MOST_PAIRS ? SEGNN_WRONG_SIZE : segnn_evaluate(c); }}\n")
    folder = export.HEADERS
    subprocess.run([CC, "-x", *language.split(), *STRICT, "-fsyntax-only", "-I", folder, source], check=True)


@needs_compiler
def test_the_header_beside_it_is_that_of_the_library(exported: Exported) -> None:
    header = exported.path.with_suffix(".h").read_text()
    assert header == (export.HEADERS / "segnn.h").read_text()
    assert f"#define SEGNN_INTERFACE_VERSION {exported.library.segnn_interface_version()}\n" in header


@needs_compiler
def test_the_library_tells_what_it_holds(exported: Exported) -> None:
    info = exported.library.segnn_get_info().contents
    assert info.name.decode() == exported.file.stem
    assert info.fingerprint.decode() == hashlib.sha256(exported.file.read_bytes()).hexdigest()
    assert info.made_by.decode() == f"ase-segnn {__version__}"
    assert info.precision.decode() == str(exported.potential.dtype).removeprefix("torch.")
    assert (info.cutoff, info.n_layers, info.reach) == (exported.potential.cutoff, 2, 3)
    assert info.atomic_numbers[: info.n_elements] == [1, 6, 8, 14, 29]
    assert info.symbols[: info.n_elements] == [b"H", b"C", b"O", b"Si", b"Cu"]


# ---- every structure, and what a call may look like


@needs_compiler
@pytest.mark.parametrize("name", SYSTEMS)
def test_results_are_the_calculators_for_every_structure(exact: Exported, name: str) -> None:
    calculator = exact.calculator()
    atoms = SYSTEMS[name]
    calculator.calculate(atoms, ["forces"])
    expected = calculator.results
    for n_threads in (1, 3):
        call = Call(exact, atoms, n_threads=n_threads)
        assert call() == OK
        for result, target in (("energy", "energy"), ("atom_energies", "energies"), ("forces", "forces")):
            scale = max(1.0, np.abs(expected[target]).max())
            np.testing.assert_allclose(call.results[result], expected[target], rtol=0, atol=1e-11 * scale)
        assert np.isnan(call.results["stress"]).all() == (atoms.cell.rank < 3)


@needs_compiler
def test_results_that_are_not_wanted_are_null(exact: Exported) -> None:
    everything = Call(exact, SYSTEMS["mixed species"])
    assert everything() == OK
    for wanted in ("energy", "atom_energies", "forces", "stress"):
        for n_threads in (1, 2):
            call = Call(exact, SYSTEMS["mixed species"], n_threads=n_threads)
            for name in set(call.results) - {wanted}:
                setattr(call.struct, name, None)
            assert call() == OK
            for name, result in call.results.items():
                if name == wanted:
                    assert_close(result, everything.results[name], 1e-12)
                else:
                    assert (result == 7).all()


@needs_compiler
def test_a_structure_without_pairs_needs_no_arrays_of_pairs(exact: Exported) -> None:
    call = Call(exact, SYSTEMS["lone atom"], n_threads=2)
    call.struct.centers = call.struct.neighbors = call.struct.cell_shifts = None
    assert call() == OK
    assert call.results["energy"] == pytest.approx(CONFIG.reference_energies["O"], rel=1e-12)
    assert (call.results["forces"] == 0).all()


@needs_compiler
def test_one_workspace_serves_calls_of_all_sizes(exact: Exported) -> None:
    fresh, kept = {}, np.full(1_000_000, 0xAB, np.uint8)
    halo_rows = 0
    for name in ("mixed species", "slab", "water", "mixed species", "unwrapped", "slab"):
        for n_threads in (3, 1):
            call = Call(exact, SYSTEMS[name], n_threads=n_threads)
            assert call() == OK
            fresh[name] = call.results
            call = Call(exact, SYSTEMS[name], n_threads=n_threads)
            call.struct.workspace, call.struct.workspace_size = kept.ctypes.data + 1, kept.size - 1
            call.struct.halo_rows = halo_rows
            assert call.once() == OK, "the library uses the room there is"
            halo_rows = call.struct.halo_rows
            assert (call.results["forces"] == fresh[name]["forces"]).all()
    assert halo_rows > 0


@needs_compiler
@pytest.mark.parametrize("halo_rows", [-(2**63), 2**63 - 1])
def test_any_value_of_halo_rows_will_do(exact: Exported, halo_rows: int) -> None:
    call = Call(exact, SYSTEMS["slab"], n_threads=3)
    call.struct.halo_rows = halo_rows
    assert call() == OK
    assert np.abs(call.results["forces"]).max() > 0.1


@needs_compiler
@pytest.mark.parametrize("forces", [True, False])
def test_the_workspace_is_as_large_as_told(exact: Exported, forces: bool) -> None:
    call = Call(exact, SYSTEMS["slab"])
    if not forces:
        call.struct.forces = call.struct.stress = None
    size = exact.library.segnn_workspace_size(*map(ctypes.c_int64, (call.struct.n_atoms, call.struct.n_pairs)), forces)
    memory = np.full(size + 64, 0x5A, np.uint8)
    for start in (0, 1, 63):
        call.struct.workspace, call.struct.workspace_size = memory.ctypes.data + start, size
        assert call.once() == OK
        assert (memory[:start] == 0x5A).all()
        assert (memory[start + size :] == 0x5A).all()
        memory[:] = 0x5A
    call.struct.workspace_size = size - 1
    assert call.once() == NEEDS_ROOM
    assert call.struct.workspace_size >= size


@needs_compiler
def test_threads_may_call_at_the_same_time(exact: Exported) -> None:
    def forces(name: str) -> NDArray[np.float64]:
        call = Call(exact, SYSTEMS[name])
        for _ in range(10):
            assert call() == OK
        return call.results["forces"]

    names = ["slab", "mixed species", "unwrapped", "slab"]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(forces, names))
    for name, result in zip(names, together, strict=True):
        assert (result == forces(name)).all()


# ---- wrong calls


@needs_compiler
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(
    ("field", "index", "value", "code"),
    [
        ("version", None, 0, WRONG_VERSION),
        ("version", None, 1, WRONG_VERSION),
        ("n_atoms", None, 0, WRONG_SIZE),
        ("n_atoms", None, -1, WRONG_SIZE),
        ("n_atoms", None, 2**31, WRONG_SIZE),
        ("n_atoms", None, 2**62, WRONG_SIZE),
        ("n_pairs", None, -1, WRONG_SIZE),
        ("n_pairs", None, 2**62, WRONG_SIZE),
        ("n_threads", None, 0, WRONG_SIZE),
        ("n_threads", None, -(2**40), WRONG_SIZE),
        ("n_threads", None, 1025, WRONG_SIZE),
        ("n_ghosts", None, -1, WRONG_SIZE),
        ("n_ghosts", None, 2**31, WRONG_SIZE),
        ("n_ghosts", None, 1, MISSING),
        *[(name, None, None, MISSING) for name in ("positions", "cell", "atomic_numbers")],
        *[(name, None, None, MISSING) for name in ("centers", "neighbors", "cell_shifts")],
        ("centers", 0, -1, OUT_OF_RANGE),
        ("centers", 1, 9, NOT_SORTED),
        ("centers", -1, 10, OUT_OF_RANGE),
        ("centers", -1, 2**62, OUT_OF_RANGE),
        ("neighbors", 0, -1, OUT_OF_RANGE),
        ("neighbors", 50, 10, OUT_OF_RANGE),
        ("neighbors", -1, -(2**62), OUT_OF_RANGE),
        ("atomic_numbers", 0, 0, UNKNOWN_ELEMENT),
        ("atomic_numbers", 4, 2, UNKNOWN_ELEMENT),
        ("atomic_numbers", 9, -5, UNKNOWN_ELEMENT),
        ("atomic_numbers", 9, 2**62, UNKNOWN_ELEMENT),
    ],
)
def test_wrong_calls_change_nothing(
    exact: Exported, n_threads: int, field: str, index: int | None, value: Any, code: int
) -> None:
    call = Call(exact, SYSTEMS["mixed species"], n_threads=n_threads)
    assert call() == OK
    right = {name: result.copy() for name, result in call.results.items()}
    for result in call.results.values():
        result[...] = 7
    before = getattr(call.struct, field)
    if index is None:
        setattr(call.struct, field, value)
    else:
        before = call.inputs[field][index]
        call.inputs[field][index] = value
    assert call() == code
    assert all((result == 7).all() for result in call.results.values())
    if index is None:
        setattr(call.struct, field, before)
    else:
        call.inputs[field][index] = before
    assert call() == OK
    for name, result in call.results.items():
        assert_close(result, right[name], 1e-12)


@needs_compiler
def test_memory_that_was_not_given_is_an_error(exact: Exported) -> None:
    call = Call(exact, SYSTEMS["water"])
    assert call.once() == NEEDS_ROOM
    assert call.once() == MISSING  # as after a malloc that failed
    assert exact.library.segnn_evaluate(None) == MISSING


@needs_compiler
def test_every_code_has_a_text(exact: Exported) -> None:
    header = (export.HEADERS / "segnn.h").read_text()
    codes = [line.split("=")[1] for line in header.splitlines() if line.startswith("  SEGNN_")]
    texts = [exact.library.segnn_error_text(code).decode() for code in range(len(codes) + 1)]
    assert len(codes) == 9
    assert len(set(texts)) == 10
    assert texts[NOT_SORTED] == "the pairs are not sorted by their centers"
    assert texts[-1] == exact.library.segnn_error_text(-1).decode() == "there is no such code"


# ---- errors of the command; nothing is written


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a potential, a committee, and a potential that has no generated code."""
    monkeypatch.chdir(tmp_path)
    one, other = (random_potential(CONFIG, seed=seed) for seed in (1, 2))
    save_potential(one, "pot.safetensors", provenance=Provenance())
    save_potential(Committee([one, other]), "committee.safetensors", provenance=Provenance())
    gated = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"gated_messages": True})})
    save_potential(random_potential(gated), "gated.safetensors", provenance=Provenance())
    Path("old.so").write_text("old")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("committee.safetensors", "is a committee, and a library holds one potential; choose one, --member 0 to 1"),
        ("committee.safetensors --member 2", "choose one, --member 0 to 1"),
        ("pot.safetensors --member 0", "--member is for committees, and 'pot.safetensors' is a single potential"),
        ("pot.safetensors -o old.so", "'old.so' exists already; choose another output, or replace it with --force"),
        ("pot.safetensors -o none/a.so", "there is no folder 'none' for 'a.so'; create it first"),
        ("pot.safetensors -o model", "libraries end in '.so', got 'model'; choose a name such as 'model.so'"),
        ("pot.safetensors -o model.h", "libraries end in '.so', got 'model.h'"),
        (
            "gated.safetensors",
            "'gated' cannot be exported: its messages have two gates, and loops need one; SEGNNCalculator runs it",
        ),
        ("no-such", "potential 'no-such' is neither a shipped potential nor a file"),
    ],
)
def test_errors_of_the_command(here: Path, arguments: str, message: str) -> None:
    before = sorted(path.name for path in here.iterdir())
    output = run("export", *arguments.split(), code=2)
    assert message in output
    assert output.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == before
    assert Path("old.so").read_text() == "old"


@needs_compiler
@pytest.mark.parametrize(("option", "value"), [("--march", "pentium-x"), ("CXX", "no-such-compiler")])
@pytest.mark.usefixtures("here")
def test_what_the_compiler_says_is_told(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    if option == "CXX":
        monkeypatch.setenv(option, value)
    arguments = [option, value] if option == "--march" else []
    output = run("export", "pot.safetensors", "-o", "old.so", "--force", *arguments, code=2)
    assert value in output
    assert output.startswith("error: ")
    assert ("compiling needs a C++ compiler, and CXX names 'no-such-compiler', which is not there\n" in output) == (
        option == "CXX"
    )
    assert "compile=False" not in output
    assert Path("old.so").read_text() == "old"
    assert not Path("old.h").exists()


@needs_compiler
@pytest.mark.usefixtures("here")
def test_a_library_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compile_library", lambda *_: Path("old.so"))
    output = run("export", "pot.safetensors", code=2)
    assert output.startswith("error: the library was compiled and cannot be used: OSError: ")
    assert "old.so" in output
    assert not Path("pot.so").exists()


@needs_compiler
@pytest.mark.usefixtures("here")
def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.constants

    def wrong(*arguments: Any) -> Any:
        numbers, packed = right(*arguments)
        for part in packed:
            if part.numbers.is_floating_point():
                part.numbers.mul_(1.001)
        return numbers, packed

    monkeypatch.setattr(export, "constants", wrong)
    output = run("export", "pot.safetensors", "-o", "old.so", "--force", code=2)
    assert "error: atom_energies of the compiled potential are wrong by " in output
    assert "; please report this with your versions of torch and of the C++ compiler\n" in output
    assert Path("old.so").read_text() == "old"
    assert not Path("old.h").exists()


@needs_compiler
@pytest.mark.usefixtures("here")
@pytest.mark.skipif(not IS_X86 or not Path("/proc/cpuinfo").is_file(), reason="needs to know the instructions")
def test_a_library_for_another_processor_is_not_written_unchecked() -> None:
    if " fma4 " in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has the instructions of that one")
    output = run("export", "pot.safetensors", "--march", "bdver1", code=2)
    assert "error: this machine lacks instructions of 'bdver1', so the library cannot be checked here" in output
    assert not Path("pot.so").exists()


@needs_compiler
@pytest.mark.usefixtures("here")
def test_the_default_name_is_that_of_the_potential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compile_library", lambda *_: Path("old.so"))
    monkeypatch.setattr(export, "compare", lambda *_: None)
    assert run("export", "pot.safetensors").splitlines()[1] == "header: pot.h"
    assert Path("pot.so").read_text() == "old"


def test_the_process_of_the_check_imports_no_torch() -> None:
    code = "import sys, ase_segnn.engines.exported; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
