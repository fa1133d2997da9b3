"""The specialised programs at work: training, recalibration, evaluation, ONNX, latency, checkpoints."""

if __name__ != "bnas.runtime":
    raise ImportError(f"import 'bnas.runtime', not {__name__!r}: a second copy would register every rule twice")

from .checkpoint import CheckpointError
from .evaluation import EvaluationError, Evaluator, accuracy, first_samples, fold, recalibrate
from .latency import Latency, LatencyError, machine, measure_latency
from .onnx_export import OnnxReport, OnnxWriteError, export_onnx
from .program import Program
from .supernetwork import SuperNetwork
from .training import Progress, Stage, Trainer, TrainingError
from .verification import verify

__all__ = [
    "CheckpointError",
    "EvaluationError",
    "Evaluator",
    "Latency",
    "LatencyError",
    "OnnxReport",
    "OnnxWriteError",
    "Program",
    "Progress",
    "Stage",
    "SuperNetwork",
    "Trainer",
    "TrainingError",
    "accuracy",
    "export_onnx",
    "first_samples",
    "fold",
    "machine",
    "measure_latency",
    "recalibrate",
    "verify",
]
