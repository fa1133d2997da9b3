"""The specialised programs at work: training, recalibration, evaluation, ONNX, latency, checkpoints."""

if __name__ != "bnas.runtime":
    raise ImportError(f"import 'bnas.runtime', not {__name__!r}: a second copy would register every rule twice")

from .distillation import Distillation
from .errors import CheckpointError, TrainingError
from .evaluation import EvaluationError, Evaluator, accuracy, first_samples, fold, recalibrate
from .fine_tuning import fine_tune
from .latency import Latency, LatencyError, measure_latency
from .latency_model import LatencyModel
from .machine import machine
from .onnx_evaluation import evaluate_onnx
from .onnx_export import OnnxReport, export_onnx
from .onnx_fallback import OnnxFallbackWarning
from .onnx_file import OnnxWriteError
from .onnx_session import OnnxModule, SessionError
from .origin import origin
from .program import Program
from .quantisation import Int8, Int8Report, QuantisationError
from .rate import CosineSchedule
from .recipe import Recipe
from .schedule import Schedule
from .stage import Stage
from .supernetwork import SuperNetwork
from .training import Progress, Trainer
from .validation import EpochRecord
from .verification import verify

__all__ = [
    "CheckpointError",
    "CosineSchedule",
    "Distillation",
    "EpochRecord",
    "EvaluationError",
    "Evaluator",
    "Int8",
    "Int8Report",
    "Latency",
    "LatencyError",
    "LatencyModel",
    "OnnxFallbackWarning",
    "OnnxModule",
    "OnnxReport",
    "OnnxWriteError",
    "Program",
    "Progress",
    "QuantisationError",
    "Recipe",
    "Schedule",
    "SessionError",
    "Stage",
    "SuperNetwork",
    "Trainer",
    "TrainingError",
    "accuracy",
    "evaluate_onnx",
    "export_onnx",
    "fine_tune",
    "first_samples",
    "fold",
    "machine",
    "measure_latency",
    "origin",
    "recalibrate",
    "verify",
]
