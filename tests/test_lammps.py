"""LAMMPS on one and several processes: energies, forces and stress of the calculator, dynamics, and clear errors."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from compiler import needs_compiler
from lammps_runs import check, evaluate, needs_lammps, run_lammps, thermo, write_data
from random_potentials import SHAPES, random_potential
from systems import ELEMENTS, systems
from typer.testing import CliRunner

from ase_segnn import Committee, SEGNNCalculator, load_potential, save_potential, shipped_potentials
from ase_segnn.cli import app
from ase_segnn.engines.export import export_library
from ase_segnn.integrations.lammps import PLUGIN, plugin_folder
from ase_segnn.integrations.lammps.build import build_plugin, installed_lammps, lammps_in
from ase_segnn.integrations.lammps.inputs import boxed
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import Provenance

pytestmark = [needs_lammps, needs_compiler]
SYMBOLS = list(ELEMENTS)
SYSTEMS = systems()
RANDOM = {"attributes": "natural parity", "products": "products", "three layers": "three layers"}


@dataclass
class Model:
    """A library, and the potential in it."""

    path: Path
    potential: Potential

    def calculator(self) -> SEGNNCalculator:
        dtype = "float64" if self.potential.dtype is torch.float64 else "float32"
        return SEGNNCalculator(self.potential, device="cpu", dtype=dtype, compile=False)


def export(potential: Potential, path: Path) -> Model:
    potential = potential.requires_grad_(False).eval()
    export_library(potential, path, name=path.stem)
    return Model(path, potential)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / PLUGIN
    build_plugin(installed_lammps(), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: export(random_potential(SHAPES[shape]).double(), folder / f"{name.replace(' ', '_')}.so")
        for name, shape in RANDOM.items()
    }


def periodic() -> Atoms:
    """Return 64 atoms of five elements in a skewed cell, each more than a cutoff wide on two processes or more."""
    atoms = ase.build.bulk("Si", "diamond", a=5.8, cubic=True).repeat(2)
    atoms.symbols = np.random.default_rng(3).permutation(np.resize(SYMBOLS, 64))
    atoms.rattle(0.2, seed=4)
    cell = np.array(atoms.cell)
    cell[1, 0], cell[2, 0], cell[2, 1] = 1.9, -0.8, 1.1
    atoms.set_cell(cell, scale_atoms=True)
    return atoms


STRUCTURES = {
    "periodic": periodic(),
    "box below the cutoff": SYSTEMS["one-atom cell"],
    "skewed": SYSTEMS["skewed triclinic"],
    "slab": boxed(SYSTEMS["slab"]),
    "molecule": boxed(SYSTEMS["water"]),
    "one atom": boxed(SYSTEMS["lone atom"]),
}


def coefficients(*models: Model) -> str:
    return f"pair_coeff * * {' '.join(str(model.path) for model in models)} {' '.join(SYMBOLS)}"


CASES = [
    *(("products", structure, n) for structure in STRUCTURES for n in (1, 2)),
    *((name, "periodic", n) for name in RANDOM if name != "products" for n in (1, 2)),
    *(pytest.param("products", structure, 4, marks=pytest.mark.slow) for structure in ("periodic", "slab", "one atom")),
]


@pytest.mark.parametrize(("name", "structure", "n_processes"), CASES)
def test_results_are_the_calculators(
    models: dict[str, Model], plugin: Path, name: str, structure: str, n_processes: int, tmp_path: Path
) -> None:
    """Small structures leave processes without atoms."""
    atoms = write_data(tmp_path, STRUCTURES[structure], SYMBOLS)
    run = evaluate(tmp_path, plugin, atoms, coefficients(models[name]), n_processes)
    check(run, atoms, models[name].calculator())


@pytest.mark.parametrize(
    "options",
    [
        {"before": "comm_style tiled", "after": "balance 1.0 rcb"},
        {"atom_map": ""},
        {"before": "newton on\nprocessors 1 1 2"},
        {"after": "neighbor 1.0 bin\ncomm_modify cutoff 9.0"},
        {"after": "neighbor 2.0 nsq"},
    ],
    ids=["tiled", "no map", "another grid", "more ghosts", "other lists"],
)
def test_results_do_not_depend_on_how_lammps_divides_atoms(
    models: dict[str, Model], plugin: Path, options: dict[str, str], tmp_path: Path
) -> None:
    atoms = write_data(tmp_path, STRUCTURES["periodic"], SYMBOLS)
    for n_processes in (1, 2):
        if "processors" in options.get("before", "") and n_processes == 1:
            continue
        run = evaluate(tmp_path, plugin, atoms, coefficients(models["products"]), n_processes, **options)
        check(run, atoms, models["products"].calculator())


def test_threads_of_a_process_share_its_atoms(models: dict[str, Model], plugin: Path, tmp_path: Path) -> None:
    atoms = write_data(tmp_path, STRUCTURES["periodic"].repeat((2, 1, 1)), SYMBOLS)
    run = evaluate(
        tmp_path, plugin, atoms, coefficients(models["products"]), 2, before="package omp 2", after="suffix off"
    )
    check(run, atoms, models["products"].calculator())


@pytest.mark.parametrize("n_processes", [1, 2])
def test_other_styles_add_to_it(models: dict[str, Model], plugin: Path, n_processes: int, tmp_path: Path) -> None:
    """Alone it acts between some types only: atoms of others are no part of it."""
    model, atoms = models["products"], write_data(tmp_path, STRUCTURES["periodic"], SYMBOLS)
    style = "pair_style hybrid/overlay segnn zero 6.0 nocoeff"
    some = f"pair_coeff * * segnn {model.path} H C NULL Si NULL\npair_coeff * * zero"
    run = evaluate(tmp_path, plugin, atoms, some, n_processes, style=style)
    there = np.isin(atoms.symbols, ["H", "C", "Si"])
    calculator = model.calculator()
    calculator.calculate(atoms[there], ["forces"])
    np.testing.assert_allclose(run.forces[there], calculator.results["forces"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run.energies[there], calculator.results["energies"], rtol=0, atol=1e-9)
    assert not run.forces[~there].any()
    assert not run.energies[~there].any()


def test_a_committee_has_deviations(plugin: Path, tmp_path: Path) -> None:
    potentials = [random_potential(SHAPES["natural parity"], seed=seed).double() for seed in (1, 2)]
    members = [export(potential, tmp_path / f"{k}.so") for k, potential in enumerate(potentials)]
    atoms = write_data(tmp_path, STRUCTURES["periodic"], SYMBOLS)
    after = "fix dev all pair 1 segnn deviation 0"
    calculator = SEGNNCalculator(Committee(potentials), device="cpu", dtype="float64", compile=False)
    for n_processes in (1, 2):
        run = evaluate(tmp_path, plugin, atoms, coefficients(*members), n_processes, after=after, per_atom="f_dev")
        check(run, atoms, calculator)
        calculator.calculate(atoms, ["forces"])
        np.testing.assert_allclose(run.extra[:, 0], calculator.results["forces_std"], rtol=1e-9, atol=1e-9)


def test_units_are_converted(models: dict[str, Model], plugin: Path, tmp_path: Path) -> None:
    model = models["products"]
    write_data(tmp_path, STRUCTURES["periodic"], SYMBOLS)
    script = f"""units {{}}
atom_modify map yes
read_data structure.data
plugin load {plugin}
pair_style segnn
{coefficients(model)}
thermo_modify format float %.16g
run 0
"""
    energies = {unit: float(thermo(run_lammps(tmp_path, script.format(unit)))[0][2]) for unit in ("metal", "real")}
    assert energies["real"] == pytest.approx(23.060549 * energies["metal"], rel=1e-7)


def hot(plugin: Path, model: Model, *, steps: int) -> str:
    """Return an input of hot dynamics, in which atoms change processes."""
    return f"""units metal
atom_modify map yes
read_data structure.data
plugin load {plugin}
pair_style segnn
pair_coeff * * {model.path} Si
velocity all create 3000 1 mom yes
timestep 0.001
fix 1 all nve
thermo_style custom step temp pe etotal press
thermo_modify format float %.9g
thermo 50
run {steps}
"""


@pytest.fixture(scope="module")
def silicon(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("silicon") / "si.so"
    return export(load_potential(shipped_potentials()["si-pbe"]).double(), path)


@pytest.mark.slow
def test_dynamics_is_the_same_on_any_number_of_processes(silicon: Model, plugin: Path, tmp_path: Path) -> None:
    """The potential is not chaotic enough for rounding to show in nine digits after 0.2 ps."""
    atoms = ase.build.bulk("Si", cubic=True).repeat(3)
    write_data(tmp_path, atoms, ["Si"])
    logs = [run_lammps(tmp_path, hot(plugin, silicon, steps=200), n_processes) for n_processes in (1, 2)]
    assert "Neighbor list builds = 0" not in logs[0]
    tables = [np.array(thermo(log), dtype=float) for log in logs]
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], rtol=1e-7)
    assert np.ptp(tables[0][:, 3]) < 2e-3 * len(atoms)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", ["si-pbe", "acac-pbe"])
def test_shipped_potentials(plugin: Path, name: str, dtype: torch.dtype, rtol: float, tmp_path: Path) -> None:
    potential = load_potential(shipped_potentials()[name])
    assert isinstance(potential, Potential)
    model = export(potential.to(dtype), tmp_path / "model.so")
    if name == "si-pbe":
        atoms = ase.build.bulk("Si", cubic=True).repeat((3, 2, 2))
    else:
        molecule = ase.io.read(Path(__file__).parent / "data" / "acetylacetone.xyz")
        molecule.center(vacuum=1.5)
        molecule.pbc = True
        atoms = molecule.repeat((3, 2, 2))
    atoms.rattle(0.05, seed=1)
    symbols = sorted(set(atoms.symbols))
    atoms = write_data(tmp_path, atoms, symbols)
    for n_processes in (1, 2, 3, 4):
        run = evaluate(tmp_path, plugin, atoms, f"pair_coeff * * {model.path} {' '.join(symbols)}", n_processes)
        check(run, atoms, model.calculator(), rtol)


# ---- errors

INPUT = """units metal
atom_modify map yes
{before}
read_data structure.data
plugin load {plugin}
{style}
{coefficients}
run 0
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"before": "newton off"}, "pair_style segnn needs 'newton on'"),
        ({"style": "pair_style segnn 5.0"}, "pair_style segnn takes no arguments"),
        ({"coefficients": "pair_coeff * * {model} H C O Si"}, "an element or NULL for each of the 5 types"),
        ({"coefficients": "pair_coeff * * H C O Si Cu"}, "an element or NULL for each of the 5 types"),
        ({"coefficients": "pair_coeff * * {model} {model}"}, "an element or NULL for each of the 5 types"),
        ({"coefficients": "pair_coeff * * {model} H C N Si Cu"}, "does not know 'N'; it knows H C O Si Cu"),
        ({"coefficients": "pair_coeff * * {model} H C Q Si Cu"}, "does not know 'Q'; it knows H C O Si Cu"),
        ({"coefficients": "pair_coeff * * {model} H C NULL Si Cu"}, "All pair coeffs are not set"),
        ({"coefficients": "pair_coeff * * absent.so H C O Si Cu"}, "cannot open 'absent.so'"),
        ({"coefficients": "pair_coeff * * other.so H C O Si Cu"}, "'other.so' is no library of a potential"),
        ({"coefficients": "pair_coeff * * old.so H C O Si Cu"}, "'old.so' has version 1 of the interface"),
    ],
)
def test_errors_are_clear(
    models: dict[str, Model], plugin: Path, changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    write_data(tmp_path, STRUCTURES["periodic"], SYMBOLS)
    for name, code in (("other", "int x;"), ("old", "long segnn_interface_version(void) { return 1; }")):
        source = tmp_path / f"{name}.cpp"
        source.write_text(f'extern "C" {{ {code} }}\n')
        subprocess.run(["c++", "-shared", "-fPIC", source, "-o", tmp_path / f"{name}.so"], check=True)
    defaults = {"before": "", "style": "pair_style segnn", "coefficients": coefficients(models["products"])}
    fields = {**defaults, **changes}
    fields["coefficients"] = fields["coefficients"].format(model=models["products"].path)
    output = run_lammps(tmp_path, INPUT.format(plugin=plugin, **fields), 2, fails=True)
    assert message in output


def test_bonds_must_not_take_pairs_away(models: dict[str, Model], plugin: Path, tmp_path: Path) -> None:
    atoms = STRUCTURES["periodic"]
    ase.io.write(tmp_path / "structure.data", atoms, format="lammps-data", specorder=SYMBOLS, atom_style="full")
    script = INPUT.format(
        before="atom_style full", plugin=plugin, style="pair_style segnn", coefficients=coefficients(models["products"])
    )
    masses = "".join(f"mass {k} 10.0\n" for k in range(1, 6))
    script = script.replace("run 0", f"{masses}run 0")
    assert "add 'special_bonds lj/coul 1 1 1'" in run_lammps(tmp_path, script, fails=True)
    run_lammps(tmp_path, script.replace("run 0", "special_bonds lj/coul 1 1 1\nrun 0"))


# ---- command line


def command(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["lammps", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_the_command_line_writes_all_that_a_run_needs(tmp_path: Path) -> None:
    """A plugin in the folder that the package lammps asks for is loaded without a word in the input."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    output = command("build", "-o", folder / PLUGIN)
    assert f"plugin load {folder / PLUGIN}" in output
    file = tmp_path / "committee.safetensors"
    members = [random_potential(SHAPES["natural parity"], seed=seed) for seed in (1, 2)]
    save_potential(Committee(members), file, provenance=Provenance())
    structure = tmp_path / "molecule.xyz"
    ase.io.write(structure, SYSTEMS["water"])
    run = tmp_path / "run"
    output = command("export", file, structure, "-o", run)
    assert {path.name for path in run.iterdir()} >= {"model-0.so", "model-1.so", "structure.data", "in.lammps"}
    assert "pair_coeff * * model-0.so model-1.so H O" in (run / "in.lammps").read_text()
    log = run_lammps(run, (run / "in.lammps").read_text(), 2, LAMMPS_PLUGIN_PATH=str(folder))
    assert thermo(log)[-1][0] == "1000"
    assert "exists already" in command("export", file, structure, "-o", run, code=2)
    assert "knows H, C, O, Si, Cu only" in command("export", file, "bulk:Al", "-o", run, code=2)


def test_lammps_asks_for_the_folder_of_the_plugin() -> None:
    [entry] = [entry for entry in metadata.entry_points(group="lammps.plugins") if entry.name == "ase-segnn"]
    assert entry.load()() == plugin_folder()


def test_a_structure_without_a_box_is_an_error_before_any_work(tmp_path: Path) -> None:
    structure = tmp_path / "flat.xyz"
    ase.io.write(structure, Atoms("Si2", [[0, 0, 0], [0, 0, 2.4]], cell=[5, 5, 0], pbc=True))
    output = command("export", "si-pbe", structure, "-o", tmp_path / "run", code=2)
    assert "LAMMPS needs a cell with a volume" in output
    assert not (tmp_path / "run").exists()


def test_sources_of_lammps_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no pair\.h"):
        lammps_in(tmp_path)
    (tmp_path / "pair.h").touch()
    (tmp_path / "version.h").write_text('#define LAMMPS_VERSION "29 Aug 2024"\n')
    assert lammps_in(tmp_path).version == "29 Aug 2024"
