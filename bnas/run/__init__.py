"""Whole runs: a job, what it tells while it works, what it reports, and what may be wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from bnas.arrays import ArrayError
    from bnas.bootstrapnas import BootstrapNAS, OptimizerSection
    from bnas.configuration import Configuration, ExportSection, InputInfo
    from bnas.devices import DeviceError
    from bnas.digits import MissingExtraError
    from bnas.inputs import ShapeError
    from bnas.job import Job, Splits, Watch
    from bnas.models import ModelError
    from bnas.output import OutputError
    from bnas.page.errors import ReportError
    from bnas.pipeline import run_job
    from bnas.quantised import Quantised
    from bnas.report import Report, Row
    from bnas.runner import RandomWeightsWarning
    from bnas.samples import DataError
    from bnas.section import ConfigurationError, ConfigurationWarning
    from bnas.sources import SourceError
    from bnas.weights import WeightsError, WeightsWarning

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.arrays": ("ArrayError",),
        "bnas.devices": ("DeviceError",),
        "bnas.digits": ("MissingExtraError",),
        "bnas.inputs": ("ShapeError",),
        "bnas.job": (
            "Job",
            "Splits",
            "Watch",
        ),
        "bnas.bootstrapnas": ("BootstrapNAS", "OptimizerSection"),
        "bnas.configuration": ("Configuration", "ExportSection", "InputInfo"),
        "bnas.models": ("ModelError",),
        "bnas.output": ("OutputError",),
        "bnas.page.errors": ("ReportError",),
        "bnas.pipeline": ("run_job",),
        "bnas.quantised": ("Quantised",),
        "bnas.report": (
            "Report",
            "Row",
        ),
        "bnas.runner": ("RandomWeightsWarning",),
        "bnas.samples": ("DataError",),
        "bnas.section": (
            "ConfigurationError",
            "ConfigurationWarning",
        ),
        "bnas.sources": ("SourceError",),
        "bnas.weights": (
            "WeightsError",
            "WeightsWarning",
        ),
    },
)

__all__ = [
    "ArrayError",
    "BootstrapNAS",
    "Configuration",
    "ConfigurationError",
    "ConfigurationWarning",
    "DataError",
    "DeviceError",
    "ExportSection",
    "InputInfo",
    "Job",
    "MissingExtraError",
    "ModelError",
    "OptimizerSection",
    "OutputError",
    "Quantised",
    "RandomWeightsWarning",
    "Report",
    "ReportError",
    "Row",
    "ShapeError",
    "SourceError",
    "Splits",
    "Watch",
    "WeightsError",
    "WeightsWarning",
    "run_job",
]
