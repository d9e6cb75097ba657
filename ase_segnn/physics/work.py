"""What the studies of crystals, liquids and molecules share: parts that may fail, and dynamics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError

from ase_segnn.physics.dynamics import INTERVAL, Run, constant_energy_run, langevin_run, timestep_for
from ase_segnn.physics.fluids import Recorder
from ase_segnn.physics.results import Results
from ase_segnn.physics.systems import LoadedSystem, Part
from ase_segnn.physics.verdicts import Verdict

_log = logging.getLogger(__name__)

_DURATION_PS = {"crystal": 100.0, "liquid": 100.0, "molecule": 1000.0}
_LONGEST_NVE_PS = 100.0
_MOST_FRAMES = 1000  # that are kept of a run
_FAILURES = (ArithmeticError, MemoryError, PropertyNotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run and some of its frames.

    Parameters
    ----------
    run : with its verdict
    frames : at equal steps, positions not wrapped
    step_ps : time between frames
    temperature : K, of the thermostat or of the start
    """

    run: Run
    frames: list[Atoms]
    step_ps: float
    temperature: float

    @property
    def late_frames(self) -> list[Atoms]:
        """Frames after the first fifth of the run, which is for equilibration."""
        return self.frames[len(self.frames) // 5 :]


@dataclass(frozen=True, eq=False)
class Work:
    """A system, the calculators, and the results so far.

    Parameters
    ----------
    loaded : the system
    static : calculator for relaxations and differences
    moving : calculator for dynamics
    tell : called with what is computed next
    results : of all parts
    """

    loaded: LoadedSystem
    static: Calculator
    moving: Calculator
    tell: Callable[[str], object]
    results: Results

    def attempt(self, name: str, part: Part | None, function: Callable[[], Any]) -> Any:
        """Call a function, unless its part is skipped; a failure becomes a verdict, and None is returned."""
        if part is not None and part in self.loaded.system.skip:
            return None
        self.tell(name)
        try:
            return function()
        except _FAILURES as error:
            self.judge(name, "failed", f"It could not be computed: {error}.")
            return None

    def judge(self, name: str, outcome: Any, statement: str) -> None:
        """Add a verdict to the results."""
        self.results.verdicts.append(Verdict(name, outcome, statement))
        _log.info("%s: %s. %s", name, outcome, statement)

    def run(self, atoms: Atoms, temperature: float) -> Recorded:
        """Run dynamics with a thermostat for the duration of the system, without adding the verdict."""
        return self._record(langevin_run, atoms, temperature, self._duration)

    def dynamics(self, atoms: Atoms) -> tuple[list[Recorded], Recorded | None]:
        """Run at each temperature, and then without a thermostat from the end of the first run; add the verdicts.

        Returns
        -------
        runs with a thermostat, none if dynamics is skipped; and the run without, None if the first run failed
        """
        if "dynamics" in self.loaded.system.skip:
            return [], None
        runs = []
        for temperature in self.loaded.system.temperatures:
            self.tell(f"dynamics at {temperature:g} K")
            runs.append(self.run(atoms, temperature))
            self.results.verdicts.append(runs[-1].run.verdict)
        if runs[0].run.verdict.outcome != "passed":
            return runs, None
        self.tell("dynamics at constant energy")
        duration = min(self._duration, _LONGEST_NVE_PS)
        free = self._record(constant_energy_run, runs[0].frames[-1], runs[0].temperature, duration)
        self.results.verdicts.append(free.run.verdict)
        return runs, free

    @property
    def _duration(self) -> float:
        return self.loaded.system.duration_ps or _DURATION_PS[self.loaded.kind]

    def _record(self, perform: Callable[..., Run], atoms: Atoms, temperature: float, duration_ps: float) -> Recorded:
        timestep = timestep_for(atoms)
        steps = max(INTERVAL, round(1000 * duration_ps / timestep))
        every = INTERVAL * max(1, -(-steps // (INTERVAL * _MOST_FRAMES)))
        recorder = Recorder(every)
        run = perform(self.moving, atoms, temperature, steps=steps, watch=recorder.look)
        return Recorded(run, recorder.frames, every * timestep / 1000, temperature)
