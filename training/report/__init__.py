"""The report of a finished training run: what the potential predicts, and whether to trust it."""

from .checks import Survey, Verdict
from .predictions import Predictions, predict_frames
from .write import Examination, examine, write_report

__all__ = ["Examination", "Predictions", "Survey", "Verdict", "examine", "predict_frames", "write_report"]
