"""Constants of a module: exact in every dtype, and no part of the weights."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ase_segnn.model.constants import ModuleWithConstants

THIRD = np.array([1 / 3, -29943.1 / 7])


class Example(ModuleWithConstants):
    def __init__(self):
        super().__init__()
        self.register_constant("third", THIRD)
        self.register_constant("energy", THIRD, always_float64=True)
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float32))
        self.register_buffer("index", torch.tensor([1, 2]))


@pytest.mark.parametrize("nested", [False, True])
def test_dtypes_change_without_loss(nested):
    module = Example()
    outer = nn.Sequential(nn.Sequential(module)) if nested else module
    for convert, dtype in [
        (lambda: outer, torch.float32),
        (outer.double, torch.float64),
        (lambda: outer.to(torch.float32), torch.float32),
        (lambda: outer.to(torch.bfloat16), torch.bfloat16),
        (lambda: outer.to(torch.float64), torch.float64),
        (outer.float, torch.float32),
    ]:
        assert convert() is outer
        assert module.weight.dtype == module.third.dtype == dtype
        assert torch.equal(module.third, torch.tensor(THIRD, dtype=dtype))
        assert module.energy.dtype == torch.float64
        assert module.energy.tolist() == THIRD.tolist()
        assert module.index.dtype == torch.int64


def test_a_plain_buffer_would_keep_the_error_of_float32():
    plain = nn.Module()
    plain.register_buffer("third", torch.tensor(THIRD, dtype=torch.float32))
    assert plain.double().third[0].item() != 1 / 3
    assert Example().double().third[0].item() == 1 / 3


def test_constants_move_with_the_module():
    module = Example().to("meta")
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(duplicate):
    module = Example()
    other = duplicate(module).double()
    assert module.third.dtype == torch.float32
    assert other.third.tolist() == THIRD.tolist()
    other.energy.zero_()
    assert module.energy.tolist() == THIRD.tolist()
    assert other.double().energy.tolist() == THIRD.tolist()


def test_the_value_given_is_copied():
    value = np.array([math.pi])
    module = ModuleWithConstants()
    module.register_constant("pi", value, always_float64=True)
    value[:] = 3
    assert module.pi.item() == math.pi
    assert module.float().pi.item() == math.pi


def test_weights_hold_no_constants():
    assert set(Example().state_dict()) == {"weight", "index"}
