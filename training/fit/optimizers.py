"""The optimizers of a run: Muon for the matrices of weights and AdamW for the rest, or AdamW for everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        directions = _orthogonal_factors([self._momentum(matrix) for _, matrix in given])
        for (group, matrix), direction in zip(given, directions, strict=True):
            rows, columns = matrix.shape
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(direction, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))
        return loss

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum of a matrix with the gradient of this step."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)


def _orthogonal_factors(matrices: Sequence[Tensor]) -> list[Tensor]:
    r"""Nearly orthogonal factors of matrices by Newton-Schulz iteration.

    .. math:: X_{k+1} = Q_k X_k, \quad Q_k = a + b\, G_k + c\, G_k^2, \quad G_k = X_k X_k^T, \quad G_{k+1} = Q_k G_k Q_k

    The iteration is one of G and of the product of all Q, which have as many rows as the smaller side of the matrix.
    Matrices of one smaller side are treated together.
    """
    factors: dict[int, Tensor] = {}
    sides = [min(matrix.shape) for matrix in matrices]
    for side in sorted(set(sides)):
        alike = [k for k, of_matrix in enumerate(sides) if of_matrix == side]
        wide = {k: matrices[k] if matrices[k].shape[0] == side else matrices[k].T for k in alike}
        unit = {k: x / torch.linalg.matrix_norm(x).clamp(min=1e-7) for k, x in wide.items()}
        products = _product_of_polynomials(torch.stack([x @ x.T for x in unit.values()]))
        for k, product in zip(alike, products, strict=True):
            factor = product @ unit[k]
            factors[k] = factor if wide[k] is matrices[k] else factor.T
    return [factors[k] for k in range(len(matrices))]


def _product_of_polynomials(gram: Tensor) -> Tensor:
    """Product of all Q of `_orthogonal_factors`, from the first G; (B, n, n) each."""
    a, b, c = _COEFFICIENTS
    product: Tensor | None = None
    for iteration in range(_ITERATIONS):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        product = q if product is None else torch.bmm(q, product)
        if iteration + 1 < _ITERATIONS:
            gram = torch.bmm(torch.bmm(q, gram), q)
    assert product is not None
    return product


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
