"""A process of a reference: labels structures that come as lines of JSON. `Labelers` starts it, and nothing else."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.calculators.genericfileio import GenericFileIOCalculator
from ase.constraints import dict2constraint
from ase.io import jsonio

from .labeling import NoLabelError, label, reason_of
from .references import find_reference

_PLAIN = "biufU"  # kinds of numpy's arrays that hold no objects


def main() -> None:
    """Make a reference, and label one structure after another until the input ends."""
    faulthandler.enable()
    inbox, outbox = _private_ends()
    jobs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(inbox, jobs), daemon=True).start()
    setup = json.loads(jobs.get())
    try:
        reference = find_reference(setup["reference"], setup["charge"], setup["multiplicity"])
    except Exception as error:  # noqa: BLE001  # the parent tells
        _answer(outbox, {"reason": reason_of(error)})
        return
    _answer(outbox, {})
    apart: BaseCalculator | None = None
    while True:
        atoms = decoded(jobs.get())
        began = time.monotonic()
        try:
            calculator = reference.calculator(atoms)
            if calculator is not apart and setup["folder"] is not None:
                _set_apart(calculator, setup["folder"])
                apart = calculator
            answer = _labeled(atoms, calculator)
        except Exception as error:  # noqa: BLE001  # calculators raise whatever they stumble over
            answer = {"reason": reason_of(error)}
        if apart is not None:
            _remove_if_empty(apart)
        _answer(outbox, {**answer, "seconds": round(time.monotonic() - began, 6)})


def _labeled(atoms: Atoms, calculator: BaseCalculator) -> dict[str, Any]:
    try:
        return {"results": label(atoms, calculator).calc.results}
    except NoLabelError as error:
        # Without this the next try would get the same results.
        if isinstance(calculator, Calculator):
            calculator.reset()
        else:
            calculator.atoms, calculator.results = None, {}
        return {"reason": str(error), "again": error.again}


def encoded(atoms: Atoms) -> str:
    """Return a structure as one line of JSON, with all digits; whatever JSON cannot hold is left out.

    These are arrays and ``info`` of other things than numbers and texts, and constraints other than ASE's.
    """
    values = {name: array for name, array in atoms.arrays.items() if array.dtype.kind in _PLAIN}
    values |= {"cell": atoms.cell.array, "pbc": atoms.pbc, "celldisp": atoms.get_celldisp().reshape(3)}
    info = {name: value for name, value in atoms.info.items() if isinstance(name, str) and _can_travel(value)}
    constraints = [constraint.todict() for constraint in atoms.constraints if _is_known(constraint)]
    text: str = jsonio.encode({"atoms": values, "info": info, "constraints": constraints})
    return text


def decoded(text: str) -> Atoms:
    """Return the structure of a text of `encoded`."""
    values = jsonio.mydecode(text)
    atoms = values["atoms"]
    known = {name: atoms.pop(name) for name in ("numbers", "positions", "cell", "pbc", "celldisp")}
    made = Atoms(**known, info=values["info"], constraint=[dict2constraint(each) for each in values["constraints"]])
    for name, array in atoms.items():
        made.arrays[name] = array
    return made


def _can_travel(value: Any) -> bool:
    try:
        jsonio.mydecode(jsonio.encode(value))
    except Exception:  # noqa: BLE001  # objects raise whatever they do
        return False
    return True


def _is_known(constraint: Any) -> bool:
    try:
        dict2constraint(jsonio.mydecode(jsonio.encode(constraint.todict())))
    except Exception:  # noqa: BLE001  # a user's constraint may have no such method
        return False
    return True


def _private_ends() -> tuple[IO[str], IO[str]]:
    """Return the ends of the pipes to the parent, out of reach of the calculator and of programs that it starts.

    Programs in Fortran and C write to the standard output, and some read the standard input. They get the standard
    error and nothing.
    """
    inbox, outbox = (os.fdopen(os.dup(end), mode, encoding="utf-8") for end, mode in ((0, "r"), (1, "w")))
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return inbox, outbox


def _listen(inbox: IO[str], jobs: SimpleQueue[str]) -> None:
    """Pass on lines; when the parent is gone, end this process and all that it started, even while it calculates."""
    for line in inbox:
        jobs.put(line)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _answer(outbox: IO[str], message: dict[str, Any]) -> None:
    outbox.write(jsonio.encode(message) + "\n")
    outbox.flush()


def _set_apart(calculator: BaseCalculator, folder: str) -> None:
    """Have a calculator write its files to a folder of its own, inside the one that it has."""
    if isinstance(calculator, Calculator | GenericFileIOCalculator):
        calculator.directory = Path(calculator.directory) / folder


def _remove_if_empty(calculator: BaseCalculator) -> None:
    """Remove the folder of a calculator that writes no files: ASE makes one for all calculators at each label."""
    if isinstance(calculator, Calculator | GenericFileIOCalculator):
        with suppress(OSError):
            Path(calculator.directory).rmdir()
