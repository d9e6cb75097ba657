"""The optimizers of a run: Muon for the matrices of weights and AdamW for the rest, or AdamW for everything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ase_segnn.model.steerable import SteerableLinear

from .recipe import OptimizationSection


def make_optimizers(model: nn.Module, settings: OptimizationSection) -> list[torch.optim.Optimizer]:
    r"""Build the optimizers; each parameter of `model` belongs to exactly one of them.

    Muon moves a matrix by the orthogonal factor of its momentum. Here a step of size η changes a matrix by the spectral
    norm

    .. math:: \eta \sqrt{n_\text{out} / n_\text{in}},

    so that every layer's output moves by about η, however wide it is.

    Parameters
    ----------
    model : with weights of `SteerableLinear` and `torch.nn.Linear` as its matrices
    settings : of the recipe

    References
    ----------
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the spectral norm of a step as in
    Yang, Simon, Bernstein, arXiv:2310.17813, condition 1.
    """
    if settings.optimizer == "adamw":
        return [_adamw(list(model.parameters()), settings)]
    groups: list[dict[str, Any]] = []
    in_muon = set()
    for matrix, n_in, n_out in _matrices(model):
        # torch multiplies the step by sqrt(max(1, rows / columns)), which is right for (n_out, n_in) that are tall
        torch_factor = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
        learning_rate = settings.muon_learning_rate * math.sqrt(n_out / n_in) / torch_factor
        groups.append({"params": [matrix], "lr": learning_rate})
        in_muon.add(id(matrix))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_muon]
    return [
        torch.optim.Muon(groups, weight_decay=settings.weight_decay, adjust_lr_fn="original"),
        _adamw(rest, settings),
    ]


def _adamw(parameters: list[nn.Parameter], settings: OptimizationSection) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _matrices(model: nn.Module) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Find the matrices of weights that are more than a vector, with the number of their inputs and outputs."""
    for module in model.modules():
        if isinstance(module, SteerableLinear):
            for matrix in module.weights:
                if min(matrix.shape) > 1:
                    yield matrix, matrix.shape[0], matrix.shape[1]
        elif isinstance(module, nn.Linear) and min(module.weight.shape) > 1:
            yield module.weight, module.in_features, module.out_features
