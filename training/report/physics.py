"""Physics of the systems that a recipe names, for the card; and the cost of a step."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from ase.calculators.calculator import Calculator

from ase_segnn.calculator import SEGNNCalculator
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.physics import LoadedSystem, Results, study
from ase_segnn.physics.dynamics import constant_energy_run
from ase_segnn.physics.studies import check_extras

from ..data.sources import locate_all
from ..recipe import Recipe
from .checks import Survey

_log = logging.getLogger(__name__)

_STEPS, _SECONDS = 200, 10.0  # of the run that tells the cost


def load_systems(recipe: Recipe, elements: Sequence[str]) -> list[LoadedSystem]:
    """Read the systems on the card of a recipe, and refuse before the fit what would fail after it.

    Parameters
    ----------
    recipe : structures and frames are found like its data files
    elements : of the potential

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        See `ase_segnn.physics.LoadedSystem.load` and `ase_segnn.physics.study`; or if a system has other elements.
    """

    def locate(name: str) -> list[str]:
        found = locate_all([name], recipe.data.folder).values()
        return [f"{file.path}@{file.selection}" if file.selection else str(file.path) for file in found]

    systems = [LoadedSystem.load(system, locate, recipe.data.label_keys) for system in recipe.card.physics]
    for each in systems:
        check_extras(each)
        unknown = sorted(set(each.atoms.symbols) - set(elements))
        if unknown:
            raise ValueError(
                f"card.physics: '{each.system.structure}' has {', '.join(unknown)}, training frames have "
                f"{', '.join(elements)} only; leave it out, or add frames"
            )
    return systems


def study_systems(systems: Sequence[LoadedSystem], public: Recipe, potential: Potential | Committee) -> list[Results]:
    """Compute the physics of systems, under the names that they have in `public`, which names no folders."""
    if not systems:
        return []
    static, moving = (SEGNNCalculator(potential, dtype=dtype) for dtype in ("float64", "float32"))
    return [
        study(replace(loaded, system=system), static, moving, partial(_log.info, "%s: %s", system.structure))
        for loaded, system in zip(systems, public.card.physics, strict=True)
    ]


def measured_cost(calculator: Calculator, survey: Survey) -> str:
    """Say how long a step of dynamics takes per atom; an empty text if there is no structure to start from."""
    if survey.start is None:
        return ""
    _, atoms = survey.start
    run = constant_energy_run(calculator, atoms, 300.0, steps=_STEPS, seconds=_SECONDS)
    threads = torch.get_num_threads()
    return (
        f"{1e6 * run.seconds_per_step / len(atoms):.0f} µs per atom and step, in dynamics of "
        f"{atoms.get_chemical_formula()} on {threads} thread{'s' * (threads > 1)} of {platform.machine()}"
    )
