"""Translate the kernels of a random potential for a GPU that need not be there, and print their names.

TRITON_INTERPRET=0 python tests/compile_kernels.py SHAPE DTYPE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from random_potentials import SHAPES, random_potential
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ase_segnn.codegen.potentials import program_of
from ase_segnn.codegen.program import Loop
from ase_segnn.codegen.triton import HEAD, Kernels, arrays_of, n_warps
from ase_segnn.engines.kernels import load_kernels

TARGET = GPUTarget("cuda", 80, 32)
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64"}
OF_PAIRS = ("i64", "i64", "i64", "fp64", "fp64", "fp64", "fp64", "i64", "i64", "fp64")


def main() -> None:
    """Compile all kernels."""
    shape, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    potential = random_potential(SHAPES[shape]).to(dtype)
    program = program_of(potential)
    kernels = Kernels(program.tape, dtype)
    loops = {kernels.name(step): step for step in program.steps if isinstance(step, Loop)}
    module = load_kernels(kernels.source())
    for name, loop in loops.items():
        function = module[name]
        types = ["*i64"] * 4 + ["i32"] * 3 + [TYPES[dtype]]
        types += ["*fp64" if array.is_double else TYPES[dtype] for array in arrays_of(loop)]
        assert len(HEAD) + len(arrays_of(loop)) == len(types) == len(function.arg_names)
        compile_one(function, dict(zip(function.arg_names, types, strict=True)), {}, n_warps(loop))
        sys.stdout.write(f"{name}\n")
    select = module["select_pairs"]
    signature = {name: f"*{kind}" for name, kind in zip(select.arg_names, OF_PAIRS, strict=False)}
    compile_one(select, {**signature, "LANES": "constexpr"}, {"LANES": 32}, 1)
    sys.stdout.write("select_pairs\n")


def compile_one(function: Any, signature: dict[str, str], constants: dict[str, int], warps: int) -> None:
    """Compile a kernel down to what the card runs."""
    source = ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 0


if __name__ == "__main__":
    main()
