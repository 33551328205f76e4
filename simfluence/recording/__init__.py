"""Recording fine-tuning runs as they happen."""

from simfluence.recording.active import ActiveRun, NonFiniteLossWarning
from simfluence.recording.evaluator import Evaluator, LossFunction
from simfluence.recording.recorder import RunRecorder

__all__ = ["ActiveRun", "Evaluator", "LossFunction", "NonFiniteLossWarning", "RunRecorder"]
