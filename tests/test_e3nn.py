"""What the project relies on from e3nn is the same in every release: files with trained weights depend on it."""

import math

import pytest
import torch

from ase_segnn._e3nn import o3, wigner_3j

TRIPLES = [(a, b, c) for a in range(4) for b in range(4) for c in range(abs(a - b), min(a + b, 3) + 1)]

# Triples of an even sum whose first component is negative.
NEGATIVE = {(1, 1, 2), (1, 2, 3), (2, 1, 3), (2, 2, 2), (2, 3, 3), (3, 2, 3), (3, 3, 2)}


@pytest.mark.parametrize("triple", TRIPLES)
def test_wigner_3j_has_the_sign_that_files_were_written_with(triple):
    symbols = wigner_3j(*triple)
    first = symbols[symbols.abs() > 1e-6][0]
    assert (first < 0) == (triple in NEGATIVE)


@pytest.mark.parametrize("triple", TRIPLES)
def test_wigner_3j_is_e3nns_up_to_a_sign(triple):
    overlap = (wigner_3j(*triple) * o3.wigner_3j(*triple, dtype=torch.float64)).sum()
    assert abs(overlap) == pytest.approx(1.0, abs=1e-12)
    if sum(triple) % 2 == 0:
        assert overlap > 0


def test_wigner_3j_of_three_vectors_is_the_cross_product():
    x, y = torch.tensor([[0.3, -1.2, 0.7], [0.9, 0.4, -0.2]], dtype=torch.float64)
    product = torch.einsum("abc,a,b->c", wigner_3j(1, 1, 1), x, y) * math.sqrt(6)
    torch.testing.assert_close(product, torch.linalg.cross(x, y))


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
