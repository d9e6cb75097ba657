"""The functions of the distance: envelope, radial basis and the repulsion of nuclei."""

import math

import numpy as np
import pytest
import torch
from ase.data import covalent_radii

from ase_segnn.model.radial import bessel_basis, polynomial_envelope, seen_distances
from ase_segnn.model.zbl import ZBLRepulsion

CUTOFF = 4.2


def derivatives(function, x: float, n: int) -> list[float]:
    """Value and first n derivatives of a function of one float64 number."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = function(point)
    values = [value.item()]
    for _ in range(n):
        (value,) = torch.autograd.grad(value, point, create_graph=True)
        values.append(value.item())
    return values


@pytest.mark.parametrize("p", [3, 6, 9])
def test_envelope_fades_from_one_to_zero(p):
    distances = torch.linspace(0, CUTOFF, 500, dtype=torch.float64)
    envelope = polynomial_envelope(distances, CUTOFF, p)
    assert envelope[0] == 1
    assert envelope[-1] == 0
    assert (envelope.diff() < 1e-14).all()
    assert 0.2 < envelope[250] < 0.999  # somewhere between


@pytest.mark.parametrize("p", [3, 6, 9])
def test_envelope_has_two_continuous_derivatives_at_the_cutoff(p):
    def envelope(d):
        return polynomial_envelope(d, CUTOFF, p)

    # a third derivative of order 1 / CUTOFF^3 remains: over 1e-6 Å the second one changes by less than 1e-4
    value, first, second, third = derivatives(envelope, CUTOFF - 1e-6, 3)
    assert abs(value) < 1e-14
    assert abs(first) < 1e-9
    assert abs(second) < 1e-4
    assert abs(third) > 1e-2
    assert derivatives(envelope, CUTOFF + 1e-6, 2) == [0, 0, 0]


def test_envelope_is_exactly_zero_from_the_cutoff_on():
    for dtype in (torch.float32, torch.float64):
        distances = torch.tensor([CUTOFF, CUTOFF * (1 + 1e-6), 2 * CUTOFF, 1e6], dtype=dtype)
        assert (polynomial_envelope(distances, CUTOFF) == 0).all()


def test_envelope_equals_the_papers():
    x, p = 0.7, 6
    expected = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    assert polynomial_envelope(torch.tensor(x * CUTOFF), CUTOFF, p).item() == pytest.approx(expected, rel=1e-5)


def test_bessel_basis_equals_its_formula():
    distances = np.array([0.3, 1.1, 2.9, 4.1])
    basis = bessel_basis(torch.tensor(distances), CUTOFF, 5)
    assert basis.shape == (4, 5)
    assert basis.dtype == torch.float64
    expected = (
        np.sin(np.outer(distances, np.arange(1, 6)) * math.pi / CUTOFF) * math.sqrt(2 / CUTOFF) / distances[:, None]
    )
    np.testing.assert_allclose(basis, expected, rtol=1e-13)


def test_bessel_basis_is_orthogonal_with_the_weight_of_a_sphere():
    distances = torch.linspace(0, CUTOFF, 2001, dtype=torch.float64)[1:]
    basis = bessel_basis(distances, CUTOFF, 6)
    overlaps = torch.einsum("ea,eb,e->ab", basis, basis, distances**2) * (CUTOFF / 2000)
    torch.testing.assert_close(overlaps, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_bessel_basis_vanishes_at_the_cutoff():
    basis = bessel_basis(torch.tensor([CUTOFF], dtype=torch.float64), CUTOFF, 8)
    assert basis.abs().max() < 1e-14


@pytest.mark.parametrize(("distance", "seen"), [(0.01, 1.5), (1.2, 1.5), (1.5, 1.55625), (1.8, 1.8), (3.0, 3.0)])
def test_distances_are_seen_down_to_a_little_below_the_shortest_one(distance, seen):
    # at 1.5 Å, x = 0.5: 1.5 + 0.6 (0.125 - 0.03125) = 1.55625
    assert seen_distances(torch.tensor([distance]).double(), torch.tensor([2.0])).item() == pytest.approx(seen)


@pytest.mark.parametrize("end", [1.2, 1.8])
def test_seen_distances_have_two_continuous_derivatives(end):
    below, above = (
        derivatives(lambda d: seen_distances(d, torch.full_like(d, 2.0)), end + step, 2) for step in (-1e-6, 1e-6)
    )
    assert below == pytest.approx(above, abs=2e-5)
    assert above == pytest.approx([1.5, 0, 0] if end < 1.5 else [1.8, 1, 0], abs=2e-5)


def pair_energy(numbers: tuple[int, int], distance: float, cutoff: float = 6.0, **ends: float) -> float:
    zbl = ZBLRepulsion(list(numbers), cutoff, {name.replace("_", "-"): end for name, end in ends.items()})
    species = torch.tensor([0]), torch.tensor([1])
    return zbl(torch.tensor([distance], dtype=torch.float64), *species).item()


# By hand, with e²/(4 π ε0) = 14.399645 eV Å and a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23):
# H-H, a = 0.23425 Å, 0.1 Å: x = 0.426894,
#     screening 0.18175 e^-1.365977 + 0.50986 e^-0.402258 + 0.28022 e^-0.171996 + 0.02817 e^-0.086070 = 0.649156;
# C-O, a = 0.46850 Å / (1.509992 + 1.613284) = 0.150003 Å, 0.2 Å: x = 1.333309,
#     screening 0.18175 e^-4.266322 + 0.50986 e^-1.256364 + 0.28022 e^-0.537190 + 0.02817 e^-0.268822 = 0.332988.
# The envelopes end at 0.62 Å and at 0.76 + 0.66 = 1.42 Å.
@pytest.mark.parametrize(
    ("numbers", "distance", "screening", "end"),
    [((1, 1), 0.1, 0.649156, 0.62), ((6, 8), 0.2, 0.332988, 1.42), ((8, 6), 0.2, 0.332988, 1.42)],
)
def test_zbl_equals_the_universal_potential(numbers, distance, screening, end):
    x = distance / end
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    expected = 14.399645 * numbers[0] * numbers[1] / distance * screening * envelope
    assert pair_energy(numbers, distance) == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("numbers", [(1, 1), (1, 8), (6, 29), (14, 14), (79, 79)])
def test_zbl_repels_up_to_the_sum_of_covalent_radii(numbers):
    zbl = ZBLRepulsion(list(numbers), 10.0)
    end = covalent_radii[list(numbers)].sum()
    distances = torch.linspace(0.05, end - 1e-3, 400, dtype=torch.float64)
    energies = zbl(distances, torch.zeros(400, dtype=torch.int64), torch.ones(400, dtype=torch.int64))
    assert (energies.diff() < 0).all()
    assert energies[0] > 100
    assert pair_energy(numbers, end, 10.0) == 0
    assert pair_energy(numbers, end + 1, 10.0) == 0


def test_zbl_ends_where_it_is_told_to():
    x = 0.2 / 1.2
    expected = 14.399645 * 48 / 0.2 * 0.332988 * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8)
    for numbers in ((6, 8), (8, 6)):
        assert pair_energy(numbers, 0.2, C_O=1.2, C_C=0.3) == pytest.approx(expected, rel=5e-6)
        assert pair_energy(numbers, 1.19, C_O=1.2) > 0
        assert pair_energy(numbers, 1.2, C_O=1.2) == 0
    assert pair_energy((6, 6), 0.4, C_O=1.2, C_C=0.3) == 0


def test_zbl_ends_at_the_cutoff_where_that_is_shorter():
    assert pair_energy((79, 79), 1.999) > 0  # the radii sum up to 2.72 Å
    assert pair_energy((79, 79), 1.999, cutoff=2.0) == pytest.approx(0, abs=1e-4)
    assert pair_energy((79, 79), 2.0, cutoff=2.0) == 0


def test_zbl_stays_float64():
    zbl = ZBLRepulsion([1, 79], 5.0).to(torch.float32)
    energies = zbl(torch.tensor([0.7], dtype=torch.float64), torch.tensor([0]), torch.tensor([1]))
    assert energies.dtype == torch.float64
    assert energies.item() == pair_energy((1, 79), 0.7, 5.0)
