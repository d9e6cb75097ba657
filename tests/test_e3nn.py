"""What the project relies on from e3nn is the same in every release, and e3nn works in full beside the project."""

import math
import subprocess
import sys

import torch

from ase_segnn._e3nn import o3


def test_spherical_harmonics_have_the_order_and_scale_of_the_files():
    x, y, z = vector = torch.tensor([0.48, 0.64, 0.6], dtype=torch.float64)
    expected = torch.stack(
        [
            torch.ones_like(x),
            *(math.sqrt(3) * vector),
            math.sqrt(15) * x * z,
            math.sqrt(15) * x * y,
            math.sqrt(5) * (y**2 - (x**2 + z**2) / 2),
            math.sqrt(15) * y * z,
            math.sqrt(15) / 2 * (z**2 - x**2),
        ]
    )
    harmonics = o3.spherical_harmonics([0, 1, 2], vector, normalize=True, normalization="component")
    torch.testing.assert_close(harmonics, expected)


BESIDE_E3NN = """
import warnings
import ase_segnn
calculator = ase_segnn.SEGNNCalculator("acac-pbe", compile=False)
import torch
torch.serialization.add_safe_globals([slice])
warnings.simplefilter("ignore")
torch.manual_seed(0)
from e3nn import o3
product = o3.FullyConnectedTensorProduct("2x0e+2x1o", "1x0e+1x1o", "3x0e+2x1o").double()
x, y = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
rotation = o3.rand_matrix(dtype=torch.float64)
first, second, out = (
    o3.Irreps(irreps).D_from_matrix(rotation).double().T for irreps in ("2x0e+2x1o", "1x0e+1x1o", "3x0e+2x1o")
)
expected = product(x, y) @ out
torch.testing.assert_close(product(x @ first, y @ second), expected, rtol=0, atol=1e-4)
assert expected.abs().max() > 0.1
compiled = torch.compile(lambda x: (x.sin() * 2).sum(), backend="eager")
torch.testing.assert_close(compiled(x), (x.sin() * 2).sum())
assert "torch._dynamo" in __import__("sys").modules
"""


def test_e3nn_and_the_compiler_of_torch_work_in_full_after_the_project() -> None:
    result = subprocess.run([sys.executable, "-c", BESIDE_E3NN], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
