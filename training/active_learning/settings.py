"""Settings of a run of active learning, typed and checked before anything runs."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ..labeling.workers import n_cores
from ..recipe import Count, Duration, PositiveFloat, PositiveInt, Section

_FEWEST_LABELS = 30
_STARTS, _FRESH, _OF_EACH = (10, 50), (10, 50), 0.1  # least and most start frames and fresh ones; share of the labels
_RATIO, _MOST_RUNGS = 1.5, 5  # of temperatures of the ladder


def parse_range(value: Any) -> Any:
    """Return the two numbers of a text such as ``300:1500``, and of one number twice this number.

    >>> parse_range("300:1500"), parse_range("300")
    ((300.0, 1500.0), (300.0, 300.0))

    Raises
    ------
    ValueError
        If a text is of another form.
    """
    if isinstance(value, int | float):
        return (value, value)
    if not isinstance(value, str):
        return value
    number = r"[+-]?\d+(?:\.\d+)?"
    if not re.fullmatch(rf"{number}(:{number})?", value):
        raise ValueError(f"{value!r} is no range; write two numbers, such as 300:1500, or one")
    parts = [float(part) for part in value.split(":")]
    return (parts[0], parts[-1])


def ladder(coldest: float, hottest: float) -> list[float]:
    """Return temperatures at equal ratios, of 1.5 or less if five of them allow, from cold to hot, in whole K between.

    >>> ladder(300, 600)
    [300.0, 424.0, 600.0]

    Raises
    ------
    ValueError
        If they are not positive, or in the other order.
    """
    if not 0 < coldest <= hottest:
        raise ValueError(f"temperatures are positive and go from cold to hot, got {coldest:g}:{hottest:g}")
    n = 1 if hottest == coldest else min(_MOST_RUNGS, 1 + math.ceil(math.log(hottest / coldest) / math.log(_RATIO)))
    between = [float(round(coldest * (hottest / coldest) ** (k / (n - 1)))) for k in range(1, n - 1)]
    return [float(coldest), *between, *([float(hottest)] if n > 1 else [])]


_Temperatures = Annotated[tuple[PositiveFloat, PositiveFloat], BeforeValidator(parse_range)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Pressures = Annotated[tuple[_Finite, _Finite], BeforeValidator(parse_range)]


class LearnSettings(Section):
    """What a run of active learning does; see `ase_segnn.training.active_learning.run.learn`.

    Parameters
    ----------
    name : of the potential
    reference : as `ase_segnn.training.labeling.find_reference` takes it; None if labels are made elsewhere
    charge, multiplicity : for gfn2; None for those of each structure
    labels : the most labels, start and fresh frames included
    max_time : seconds of the whole run; None for an hour beside the labels
    temperatures : K, the coldest and the hottest of the ladder
    pressures : GPa, the lowest and the highest of dynamics in which the cell moves; None for fixed cells
    workers : processes that label
    limit : seconds per label; None for 20 times the median, at least a minute
    members : potentials in the committee that explores; None for one per core, at least 2 and at most 4
    committee : keep the committee as the result, not its best member
    deviation : eV/Å, from which on a frame is new; None for a tenth of the root mean square force component
    seed : of everything random
    recipe : keys of a training recipe, such as ``{"network": {"cutoff": 4.5}}``
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    reference: str | None
    charge: int | None = None
    multiplicity: PositiveInt | None = None
    labels: Annotated[Count, Field(ge=_FEWEST_LABELS)] = 500
    max_time: Duration | None = None
    temperatures: _Temperatures = (300.0, 600.0)
    pressures: _Pressures | None = None
    workers: PositiveInt = 1
    limit: Duration | None = None
    members: Annotated[int, Field(ge=2, le=16)] | None = None
    committee: bool = False
    deviation: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    recipe: dict[str, Any] = Field({}, description="keys of a training recipe")

    @model_validator(mode="after")
    def _check(self) -> LearnSettings:
        for name in ("temperatures", "pressures"):
            given = getattr(self, name)
            if given is not None and given[0] > given[1]:
                raise ValueError(f"{name} go from the lowest to the highest, got {given[0]:g}:{given[1]:g}")
        taken = {"name", "data", "committee", "bootstrap", "seed", "base", "pretrain", "frozen"} & set(self.recipe)
        if taken:
            raise ValueError(f"'{min(taken)}' is decided by the run itself; leave it out of the recipe")
        if "max_time" in self.recipe.get("optimization", {}):
            raise ValueError("optimization.max_time is decided by the run itself; give the time of the whole run")
        return self

    @property
    def rungs(self) -> list[float]:
        """Temperatures of the ladder."""
        return ladder(*self.temperatures)

    @property
    def n_start(self) -> int:
        """Number of start frames, without isolated atoms."""
        return _bounded(_OF_EACH * self.labels, _STARTS)

    @property
    def n_fresh(self) -> int:
        """Number of frames to label at the end, never to learn."""
        return _bounded(_OF_EACH * self.labels, _FRESH)

    @property
    def n_members(self) -> int:
        """Number of potentials in the committee that explores."""
        return self.members or min(max(n_cores(), 2), 4)


def _bounded(value: float, bounds: tuple[int, int]) -> int:
    return min(max(round(value), bounds[0]), bounds[1])
