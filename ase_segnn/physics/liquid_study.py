"""Study of a liquid: dynamics, radial distribution functions and diffusion."""

from __future__ import annotations

from ase_segnn.physics.fluids import diffusion_coefficient, radial_distributions
from ase_segnn.physics.work import Recorded, Work

_MOST_PEAKS = 2


def study_liquid(work: Work) -> None:
    """Compute what applies to a liquid, and add it to the results."""
    runs, free = work.dynamics(work.loaded.atoms)
    for recorded in runs:
        if recorded.run.verdict.outcome == "passed":
            _structure(work, recorded)
    if free is not None and free.run.verdict.outcome == "passed":
        work.attempt("Diffusion", None, lambda: _diffusion(work, free))


def _structure(work: Work, recorded: Recorded) -> None:
    """Positions and heights of the first peaks, beside those of the reference's frames."""
    reference = radial_distributions(each.atoms for each in work.loaded.frames) if work.loaded.frames else {}
    for pair, distribution in radial_distributions(recorded.late_frames).items():
        name = f"g(r) {pair} at {recorded.temperature:g} K"
        known = reference[pair].peaks() if pair in reference else []
        for index, (distance, height) in enumerate(distribution.peaks()[:_MOST_PEAKS]):
            at, high = known[index] if index < len(known) else (None, None)
            work.results.add(f"{name}, peak {index + 1}", "Å", distance, at)
            work.results.add(f"{name}, height {index + 1}", "", height, high)
        if pair in reference:
            difference = distribution.difference(reference[pair])
            work.results.add(f"{name}, mean absolute difference from the reference", "", difference)


def _diffusion(work: Work, free: Recorded) -> None:
    box = free.frames[0].get_volume() ** (1 / 3)
    mean = free.run.temperature_K[len(free.run.temperature_K) // 2 :].mean()
    work.results.add("temperature of the run at constant energy", "K", mean)
    for element in dict.fromkeys(free.frames[0].symbols):
        value = diffusion_coefficient(free.frames, element, free.step_ps)
        work.results.add(f"diffusion of {element}, box of {box:.1f} Å", "10⁻⁹ m²/s", value)
