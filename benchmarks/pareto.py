"""Errors against the time of an evaluation, ours beside linear ACE, PACE and NEP; prints a Markdown table per system.

    python benchmarks/pareto.py si acac --output pareto --python .venv-ace/bin/python ace \
        --python .venv-pace/bin/python pace --python .venv-nep/bin/python nep

Several sizes of each kind are fitted on one core and kept in the folder `--output`, so that a run that was interrupted
goes on. Then all are timed in alternation on one thread, as in `speed.py`: energy and forces of newly displaced atoms,
the median over the rounds with the smallest and largest. Errors are of the test frames, by the calculators that are
timed. Ours are trained by the recipe of the system with fewer epochs, given as for `short_runs.py`; `aj fit` and
`pace_fit.py` take its frames for training and validation together. NEP has random weights, so a time alone. A kind that
`--python` does not name is left out. `speed.py` says how to install them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ase.io
from peers import both_errors, errors_of, fit_ace, fit_pace, kept, recipe_with, run, tests_of
from short_runs import network_keys
from speed import SYSTEMS as STRUCTURES
from speed import Contestant, alternate, spread, use_threads

from ase_segnn.training.data import TrainingData

HERE = Path(__file__).parent
OF_PEERS = ("ace", "pace", "nep")


@dataclass(frozen=True)
class System:
    """What is fitted and timed for one table; the options of the command line replace its tuples."""

    recipe: Path
    changes: tuple[str, ...]
    epochs: int
    structure: str  # of speed.py
    energy: str  # of which errors are printed
    ours: tuple[str, ...]
    ace: tuple[str, ...]  # ORDER:DEGREE
    pace: tuple[int, ...]  # functions per element


SYSTEMS = {
    "si": System(
        recipe=HERE / "si.yaml",
        changes=(),
        epochs=20,
        structure="si216",
        energy="energy_per_atom",
        ours=(
            "32x0e+32x1o:1:l_max_attributes=3:correlation=3",
            "64x0e+64x1o+64x2e:1:l_max_attributes=3:correlation=3",
            "16x0e+16x1o+16x2e:2:l_max_attributes=2:correlation=3",
            "32x0e+32x1o+32x2e:2:l_max_attributes=2:correlation=3",
            "32x0e+32x1o+32x2e:2:l_max_attributes=3:correlation=3",
            "64x0e+64x1o+64x2e:2:l_max_attributes=3:correlation=3",
        ),
        ace=("3:10", "3:12", "3:16", "3:20"),
        pace=(50, 100, 300, 500, 1000),
    ),
    "acac": System(
        recipe=HERE.parent / "potentials" / "acac-pbe.yaml",
        changes=("optimization.ema_decay=0.99", "optimization.muon_learning_rate=0.005"),
        epochs=60,
        structure="molecule15",
        energy="energy",
        ours=(
            "32x0e+32x1o:1:l_max_attributes=3:correlation=3",
            "64x0e+64x1o+64x2e:1:l_max_attributes=3:correlation=3",
            "16x0e+16x1o+16x2e:2:l_max_attributes=2:correlation=3",
            "32x0e+32x1o+32x2e:2:l_max_attributes=3:correlation=3",
            "64x0e+64x1o+64x2e:2:l_max_attributes=3:correlation=3",
        ),
        ace=("3:4", "3:5", "3:6", "3:8"),
        pace=(100, 300, 500, 1000),
    ),
}


def main() -> None:
    """Fit what is not there, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=SYSTEMS)
    parser.add_argument("--output", type=Path, default=Path("pareto"), help="folder of the fits")
    parser.add_argument("--python", nargs=2, action="append", default=[], metavar=("INTERPRETER", "ace|pace|nep"))
    parser.add_argument("--ours", nargs="*", metavar="IRREPS:LAYERS[:KEY=VALUE...]")
    parser.add_argument("--ace", nargs="*", metavar="ORDER:DEGREE")
    parser.add_argument("--pace", nargs="*", type=int, metavar="FUNCTIONS")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="per contestant and round")
    arguments = parser.parse_args()
    pythons = {kind: python for python, kind in arguments.python}
    if unknown := sorted(set(pythons) - set(OF_PEERS)):
        parser.error(f"unknown kind '{unknown[0]}' in --python; there are {', '.join(OF_PEERS)}")
    use_threads(1)
    for name in arguments.systems:
        given = {key: getattr(arguments, key) for key in ("ours", "ace", "pace", "epochs")}
        chosen = {key: value for key, value in given.items() if value is not None}
        system = System(**{**vars(SYSTEMS[name]), **chosen})
        folder = arguments.output.resolve() / name
        models = list(fitted(system, folder, pythons))
        print_table(system, models, folder, arguments)
        for kind in OF_PEERS:
            if kind not in pythons:
                print(f"\n{kind} is left out; give its interpreter as --python INTERPRETER {kind}", flush=True)


@dataclass(frozen=True)
class Model:
    """A row of the table, or one for each precision."""

    name: str
    contestant: str  # of speed_worker.py
    python: str
    dtypes: tuple[str, ...]
    minutes: float | None  # of the fit; None without one


def fitted(system: System, folder: Path, pythons: dict[str, str]) -> Iterator[Model]:
    """Fit all sizes of all kinds that are at hand."""
    both = ("float32", "float64")
    base = recipe_with(system.recipe, system.changes)
    for network in system.ours:
        place = folder / f"ours, {system.epochs} epochs" / network
        file, minutes = kept(place, fit_ours, system, base.name, network)
        yield Model(network, f"segnn:{file}", sys.executable, both, minutes)
    data = TrainingData.read(base.data, base.network.cutoff, base.seed)
    if "ace" in pythons:
        for size in system.ace:
            order, degree = map(int, size.split(":"))
            place = folder / f"ace {order} {degree}"
            file, minutes = kept(place, fit_ace, pythons["ace"], data, order, degree)
            yield Model(f"ACE, order {order}, degree {degree}", f"ace:{file}", pythons["ace"], both, minutes)
    if "pace" in pythons:
        for n_functions in system.pace:
            place = folder / f"pace {n_functions}"
            file, minutes = kept(place, fit_pace, pythons["pace"], data, n_functions)
            yield Model(f"PACE, {n_functions} functions", f"pace:{file}", pythons["pace"], both[1:], minutes)
    if "nep" in pythons:
        yield Model("NEP", "nep", pythons["nep"], both[1:], None)


def fit_ours(folder: Path, system: System, name: str, network: str) -> str:
    """Run `ase-segnn train` with the recipe of the system and this network; its file."""
    changes = [*system.changes, f"optimization.epochs={system.epochs}", f"validate_every={system.epochs}"]
    changes += [f"network.{key}={value}" for key, value in network_keys(network).items()]
    command = [sys.executable, "-m", "ase_segnn", "train", str(system.recipe), "--output", str(folder / "fit")]
    run([*command, *(word for change in changes for word in ("--set", change))], folder / "log.txt")
    return str(folder / "fit" / f"{name}.safetensors")


def print_table(system: System, models: list[Model], folder: Path, arguments: argparse.Namespace) -> None:
    """Start all, take errors and times, and print."""
    rows = [(model, dtype) for model in models for dtype in model.dtypes]
    contestants = [
        Contestant(model.contestant, model.python, dtype, folder / f"worker {index}.log")
        for index, (model, dtype) in enumerate(rows)
    ]
    for package in dict.fromkeys(contestant.ready["package"] for contestant in contestants):
        print(package)
    structure, tested = folder / "structure.xyz", folder / "test.xyz"
    ase.io.write(structure, STRUCTURES[system.structure]())
    answers = alternate(contestants, str(structure), arguments.rounds, arguments.seconds)
    tests = tests_of(recipe_with(system.recipe, system.changes))
    energy, unit = (f"{system.energy}_{{}}_meV", "meV/atom" if system.energy == "energy_per_atom" else "meV")
    columns = [f"{name}: energy MAE / RMSE, {unit} | forces, meV/Å" for name in tests]
    print(f"\n| {system.structure} | fit, CPU minutes | | µs/atom (range) | {' | '.join(columns)} |")
    print("|---" * (4 + 2 * len(tests)) + "|", flush=True)
    for index, ((model, dtype), contestant) in enumerate(zip(rows, contestants, strict=True)):
        cells = [model.name, "" if model.minutes is None else f"{model.minutes:.1f}", dtype]
        cells.append(spread([answer[index]["us_per_atom"] for answer in answers], ".1f"))
        for frames in tests.values():
            if model.minutes is None:
                cells += ["", ""]
                continue
            errors = errors_of(contestant, frames, tested)
            cells += [both_errors(errors, name) for name in (energy, "forces_{}_meV_per_A")]
        print(f"| {' | '.join(cells)} |", flush=True)
        contestant.end()


if __name__ == "__main__":
    main()
