"""Configuration files, in the layout of BootstrapNAS: unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import difflib
import json
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from bnas.passes.errors import BnasError


class ConfigurationError(BnasError, ValueError):
    """A configuration file is not one; names the key, what came and what is allowed."""


class ConfigurationWarning(UserWarning):
    """A key of BootstrapNAS that is known by another name, or that needs nothing here."""


class Section(BaseModel):
    """A part of a configuration: only known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Dimension = Literal["depth", "width", "kernel"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Scopes = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class BatchNormAdaptation(Section):
    """``batchnorm_adaptation``; 0 samples: never."""

    num_bn_adaptation_samples: Annotated[int, Field(ge=0)] = 2000


class StageDescription(Section):
    """An entry of ``list_stage_descriptions``; see `bnas.Stage`."""

    train_dims: tuple[Dimension, ...] | None = None
    epochs: Count = 1
    depth_indicator: Count | None = None
    width_indicator: Annotated[Count | None, BeforeValidator(lambda v: None if v == -1 else v)] = None
    reorg_weights: bool = False
    bn_adapt: bool = False
    init_lr: Positive | None = None
    epochs_lr: Count | None = None
    sample_rate: Count = 1


class ScheduleSection(Section):
    """``schedule``."""

    list_stage_descriptions: Annotated[tuple[StageDescription, ...], Field(min_length=1)] = (
        StageDescription(train_dims=("depth", "kernel")),
        StageDescription(reorg_weights=True),
    )


class Width(Section):
    """``elasticity.width``; see `bnas.Elasticity`."""

    min_width: Count = 8
    max_num_widths: Count | None = None
    width_step: Count | None = None
    width_multipliers: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    divisor: Count = 8
    widths: dict[str, tuple[Count, ...]] = {}
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    overwrite_groups_widths: tuple[tuple[Count, ...], ...] | None = None
    filter_importance: str = "L2"
    external_importance_path: str | None = None
    """Relative to the configuration file's folder."""

    @model_validator(mode="before")
    @classmethod
    def _peer_keys(cls, data: Any) -> Any:
        """Other names and values of BootstrapNAS: published configurations use ``min_out_channels``."""
        if not isinstance(data, dict):
            return data
        data = _renamed(data, "width_multiplier", "width_multipliers")
        if "min_out_channels" in data:
            _warn("width.min_out_channels is read as min_width: BootstrapNAS ignored it")
        if data.pop("add_dynamic_inputs", None):
            _warn("width.add_dynamic_inputs needs nothing here: input widths follow from the model itself")
        return _renamed(data, "min_out_channels", "min_width")

    @field_validator("max_num_widths", mode="before")
    @classmethod
    def _no_limit(cls, value: Any) -> Any:
        """BootstrapNAS writes -1 for no limit."""
        return None if value == -1 else value


def _renamed(data: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    if old in data and new in data:
        raise ValueError(f"{old} is another name of {new}; give one of them")
    return {new if key == old else key: value for key, value in data.items()}


def _warn(text: str) -> None:
    warnings.warn(text, ConfigurationWarning, stacklevel=2)


class Kernel(Section):
    """``elasticity.kernel``; see `bnas.Elasticity`. As in BootstrapNAS, -1 is no limit."""

    max_num_kernels: Annotated[Count | None, BeforeValidator(lambda v: None if v == -1 else v)] = None
    min_kernel: Count = 3


class Depth(Section):
    """``elasticity.depth``; see `bnas.Elasticity`."""

    min_block_size: Annotated[int, Field(ge=0)] | None = None
    max_block_size: Annotated[int, Field(ge=0)] | None = None
    hw_fused_ops: bool = True
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_read(cls, data: Any) -> Any:
        """A published configuration has ``mode``, which BootstrapNAS does not read either."""
        if not isinstance(data, dict) or "mode" not in data:
            return data
        _warn("depth.mode says nothing here: blocks are found unless skipped_blocks lists them")
        return {key: value for key, value in data.items() if key != "mode"}


class ElasticitySection(Section):
    """``elasticity``."""

    available_elasticity_dims: tuple[Dimension, ...] = ("depth", "width", "kernel")
    width: Width = Width()
    kernel: Kernel = Kernel()
    depth: Depth = Depth()
    ignored_scopes: Scopes = ()
    target_scopes: Scopes = ()
    pin: Scopes = ()


class CosineParameters(Section):
    """``lr_schedule.params``; see `bnas.runtime.CosineSchedule`."""

    base_lr: Positive
    num_epochs: Count | None = None
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: Positive = 3.4e-4


class LearningRateSchedule(Section):
    """``lr_schedule``; empty: each stage has a cosine of its own."""

    params: Annotated[CosineParameters | None, BeforeValidator(lambda v: v or None)] = None


class KnowledgeDistillation(Section):
    """An entry of ``compression``; see `bnas.Distillation`. BootstrapNAS has ``teacher`` "original" and ``hard`` 1."""

    algorithm: Literal["knowledge_distillation"]
    type: Literal["softmax", "mse"]
    scale: Positive = 1.0
    temperature: Positive = 1.0
    teacher: Literal["maximal", "original"] = "original"
    hard: Annotated[float, Field(ge=0)] = 1.0


def _one_entry(value: Any) -> Any:
    """BootstrapNAS takes an object or a list of them; there is one loss to distil with."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise ValueError(f"{len(value)} entries; allowed is one, knowledge_distillation")
    return value[0] if value else None


Compression = Annotated[KnowledgeDistillation | None, BeforeValidator(_one_entry)]


class Training(Section):
    """``bootstrapNAS.training``; what BootstrapNAS has not is explained at `bnas.Recipe`."""

    algorithm: Literal["progressive_shrinking"] = "progressive_shrinking"
    progressivity_of_elasticity: tuple[Dimension, ...] = ("kernel", "depth", "width")
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    schedule: ScheduleSection = ScheduleSection()
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    elasticity: ElasticitySection = ElasticitySection()
    compression: Compression = None
    """By default sub-networks learn from the maximal one, where `rule` trains it; an empty list: from targets only."""
    train_steps: Count | None = None
    rule: Literal["random", "maximal", "sandwich"] = "maximal"
    subnets_per_step: Count | None = None
    clip_norm: Positive | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    accumulate: Count = 1


class Search(Section):
    """``bootstrapNAS.search``."""

    algorithm: Literal["NSGA2", "RNSGA2", "random"] = "NSGA2"
    num_evals: Count = 150
    population: Annotated[int, Field(ge=4)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    acc_delta: Annotated[float, Field(ge=0, description="in points of accuracy")] = 1.0
    ref_acc: Annotated[float, Field(gt=0, le=100, description="in percent")] | None = None
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    crossover_prob: Annotated[float, Field(ge=0, le=1)] = 0.9
    crossover_eta: Annotated[float, Field(ge=0)] = 10.0
    mutation_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    mutation_eta: Annotated[float, Field(ge=0)] = 3.0
    aspiration_points: Annotated[tuple[tuple[float, float], ...], Field(min_length=1)] | None = None
    """For RNSGA2, as BootstrapNAS has them: [MACs in millions, minus accuracy in percent]."""
    epsilon: Annotated[float, Field(ge=0)] = 0.001
    weights: tuple[float, float] | None = None
    """For RNSGA2: of MACs and accuracy."""
    extreme_points_as_ref_points: bool = False
    constraints: tuple[str, ...] = ()
    """Such as "parameters <= 60 %"; see `bnas.search.Constraint`."""
    predictor: bool = False
    """Predict values, and evaluate only what is promising; needs scikit-learn."""

    @model_validator(mode="after")
    def _points(self) -> Search:
        if (self.algorithm == "RNSGA2") != (self.aspiration_points is not None):
            raise ValueError("aspiration_points belong to the algorithm 'RNSGA2', which needs them")
        return self


class BootstrapNAS(Section):
    """``bootstrapNAS``."""

    training: Training = Training()
    search: Search = Search()


class InputInfo(Section):
    """``input_info``."""

    sample_size: Annotated[tuple[Count, ...], Field(min_length=2)]


class OptimizerSection(Section):
    """``optimizer``."""

    type: Literal["sgd"] = "sgd"
    base_lr: Positive = 0.01
    """The learning rate of stages without ``init_lr``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Configuration(Section):
    """A whole configuration file."""

    model: str
    """``torchvision:NAME``, ``package.module:FACTORY`` or ``path/file.py:FACTORY``."""
    weights: str | None = None
    """State dict of the model, relative to the file's folder."""
    data: str
    """A factory of `bnas.Splits`, named as the model is."""
    data_options: dict[str, Any] = {}
    """Keyword arguments of the data factory."""
    input_info: InputInfo
    ignored_scopes: Scopes = ()
    """As in ``elasticity``; BootstrapNAS reads them here."""
    target_scopes: Scopes = ()
    optimizer: OptimizerSection = OptimizerSection()
    bootstrapNAS: BootstrapNAS = BootstrapNAS()


def read_configuration(path: Path) -> Configuration:
    """The configuration in the JSON file `path`.

    Raises:
        ConfigurationError: it is missing, no JSON, or a key is wrong.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"there is no configuration file {path}") from None
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{path} is not a JSON file: {error}") from error
    return parse_configuration(data, str(path))


def parse_configuration(data: Any, place: str) -> Configuration:
    """The configuration in `data`; `place` is named in errors."""
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        told = "; ".join(_told(dict(one)) for one in error.errors())
        raise ConfigurationError(f"{place}: {told}") from None


def _told(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(Configuration), n=1)
        return f"{key} is not a key of bnas" + (f"; did you mean {near[0]!r}?" if near else "")
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _known_keys(section: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, info in section.model_fields.items():
        keys.append(name)
        kinds = [info.annotation, *getattr(info.annotation, "__args__", ())]
        keys += [k for kind in kinds if isinstance(kind, type) and issubclass(kind, Section) for k in _known_keys(kind)]
    return keys
