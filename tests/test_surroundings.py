"""A calculator among threads and processes, and in every mode of torch: the right number, or one clear line."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from compiler import needs_compiler
from torch._subclasses import FakeTensorMode

from ase_segnn import SEGNNCalculator
from ase_segnn.engines import surroundings
from ase_segnn.engines.surroundings import Lock, undisturbed

MODES = pytest.mark.parametrize("compile_it", [pytest.param("auto", marks=needs_compiler), False])


def silicon(n: int = 1, seed: int = 1) -> Atoms:
    atoms = bulk("Si", cubic=True) * (n, n, n)
    atoms.rattle(0.05, seed=seed)
    return atoms


def calculator(compile_it: bool | str) -> SEGNNCalculator:
    return SEGNNCalculator("si-pbe", device="cpu", compile=compile_it)


# -- threads ------------------------------------------------------------------------------------------------------


@MODES
def test_threads_may_share_a_calculator(compile_it: bool | str) -> None:
    shared, own = calculator(compile_it), calculator(compile_it)
    structures = [silicon(1 + i % 2, seed=i) for i in range(16)]
    expected = []
    for atoms in structures:
        atoms.calc = own
        expected.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
        atoms.calc = shared

    def work(atoms: Atoms) -> tuple[Any, ...]:
        return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, structures))
    for result, right in zip(results, expected, strict=True):
        for value, target in zip(result, right, strict=True):
            np.testing.assert_allclose(value, target, atol=2e-5, rtol=1e-7)


@MODES
def test_threads_may_evaluate_many_at_once(compile_it: bool | str) -> None:
    shared = calculator(compile_it)
    structures = [silicon(seed=i) for i in range(8)]
    expected = [result["energy"] for result in shared.evaluate_many(structures)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [r["energy"] for r in shared.evaluate_many(structures)], range(8)))
    for run in runs:
        np.testing.assert_allclose(run, expected, atol=1e-4)


def test_a_lock_held_by_a_thread_is_free_after_a_fork() -> None:
    lock = Lock()
    with lock.now:
        child = os.fork()
        if child == 0:  # pragma: no cover  # in another process
            free = threading.Thread(target=lambda: lock.now.acquire(timeout=5) and os._exit(7))
            free.start()
            free.join()
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# -- copies -------------------------------------------------------------------------------------------------------


@MODES
def test_handing_it_to_a_process_leaves_it_as_it_was(compile_it: bool | str) -> None:
    atoms = silicon()
    atoms.calc = calculator(compile_it)
    energy = atoms.get_potential_energy()
    assert -44 < energy < -42  # of 8 atoms of silicon
    pickled = bytes(ForkingPickler.dumps(atoms.calc))
    assert not any(parameter.is_shared() for parameter in atoms.calc.potential.parameters())
    for _ in range(3):
        atoms.rattle(1e-9)
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    atoms.calc.potential.share_memory()
    for _ in range(3):
        atoms.rattle(1e-9)
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    twin: SEGNNCalculator = ForkingPickler.loads(pickled)
    assert twin.get_property("energy", silicon()) == pytest.approx(energy, abs=1e-5)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda c: ForkingPickler.loads(ForkingPickler.dumps(c))]
)
def test_a_copy_does_not_follow_its_original(duplicate: Callable[[SEGNNCalculator], SEGNNCalculator]) -> None:
    first, second = silicon(seed=1), silicon(seed=2)
    original = calculator(False)
    first.calc = original
    energy = first.get_potential_energy()
    twin = duplicate(original)
    second.calc = original
    other = second.get_potential_energy()
    assert abs(other - energy) > 1e-3
    twin.calculate()
    assert twin.results["energy"] == pytest.approx(energy, abs=1e-6)
    second.calc = twin
    second.get_potential_energy()
    np.testing.assert_array_equal(original.atoms.positions, second.positions)
    assert original.results["energy"] == other


def test_the_atoms_of_a_calculator_are_those_of_the_last_call() -> None:
    atoms = silicon()
    atoms.calc = calculator(False)
    for step in range(3):
        atoms.rattle(1e-3, seed=step)
        atoms.set_tags(step)
        atoms.set_momenta(np.full((8, 3), float(step)))
        atoms.arrays["label"] = np.full(8, step)
        if step == 1:
            atoms.info["step"] = [step]
        if step == 2:
            del atoms.info["step"]
        atoms.get_forces()
        kept = atoms.calc.atoms
        assert kept is not atoms
        assert kept.arrays.keys() == atoms.arrays.keys()
        for name, array in atoms.arrays.items():
            np.testing.assert_array_equal(kept.arrays[name], array)
            assert kept.arrays[name] is not array
        assert kept.info == atoms.info


# -- modes of torch -----------------------------------------------------------------------------------------------


@contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


TORCH_MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
}


@MODES
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_results_do_not_depend_on_the_mode_of_torch(compile_it: bool | str, mode: str) -> None:
    usual = silicon()
    usual.calc = calculator(compile_it)
    expected = usual.get_potential_energy(), usual.get_forces(), usual.get_stress()
    atoms = silicon()
    with TORCH_MODES[mode]():
        made_here = calculator(compile_it)
        found = []
        for one in (made_here, copy.copy(usual.calc), made_here):
            atoms.calc = one
            atoms.rattle(1e-10)
            found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
            [many] = one.evaluate_many([atoms], ["stress"])
            found.append((many["energy"], many["forces"], many["stress"]))
    atoms.rattle(1e-10)
    found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for results in found:
        for value, target in zip(results, expected, strict=True):
            np.testing.assert_allclose(value, target, rtol=1e-6, atol=1e-4)


@needs_compiler
def test_fake_tensors_are_refused_in_one_line() -> None:
    one = calculator("auto")
    one.get_property("energy", silicon())
    with (
        FakeTensorMode(),
        pytest.raises(TypeError, match=r"is a FakeTensor on cpu; evaluate outside of torch's tracing"),
    ):
        one.get_property("energy", silicon(2))  # which needs more memory
    plain = calculator(False)
    for n in (2, 1):
        expected = plain.get_property("energy", silicon(n))
        assert one.get_property("energy", silicon(n)) == pytest.approx(expected, abs=1e-4 * n**3)


def test_fewer_digits_in_products_are_told(caplog: pytest.LogCaptureFixture) -> None:
    one = calculator(False)
    warnings.simplefilter("ignore")  # torch 2.9 has a word on the name of this function
    torch.set_float32_matmul_precision("medium")
    try:
        with caplog.at_level(logging.WARNING):
            one.get_property("energy", silicon())
            one.get_property("energy", silicon(seed=2))
            exact = SEGNNCalculator("si-pbe", device="cpu", dtype="float64", compile=False)
            exact.get_property("energy", silicon())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert caplog.text.count("torch.get_float32_matmul_precision() is 'medium'") == 1


def test_what_is_unusual_is_done_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.current_thread()
    assert undisturbed(threading.current_thread) is here
    with torch.inference_mode():
        assert undisturbed(threading.current_thread) is not here
        assert undisturbed(torch.is_inference_mode_enabled) is False
        assert undisturbed(threading.current_thread, torch_matters=False) is here
        with pytest.raises(ZeroDivisionError):
            undisturbed(lambda: 1 / 0)
    monkeypatch.setattr(surroundings._Process, "forked", True)
    assert not surroundings.threads_may_run()
    assert undisturbed(surroundings.threads_may_run)


# -- processes ----------------------------------------------------------------------------------------------------

_POOL = """
import multiprocessing, sys
import numpy as np, torch
from ase.build import bulk
from ase_segnn import SEGNNCalculator

def silicon(seed):
    atoms = bulk("Si", cubic=True) * (3, 3, 3)
    atoms.rattle(0.05, seed=seed)
    return atoms

def work(atoms):
    if atoms.calc is None:
        atoms.calc = SEGNNCalculator("si-pbe", device="cpu", compile=MODE)
    return atoms.get_potential_energy(), atoms.get_forces()

if __name__ == "__main__":
    MODE = {"auto": "auto", "False": False}[sys.argv[2]]
    assert torch.get_num_threads() == 2
    structures = [silicon(seed) for seed in (1, 2)]
    calculator = SEGNNCalculator("si-pbe", device="cpu", compile=MODE)
    expected = []
    for atoms in structures:
        atoms.calc = calculator
        expected.append(work(atoms))
    own = [atoms.copy() for atoms in structures] if sys.argv[1] == "fork" else []
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        for results in (pool.map_async(work, structures).get(120), pool.map_async(work, own).get(120)):
            for (energy, forces), (right, right_forces) in zip(results, expected):
                assert abs(energy - right) < 1e-5, (energy, right)
                np.testing.assert_allclose(forces, right_forces, atol=1e-4)
    for atoms, (right, _) in zip(structures, expected):
        atoms.rattle(1e-12)
        assert abs(atoms.get_potential_energy() - right) < 1e-5
    print("right")
"""


@MODES
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_processes_of_every_kind(compile_it: bool | str, method: str, tmp_path: Any) -> None:
    """The parent has used two threads, which its forked children do not have."""
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(script), method, str(compile_it)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "right\n", run.stderr


_FEWER = """
import ctypes, sys
import numpy as np, torch
from ase.build import bulk
from ase_segnn import SEGNNCalculator

torch.set_num_threads(2)
atoms = bulk("Si", cubic=True) * (3, 3, 3)
atoms.rattle(0.05, seed=1)
plain = atoms.copy()
atoms.calc = SEGNNCalculator("si-pbe", device="cpu")
plain.calc = SEGNNCalculator("si-pbe", device="cpu", dtype="float64", compile=False)
for step in range(4):
    if step == 2 and sys.argv[1] == "dynamic":
        ctypes.CDLL("libgomp.so.1").omp_set_dynamic(1)
    atoms.rattle(0.02, seed=step)
    plain.positions = atoms.positions
    error = np.abs(atoms.get_forces() - plain.get_forces()).max()
    assert error < 1e-4, (step, error)
    assert np.abs(atoms.get_stress() - plain.get_stress()).max() < 1e-5
print("right")
"""


@needs_compiler
@pytest.mark.parametrize(
    ("how", "variables"),
    [
        ("dynamic", {}),
        ("variable", {"OMP_THREAD_LIMIT": "1"}),
        pytest.param("variable", {"OMP_DYNAMIC": "true"}, marks=pytest.mark.slow),
        pytest.param("variable", {}, marks=pytest.mark.slow),
    ],
)
def test_fewer_threads_than_were_asked_for(how: str, variables: dict[str, str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **variables}
    command = [sys.executable, "-c", _FEWER, how]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout == "right\n", run.stderr
