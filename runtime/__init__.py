"""The specialised programs at work: training, recalibration, evaluation, ONNX, latency, checkpoints."""

if __name__ != "bnas.runtime":
    raise ImportError(f"import 'bnas.runtime', not {__name__!r}: a second copy would register every rule twice")

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from .errors import BatchError, CheckpointError, ParallelError, ProgramError, TrainingError
    from .evaluate.evaluation import Batch, EvaluationError, Loader, Metric, accuracy, first_samples, fold, recalibrate
    from .evaluate.evaluator import Evaluator
    from .evaluate.together import Bar, RacingError
    from .importance import BlockImportance, block_importance, taylor
    from .latency.layers import LayerTimes, layer_times
    from .latency.machine import machine
    from .latency.measurement import measure_latency
    from .latency.model import LatencyModel
    from .latency.settings import LatencyError, LatencySettings
    from .latency.timing import Latency
    from .onnx.export import OnnxFallbackWarning, OnnxReport, export_onnx
    from .onnx.file import OnnxWriteError, origin
    from .onnx.int8 import Int8, Int8Report, QuantisationError
    from .onnx.session import OnnxModule, SessionError, evaluate_onnx
    from .program import Program
    from .storage.files import WriteError
    from .supernetwork import SuperNetwork
    from .targets.command import Command
    from .targets.onnxruntime import OnnxRuntime
    from .targets.openvino import OpenVINO
    from .targets.target import InProcess, Network, Target, TargetError
    from .train.callbacks import Progress, Training, TrainingCallback
    from .train.recipe import Distillation, Recipe
    from .train.schedule import Place, Schedule
    from .train.stages import CosineSchedule, Stage
    from .train.timing import Epochs, step_seconds, steps_within
    from .train.trainer import Trainer
    from .train.tuning import FineTune, fine_tune
    from .train.validation import EpochRecord
    from .verification import verify

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.runtime.errors": (
            "BatchError",
            "CheckpointError",
            "ParallelError",
            "ProgramError",
            "TrainingError",
        ),
        "bnas.runtime.evaluate.evaluation": (
            "Batch",
            "EvaluationError",
            "Loader",
            "Metric",
            "accuracy",
            "first_samples",
            "fold",
            "recalibrate",
        ),
        "bnas.runtime.evaluate.evaluator": ("Evaluator",),
        "bnas.runtime.evaluate.together": (
            "Bar",
            "RacingError",
        ),
        "bnas.runtime.importance": (
            "BlockImportance",
            "block_importance",
            "taylor",
        ),
        "bnas.runtime.latency.layers": (
            "LayerTimes",
            "layer_times",
        ),
        "bnas.runtime.latency.measurement": ("measure_latency",),
        "bnas.runtime.latency.model": ("LatencyModel",),
        "bnas.runtime.latency.settings": (
            "LatencyError",
            "LatencySettings",
        ),
        "bnas.runtime.latency.timing": ("Latency",),
        "bnas.runtime.onnx.export": (
            "OnnxFallbackWarning",
            "OnnxReport",
            "export_onnx",
        ),
        "bnas.runtime.latency.machine": ("machine",),
        "bnas.runtime.onnx.file": ("OnnxWriteError", "origin"),
        "bnas.runtime.onnx.int8": (
            "Int8",
            "Int8Report",
            "QuantisationError",
        ),
        "bnas.runtime.onnx.session": (
            "OnnxModule",
            "SessionError",
            "evaluate_onnx",
        ),
        "bnas.runtime.program": ("Program",),
        "bnas.runtime.storage.files": ("WriteError",),
        "bnas.runtime.targets.command": ("Command",),
        "bnas.runtime.targets.onnxruntime": ("OnnxRuntime",),
        "bnas.runtime.targets.openvino": ("OpenVINO",),
        "bnas.runtime.targets.target": (
            "InProcess",
            "Network",
            "Target",
            "TargetError",
        ),
        "bnas.runtime.supernetwork": ("SuperNetwork",),
        "bnas.runtime.train.callbacks": (
            "Progress",
            "Training",
            "TrainingCallback",
        ),
        "bnas.runtime.train.recipe": (
            "Distillation",
            "Recipe",
        ),
        "bnas.runtime.train.schedule": (
            "Place",
            "Schedule",
        ),
        "bnas.runtime.train.stages": (
            "CosineSchedule",
            "Stage",
        ),
        "bnas.runtime.train.timing": (
            "Epochs",
            "step_seconds",
            "steps_within",
        ),
        "bnas.runtime.train.trainer": ("Trainer",),
        "bnas.runtime.train.tuning": (
            "FineTune",
            "fine_tune",
        ),
        "bnas.runtime.train.validation": ("EpochRecord",),
        "bnas.runtime.verification": ("verify",),
    },
)

__all__ = [
    "Bar",
    "Batch",
    "BatchError",
    "BlockImportance",
    "CheckpointError",
    "Command",
    "CosineSchedule",
    "Distillation",
    "EpochRecord",
    "Epochs",
    "EvaluationError",
    "Evaluator",
    "FineTune",
    "InProcess",
    "Int8",
    "Int8Report",
    "Latency",
    "LatencyError",
    "LatencyModel",
    "LatencySettings",
    "LayerTimes",
    "Loader",
    "Metric",
    "Network",
    "OnnxFallbackWarning",
    "OnnxModule",
    "OnnxReport",
    "OnnxRuntime",
    "OnnxWriteError",
    "OpenVINO",
    "ParallelError",
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
    "Target",
    "TargetError",
    "Trainer",
    "Training",
    "TrainingCallback",
    "TrainingError",
    "WriteError",
    "accuracy",
    "block_importance",
    "evaluate_onnx",
    "export_onnx",
    "fine_tune",
    "first_samples",
    "fold",
    "layer_times",
    "machine",
    "measure_latency",
    "origin",
    "recalibrate",
    "step_seconds",
    "steps_within",
    "taylor",
    "verify",
]
