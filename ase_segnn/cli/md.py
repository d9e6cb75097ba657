"""``ase-segnn md``: molecular dynamics."""

from __future__ import annotations

import csv
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ase_segnn.cli._app import app
from ase_segnn.cli._options import (
    CompileOption,
    DeviceOption,
    DType,
    DTypeOption,
    ForceOption,
    PotentialArgument,
    StructureArgument,
    check_outputs,
    make_calculator,
    name_of,
)
from ase_segnn.files import written_whole

if TYPE_CHECKING:
    from ase import Atoms


class Ensemble(str, Enum):
    """What is held constant."""

    nve = "nve"
    langevin = "langevin"
    npt = "npt"


@app.command()
def md(
    potential: PotentialArgument,
    structure: StructureArgument,
    ensemble: Annotated[
        Ensemble, typer.Option(help="Energy; temperature (Langevin); temperature and pressure.")
    ] = Ensemble.langevin,
    temperature: Annotated[float, typer.Option(min=0, help="K; of the start and of the thermostat.")] = 300.0,
    timestep: Annotated[float, typer.Option(min=1e-6, help="fs.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1000,
    friction: Annotated[float, typer.Option(min=0, help="1/fs, of the Langevin thermostat.")] = 0.01,
    pressure: Annotated[float, typer.Option("--pressure-gpa", help="GPa, of the NPT ensemble.")] = 0.0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start from the momenta in STRUCTURE instead of random ones.")
    ] = False,
    max_deviation: Annotated[
        float | None,
        typer.Option(help="eV/Å; stop where the members of a committee disagree more about the force on an atom."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random velocities and of the Langevin noise.")] = 0,
    interval: Annotated[int, typer.Option(min=1, help="Steps between entries of trajectory and log.")] = 10,
    output: Annotated[
        str | None, typer.Option(help="Prefix of the outputs .traj, .csv and .png; default <name>-<ensemble>.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.float32,
    compile_it: CompileOption = False,
    force: ForceOption = False,
) -> None:
    """Run molecular dynamics of STRUCTURE: trajectory, log, and a plot of temperature and energies."""
    from ase_segnn.structures import read_structure

    prefix = output or f"{name_of(structure)}-{ensemble.value}"
    run = _Run(prefix, interval, steps, timestep)
    check_outputs([run.trajectory, run.log, run.plot], force=force)
    atoms = read_structure(structure)
    if ensemble is Ensemble.npt and not atoms.pbc.all():
        raise ValueError(f"NPT needs a structure that is periodic along all three vectors, pbc={atoms.pbc.tolist()}")
    atoms.calc = make_calculator(potential, device, dtype, compile_it=compile_it, max_deviation=max_deviation)
    rng = np.random.default_rng(seed)
    if keep_velocities:
        if not atoms.has("momenta"):
            raise ValueError(f"'{structure}' has no momenta to keep; leave out --keep-velocities")
    else:
        _draw_velocities(atoms, temperature, rng)
    dynamics = _dynamics(atoms, ensemble, timestep, temperature, friction, pressure, rng)
    columns = run.perform(atoms, dynamics, with_pressure=ensemble is Ensemble.npt)
    title = f"{name_of(structure)}, {potential}, {ensemble.value}"
    _finish(run, columns, title, len(atoms), drift=ensemble is Ensemble.nve)


def _draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution, at rest as a whole; molecules do not rotate either."""
    from ase import units
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)  # of each component of the momentum
    atoms.set_momenta(spread[:, None] * rng.standard_normal((len(atoms), 3)))
    Stationary(atoms, preserve_temperature=False)
    if not atoms.pbc.any() and len(atoms) > 2:
        ZeroRotation(atoms, preserve_temperature=False)
    drawn = atoms.get_temperature()
    if drawn > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / drawn))


def _dynamics(
    atoms: Atoms,
    ensemble: Ensemble,
    timestep: float,
    temperature: float,
    friction: float,
    pressure: float,
    rng: np.random.Generator,
) -> Any:
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import IsotropicMTKNPT
    from ase.md.verlet import VelocityVerlet

    step = timestep * units.fs
    if ensemble is Ensemble.nve:
        return VelocityVerlet(atoms, step)
    if ensemble is Ensemble.langevin:
        atoms.set_constraint([*atoms.constraints, FixCom()])
        return Langevin(atoms, step, temperature_K=temperature, friction=friction / units.fs, fixcm=False, rng=rng)
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=temperature,
        pressure_au=pressure * units.GPa,
        tdamp=100 * step,
        pdamp=1000 * step,
    )


class _Run:
    """Carries a run out and keeps its trajectory and log complete at every moment."""

    def __init__(self, prefix: str, interval: int, steps: int, timestep: float) -> None:
        self.trajectory, self.log, self.plot = (Path(f"{prefix}.{suffix}") for suffix in ("traj", "csv", "png"))
        self.interval, self.steps, self.timestep = interval, steps, timestep
        self.seconds = 0.0

    def perform(self, atoms: Atoms, dynamics: Any, *, with_pressure: bool) -> dict[str, list[float]]:
        """Run all steps and return the columns of the log; Ctrl-C ends the run early and keeps what there is."""
        from ase.io.trajectory import Trajectory
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from ase_segnn.uncertainty import UncertaintyError

        first = _state(atoms, 0, 0.0, with_pressure)
        columns: dict[str, list[float]] = {name: [] for name in first}
        limit = max(20 * first["temperature_K"], 5000.0)
        text = TextColumn(
            "{task.completed}/{task.total} steps, {task.fields[speed]:.2f} ns/day, {task.fields[kelvin]:.0f} K"
        )
        bar = Progress(BarColumn(), text, TimeRemainingColumn(), console=Console(stderr=True))
        with (
            Trajectory(self.trajectory, "w", atoms) as frames,
            self.log.open("w", newline="", encoding="utf-8") as file,
            bar,
        ):
            writer = csv.DictWriter(file, first.keys())
            writer.writeheader()
            task = bar.add_task("", total=self.steps, speed=0.0, kelvin=first["temperature_K"])
            started = time.perf_counter()

            def record() -> None:
                step = dynamics.nsteps
                state = _state(atoms, step, step * self.timestep, with_pressure)
                frames.write()
                writer.writerow({name: f"{value:.10g}" for name, value in state.items()})
                file.flush()
                for name, value in state.items():
                    columns[name].append(value)
                self.seconds = time.perf_counter() - started
                bar.update(task, completed=step, kelvin=state["temperature_K"], speed=self.nanoseconds_per_day(step))
                if state["temperature_K"] > limit:
                    raise RuntimeError(
                        f"the temperature reached {state['temperature_K']:.0f} K at step {step}; a smaller --timestep "
                        "or a relaxed structure may help. "
                        f"'{self.trajectory}' and '{self.log}' hold the run up to here"
                    )

            dynamics.attach(record, interval=self.interval)
            try:
                dynamics.run(self.steps)
            except KeyboardInterrupt:
                typer.echo(f"interrupted after {dynamics.nsteps} steps", err=True)
            except UncertaintyError as error:
                frames.write()
                raise UncertaintyError(
                    f"after {dynamics.nsteps} steps {error}; the last frame of '{self.trajectory}' is this structure, "
                    f"and '{self.log}' holds the run up to it"
                ) from error
        return columns

    def nanoseconds_per_day(self, step: int) -> float:
        """Return the speed of the run so far."""
        return step * self.timestep * 1e-6 / (self.seconds / 86400) if self.seconds else 0.0


def _state(atoms: Atoms, step: int, time_fs: float, with_pressure: bool) -> dict[str, float]:
    from ase import units

    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    state = {
        "step": step,
        "time_fs": time_fs,
        "potential_eV": potential,
        "kinetic_eV": kinetic,
        "total_eV": potential + kinetic,
        "temperature_K": float(atoms.get_temperature()),
    }
    if with_pressure:
        stress = atoms.get_stress(include_ideal_gas=True)
        state |= {"pressure_GPa": -float(stress[:3].mean()) / units.GPa, "volume_A3": float(atoms.get_volume())}
    return state


def _finish(run: _Run, columns: dict[str, list[float]], title: str, n_atoms: int, *, drift: bool) -> None:
    from ase_segnn.plots import dynamics_plot, save_figure

    figure = dynamics_plot(columns, title)
    with written_whole(run.plot) as path:
        save_figure(figure, path)
    steps = int(columns["step"][-1])
    typer.echo(
        f"{steps} steps of {run.timestep:g} fs in {run.seconds:.1f} s, {run.nanoseconds_per_day(steps):.2f} ns/day; "
        f"mean temperature {np.mean(columns['temperature_K']):.0f} K"
    )
    if drift and len(columns["step"]) > 2:
        time_ps = np.array(columns["time_fs"]) / 1000
        per_atom = 1000 * np.array(columns["total_eV"]) / n_atoms
        slope = np.polyfit(time_ps - time_ps.mean(), per_atom - per_atom.mean(), 1)[0]
        typer.echo(f"drift of the total energy {slope:+.4f} meV/atom/ps, fluctuation {per_atom.std():.4f} meV/atom")
    typer.echo(f"trajectory: {run.trajectory}\nlog: {run.log}\nplot: {run.plot}")
