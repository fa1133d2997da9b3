"""The keys of a configuration file: those of BootstrapNAS with the meaning that it documents, and ours beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, WrapSerializer, field_validator
from pydantic_core import PydanticKnownError

from bnas.search_section import Search
from bnas.section import Count, Fraction, Positive, Scopes, Section
from bnas.training_section import Training


class BootstrapNAS(Section):
    """``bootstrapNAS``."""

    training: Training = Training()
    search: Search = Search()


AxisNumber = Annotated[str, StringConstraints(pattern=r"^-?\d+$")]


def _text_keys(value: Any) -> Any:
    """YAML has whole numbers as keys, JSON has none."""
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else value


class InputInfo(Section):
    """``input_info``, or an entry of it."""

    unneeded: ClassVar[dict[str, str]] = {
        "filler": "filler does nothing here: example inputs have random values; `range` bounds them"
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
    """Number type; "float" is that of the model. By default float, or whole numbers if the model takes only those."""
    range: tuple[float, float] | None = None
    """Smallest and largest value of the example; by default 0 and 1 for whole numbers."""
    keyword: str | None = None
    """Argument of the model's forward that gets this input; by default inputs are positional, in order."""
    dynamic: Annotated[dict[AxisNumber, str] | None, BeforeValidator(_text_keys)] = None
    """Names of axes whose size may change, such as {"1": "length"}; by default all that can change."""

    @field_validator("range")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and ends[0] > ends[1]:
            raise ValueError("must begin with the smaller value")
        return ends


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


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class OptimizerSection(Section):
    """``optimizer``."""

    type: Annotated[
        Literal["sgd", "adam", "adamw", "rmsprop"],
        BeforeValidator(
            _lower,
            json_schema_input_type=Literal["sgd", "adam", "adamw", "rmsprop", "SGD", "Adam", "AdamW", "RMSprop"],
        ),
    ] = "sgd"
    """Of `torch.optim`; capitals say nothing."""
    base_lr: Positive = 0.01
    """The learning rate of stages without ``init_lr``."""
    momentum: Fraction | None = None
    """Of sgd and rmsprop; by default 0.9 and 0."""
    nesterov: bool | None = None
    """Of sgd: look ahead along the momentum; by default wherever there is one."""
    betas: tuple[Fraction, Fraction] | None = None
    """Of adam and adamw; by default 0.9 and 0.999."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Factor of the weights in their gradients; of adamw that of the weights themselves."""
    label_smoothing: Fraction = 0.0
    """Of the cross-entropy against the targets."""
    no_decay_keys: str | None = None
    """Parts of parameter names with # between them, such as "bn#bias": these parameters have no weight decay."""


class LatencySection(Section):
    """``latency``; see `bnas.measure_latency`."""

    batch: Count = 1
    """Samples in a run."""
    threads: Count = 1
    """Threads within an operator."""
    runs: Count = 50
    """Timings of each file; with fewer than 50 nothing is called stable."""
    provider: str = "CPUExecutionProvider"
    """Execution provider of ONNX Runtime, among those that are installed."""
    subnets: Annotated[int, Field(ge=6)] = 16
    """So many sub-networks are measured to fit a latency model, where an objective or a constraint is latency."""
    sizes: dict[str, Count] | None = None
    """Sizes of dynamic axes by name, such as {"length": 128}; by default those of `input_info`."""


class ExportSection(Section):
    """``export``; see `bnas.Int8`."""

    int8: bool = True
    """Also write int8 files, and measure them."""
    calibration_samples: Count = 512
    """Training samples that the ranges of int8 activations are found on."""
    exclude: Scopes = ()
    """Layers that stay in float: paths or globs on paths of modules."""
    exclude_operators: Scopes = ()
    """ONNX operators that stay in float, such as "Gemm"."""
    per_channel: bool = True
    """Weights have a scale for each output channel."""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the range of an activation is found."""
    reduce_range: bool = False
    """Weights of 7 bits: on CPUs with AVX2 or AVX-512 but without VNNI, sums of 8 bits saturate."""


class Configuration(Section):
    """A whole configuration file."""

    unneeded: ClassVar[dict[str, str]] = {
        "multiprocessing_distributed": "multiprocessing_distributed does nothing here: a run is one process"
    }

    model: str
    """A name of torchvision's, ``resnet50_cifar10``; ``package.module:FACTORY``; ``file.py:FACTORY``; ``file.pt2``"""
    num_classes: Count | None = None
    """Keyword argument of the model's factory."""
    model_options: dict[str, Any] = Field(default={})
    """Further keyword arguments of the model's factory."""
    weights: str | None = None
    """State dict of the model, .safetensors or .pt, relative to the file's folder."""
    dataset: str | None = None
    """digits, cifar10, cifar100, fashion_mnist, imagenet; keyword argument of a data factory."""
    data: str | None = Field(default=None, validate_default=True)
    """A folder of a data set, of images or of .npz files; a .npz file; a factory of `bnas.Splits`."""
    data_options: dict[str, Any] = Field(default={})
    """Further arguments: see `docs/configuration.md`, or those of the factory."""
    batch_size: Count | None = None
    """Images of a batch in training."""
    batch_size_val: Count | None = None
    """Images of a batch elsewhere."""
    input_info: Inputs
    """The inputs of the model: one, or a list of several in the order of its forward."""
    device: str = "cpu"
    """What a run computes on: cpu, cuda, cuda:0, mps or any other that PyTorch has and finds."""
    log_dir: str | None = None
    """Folder for all results where the command line says no ``--output``."""
    tensorboard: bool = False
    """Write scalars of training and search to ``training/tensorboard`` and ``search/tensorboard`` of the run."""
    ignored_scopes: Scopes = ()
    """As in ``elasticity``; BootstrapNAS reads them here."""
    target_scopes: Scopes = ()
    """As in ``elasticity``."""
    optimizer: OptimizerSection = OptimizerSection()
    bootstrapNAS: BootstrapNAS = BootstrapNAS()
    latency: LatencySection = LatencySection()
    export: ExportSection = ExportSection()

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: str | None, known: ValidationInfo) -> str | None:
        if data is None and known.data.get("dataset") is None:
            raise PydanticKnownError("missing")
        return data


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | Configuration.model_json_schema()
