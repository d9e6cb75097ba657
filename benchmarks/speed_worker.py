"""One contestant of `speed.py`, run by the interpreter in which its package is installed.

It builds an ASE calculator, from a file that its package made or with random weights in a published shape (the time
does not depend on their values). Then it answers requests, one JSON object per line on standard input, with one per
line on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers

if TYPE_CHECKING:
    import torch

ELEMENTS = ["H", "C", "N", "O", "Si", "Cu"]


def main() -> None:
    """Build the calculator, then answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", help="a name, or KIND:FILE")
    parser.add_argument("--dtype", choices=["float32", "float64"], required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print goes to standard error

    kind, *rest = arguments.contestant.split(":", 1)
    contestants = OF_FILES if rest else CONTESTANTS
    if kind not in contestants:
        parser.error(f"unknown contestant '{kind}'; there are {', '.join(contestants)}")
    package, build = contestants[kind]
    before = time.perf_counter()
    calculator = build(arguments.dtype, *rest)
    ready = {
        "package": f"{package} {version(package)}",
        "versions": dict(filter(None, map(_installed, ("torch", "e3nn", "jax", "ase", "numpy")))),
        "build_s": time.perf_counter() - before,
    }
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = measure(calculator, **request) if "seconds" in request else predict(calculator, **request)
        print(json.dumps(answer), file=answers, flush=True)


def _installed(name: str) -> tuple[str, str] | None:
    try:
        return name, version(name)
    except PackageNotFoundError:
        return None


def predict(calculator: Calculator, file: str) -> list[dict[str, Any]]:
    """Energy and forces of each frame of a file."""
    results = []
    for atoms in ase.io.read(file, ":"):
        put_in_box(atoms, calculator)
        atoms.calc = calculator
        results.append({"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()})
    return results


def put_in_box(atoms: ase.Atoms, calculator: Calculator) -> None:
    """Give a molecule a cell with a calculator that asks for one, and images that are out of reach if need be."""
    name = type(calculator).__name__
    if atoms.cell.rank < 3 and name in ("CHGNetCalculator", "CPUNEP", "ACECalculator"):
        atoms.center(vacuum=10)
        atoms.pbc = name != "ACECalculator"


def measure(calculator: Calculator, file: str, seed: int, seconds: float) -> dict[str, float]:
    """Evaluate energy and forces for about `seconds`, at least twice, with all atoms displaced anew each time."""
    rng = np.random.default_rng(seed)
    atoms = ase.io.read(file)
    put_in_box(atoms, calculator)
    start = atoms.positions.copy()
    atoms.calc = calculator
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        atoms.positions = start + rng.normal(0, 0.01, start.shape)
        before = time.perf_counter()
        atoms.get_forces()
        atoms.get_potential_energy()  # which comes with the forces
        times.append(time.perf_counter() - before)
    peak_MiB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"us_per_atom": 1e6 * statistics.median(times) / len(atoms), "peak_MiB": peak_MiB}


def ase_segnn(
    dtype: str,
    *,
    irreps: str = "64x0e+64x1o",
    l_max: int = 2,
    skin: float = 1.0,
    compile_it: bool | str = "auto",
    like: str | None = None,
    device: str = "cpu",
) -> Calculator:
    """Return ours, with 2 layers or in the shape of a shipped potential."""
    import torch

    from ase_segnn import Potential, PotentialConfig, SEGNNCalculator
    from ase_segnn.model.config import NetworkConfig
    from ase_segnn.potential_file import read_header
    from ase_segnn.potentials import path_of

    torch.manual_seed(0)
    network = NetworkConfig(irreps_hidden=irreps, l_max_attributes=l_max, n_layers=2, correlation=1)
    potential = Potential(
        PotentialConfig(
            elements=tuple(ELEMENTS),
            reference_energies=dict.fromkeys(ELEMENTS, 0.0),
            energy_scale=1e-3,
            average_neighbors=20,
            zbl=True,
            network=network if like is None else read_header(path_of(like)).config.network,
        )
    )
    return SEGNNCalculator(potential, device=device, dtype=dtype, skin=skin, compile=compile_it)


def mace(dtype: str, *, irreps: str, cutoff: float, device: str = "cpu", **options: bool) -> Calculator:
    """Return MACE with two interactions and correlation order 3; options are those of its calculator."""
    import torch

    torch.serialization.add_safe_globals([slice])  # a file that e3nn 0.4.4 loads when it is imported
    from e3nn import o3
    from mace.calculators import MACECalculator
    from mace.modules import RealAgnosticResidualInteractionBlock, ScaleShiftMACE

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticResidualInteractionBlock,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=20.0,
        atomic_numbers=[atomic_numbers[symbol] for symbol in ELEMENTS],
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1e-3,
        atomic_inter_shift=0.0,
    )
    return MACECalculator(models=[model.to(device)], device=device, default_dtype=dtype, **options)


def nequip(dtype: str, *, cutoff: float, preset: str | None = None, device: str = "cpu", **shape: object) -> Calculator:
    """Return NequIP under AOTInductor."""
    from nequip.model import NequIPGNNModel, PresetNequIPGNNModel

    if preset is not None:
        return _compiled(dtype, cutoff, lambda **common: PresetNequIPGNNModel(preset=preset, **common), device)
    return _compiled(dtype, cutoff, lambda **common: NequIPGNNModel(**shape, **common), device)


def allegro(dtype: str, *, cutoff: float, l_max: int, num_layers: int) -> Calculator:
    """Return Allegro under AOTInductor, with 64 scalar and 32 tensor features."""
    from allegro.model import AllegroModel

    embedding = {
        "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
        "num_bessels": 8,
        "bessel_trainable": False,
        "polynomial_cutoff_p": 6,
    }
    shape = {
        "l_max": l_max,
        "num_layers": num_layers,
        "num_scalar_features": 64,
        "num_tensor_features": 32,
        "radial_chemical_embed": embedding,
    }
    return _compiled(dtype, cutoff, lambda **common: AllegroModel(**shape, **common))


def chgnet(dtype: str) -> Calculator:
    """Return CHGNet 0.3.0, the weights of which come with the package."""
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    _only("float32", dtype)
    return CHGNetCalculator(CHGNet.load(verbose=False), use_device="cpu")


def sevennet(dtype: str) -> Calculator:
    """Return SevenNet-0, the weights of which come with the package."""
    from sevenn.calculator import SevenNetCalculator

    _only("float32", dtype)
    return SevenNetCalculator("7net-0", device="cpu")


def nep(dtype: str) -> Calculator:
    """Return NEP version 4 with the cutoffs, 8 and 4 Å, and the descriptors and neurons that GPUMD takes by default."""
    from calorine.calculators import CPUNEP

    _only("float64", dtype)  # on a CPU
    n_max, basis_size, neurons = 4, 8, 30
    n_descriptors = (n_max + 1) * (1 + 4 + 1)  # radial, three-body up to l = 4, four-body
    n_pairs = len(ELEMENTS) ** 2 * 2 * (n_max + 1) * (basis_size + 1)
    n_weights = len(ELEMENTS) * (n_descriptors + 2) * neurons + 1 + n_pairs
    weights = np.random.default_rng(0).normal(0, 0.1, n_weights)
    header = [f"nep4 {len(ELEMENTS)} {' '.join(ELEMENTS)}", "cutoff 8 4 200 100", f"n_max {n_max} {n_max}"]
    header += [f"basis_size {basis_size} {basis_size}", "l_max 4 2 0", f"ANN {neurons} 0"]
    path = Path(tempfile.mkdtemp()) / "nep.txt"
    path.write_text("\n".join([*header, *map(str, weights), *["1"] * n_descriptors]) + "\n", encoding="utf-8")
    return CPUNEP(str(path))


def trained_ours(dtype: str, file: str) -> Calculator:
    """Return ours from its file."""
    from ase_segnn import SEGNNCalculator

    return SEGNNCalculator(file, device="cpu", dtype=dtype)


def trained_mace(dtype: str, file: str) -> Calculator:
    """Return what `mace_run_train` made."""
    import torch

    torch.serialization.add_safe_globals([slice])
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=file, device="cpu", default_dtype=dtype)


def trained_ace(dtype: str, file: str) -> Calculator:
    """Return what `aj fit` made, with radial functions from a table, which is its fastest form on a CPU."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ace_jax import ACECalculator

    return ACECalculator(file, dtype=dtype, radial_table=True)


def trained_pace(dtype: str, file: str) -> Calculator:
    """Return what `pace_fit.py` made, in its fastest evaluator."""
    from pyace import PyACECalculator

    _only("float64", dtype)
    return PyACECalculator(file, recursive_evaluator=True, recursive=True)


def _only(has: str, dtype: str) -> None:
    if dtype != has:
        sys.exit(f"this contestant has {has} only")


def _compiled(dtype: str, cutoff: float, build: Callable[..., torch.nn.Module], device: str = "cpu") -> Calculator:
    """Do what ``nequip-compile --mode aotinductor --target ase`` does with a trained model."""
    import torch
    from ase.build import bulk
    from nequip.data import from_ase
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms
    from nequip.scripts._compile_utils import ASE_TARGET
    from nequip.utils.aot import aot_export_model
    from nequip.utils.aoti_metadata import NEQUIP_AOTI_INPUTS_KEY, NEQUIP_AOTI_OUTPUTS_KEY, serialize_aoti_keys
    from nequip.utils.global_state import get_latest_global_state, set_global_state

    set_global_state(allow_tf32=False)
    common = {"seed": 0, "model_dtype": dtype, "type_names": ELEMENTS, "r_max": cutoff, "avg_num_neighbors": 20.0}
    model = build(**common).eval()
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    data = from_ase(atoms)
    species = {symbol: symbol for symbol in ELEMENTS}
    for transform in basic_transforms(model.metadata, cutoff, ELEMENTS, species):
        data = transform(data)
    data = ASE_TARGET["data_settings"](data)
    dims = {
        "graph": torch.export.Dim("num_frames", min=2, max=torch.inf),
        "node": torch.export.Dim("num_nodes", min=2, max=torch.inf),
        "edge": torch.export.Dim("num_edges", min=2, max=torch.inf),
    }
    metadata = {**model.metadata, **get_latest_global_state(only_metadata_related=True)}
    metadata = {key: str(int(value)) if isinstance(value, bool) else value for key, value in metadata.items()}
    metadata |= {NEQUIP_AOTI_INPUTS_KEY: serialize_aoti_keys(ASE_TARGET["input"])}
    metadata |= {NEQUIP_AOTI_OUTPUTS_KEY: serialize_aoti_keys(ASE_TARGET["output"])}
    path = Path(tempfile.mkdtemp()) / "model.nequip.pt2"
    aot_export_model(
        model=model.to(device),
        device=device,
        input_fields=ASE_TARGET["input"],
        output_fields=ASE_TARGET["output"],
        data=data,
        batch_map=ASE_TARGET["batch_map_settings"](dims),
        output_path=str(path),
        inductor_configs={"aot_inductor.metadata": metadata},
    )
    return NequIPCalculator.from_compiled_model(path, device=device, chemical_species_to_atom_type_map=True)


# name -> distribution, and how to build it for a dtype
CONTESTANTS: dict[str, tuple[str, Callable[[str], Calculator]]] = {
    "ours": ("ase-segnn", ase_segnn),
    "ours-rebuilt": ("ase-segnn", lambda dtype: ase_segnn(dtype, skin=0.0)),
    "ours-plain": ("ase-segnn", lambda dtype: ase_segnn(dtype, compile_it=False)),
    "ours-l1": ("ase-segnn", lambda dtype: ase_segnn(dtype, l_max=1)),
    "ours-l2": ("ase-segnn", lambda dtype: ase_segnn(dtype, irreps="32x0e+32x1o+32x2e")),
    "acac-pbe": ("ase-segnn", lambda dtype: ase_segnn(dtype, like="acac-pbe")),
    "si-pbe": ("ase-segnn", lambda dtype: ase_segnn(dtype, like="si-pbe")),
    "nequip-s-5A": ("nequip", lambda dtype: nequip(dtype, cutoff=5.0, preset="S")),
    "nequip-s-6A": ("nequip", lambda dtype: nequip(dtype, cutoff=6.0, preset="S")),
    "nequip-l2": ("nequip", lambda dtype: nequip(dtype, cutoff=5.0, num_layers=4, l_max=2, num_features=64)),
    "allegro-l2": ("nequip-allegro", lambda dtype: allegro(dtype, cutoff=5.0, l_max=2, num_layers=2)),
    "chgnet": ("chgnet", chgnet),
    "nep": ("calorine", nep),
    "sevennet-0": ("sevenn", sevennet),
    "mace-off-small": ("mace-torch", lambda dtype: mace(dtype, irreps="96x0e", cutoff=4.5)),
    "mace-mp0-medium": ("mace-torch", lambda dtype: mace(dtype, irreps="128x0e+128x1o", cutoff=6.0)),
    "mace-paper": ("mace-torch", lambda dtype: mace(dtype, irreps="256x0e+256x1o+256x2e", cutoff=5.0)),
}

# kind -> distribution, and how to build it for a dtype from a file
OF_FILES: dict[str, tuple[str, Callable[[str, str], Calculator]]] = {
    "segnn": ("ase-segnn", trained_ours),
    "mace": ("mace-torch", trained_mace),
    "ace": ("ace-jax", trained_ace),
    "pace": ("python-ace", trained_pace),
}

if __name__ == "__main__":
    main()
