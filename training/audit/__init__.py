"""The audit of labeled data before training."""

from .auditor import Audit, Auditor
from .page import one_line

__all__ = ["Audit", "Auditor", "one_line"]
