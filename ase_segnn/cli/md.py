"""``ase-segnn md``: molecular dynamics."""

from __future__ import annotations

import csv
import time
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
    not_nan,
)
from ase_segnn.ensembles import Ensemble, Motion
from ase_segnn.files import writing, written_whole

if TYPE_CHECKING:
    from ase import Atoms


@app.command()
def md(
    potential: PotentialArgument,
    structure: StructureArgument,
    ensemble: Annotated[
        Ensemble, typer.Option(help="Constant energy, temperature (langevin), or temperature and pressure.")
    ] = Ensemble.langevin,
    temperature: Annotated[
        float, typer.Option(callback=not_nan, min=0, max=1e6, help="K; of the start and of the thermostat.")
    ] = 300.0,
    timestep: Annotated[float, typer.Option(callback=not_nan, min=1e-6, max=1e4, help="fs.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1000,
    friction: Annotated[
        float, typer.Option(callback=not_nan, min=0, max=1e3, help="1/fs, of the Langevin thermostat.")
    ] = 0.01,
    pressure: Annotated[
        float, typer.Option("--pressure-gpa", callback=not_nan, min=-1e6, max=1e6, help="GPa, of the NPT ensemble.")
    ] = 0.0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start from the momenta in STRUCTURE instead of random ones.")
    ] = False,
    max_deviation: Annotated[
        float | None,
        typer.Option(help="eV/Å; stop when a committee disagrees about the force on an atom by more than this."),
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
    from ase_segnn.checks import check_numbers
    from ase_segnn.structures import read_structure

    prefix = f"{name_of(structure)}-{ensemble.value}" if output is None else output
    if not prefix or prefix.endswith("/"):
        raise ValueError(f"--output is the beginning of names of files, such as runs/first, got '{prefix}'")
    run = _Run(prefix, interval, steps, timestep)
    check_outputs([run.trajectory, run.log, run.plot], force=force)
    atoms = read_structure(structure)
    check_numbers(atoms)
    motion = Motion(atoms, structure, ensemble, temperature)
    rng = np.random.default_rng(seed)
    if keep_velocities:
        motion.keep_velocities()
    else:
        motion.draw_velocities(rng)
    atoms.calc = make_calculator(potential, device, dtype, compile_it=compile_it, max_deviation=max_deviation)
    columns = run.perform(motion, motion.dynamics(timestep, friction, pressure, rng))
    title = f"{name_of(structure)}, {potential}, {ensemble.value}"
    _finish(run, columns, title, motion)


class _Run:
    """A run and its outputs; trajectory and log are complete at each moment.

    Parameters
    ----------
    prefix : of the outputs .traj, .csv and .png
    interval : steps between entries of trajectory and log
    steps : number of steps
    timestep : fs
    """

    def __init__(self, prefix: str, interval: int, steps: int, timestep: float) -> None:
        self.trajectory, self.log, self.plot = (Path(f"{prefix}.{suffix}") for suffix in ("traj", "csv", "png"))
        self.interval, self.steps, self.timestep = interval, steps, timestep
        self.n_steps, self.seconds = 0, 0.0

    def perform(self, motion: Motion, dynamics: Any) -> dict[str, list[float]]:
        """Run all steps and return the columns of the log; Ctrl-C ends the run early and keeps the outputs so far."""
        from ase.io.trajectory import Trajectory
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from ase_segnn.uncertainty import UncertaintyError

        atoms, with_pressure = motion.atoms, motion.ensemble is Ensemble.npt
        first = _state(atoms, 0, 0.0, with_pressure)
        columns: dict[str, list[float]] = {name: [] for name in first}
        limit = max(20 * first["temperature_K"], 5000.0)
        text = TextColumn(
            "{task.completed}/{task.total} steps, {task.fields[speed]:.2f} ns/day, {task.fields[kelvin]:.0f} K"
        )
        bar = Progress(BarColumn(), text, TimeRemainingColumn(), console=Console(stderr=True))
        with (
            writing(self.trajectory),
            Trajectory(self.trajectory, "w", atoms) as frames,
            writing(self.log),
            self.log.open("w", newline="", encoding="utf-8") as file,
            bar,
        ):

            def write_frame() -> None:
                with writing(self.trajectory), motion.own_constraints():
                    frames.write()

            writer = csv.DictWriter(file, first.keys())
            writer.writeheader()
            task = bar.add_task("", total=self.steps, speed=0.0, kelvin=first["temperature_K"])
            started = time.perf_counter()

            def record() -> None:
                step = dynamics.nsteps
                state = _state(atoms, step, step * self.timestep, with_pressure)
                write_frame()
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
                write_frame()
                raise UncertaintyError(
                    f"after {dynamics.nsteps} steps {error}; the last frame of '{self.trajectory}' is this structure, "
                    f"and '{self.log}' holds the run up to it"
                ) from error
            self.n_steps, self.seconds = dynamics.nsteps, time.perf_counter() - started
        return columns

    def nanoseconds_per_day(self, step: int) -> float:
        """Return the speed up to a step, in ns per day."""
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


def _finish(run: _Run, columns: dict[str, list[float]], title: str, motion: Motion) -> None:
    from ase_segnn.plots import dynamics_plot, save_figure

    figure = dynamics_plot(columns, title)
    with written_whole(run.plot) as path:
        save_figure(figure, path)
    kelvin = np.mean(columns["temperature_K"])
    typer.echo(
        f"{run.n_steps} steps of {run.timestep:g} fs in {run.seconds:.1f} s, "
        f"{run.nanoseconds_per_day(run.n_steps):.2f} ns/day; "
        f"mean temperature {kelvin:.0f} K of {motion.n_degrees_of_freedom} degrees of freedom"
    )
    if motion.ensemble is Ensemble.nve and len(columns["step"]) > 2:
        time_ps = np.array(columns["time_fs"]) / 1000
        per_atom = 1000 * np.array(columns["total_eV"]) / len(motion.atoms)
        slope = np.polyfit(time_ps - time_ps.mean(), per_atom - per_atom.mean(), 1)[0]
        typer.echo(f"drift of the total energy {slope:+.4f} meV/atom/ps, fluctuation {per_atom.std():.4f} meV/atom")
    typer.echo(f"trajectory: {run.trajectory}\nlog: {run.log}\nplot: {run.plot}")
