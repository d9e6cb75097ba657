"""A linear PACE potential by ridge regression, with python-ace; run by the interpreter in which it is installed.

    .venv-pace/bin/python benchmarks/pace_fit.py --train train.xyz --functions 300 --output si.yace

The basis is that of python-ace's template for `pacemaker`, with one linear density. An energy per atom, from which a
constant of each element is subtracted, weighs 30 times as much as a component of a force.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
from pyace import create_multispecies_basis_config
from pyace.linearacefit import LinearACEDataset, LinearACEFit

WEIGHT = 30.0**2  # of squares of errors


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="frames with REF_energy and REF_forces")
    parser.add_argument("--functions", type=int, required=True, help="at most, per element")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    frames = ase.io.read(arguments.train, ":")
    elements = sorted({symbol for atoms in frames for symbol in atoms.get_chemical_symbols()})
    counts = np.array([[atoms.get_chemical_symbols().count(symbol) for symbol in elements] for atoms in frames])
    energies = np.array([atoms.info["REF_energy"] for atoms in frames])
    references = np.linalg.lstsq(counts, energies, rcond=None)[0]
    table = {
        "ase_atoms": frames,
        "energy_corrected": energies - counts @ references,
        "forces": [atoms.arrays["REF_forces"] for atoms in frames],
    }
    basis = create_multispecies_basis_config(shape(elements, arguments.functions, arguments.cutoff))
    data = LinearACEDataset(basis, pd.DataFrame(table))
    data.construct_design_matrix(max_workers=1)
    weights = np.ones(len(data.get_target_vector()))
    weights[: len(frames)] = WEIGHT
    fit = LinearACEFit(train_dataset=data)
    fit.fit(sample_weight=weights)
    fit.get_bbasis().to_ACECTildeBasisSet().save_yaml(str(arguments.output))
    first, zeros, rest = arguments.output.read_text(encoding="utf-8").split("\n", 2)
    assert zeros.startswith("E0:"), zeros
    constants = ", ".join(map(repr, references.tolist()))
    arguments.output.write_text("\n".join([first, f"E0: [{constants}]", rest]), encoding="utf-8")


def shape(elements: list[str], n_functions: int, cutoff: float) -> dict[str, object]:
    """Basis of `n_functions` per element, as `pacemaker` takes it."""
    ladder = {
        "UNARY": {"nradmax_by_orders": [15, 6, 4, 3, 2, 2], "lmax_by_orders": [0, 3, 3, 2, 2, 1]},
        "BINARY": {"nradmax_by_orders": [15, 6, 3, 2, 2, 1], "lmax_by_orders": [0, 3, 2, 1, 1, 0]},
        "TERNARY": {"nradmax_by_orders": [15, 3, 3, 2, 1], "lmax_by_orders": [0, 2, 2, 1, 1]},
    }
    radial = {"radbase": "SBessel", "radparameters": [5.25], "rcut": cutoff, "dcut": 0.01}
    return {
        "deltaSplineBins": 0.001,
        "elements": elements,
        "embeddings": {"ALL": {"npot": "FinnisSinclair", "fs_parameters": [1, 1], "ndensity": 1}},
        "bonds": {"ALL": {**radial, "NameOfCutoffFunction": "cos"}},
        "functions": {"number_of_functions_per_element": n_functions, **ladder},
    }


if __name__ == "__main__":
    main()
