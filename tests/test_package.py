"""The package as a whole: which module may import which, what an import changes, and what an installation holds."""

import ast
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import ase_segnn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]

# A module imports from its own layer and from those before it.
LAYERS = [
    {
        "_e3nn",
        "_mkl",
        "builders",
        "caches",
        "checks",
        "configuration",
        "constraints",
        "electrons",
        "files",
        "labels",
        "quantities",
        "smiles",
        "structures",
    },
    {"graphs"},
    {"model"},
    {"codegen"},
    {
        "elements",
        "engines",
        "kept_atoms",
        "potential_file",
        "potential_formats",
        "potentials",
        "results",
        "uncertainty",
    },
    {"calculator"},
    {"ensembles", "evaluation", "glyphs", "plots", "selection"},
    {"integrations", "physics"},
    {"cli", "training"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FOLDERS = {"ase_segnn": "ase_segnn", "training": "ase_segnn.training", "potentials": "ase_segnn.potentials"}


def source_files() -> dict[str, Path]:
    """Every module of the installed package by its import name."""
    files = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            files[".".join((package, *parts))] = path
    return files


SOURCES = source_files()


def imported_names(module: str, *, top_level_only: bool = False) -> set[str]:
    """All that a module imports, as absolute dotted names; `from a import b` gives a.b."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]).rstrip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    """Return the second word of ase_segnn.<word>..., or None for anything that is not of this package."""
    words = name.split(".")
    return words[1] if words[0] == "ase_segnn" and len(words) > 1 else None


def test_the_sources_were_found():
    assert {"ase_segnn", "ase_segnn.graphs.atomic_graph", "ase_segnn.model.segnn", "ase_segnn.training"} <= set(SOURCES)
    assert "ase_segnn.model.segnn.SEGNN" in imported_names("ase_segnn.model.potential")


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"ase_segnn"}))
def test_imports_follow_the_layers(module):
    own = part(module)
    assert own in RANK, f"add {module} to a layer"
    for name in imported_names(module):
        other = part(name)
        if other is None or other == "__version__":
            continue
        assert other in RANK, f"{module} imports {name}: import it from the module that defines it"
        assert RANK[other] <= RANK[own], f"{module} imports {name} from a later layer"
        assert (own, other) != ("training", "cli"), f"{module} imports the command line"


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if part(name) != "training"))
def test_training_is_imported_by_one_command_only(module):
    found = {name for name in imported_names(module) if part(name) == "training"}
    if part(module) == "cli":
        found &= imported_names(module, top_level_only=True)
    assert not found, f"{module} must work without the extra 'train'"


def test_one_module_knows_the_particle_systems_beside_potentials():
    """The command that trains is the one place of dispatch; potentials are trained without any code for particles."""
    particles = "ase_segnn.training.particles"
    others = [module for module in SOURCES if not module.startswith(particles)]
    knowing = [module for module in others if any(name.startswith(particles) for name in imported_names(module))]
    assert knowing == ["ase_segnn.cli.train"]
    code = (
        "import sys, ase_segnn.training, ase_segnn.cli; "
        "print(*[name for name in sys.modules if name.startswith('ase_segnn.training.particles')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_e3nn_is_imported_in_one_place(module):
    external = {name.split(".")[0] for name in imported_names(module)}
    assert ("e3nn" in external) == (module == "ase_segnn._e3nn")


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if part(name) != "training"))
def test_the_library_reads_no_pickles(module):
    external = {name.split(".")[0] for name in imported_names(module)}
    assert not external & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"torch.load", "torch.save", "np.load", "numpy.load"}


IMPORT_QUIETLY = """
import os, random, sys, warnings
import numpy as np

environment = dict(os.environ)
import ase_segnn
assert not {"torch", "ase", "e3nn"} & set(sys.modules), "a bare import loads nothing heavy"

import torch

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precisions": (
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "gradients": torch.is_grad_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "slice allow-listed": slice in torch.serialization.get_safe_globals(),
        "random numbers": (torch.initial_seed(), torch.get_rng_state().tolist(), random.getstate()),
        "numpy random numbers": np.random.get_state()[1].tolist(),
        "environment": dict(os.environ),
    }

before = state()
assert before["environment"] == environment
with warnings.catch_warnings():
    warnings.simplefilter("error")
    for name in ase_segnn.__all__:
        getattr(ase_segnn, name)
after = state()
changed = [what for what in before if before[what] != after[what]]
assert not changed, changed
assert not [name for name in sys.modules if name.startswith(("lightning", "ase_segnn.training", "ase_segnn.cli"))]
"""


def test_an_import_changes_and_prints_nothing():
    result = subprocess.run([sys.executable, "-c", IMPORT_QUIETLY], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


IMPORT_LITTLE = """
import sys
from ase.build import molecule
from ase_segnn import AtomicGraph, SEGNNCalculator, load_potential
from ase_segnn.potentials import path_of

potential = load_potential(path_of("acac-pbe"))
potential.predict(AtomicGraph.from_atoms(molecule("CH3CH2OH"), potential.cutoff), stress=False)
atoms = molecule("CH3CH2OH")
for mode in (False, "auto"):
    atoms.calc = SEGNNCalculator("acac-pbe", device="cpu", compile=mode)
    atoms.get_forces()
print(*sorted({"e3nn", "sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_to_load_and_evaluate_a_potential_no_compiler_is_imported():
    result = subprocess.run([sys.executable, "-c", IMPORT_LITTLE], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def test_slice_stays_allowed_for_a_program_that_allowed_it():
    code = (
        "import torch; torch.serialization.add_safe_globals([slice]); import ase_segnn._e3nn; "
        "assert slice in torch.serialization.get_safe_globals()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ase_segnn.__all__)
def test_public_names_exist(name):
    assert getattr(ase_segnn, name) is not None
    assert name in dir(ase_segnn)


def test_type_checkers_see_the_names_that_are_imported_on_use():
    for node in ast.parse(SOURCES["ase_segnn"].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            seen = {alias.name: part.module for part in node.body for alias in part.names}
    assert seen == ase_segnn._MODULE_OF
    assert set(ase_segnn.__all__) == {*seen, "__version__"}
    for name, module in seen.items():
        assert getattr(import_module(module), name) is getattr(ase_segnn, name)


def test_errors_of_the_library_are_public():
    """Whoever catches an error must be able to import its class."""
    own = {}
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Warning")):
                own[node.name] = module
    assert own.pop("LabelError") == "ase_segnn.labels.values"  # many become one ValueError in `choose_labels`
    assert own.pop("NoLabelError") == "ase_segnn.training.labeling.labeling"  # whoever labels counts them
    assert {"NoCompilerError", "PotentialFileError", "UncertaintyError"} <= own.keys()
    assert {name: ase_segnn._MODULE_OF.get(name) for name in own} == own


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"no attribute 'SEGNNPotential'; public names are .*SEGNNCalculator"):
        ase_segnn.SEGNNPotential  # noqa: B018


def test_one_version_everywhere():
    version = ase_segnn.__version__
    assert metadata.version("ase-segnn") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_installed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    assert setuptools["package-dir"] == {package: folder for folder, package in FOLDERS.items()}
    assert set(setuptools["packages"]) == {name for name, path in SOURCES.items() if path.name == "__init__.py"}


@pytest.mark.parametrize("package", ["ase_segnn.training", "ase_segnn.potentials"])
def test_packages_beside_the_library_are_found_from_anywhere(package, tmp_path):
    code = f"import {package} as package; assert package.__file__"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert import_module(package).__file__ is not None
