"""Which engine evaluates a potential, and why."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Literal

import torch

from ase_segnn.codegen.rules import unsupported
from ase_segnn.engines.build import NoCompilerError
from ase_segnn.engines.captured import CapturedPotential
from ase_segnn.engines.engine import Engine
from ase_segnn.engines.kernels import TritonPotential
from ase_segnn.engines.members import CommitteeEngine
from ase_segnn.engines.native import NativePotential
from ase_segnn.engines.plain import PlainPotential
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential

_log = logging.getLogger(__name__)


def choose_engine(
    potential: Potential | Committee,
    compile: bool | Literal["auto"],  # noqa: A002  # torch's word for it
    name: str,
) -> Engine:
    """Make the engine that `compile` asks for, and say in its `reason` and in the log why it is this one.

    =========  =======================================================  =======================================
    `compile`  on a CPU                                                 on a GPU
    =========  =======================================================  =======================================
    "auto"     compiled C++; plain torch with a warning where that is   Triton kernels; plain torch with a
               impossible                                               warning where that is impossible
    True       compiled C++; an error where that is impossible          Triton kernels; the operations of plain
                                                                        torch, recorded as a CUDA graph, where
                                                                        that is impossible
    False      plain torch                                              plain torch
    =========  =======================================================  =======================================

    Parameters
    ----------
    potential : frozen, in evaluation mode, and not to be changed any more; the members of a committee get engines of
        the same kind
    compile : see the table
    name : of the potential, for messages

    Raises
    ------
    ValueError
        If `compile` is True and the potential has no compiled form.
    NoCompilerError
        If `compile` is True and there is no C++ compiler, or it fails.
    RuntimeError
        If what was compiled gives other results than the plain potential.
    """
    members = list(potential.members) if isinstance(potential, Committee) else [potential]
    device = members[0].device.type
    if compile is False:
        engine = _made(PlainPotential, members, "compile=False")
    elif device == "cpu":
        engine = _native(members, name, required=compile is True)
    else:
        engine = _on_gpu(members, name, device, required=compile is True)
    _log.info("engine of %s: %s (%s)", name, engine.name, engine.reason)
    if engine.follows_torch and members[0].dtype is torch.float32:
        _warn_of_precision(name)
    return engine


def _native(members: list[Potential], name: str, *, required: bool) -> Engine:
    """Compile the members if possible; if not, raise an error where compiled code is required."""
    obstacle = unsupported(members[0])
    if obstacle is not None and required:
        raise ValueError(f"{name} cannot be compiled: {obstacle}; compile='auto' or False does without")
    if obstacle is None:
        try:
            return _made(NativePotential, members, f"compile={True if required else 'auto'!r} on cpu")
        except NoCompilerError as error:
            if required:
                raise
            obstacle = str(error)
    _log.warning("%s is not compiled, and so many times slower: %s", name, obstacle)
    return _made(PlainPotential, members, f"not compiled: {obstacle}")


def _on_gpu(members: list[Potential], name: str, device: str, *, required: bool) -> Engine:
    """Make kernels of the members if possible; if not, record operations of torch where that is required."""
    obstacle = unsupported(members[0]) if device == "cuda" else f"kernels are for CUDA, not for {device}"
    if obstacle is None:
        try:
            return _made(TritonPotential, members, f"compile={True if required else 'auto'!r} on {device}")
        except ImportError as error:
            obstacle = str(error)
    if required:
        return _made(CapturedPotential, members, f"compile=True on {device}; there are no kernels: {obstacle}")
    _log.warning("%s runs without kernels, and so many times slower: %s", name, obstacle)
    return _made(PlainPotential, members, f"there are no kernels: {obstacle}")


def _made(kind: Callable[[Potential], Engine], members: list[Potential], reason: str) -> Engine:
    engines = [kind(member) for member in members]
    engine = engines[0] if len(engines) == 1 else CommitteeEngine(engines)
    engine.reason = reason
    return engine


def _warn_of_precision(name: str) -> None:
    """Say that torch multiplies matrices of float32 with fewer digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 has a word on the name of this function
        precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        _log.warning(
            "torch.get_float32_matmul_precision() is '%s', so energies and forces of %s in float32 have fewer correct "
            "digits; torch.set_float32_matmul_precision('highest') or dtype='float64' gives them back",
            precision,
            name,
        )
