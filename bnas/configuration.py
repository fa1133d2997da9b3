"""The keys of a configuration file: those of BootstrapNAS with the meaning that it documents, and ours beside them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from bnas.search_section import Search
from bnas.section import Count, Fraction, Positive, Scopes, Section
from bnas.training_section import Training


class BootstrapNAS(Section):
    """``bootstrapNAS``."""

    training: Training = Training()
    search: Search = Search()


class InputInfo(Section):
    """``input_info``."""

    sample_size: Annotated[tuple[Count, ...], Field(min_length=2)]
    """Shape of an input, the batch first."""


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
    """A name of torchvision's, ``resnet50_cifar10`` or such; ``package.module:FACTORY``; ``path/file.py:FACTORY``"""
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
    input_info: InputInfo
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
