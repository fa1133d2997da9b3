"""The specialised programs at work: training, recalibration, evaluation, ONNX, latency, checkpoints."""

if __name__ != "bnas.runtime":
    raise ImportError(f"import 'bnas.runtime', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

# Not lazily: modules have these names too.
from .machine import machine
from .origin import origin

if TYPE_CHECKING:
    from .distillation import Distillation
    from .errors import BatchError, CheckpointError, ProgramError, TrainingError
    from .evaluation import Batch, EvaluationError, Loader, Metric, accuracy, first_samples, fold, recalibrate
    from .evaluator import Evaluator
    from .files import WriteError
    from .fine_tuning import fine_tune
    from .latency import Latency
    from .latency_measurement import measure_latency
    from .latency_model import LatencyModel
    from .latency_settings import LatencyError, LatencySettings
    from .onnx_evaluation import evaluate_onnx
    from .onnx_export import OnnxReport, export_onnx
    from .onnx_fallback import OnnxFallbackWarning
    from .onnx_file import OnnxWriteError
    from .onnx_session import OnnxModule, SessionError
    from .program import Program
    from .quantisation import Int8, Int8Report, QuantisationError
    from .racing import Bar, RacingError
    from .rate import CosineSchedule
    from .recipe import Recipe
    from .schedule import Place, Schedule
    from .stage import Stage
    from .supernetwork import SuperNetwork
    from .training import Progress, Trainer
    from .validation import EpochRecord
    from .verification import verify

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.runtime.distillation": ("Distillation",),
        "bnas.runtime.errors": (
            "BatchError",
            "CheckpointError",
            "ProgramError",
            "TrainingError",
        ),
        "bnas.runtime.evaluation": (
            "Batch",
            "EvaluationError",
            "Loader",
            "Metric",
            "accuracy",
            "first_samples",
            "fold",
            "recalibrate",
        ),
        "bnas.runtime.evaluator": ("Evaluator",),
        "bnas.runtime.files": ("WriteError",),
        "bnas.runtime.fine_tuning": ("fine_tune",),
        "bnas.runtime.latency": ("Latency",),
        "bnas.runtime.latency_measurement": ("measure_latency",),
        "bnas.runtime.latency_model": ("LatencyModel",),
        "bnas.runtime.latency_settings": (
            "LatencyError",
            "LatencySettings",
        ),
        "bnas.runtime.onnx_evaluation": ("evaluate_onnx",),
        "bnas.runtime.onnx_export": (
            "OnnxReport",
            "export_onnx",
        ),
        "bnas.runtime.onnx_fallback": ("OnnxFallbackWarning",),
        "bnas.runtime.onnx_file": ("OnnxWriteError",),
        "bnas.runtime.onnx_session": (
            "OnnxModule",
            "SessionError",
        ),
        "bnas.runtime.program": ("Program",),
        "bnas.runtime.quantisation": (
            "Int8",
            "Int8Report",
            "QuantisationError",
        ),
        "bnas.runtime.racing": (
            "Bar",
            "RacingError",
        ),
        "bnas.runtime.rate": ("CosineSchedule",),
        "bnas.runtime.recipe": ("Recipe",),
        "bnas.runtime.schedule": (
            "Place",
            "Schedule",
        ),
        "bnas.runtime.stage": ("Stage",),
        "bnas.runtime.supernetwork": ("SuperNetwork",),
        "bnas.runtime.training": (
            "Progress",
            "Trainer",
        ),
        "bnas.runtime.validation": ("EpochRecord",),
        "bnas.runtime.verification": ("verify",),
    },
)

__all__ = [
    "Bar",
    "Batch",
    "BatchError",
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
    "LatencySettings",
    "Loader",
    "Metric",
    "OnnxFallbackWarning",
    "OnnxModule",
    "OnnxReport",
    "OnnxWriteError",
    "Place",
    "Program",
    "ProgramError",
    "Progress",
    "QuantisationError",
    "RacingError",
    "Recipe",
    "Schedule",
    "SessionError",
    "Stage",
    "SuperNetwork",
    "Trainer",
    "TrainingError",
    "WriteError",
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
