"""Recording fine-tuning runs as they happen."""

from simfluence.recording.active import ActiveRun, NonFiniteLossWarning, RecordingStoppedWarning
from simfluence.recording.evaluator import Evaluator, LossFunction
from simfluence.recording.recorder import RunRecorder
from simfluence.recording.weights import load_weights, weight_steps

__all__ = [
    "ActiveRun",
    "Evaluator",
    "LossFunction",
    "NonFiniteLossWarning",
    "RecordingStoppedWarning",
    "RunRecorder",
    "load_weights",
    "weight_steps",
]
