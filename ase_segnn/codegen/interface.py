"""The structs by which compiled code is called, in C and for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

# What changes from call to call: sizes, then what is read, in eV and Å, then what is written. Ghosts are atoms that
# another process has; they follow the atoms in positions, structures, atomic numbers and forces, and `exchange` is not
# null then. Unless `shells` is null, the energies of the first shells[0] atoms alone count, and shells[k] atoms are at
# most k pairs away from these. Unless it is null, `busy` gets the seconds that each thread worked: to prepare, then in
# each pass.
INPUT = {
    "n_atoms": "int64_t",
    "n_ghosts": "int64_t",
    "n_edges": "int64_t",
    "n_structures": "int64_t",
    "n_threads": "int64_t",
    "forces_wanted": "int64_t",
    "workspace_is_clean": "int64_t",
    "halo_capacity": "int64_t",
    "positions": "const double*",
    "cells": "const double*",
    "cell_shifts": "const double*",
    "centers": "const int64_t*",
    "neighbors": "const int64_t*",
    "structures": "const int64_t*",
    "atomic_numbers": "const int64_t*",
    "shells": "const int64_t*",
    "exchange": "Exchange",
    "context": "void*",
    "workspace": "char*",
    "energy": "double*",
    "atom_energies": "double*",
    "forces": "double*",
    "stress": "double*",
    "atom_virials": "double*",
    "busy": "double*",
}
# What does not change, besides the weights of the program.
NUMBERS = {
    "n_species": "int64_t",
    "n_numbers": "int64_t",
    "n_intervals": "int64_t",
    "species_of_number": "const int64_t*",
}
_TYPES: dict[str, Any] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


def struct(name: str, fields: Mapping[str, str]) -> str:
    """Return the declaration of a struct in C."""
    lines = [f"  {kind} {field};" for field, kind in fields.items()]
    return "\n".join([f"typedef struct {name} {{", *lines, f"}} {name};\n"])


def ctypes_struct(name: str, fields: Mapping[str, str]) -> type[ctypes.Structure]:
    """Return the type of a struct for ctypes; all pointers are addresses."""
    types = [(field, _TYPES.get(kind, ctypes.c_void_p)) for field, kind in fields.items()]
    return type(name, (ctypes.Structure,), {"_fields_": types})
