"""What a calculator evaluates: a potential, or each member of a committee, in the fastest form there is for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ase_segnn.graph import AtomicGraph
from ase_segnn.model.captured import CapturedPotential
from ase_segnn.model.committee import Committee, combine
from ase_segnn.model.compiled import CompiledPotential
from ase_segnn.model.cpp import NoCompilerError
from ase_segnn.model.native import NativePotential, why_not_native
from ase_segnn.model.potential import Potential

_Form = Potential | NativePotential | CompiledPotential | CapturedPotential

_log = logging.getLogger(__name__)


class Evaluator:
    """A potential in the form that `compile` asks for; a committee has all its members in the same form.

    Parameters
    ----------
    potential : frozen, in evaluation mode, and not to be changed any more
    compile : as of `ase_segnn.SEGNNCalculator`
    name : of the potential, for the log

    Raises
    ------
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

    @property
    def form(self) -> type[_Form]:
        """Its form."""
        return type(self._forms[0])

    @property
    def takes_far_pairs(self) -> bool:
        """Whether it passes over pairs beyond the cutoff faster than they are taken out."""
        return self.form is NativePotential

    @property
    def takes_batches(self) -> bool:
        """Whether it takes more than one structure at a time."""
        return self.form in (Potential, NativePotential)

    def evaluate(self, graph: AtomicGraph, *, forces: bool, stress: bool) -> dict[str, NDArray[np.float64]]:
        """Return the arrays of what `Potential.predict` or `Committee.predict` returns; forces may come unasked."""
        if len(self._forms) == 1 and isinstance(self._forms[0], NativePotential):
            return self._forms[0].evaluate(graph, forces=forces, stress=stress)
        predictions = [
            form.predict(graph, stress=stress)
            if isinstance(form, CompiledPotential | CapturedPotential)
            else form.predict(graph, forces=forces, stress=stress)
            for form in self._forms
        ]
        return (predictions[0] if len(predictions) == 1 else combine(predictions)).arrays()


def _forms(members: list[Potential], compile_them: bool | Literal["auto"], name: str) -> Sequence[_Form]:
    if compile_them is False:
        return members
    reason = why_not_native(members[0])
    if reason is None:
        try:
            return [NativePotential(member) for member in members]
        except NoCompilerError as error:
            if compile_them is True:
                raise
            _log.warning("%s is not compiled: %s", name, error)
    else:
        _log.info("%s is not compiled: %s", name, reason)
    if compile_them is not True:
        return members
    form = CapturedPotential if members[0].device.type == "cuda" else CompiledPotential
    return [form(member) for member in members]
