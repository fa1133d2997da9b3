"""Whole runs: jobs, progress, reports, and their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.passes.lazy import attach

if TYPE_CHECKING:
    from bnas.config.bootstrapnas import BootstrapNAS, OptimizerSection
    from bnas.config.configuration import Configuration, ExportSection, MetricSection
    from bnas.config.inputs import InputInfo
    from bnas.config.loggers import MLflowSection, WandBSection
    from bnas.config.section import ConfigurationError, ConfigurationWarning
    from bnas.config.settings import DeviceError
    from bnas.data.digits import MissingExtraError
    from bnas.data.factories import SourceError
    from bnas.data.files import DataError
    from bnas.data.inputs import ShapeError
    from bnas.data.models import ModelError
    from bnas.data.samples import ArrayError
    from bnas.data.sources import WeightsError, WeightsWarning
    from bnas.page.recorded import ReportError

    from .files.mark import OutputError
    from .files.trust import TrustError
    from .job import Job, Splits, Watch
    from .pipeline import plan_run, run_job
    from .plan.budget import BudgetError, Plan, Planned
    from .quality import Quality
    from .results.results import Quantised, Report, Row
    from .runner import RandomWeightsWarning
    from .winners.winners import Target

__getattr__, __dir__ = attach(
    __name__,
    {
        "bnas.config.bootstrapnas": (
            "BootstrapNAS",
            "OptimizerSection",
        ),
        "bnas.config.configuration": (
            "Configuration",
            "ExportSection",
            "MetricSection",
        ),
        "bnas.config.inputs": ("InputInfo",),
        "bnas.config.loggers": ("MLflowSection", "WandBSection"),
        "bnas.config.section": (
            "ConfigurationError",
            "ConfigurationWarning",
        ),
        "bnas.config.settings": ("DeviceError",),
        "bnas.data.digits": ("MissingExtraError",),
        "bnas.data.factories": ("SourceError",),
        "bnas.data.inputs": ("ShapeError",),
        "bnas.data.files": ("DataError",),
        "bnas.data.samples": ("ArrayError",),
        "bnas.data.models": ("ModelError",),
        "bnas.data.sources": (
            "WeightsError",
            "WeightsWarning",
        ),
        "bnas.page.recorded": ("ReportError",),
        "bnas.run.results.results": (
            "Quantised",
            "Report",
            "Row",
        ),
        "bnas.run.plan.budget": (
            "BudgetError",
            "Plan",
            "Planned",
        ),
        "bnas.run.job": (
            "Job",
            "Splits",
            "Watch",
        ),
        "bnas.run.files.mark": ("OutputError",),
        "bnas.run.pipeline": ("run_job", "plan_run"),
        "bnas.run.quality": ("Quality",),
        "bnas.run.runner": ("RandomWeightsWarning",),
        "bnas.run.files.trust": ("TrustError",),
        "bnas.run.winners.winners": ("Target",),
    },
)

__all__ = [
    "ArrayError",
    "BootstrapNAS",
    "BudgetError",
    "Configuration",
    "ConfigurationError",
    "ConfigurationWarning",
    "DataError",
    "DeviceError",
    "ExportSection",
    "InputInfo",
    "Job",
    "MLflowSection",
    "MetricSection",
    "MissingExtraError",
    "ModelError",
    "OptimizerSection",
    "OutputError",
    "Plan",
    "Planned",
    "Quality",
    "Quantised",
    "RandomWeightsWarning",
    "Report",
    "ReportError",
    "Row",
    "ShapeError",
    "SourceError",
    "Splits",
    "Target",
    "TrustError",
    "WandBSection",
    "Watch",
    "WeightsError",
    "WeightsWarning",
    "plan_run",
    "run_job",
]
