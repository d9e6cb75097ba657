"""Wigner 3j symbols: those of e3nn but for a sign of their own, as files with trained weights need it."""

import math

import numpy as np
import pytest
import torch

from ase_segnn._e3nn import o3
from ase_segnn.model.wigner import wigner_3j

TRIPLES = [(a, b, c) for a in range(7) for b in range(7) for c in range(abs(a - b), min(a + b, 6) + 1)]

# Triples of degrees up to 3 and an even sum whose first component is negative.
NEGATIVE = {(1, 1, 2), (1, 2, 3), (2, 1, 3), (2, 2, 2), (2, 3, 3), (3, 2, 3), (3, 3, 2)}


@pytest.mark.parametrize("triple", [triple for triple in TRIPLES if max(triple) <= 3])
def test_symbols_have_the_sign_that_files_were_written_with(triple):
    symbols = wigner_3j(*triple)
    assert (symbols[symbols != 0][0] < 0) == (triple in NEGATIVE)


@pytest.mark.parametrize("triple", TRIPLES)
def test_symbols_are_those_of_e3nn_up_to_a_sign(triple):
    symbols, expected = wigner_3j(*triple), o3.wigner_3j(*triple, dtype=torch.float64).numpy()
    if sum(triple) % 2:
        assert symbols[symbols != 0][0] > 0
        expected = expected * np.sign((symbols * expected).sum())
    np.testing.assert_allclose(symbols, expected, rtol=0, atol=3e-15)


def test_coupling_of_two_vectors_to_a_third_is_the_cross_product():
    x, y = np.array([[0.3, -1.2, 0.7], [0.9, 0.4, -0.2]])
    product = np.einsum("abc,a,b->c", wigner_3j(1, 1, 1), x, y) * math.sqrt(6)
    np.testing.assert_allclose(product, np.cross(x, y), atol=1e-15)


def test_symbols_that_are_kept_for_the_next_call_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        wigner_3j(1, 1, 2)[0, 0, 0] = 1.0
