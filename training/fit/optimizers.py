"""The optimizers of a run: Muon for the matrices of weights and AdamW for the rest, or AdamW for everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ase_segnn.model.steerable import SteerableLinear

from ..recipe import FitSection

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that drives singular values to about 1
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    r"""Momentum whose matrices are replaced by their orthogonal factor, in float32.

    The same as torch.optim.Muon with ``adjust_lr_fn="original"``, but in float32 instead of bfloat16. Most CPUs emulate
    bfloat16, and the factors would take several times as long as the rest of a training step. Matrices of one shape are
    treated together.

    Parameters
    ----------
    groups : of matrices (rows, columns), with their learning rates; a step has the spectral norm
        :math:`\eta \sqrt{\max(1, \text{rows} / \text{columns})}`
    weight_decay : a step first multiplies the matrix by 1 − η times this

    References
    ----------
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step for all matrices with a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        given = [
            (group, matrix) for group in self.param_groups for matrix in group["params"] if matrix.grad is not None
        ]
        given.sort(key=lambda pair: tuple(pair[1].shape))
        for shape, alike in groupby(given, key=lambda pair: tuple(pair[1].shape)):
            pairs = list(alike)
            directions = _orthogonal_factors(torch.stack([self._momentum(matrix) for _, matrix in pairs]))
            for (group, matrix), direction in zip(pairs, directions, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1])))
        return loss

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum of a matrix with the gradient of this step."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)


def _orthogonal_factors(matrices: Tensor) -> Tensor:
    """Nearly orthogonal factors of matrices (B, rows, columns) by Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).contiguous()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    factors: Tensor = x.mT if tall else x
    return factors


def make_optimizers(model: nn.Module, settings: FitSection) -> list[torch.optim.Optimizer]:
    r"""Build the optimizers; each parameter of `model` that is not frozen belongs to exactly one of them.

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
        return [_adamw([p for p in model.parameters() if p.requires_grad], settings)]
    groups: list[dict[str, Any]] = []
    in_muon = set()
    for matrix, n_in, n_out in _matrices(model):
        if not matrix.requires_grad:
            continue
        # Muon multiplies the step by sqrt(max(1, rows / columns)), which is right for (n_out, n_in) that are tall
        factor_of_muon = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
        learning_rate = settings.muon_learning_rate * math.sqrt(n_out / n_in) / factor_of_muon
        groups.append({"params": [matrix], "lr": learning_rate})
        in_muon.add(id(matrix))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in in_muon]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(Muon(groups, settings.weight_decay))
    if rest:
        optimizers.append(_adamw(rest, settings))
    return optimizers


def _adamw(parameters: list[nn.Parameter], settings: FitSection) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _matrices(model: nn.Module) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Find the matrices of weights that are more than a vector, with the number of their inputs and outputs."""
    for module in model.modules():
        if isinstance(module, SteerableLinear):
            for matrix in module.weights:
                if min(matrix.shape) > 1:
                    yield matrix, matrix.shape[0], matrix.shape[1]
        elif isinstance(module, nn.Linear) and min(module.weight.shape) > 1:
            yield module.weight, module.in_features, module.out_features
