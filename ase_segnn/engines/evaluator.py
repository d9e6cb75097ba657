"""What a calculator evaluates: a potential, or each member of a committee, in the fastest form there is for it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ase_segnn.engines.build import NoCompilerError
from ase_segnn.engines.captured import CapturedPotential
from ase_segnn.engines.native import NativePotential, why_not_native
from ase_segnn.graph import AtomicGraph
from ase_segnn.model.committee import Committee, combine
from ase_segnn.model.potential import Potential

_Form = Potential | NativePotential | CapturedPotential

_log = logging.getLogger(__name__)


class Evaluator:
    """A potential in the form that `compile` asks for; a committee has all its members in the same form.

    Several threads may use it.

    Parameters
    ----------
    potential : frozen, in evaluation mode, and not to be changed any more
    compile : as of `ase_segnn.SEGNNCalculator`
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

    def __init__(
        self,
        potential: Potential | Committee,
        compile: bool | Literal["auto"],  # noqa: A002  # torch's word for it
        name: str,
    ) -> None:
        members = list(potential.members) if isinstance(potential, Committee) else [potential]
        self._forms = _forms(members, compile, name)
        if self.form is not NativePotential and members[0].dtype is torch.float32:
            _warn_of_precision(name)

    @property
    def form(self) -> type[_Form]:
        """Class of what is evaluated."""
        return type(self._forms[0])

    @property
    def takes_far_pairs(self) -> bool:
        """Whether to hand over the whole Verlet list; the compiled code skips distant pairs itself."""
        return self.form is NativePotential

    @property
    def takes_batches(self) -> bool:
        """Whether several structures can be evaluated at a time."""
        return self.form in (Potential, NativePotential)

    def evaluate(self, graph: AtomicGraph, *, derivatives: bool) -> dict[str, NDArray[np.float64]]:
        """Return the arrays of what `Potential.predict` or `Committee.predict` returns.

        Parameters
        ----------
        graph : one structure, or several if `takes_batches`
        derivatives : forces and stress besides the energies; they come at once. The stress of a structure whose cell
            has no volume is nan
        """
        if len(self._forms) == 1 and isinstance(self._forms[0], NativePotential):
            return self._forms[0].evaluate(graph, derivatives=derivatives)
        predictions = [
            form.predict(graph)
            if isinstance(form, CapturedPotential)
            else form.predict(graph, forces=derivatives, stress=derivatives)
            for form in self._forms
        ]
        return (predictions[0] if len(predictions) == 1 else combine(predictions)).arrays()


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


def _forms(members: list[Potential], compile_them: bool | Literal["auto"], name: str) -> Sequence[_Form]:
    if compile_them is False:
        return members
    if members[0].device.type == "cuda":
        return members if compile_them == "auto" else [CapturedPotential(member) for member in members]
    reason = why_not_native(members[0])
    if reason is not None:
        if compile_them is True:
            raise ValueError(f"{name} cannot be compiled: {reason}; compile='auto' or False does without")
        _log.warning("%s is not compiled, and so many times slower: %s", name, reason)
        return members
    try:
        return [NativePotential(member) for member in members]
    except NoCompilerError as error:
        if compile_them is True:
            raise
        _log.warning("%s is not compiled, and so many times slower: %s", name, error)
        return members
