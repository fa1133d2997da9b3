"""The specialised programs at work: training, recalibration, evaluation, ONNX, latency, checkpoints."""

if __name__ != "bnas.runtime":
    raise ImportError(f"import 'bnas.runtime', not {__name__!r}: a second copy would register every rule twice")

from .distillation import Distillation
from .errors import CheckpointError, TrainingError
from .evaluation import EvaluationError, Evaluator, accuracy, first_samples, fold, recalibrate
from .fine_tuning import fine_tune
from .latency import Latency, LatencyError, machine, measure_latency
from .onnx_export import OnnxReport, OnnxWriteError, export_onnx
from .program import Program
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
    "Latency",
    "LatencyError",
    "OnnxReport",
    "OnnxWriteError",
    "Program",
    "Progress",
    "Recipe",
    "Schedule",
    "Stage",
    "SuperNetwork",
    "Trainer",
    "TrainingError",
    "accuracy",
    "export_onnx",
    "fine_tune",
    "first_samples",
    "fold",
    "machine",
    "measure_latency",
    "recalibrate",
    "verify",
]
