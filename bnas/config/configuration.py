"""The keys of a configuration file: model, data, and the settings in bnas's own or in BootstrapNAS's layout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticKnownError

from bnas.passes import Elasticity
from bnas.passes.settings import Count, Names, NotNegative, Share, Whole
from bnas.run.job import Job
from bnas.run.plan.budget import BudgetError, seconds_of
from bnas.run.winners.winners import checked_targets
from bnas.runtime import FineTune, Int8, LatencySettings, Recipe, Stage
from bnas.search import Constraint, Objective, SearchError, SearchSettings
from bnas.search.objectives import check_name
from bnas.search.settings import Bound

from .bootstrapnas import BootstrapNAS, OptimizerSection, check_objectives
from .inputs import Inputs
from .loggers import MLflowKey, WandBKey
from .section import Section, Unneeded, takes


def _seconds_as_text(value: Any) -> Any:
    """Turn a number of seconds into a text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.12g}s" if number else value


class MetricSection(Section):
    """``metric``; see `bnas.run.Quality`."""

    function: str
    """Your ``metric(module, batches)``, which returns one number for all batches: ``package.module:NAME`` or
    ``file.py:NAME``."""
    direction: Literal["min", "max"]
    """Whether large ("max") or small ("min") values are better."""
    name: str | None = None
    """The name of its values in tables, reports and objectives; by default that of the function."""

    @property
    def title(self) -> str:
        """The name of its values."""
        return self.name or self.function.rpartition(":")[2]

    @field_validator("name")
    @classmethod
    def _of_a_column(cls, name: str | None) -> str | None:
        try:
            check_name("metric" if name is None else name)
        except SearchError as error:
            raise ValueError(str(error)) from None
        return name


def _numbers(value: Any) -> Iterator[float]:
    """Yield all floats in nested data."""
    if isinstance(value, float):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(one)


@takes(
    Int8,
    "activations",
    "exclude",
    "exclude_operators",
    "per_channel",
    "method",
    "reduce_range",
    calibration_samples="samples",
)
class ExportSection(Section):
    """``export``; see `bnas.Int8`."""

    int8: bool = True
    """Also write int8 files, and measure them."""


def _metric_of(known: ValidationInfo) -> str:
    """Return the name of the metric in a file."""
    metric = known.data.get("metric")
    return "accuracy" if metric is None else str(metric.title)


PEER = ("bootstrapNAS", "optimizer", "ignored_scopes", "target_scopes")
"""Keys of BootstrapNAS's layout."""
OWN = (
    "elasticity", "stages", "recipe", "checkpoint_every", "search", "objectives", "acc_delta", "reference",
    "num_bn_adaptation_samples", "metric",
)  # fmt: skip
"""Keys of bnas's own layout with the same meaning as keys of `PEER`. A file may use only one of the layouts."""


class Configuration(Section):
    """A whole configuration file."""

    unneeded: ClassVar[dict[str, Any]] = {
        "multiprocessing_distributed": Unneeded(
            "multiprocessing_distributed has no effect: torchrun starts the processes of a run",
            TypeAdapter(bool | None),
            "must be true or false",
        )
    }

    model: str
    """A torchvision model, ``resnet50_cifar10``; ``package.module:FACTORY``; ``file.py:FACTORY``; ``file.pt2``"""
    num_classes: Count | None = None
    """Keyword argument of the model's factory."""
    model_options: dict[str, Any] = Field(default={})
    """Further keyword arguments of the model's factory."""
    weights: str | None = None
    """State dict of the model, .safetensors or .pt, relative to the file's folder."""
    dataset: str | None = None
    """digits, cifar10, cifar100, fashion_mnist or imagenet; for a data factory a keyword argument."""
    data: str | None = Field(default=None, validate_default=True)
    """A folder of a data set, of images or of .npz files; a .npz file; a factory of `bnas.Splits`."""
    data_options: dict[str, Any] = Field(default={})
    """Further arguments: see `docs/configuration.md`, or those of the factory."""
    batch_size: Count | None = None
    """Batch size in training."""
    batch_size_val: Count | None = None
    """Batch size for validation and test."""
    input_info: Inputs
    """The inputs of the model: one, or a list of several in the order of its forward."""
    criterion: str | None = None
    """Your loss, ``package.module:NAME`` or ``file.py:NAME``: a function ``criterion(outputs, targets)`` that returns
    the mean over a batch, or a class of such functions, as torch.nn has them. By default cross-entropy."""
    metric: MetricSection | None = None
    """Your metric, by which winners are chosen instead of accuracy. By default top-1 accuracy."""
    device: str = "cpu"
    """Device of the run: cpu, cuda, cuda:0, mps or any other that PyTorch finds."""
    log_dir: str | None = None
    """Folder of the run if the command line has no ``--output``."""
    tensorboard: bool = False
    """Write scalars of training and search to ``training/tensorboard`` and ``search/tensorboard`` of the run."""
    mlflow: MLflowKey = None
    """Write to a run of MLflow; true for its defaults."""
    wandb: WandBKey = None
    """Write to a run of Weights & Biases; true for its defaults."""
    elasticity: Elasticity = Elasticity()
    """What may change in the model, and in which steps."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = tuple(Job.stages)
    """The stages of the training, in order."""
    recipe: Recipe = Recipe()
    """How the stages are trained."""
    checkpoint_every: Count | None = None
    """Number of steps between two checkpoints, besides those after each epoch; by default only after epochs, and seldom
    enough that writing takes a twentieth of the time at most."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] | None = None
    """Objectives of the search; accuracy, or the name of your metric, must be one. By default high accuracy and low
    values of the costs that targets bound, or without targets few MACs."""
    search: SearchSettings = SearchSettings()
    """Settings of the search."""
    acc_delta: NotNegative = Job.acc_delta
    """Accuracy that a winner may lose, as a fraction, if there are no targets; of your own metric in its own unit."""
    reference: Literal["original", "maximal"] | Share = Job.reference
    """Reference accuracy for winners: that of the original or the trained maximal sub-network, or a fraction."""
    num_bn_adaptation_samples: Whole = Job.num_bn_adaptation_samples
    """Training samples for the BatchNorm statistics of each evaluated sub-network; 0: never recalibrate."""
    targets: dict[str, Bound] = Field(default={})
    """Winners by name, such as {"half": "macs <= 50 %"}: each is the most accurate evaluated sub-network within its
    bound, in percent of the original. By default "best" and "smallest", by `acc_delta`."""
    fine_tune: FineTune | None = None
    """Fine-tuning of the winners before their export; by default none."""
    budget: Annotated[str, BeforeValidator(_seconds_as_text)] | None = None
    """Time for the whole run, such as "30m" or "1h30m"; bnas plans epochs and evaluations for it."""
    latency: LatencySettings = LatencySettings()
    """How the value "latency" is measured."""
    latencies: dict[str, LatencySettings] = Field(default={})
    """Further latencies by name, such as {"phone": {"target": {...}, "threads": 2}}. Objectives, constraints and
    targets may use these names."""
    export: ExportSection = ExportSection()
    """The int8 files."""
    ignored_scopes: Names = ()
    """As in ``elasticity``; BootstrapNAS reads the key here."""
    target_scopes: Names = ()
    """As in ``elasticity``."""
    optimizer: OptimizerSection | None = None
    """The optimizer in BootstrapNAS's layout; otherwise use ``recipe``."""
    bootstrapNAS: BootstrapNAS | None = None
    """BootstrapNAS's layout of elasticity, stages, recipe and search, with its defaults."""

    @property
    def peer(self) -> bool:
        """Whether the file has BootstrapNAS's layout."""
        return bool(self.model_fields_set.intersection(PEER))

    @model_serializer(mode="wrap")
    def _of_one_layout(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write all keys of the file's layout."""
        if not self.peer:
            return {key: value for key, value in handler(self).items() if key not in PEER}
        whole = {"bootstrapNAS": self.bootstrapNAS or BootstrapNAS(), "optimizer": self.optimizer or OptimizerSection()}
        full = self.model_copy(update=whole)
        return {key: value for key, value in handler(full).items() if key not in OWN}

    @field_validator("targets", "latencies", "model_options", "data_options", mode="before")
    @classmethod
    def _of_nothing(cls, entries: Any) -> Any:
        return {} if entries is None else entries  # what --set KEY=null removes

    @field_validator("model_options", "data_options")
    @classmethod
    def _of_finite_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        if not all(map(math.isfinite, _numbers(options))):
            raise ValueError("must have only finite numbers")
        return options

    @field_validator("metric", mode="before")
    @classmethod
    def _with_a_direction(cls, metric: Any) -> Any:
        if isinstance(metric, str):
            raise ValueError('must say what is better: {"function": "task.py:mae", "direction": "min"}')
        return metric

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: Any, known: ValidationInfo) -> Any:
        check_objectives(objectives, _metric_of(known))
        return objectives

    @field_validator("budget")
    @classmethod
    def _of_a_length(cls, budget: str | None) -> str | None:
        try:
            if budget is not None:
                seconds_of(budget)
        except BudgetError as error:
            raise ValueError(str(error).partition(": ")[2]) from None
        return budget

    @field_validator("targets")
    @classmethod
    def _of_winners_names(cls, targets: dict[str, Constraint], known: ValidationInfo) -> dict[str, Constraint]:
        try:
            return checked_targets(targets, _metric_of(known))
        except SearchError as error:
            raise ValueError(str(error)) from None

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: str | None, known: ValidationInfo) -> str | None:
        if data is None and known.data.get("dataset") is None:
            raise PydanticKnownError("missing")
        return data
