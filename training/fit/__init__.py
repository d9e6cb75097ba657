"""The fit of a network: loss and step, optimizers, Lightning's module and trainer, and the start from a base."""

from .finetuning import adapt_energies, freeze, start_from
from .potential_module import PotentialModule
from .trainer import CHECKPOINT, CURVE, FitResult, check_machine, fit, with_epochs

__all__ = [
    "CHECKPOINT",
    "CURVE",
    "FitResult",
    "PotentialModule",
    "adapt_energies",
    "check_machine",
    "fit",
    "freeze",
    "start_from",
    "with_epochs",
]
