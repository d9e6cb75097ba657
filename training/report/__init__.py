"""The report of a finished training run: what the potential predicts, and whether to trust it."""

from .checks import Survey
from .predictions import Predictions, predict_frames
from .write import EvaluatedSets, evaluate_sets, write_report

__all__ = ["EvaluatedSets", "Predictions", "Survey", "evaluate_sets", "predict_frames", "write_report"]
