"""Irreps against those of e3nn."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_segnn import SEGNN
from ase_segnn._e3nn import o3
from ase_segnn.model.irreps import Irrep, Irreps

irrep = st.builds("{}{}".format, st.integers(0, 6), st.sampled_from("eo"))
entry = st.one_of(irrep, st.builds("{}x{}".format, st.integers(0, 130), irrep))
text = st.lists(entry, max_size=6).map(" + ".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text)
def test_irreps_equal_those_of_e3nn(text):
    own, expected = Irreps(text), o3.Irreps(text)
    assert own == expected
    assert repr(own) == repr(expected)
    assert own.dim == expected.dim
    assert own.slices() == expected.slices()
    assert own.merged() == expected.sort().irreps.simplify()
    assert [ir.dim for _, ir in own] == [ir.dim for _, ir in expected]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text)
def test_irreps_are_given_to_e3nn_and_taken_from_it(text):
    own = Irreps(text)
    assert o3.Irreps(own) == own
    assert Irreps(o3.Irreps(text)) == own
    assert {type(ir) for _, ir in Irreps(o3.Irreps(text))} <= {Irrep}
    assert Irreps([(mul, str(ir)) for mul, ir in own]) == own


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(irrep, irrep, irrep)
def test_irreps_couple_as_in_e3nn(a, b, c):
    (_, own_a), (_, own_b), (_, own_c) = Irreps(f"{a}+{b}+{c}")
    assert own_a.couples(own_b, own_c) == (o3.Irrep(c) in o3.Irrep(a) * o3.Irrep(b))


@pytest.mark.parametrize("l_max", range(5))
def test_irreps_of_harmonics_equal_those_of_e3nn(l_max):
    assert Irreps.spherical_harmonics(l_max) == o3.Irreps.spherical_harmonics(l_max)


@pytest.mark.parametrize("text", ["64", "x0e", "64x0", "0f", "-1x0e", "1.5x0e", "4x0e+", "4x0e,1o", "4x-1o", "e0"])
def test_text_that_names_no_irreps_is_refused(text):
    with pytest.raises(ValueError, match=rf"^'{text.replace('+', chr(92) + '+')}' is not a list of irreps, such as"):
        Irreps(text)


def test_a_network_takes_irreps_of_e3nn():
    attributes = "1x0e+1x1o"
    networks = []
    for kind in (str, o3.Irreps):
        torch.manual_seed(0)
        networks.append(SEGNN(*map(kind, ("2x0e+1x1o", "4x1o+4x0e", "1x1o", attributes, attributes))).double())
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(3, n, dtype=torch.float64, generator=generator) for n in (5, 4, 4)]
    edges = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    first, second = (network(*inputs, *edges) for network in networks)
    assert first.abs().min() > 1e-6
    torch.testing.assert_close(first, second, rtol=0, atol=0)
