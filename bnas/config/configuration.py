"""The keys of a configuration file: the classes of settings, or BootstrapNAS's layout of them; model and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    WrapSerializer,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticKnownError

from bnas.data.inputs import limits
from bnas.passes import Elasticity
from bnas.passes.settings import LARGEST, Count, Names, NotNegative, Share, Whole
from bnas.passes.wording import count
from bnas.run.budget import BudgetError, seconds_of
from bnas.run.job import Job
from bnas.run.winners import checked_targets
from bnas.runtime import FineTune, Int8, LatencySettings, Recipe, Stage
from bnas.search import Constraint, Objective, SearchError, SearchSettings
from bnas.search.settings import Bound

from .bootstrapnas import BootstrapNAS, OptimizerSection, check_objectives
from .loggers import MLflowKey, WandBKey
from .section import Section, Unneeded, takes

AxisNumber = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,9}$")]


def _text_keys(value: Any) -> Any:
    """YAML has whole numbers as keys, JSON has none."""
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else value


def _seconds_as_text(value: Any) -> Any:
    """A number is one of seconds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.12g}s" if number else value


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("must be a name of letters, digits and underscores")
    return text


Name = Annotated[str, AfterValidator(_name)]


class InputInfo(Section):
    """``input_info``, or an entry of it."""

    unneeded: ClassVar[dict[str, Any]] = {
        "filler": Unneeded(
            "filler has no effect: example inputs have random values; `range` bounds them",
            TypeAdapter(Literal["ones", "zeros", "random"] | None),
            "must be 'ones', 'zeros' or 'random'",
        )
    }

    sample_size: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Shape of an input, the batch first."""
    type: (
        Literal[
            "float", "long", "int", "half", "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16",
            "int32", "int64", "bool",
        ]
        | None
    ) = None  # fmt: skip
    """Number type; "float" is the model's. By default float, or whole numbers if the model accepts only those."""
    range: tuple[float, float] | None = None
    """Smallest and largest value of the example; by default 0 and 1 for whole numbers."""
    keyword: Name | None = None
    """Keyword argument of the model's forward; by default inputs are positional, in order."""
    dynamic: Annotated[dict[AxisNumber, Name] | None, BeforeValidator(_text_keys)] = None
    """Names of axes whose size may change, such as {"1": "length"}; by default all axes that can."""

    @field_validator("sample_size")
    @classmethod
    def _of_a_tensor(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if (entries := math.prod(shape)) > LARGEST:
            raise ValueError(f"an input of {count(entries)} entries is too large; allowed are {count(LARGEST)}")
        return shape

    @field_validator("range")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None, known: ValidationInfo) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError("must begin with the smaller value")
        least, most = limits(known.data.get("type"))
        if ends is not None and not least <= ends[0] <= ends[1] <= most:
            raise ValueError(f"must lie between {least:g} and {most:g}, the range of the type")
        return ends


def _numbers(value: Any) -> Iterator[float]:
    """All numbers with a point in nested data."""
    if isinstance(value, float):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(one)


def _several(value: Any) -> Any:
    """One input stands for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _as_written(value: Any, handler: Callable[[Any], Any]) -> Any:
    """A list of one input is written as that input, as most files have it."""
    entries = handler(value)
    return entries[0] if len(entries) == 1 else entries


Inputs = Annotated[
    tuple[InputInfo, ...],
    Field(min_length=1),
    BeforeValidator(_several, json_schema_input_type=InputInfo | Annotated[tuple[InputInfo, ...], Field(min_length=1)]),
    WrapSerializer(_as_written),
]


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


PEER = ("bootstrapNAS", "optimizer", "ignored_scopes", "target_scopes")
"""Keys of BootstrapNAS's layout."""
OWN = (
    "elasticity", "stages", "recipe", "checkpoint_every", "search", "objectives", "acc_delta", "reference",
    "num_bn_adaptation_samples",
)  # fmt: skip
"""Keys that say the same as those of `PEER`: a file has some of these or some of those."""


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
    """Number of steps between two checkpoints; by default one checkpoint per epoch."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] | None = None
    """Objectives of the search; accuracy must be one. By default high accuracy and low values of the costs that targets
    bound, or without targets few MACs."""
    search: SearchSettings = SearchSettings()
    """Settings of the search."""
    acc_delta: NotNegative = Job.acc_delta
    """Accuracy that a winner may lose, as a fraction, if there are no targets."""
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
        """With all keys of the layout that the file has."""
        if not self.peer:
            return {key: value for key, value in handler(self).items() if key not in PEER}
        whole = {"bootstrapNAS": self.bootstrapNAS or BootstrapNAS(), "optimizer": self.optimizer or OptimizerSection()}
        full = self.model_copy(update=whole)
        return {key: value for key, value in handler(full).items() if key not in OWN}

    @field_validator("model_options", "data_options")
    @classmethod
    def _of_finite_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        if not all(map(math.isfinite, _numbers(options))):
            raise ValueError("must have only finite numbers")
        return options

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: tuple[Objective, ...] | None) -> tuple[Objective, ...] | None:
        check_objectives(objectives)
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
    def _of_winners_names(cls, targets: dict[str, Constraint]) -> dict[str, Constraint]:
        try:
            return checked_targets(targets)
        except SearchError as error:
            raise ValueError(str(error)) from None

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: str | None, known: ValidationInfo) -> str | None:
        if data is None and known.data.get("dataset") is None:
            raise PydanticKnownError("missing")
        return data
