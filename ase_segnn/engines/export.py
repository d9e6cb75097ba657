"""Potentials as libraries for programs without Python, see the header `segnn.h`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from ase.data import atomic_numbers

import ase_segnn
from ase_segnn.codegen.cpp import HEADERS
from ase_segnn.codegen.inference import constants_of, source_of
from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines import exported
from ase_segnn.engines.build import compile_library
from ase_segnn.engines.native import compare, constants
from ase_segnn.files import written_whole
from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.potential import Potential, Prediction

SUFFIX = ".so"
HEADER = HEADERS / "segnn.h"
# Weights are not text, which compilers take long to read.
_WEIGHTS = """
asm(R"(
.pushsection .rodata
.balign 64
segnn_weights:
.incbin {file}
.popsection
)");
extern "C" const char segnn_weights[] __attribute__((visibility("hidden")));
"""


def export_library(
    potential: Potential,
    path: Path,
    *,
    name: str,
    fingerprint: str = "",
    march: str = "native",
    header: Path | None = None,
) -> None:
    """Write a potential as a library with an interface in C.

    What was compiled is compared with the plain potential before it takes its place. Existing files are replaced.

    Parameters
    ----------
    potential : on the CPU, in the precision that the library is to have
    path : of the library, ends in ``.so``
    name, fingerprint : of the potential, which the library tells its callers
    march : kind of processor as the compiler calls it, such as x86-64-v3; "native" for that of this machine
    header : where the header goes that programs are compiled with; default: nowhere

    Raises
    ------
    ValueError
        If there is no generated code for the potential, or the path has another suffix.
    NoCompilerError
        If there is no C++ compiler, or it fails.
    RuntimeError
        If the library cannot run on this machine, or its results are not those of the plain potential.
    OSError
        If a file cannot be written.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"libraries end in '{SUFFIX}', got '{path}'; choose a name such as 'model{SUFFIX}'")
    reason = unsupported(potential)
    if reason is not None:
        raise ValueError(f"'{name}' cannot be exported: {reason}; SEGNNCalculator runs it as plain torch")
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:  # where programs may run, most likely
        folder = Path(temporary)
        source = library_source(potential, name, fingerprint, folder / "weights")
        library = compile_library(source, HEADERS, folder, march)
        for n_threads in (1, 2):
            compare(potential, partial(_predict, library, march, n_threads), "")
        with ExitStack() as stack:
            shutil.copy(library, stack.enter_context(written_whole(path)))
            if header is not None:
                shutil.copyfile(HEADER, stack.enter_context(written_whole(header)))


def library_source(potential: Potential, name: str, fingerprint: str, weights: Path) -> str:
    """Return the C++ of a library, and write the weights that become a part of it to a file."""
    program = program_of(potential)
    values, packed = constants(program, potential)
    fields: dict[str, object] = dict(values)
    content = b""
    kinds = constants_of(program)
    for part in packed:
        start = len(content)
        for array, first in part.starts.items():
            fields[array] = f"({kinds[array]})(segnn_weights + {start + first * part.numbers.itemsize})"
        content += part.numbers.numpy().tobytes()
    weights.write_bytes(content)
    elements = ", ".join(str(atomic_numbers[symbol]) for symbol in potential.elements)
    precision = str(potential.dtype).removeprefix("torch.")
    texts = [_literal(text) for text in (name, fingerprint, f"ase-segnn {ase_segnn.__version__}", precision)]
    info = [*texts, repr(potential.cutoff), len(potential.network.rounds), len(potential.elements), "ELEMENTS"]
    info += ["MOST_EXCHANGED_BYTES", "N_FORWARD_PASSES", "SYMBOLS"]
    return "\n".join(
        [
            source_of(program, potential.dtype),
            '#include "library.hpp"',
            _WEIGHTS.format(file=_literal(str(weights))),
            f"const Constants CONSTANTS = {{{', '.join(str(fields[field]) for field in kinds)}}};",
            f"static const int64_t ELEMENTS[] = {{{elements}}};",
            f"static const char* const SYMBOLS[] = {{{', '.join(map(_literal, potential.elements))}}};",
            f"const segnn_info INFO = {{{', '.join(map(str, info))}}};\n",
        ]
    )


def _literal(text: str) -> str:
    """Return a text as C++ and the assembler read it."""
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F) if chr(byte) not in '"\\?'}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in os.fsencode(text)) + '"'


def _predict(library: Path, march: str, n_threads: int, graph: AtomicGraph) -> Prediction:
    """Evaluate a structure with a library in another process."""
    arrays = {
        "positions": graph.positions,
        "cell": graph.cell,
        "atomic_numbers": graph.atomic_numbers,
        "centers": graph.centers,
        "neighbors": graph.neighbors,
        "cell_shifts": graph.cell_shifts,
    }
    run = subprocess.run(
        [sys.executable, "-m", exported.__name__, str(library), str(n_threads)],
        input=json.dumps({name: tensor.flatten().tolist() for name, tensor in arrays.items()}),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == -signal.SIGILL:
        raise RuntimeError(
            f"this machine lacks instructions of '{march}', so the library cannot be checked here and is not written; "
            "export it on a machine that has them, or for an older processor"
        )
    if run.returncode:
        last = run.stderr.strip().rpartition("\n")[2] or f"exit status {run.returncode}"
        raise RuntimeError(f"the library was compiled and cannot be used: {last}; please report this")
    results = {name: torch.tensor(values, dtype=torch.float64) for name, values in json.loads(run.stdout).items()}
    return Prediction(
        results["energy"],
        results["atom_energies"],
        results["forces"].reshape(-1, 3),
        results["stress"].reshape(1, 3, 3),
    )
