"""Real Wigner 3j symbols, the coefficients that couple two steerable vectors to a third."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    r"""Real Wigner 3j symbols :math:`C^{l_1 l_2 l_3}_{m_1 m_2 m_3}` in e3nn's order of components.

    Signs matter: trained weights are wrong under another sign. If :math:`l_1 + l_2 + l_3` is even, the symbols equal
    those of all releases of e3nn. If the sum is odd, releases differ, and here the first component that is not zero is
    positive. (1, 2, 2) and (1, 3, 3), among others, changed their sign after e3nn 0.4.4.

    Parameters
    ----------
    l1, l2, l3 : degrees with ``abs(l1 - l2) <= l3 <= l1 + l2``

    Returns
    -------
    (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), read-only; the squares sum to 1

    References
    ----------
    Racah's formula: Varshalovich, Moskalev, Khersonskii, Quantum Theory of Angular Momentum (1988), eq. 8.2.1 (5).
    """
    assert abs(l1 - l2) <= l3 <= l1 + l2
    complex_symbols = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            complex_symbols[l1 + m1, l2 + m2, l3 + m1 + m2] = _clebsch_gordan(l1, m1, l2, m2, l3)
    u1, u2, u3 = map(_real_from_complex, (l1, l2, l3))
    coupled = np.einsum("ai,bj,ck,ijk->abc", u1, u2, u3.conj(), complex_symbols) * (-1j) ** (l1 + l2 - l3)
    symbols: NDArray[np.float64] = coupled.real / np.linalg.norm(coupled)
    # Up to l = 6 each component is above 0.005, or zero to rounding.
    symbols[abs(symbols) < 1e-6] = 0.0
    if (l1 + l2 + l3) % 2:
        symbols *= np.sign(symbols[symbols != 0][0])
    symbols.flags.writeable = False
    return symbols


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """Coefficient ⟨l1 m1 l2 m2 | l3 m1+m2⟩, up to a factor of the degrees alone."""
    f = math.factorial  # as short as "!" in the formula
    m3 = m1 + m2
    terms = [
        (-1) ** k
        / (f(k) * f(l1 + l2 - l3 - k) * f(l1 - m1 - k) * f(l2 + m2 - k) * f(l3 - l2 + m1 + k) * f(l3 - l1 - m2 + k))
        for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1)
    ]
    return math.sqrt(f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l3 + m3) * f(l3 - m3)) * math.fsum(terms)


def _real_from_complex(degree: int) -> NDArray[np.complex128]:
    """Unitary matrix from complex spherical harmonics to real ones, both in the order m = -l, ..., l."""
    matrix = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    matrix[degree, degree] = 1
    for m in range(1, degree + 1):
        matrix[degree + m, [degree - m, degree + m]] = np.array([1, (-1) ** m]) / math.sqrt(2)
        matrix[degree - m, [degree - m, degree + m]] = np.array([1, -((-1) ** m)]) * 1j / math.sqrt(2)
    return matrix
