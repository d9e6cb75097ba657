"""An exported library, called as a program in C would do; as a process of its own, see `ase_segnn.engines.export`.

The process needs no torch. A library for another processor may end it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from ase_segnn.codegen.interface import ctypes_struct

_SIZES = ("version", "n_atoms", "n_pairs", "n_threads")
_INPUTS: dict[str, Any] = {
    "positions": ctypes.c_double,
    "cell": ctypes.c_double,
    "atomic_numbers": ctypes.c_int64,
    "centers": ctypes.c_int64,
    "neighbors": ctypes.c_int64,
    "cell_shifts": ctypes.c_double,
}
_RESULTS = ("energy", "atom_energies", "forces", "stress", "atom_virials")
_Call: Any = ctypes_struct(
    "segnn_call",
    dict.fromkeys(_SIZES, "int64_t")
    | dict.fromkeys([*_INPUTS, *_RESULTS, "workspace"], "void*")
    | {"workspace_size": "int64_t", "halo_rows": "int64_t"}
    | {"n_ghosts": "int64_t", "exchange": "void*", "context": "void*", "shells": "void*"},
)
_NEEDS_ROOM = 1


def evaluate(path: Path, inputs: dict[str, list[float]], n_threads: int) -> dict[str, list[float]]:
    """Return energy, atom_energies, forces, stress and atom_virials as flat lists.

    Parameters
    ----------
    path : of the library
    inputs : the input arrays of `segnn_call` as flat lists
    n_threads : that share the work

    Raises
    ------
    OSError
        If the library cannot be loaded.
    RuntimeError
        If it returns an error.
    """
    library = ctypes.CDLL(str(path.absolute()))
    library.segnn_interface_version.restype = ctypes.c_int64
    library.segnn_error_text.restype = ctypes.c_char_p
    n_atoms, n_pairs = len(inputs["atomic_numbers"]), len(inputs["centers"])
    sizes = dict(zip(_RESULTS, (1, n_atoms, 3 * n_atoms, 9, 9 * n_atoms), strict=True))
    arrays = {name: (kind * len(inputs[name]))(*inputs[name]) for name, kind in _INPUTS.items()}
    results = {name: (ctypes.c_double * size)() for name, size in sizes.items()}
    places = {name: ctypes.addressof(array) for name, array in (arrays | results).items()}
    version = library.segnn_interface_version()
    call = _Call(version=version, n_atoms=n_atoms, n_pairs=n_pairs, n_threads=n_threads, **places)
    while (code := library.segnn_evaluate(ctypes.byref(call))) == _NEEDS_ROOM:
        workspace = ctypes.create_string_buffer(call.workspace_size)
        call.workspace = ctypes.addressof(workspace)
    if code:
        raise RuntimeError(library.segnn_error_text(code).decode())
    return {name: list(array) for name, array in results.items()}


if __name__ == "__main__":
    json.dump(evaluate(Path(sys.argv[1]), json.load(sys.stdin), int(sys.argv[2])), sys.stdout)
