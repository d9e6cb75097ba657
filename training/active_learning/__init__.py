"""Active learning: a potential from structures and a reference, with frames that its own dynamics finds."""

from .api import learn
from .loop import LabelsNeeded
from .outcome import LearnResult
from .settings import LearnSettings

__all__ = ["LabelsNeeded", "LearnResult", "LearnSettings", "learn"]
