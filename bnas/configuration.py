"""The keys of a configuration file: those of BootstrapNAS with the meaning that it documents, and ours beside them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from bnas.section import Count, Dimension, Fraction, Positive, Scopes, Section, Whole, no_limit


class BatchNormAdaptation(Section):
    """``batchnorm_adaptation``."""

    num_bn_adaptation_samples: Whole = 2000
    """Training samples for the BatchNorm statistics of a sub-network; 0: they are never recalibrated."""


class StageDescription(Section):
    """An entry of ``list_stage_descriptions``; see `bnas.Stage`."""

    train_dims: Annotated[tuple[Dimension, ...], Field(min_length=1)] | None = None
    """Dimensions that are sampled, the others stay maximal; by default all that are elastic."""
    epochs: Count = 1
    """Length of the stage."""
    depth_indicator: Count | None = None
    """Skip at most so many blocks of each chain; by default any number."""
    width_indicator: no_limit(Count) = None  # type: ignore[valid-type]
    """Sample only the so many largest widths of each; -1: all."""
    reorg_weights: bool = False
    """Bring important entries to the front before the stage."""
    bn_adapt: bool = False
    """Recalibrate the shared BatchNorm statistics before the stage."""
    init_lr: Positive | None = None
    """Learning rate at the start of the stage, which falls along a cosine; by default the optimizer's base_lr."""
    epochs_lr: Count | None = None
    """The cosine reaches 0 after so many epochs; by default those of the stage."""
    sample_rate: Count = 1
    """Draw new random sub-networks every so many steps."""


class ScheduleSection(Section):
    """``schedule``."""

    list_stage_descriptions: Annotated[tuple[StageDescription, ...], Field(min_length=1)] = (
        StageDescription(train_dims=("depth", "kernel")),
        StageDescription(reorg_weights=True),
    )
    """The stages of the training, in order."""


class Width(Section):
    """``elasticity.width``; see `bnas.Elasticity`."""

    other_names: ClassVar[dict[str, str]] = {"width_multiplier": "width_multipliers", "min_out_channels": "min_width"}
    warned: ClassVar[dict[str, str]] = {
        "min_out_channels": "width.min_out_channels is read as min_width: BootstrapNAS ignored it"
    }
    unneeded: ClassVar[dict[str, str]] = {
        "add_dynamic_inputs": "width.add_dynamic_inputs needs nothing here: input widths follow from the model itself"
    }

    min_width: Count = 8
    """No choice is smaller, except where the full size is."""
    max_num_widths: no_limit(Count) = None  # type: ignore[valid-type]
    """At most so many choices, counted from the largest; -1: all."""
    width_step: Count | None = None
    """Sizes are the full one less once, twice, ... so many channels; width_multipliers come first."""
    width_multipliers: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    """Sizes as fractions of the full one; by default 1, 0.75 and 0.5."""
    divisor: Count = 8
    """Choices are rounded down to a multiple of this; the full size is left as it is."""
    widths: dict[str, tuple[Count, ...]] = Field(default={})
    """Sizes of single widths, by name or glob as ``bnas inspect`` names them."""
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    """Only these layers have an elastic width; those of one group have the same."""
    overwrite_groups_widths: tuple[tuple[Count, ...], ...] | None = None
    """Sizes of each group in channels, the full one among them."""
    filter_importance: str = "L2"
    """What brings a channel to the front: L1, L2, geometric_median or external."""
    external_importance_path: str | None = None
    """Scores for the importance "external" (JSON or safetensors), relative to the configuration file's folder."""


class Kernel(Section):
    """``elasticity.kernel``; see `bnas.Elasticity`."""

    max_num_kernels: no_limit(Count) = None  # type: ignore[valid-type]
    """At most so many choices for a kernel, counted from the largest; -1: all."""
    min_kernel: Count = 3
    """No kernel gets smaller."""


class Depth(Section):
    """``elasticity.depth``; see `bnas.Elasticity`."""

    unneeded: ClassVar[dict[str, str]] = {
        "mode": "depth.mode says nothing here: blocks are found unless skipped_blocks lists them"
    }

    min_block_size: Whole | None = None
    """Operators of the smallest block beyond the first; by default any for residual blocks, 5 for other regions."""
    max_block_size: Whole | None = None
    """Operators of the largest block beyond the first; by default any for residual blocks, 50 for other regions."""
    hw_fused_ops: bool = True
    """No region begins or ends between a linear operator, its BatchNorm and its activation."""
    skipped_blocks: tuple[str | tuple[str, str], ...] | None = None
    """These blocks only: names, or pairs of a start and an end, as modules or as BootstrapNAS spells them."""


class ElasticitySection(Section):
    """``elasticity``."""

    available_elasticity_dims: tuple[Dimension, ...] = ("depth", "width", "kernel")
    """What may change."""
    width: Width = Width()
    kernel: Kernel = Kernel()
    depth: Depth = Depth()
    ignored_scopes: Scopes = ()
    """Modules whose own channels stay as they are, and which no skipped block contains."""
    target_scopes: Scopes = ()
    """If any are given, only what is inside of these modules changes."""
    pin: Scopes = ()
    """Modules and parameters that stay whole altogether."""


class CosineParameters(Section):
    """``lr_schedule.params``; see `bnas.runtime.CosineSchedule`."""

    base_lr: Positive
    """The rate after the warm-up."""
    num_epochs: Count | None = None
    """Length, warm-up included; by default that of all stages."""
    warmup_epochs: Whole = 0
    """The rate rises linearly for so long."""
    warmup_lr: Positive = 3.4e-4
    """Where the warm-up starts."""


class Empty(Section):
    """``{}``."""


class LearningRateSchedule(Section):
    """``lr_schedule``; empty: each stage has a cosine of its own."""

    params: Annotated[
        CosineParameters | None,
        BeforeValidator(lambda v: v or None, json_schema_input_type=CosineParameters | Empty | None),
    ] = None
    """One cosine over the whole training; empty: none."""


class KnowledgeDistillation(Section):
    """An entry of ``compression``; see `bnas.Distillation`. BootstrapNAS has ``teacher`` "original" and ``hard`` 1."""

    algorithm: Literal["knowledge_distillation"]
    """The one that there is."""
    type: Literal["softmax", "mse"]
    """Cross-entropy against the softmax of the teacher, or the mean squared error."""
    scale: Positive = 1.0
    """Factor of the loss against the teacher."""
    temperature: Positive = 1.0
    """Of the softmax."""
    teacher: Literal["maximal", "original"] = "original"
    """The original model, or the maximal sub-network in the same step."""
    hard: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the loss against the targets."""


def _one_entry(value: Any) -> Any:
    """BootstrapNAS takes an object or a list of them; there is one loss to distil with."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise ValueError(f"{len(value)} entries; allowed is one, knowledge_distillation")
    return value[0] if value else None


Compression = Annotated[
    KnowledgeDistillation | None,
    BeforeValidator(
        _one_entry,
        json_schema_input_type=KnowledgeDistillation
        | Annotated[tuple[KnowledgeDistillation, ...], Field(max_length=1)]
        | None,
    ),
]


class Training(Section):
    """``bootstrapNAS.training``; what BootstrapNAS has not is explained at `bnas.Recipe`."""

    algorithm: Literal["progressive_shrinking"] = "progressive_shrinking"
    """The one that there is."""
    progressivity_of_elasticity: tuple[Dimension, ...] = ("kernel", "depth", "width")
    """The order in which stages add dimensions."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    schedule: ScheduleSection = ScheduleSection()
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    elasticity: ElasticitySection = ElasticitySection()
    compression: Compression = None
    """By default sub-networks learn from the maximal one, where `rule` trains it; an empty list: from targets only."""
    train_steps: Count | None = None
    """Samples of an epoch, in whole batches; by default all."""
    rule: Literal["random", "maximal", "sandwich"] = "maximal"
    """What a step trains beside random sub-networks: nothing, the maximal one, or the maximal and the minimal one."""
    subnets_per_step: Count | None = None
    """All sub-networks of a step; by default one random one beside those of the rule."""
    sampling: Literal["uniform", "spread", "attentive"] = "uniform"
    """Random sub-networks: any, of which few are large; of all sizes from those on; the most promising of all sizes."""
    clip_norm: Positive | None = None
    """Largest norm of all gradients of a step together."""
    ema_decay: Fraction | None = None
    """Decay of averages of the weights, which the training ends with; by default there are none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of forward passes; parameters and losses stay in float32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of images; auto: the faster one in a short measurement."""
    accumulate: Count = 1
    """Batches of one step."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, which an interrupted training goes on from; by default every epoch."""


class ObjectiveSection(Section):
    """An entry of ``objectives``; see `bnas.Objective`."""

    name: Annotated[str, Field(min_length=1)]
    """Such as accuracy, macs, parameters, activations, peak_memory or latency."""
    direction: Literal["min", "max"]
    """Which is better."""


class Search(Section):
    """``bootstrapNAS.search``."""

    algorithm: Literal["NSGA2", "RNSGA2", "random"] = "NSGA2"
    """How candidates are made."""
    num_evals: Annotated[int, Field(ge=4)] = 150
    """How many sub-networks are evaluated."""
    population: Annotated[int, Field(ge=4)] | None = None
    """Candidates of a generation; by default 20, or `num_evals` where that is less."""
    seed: Whole = 0
    """Fixes the training's sub-networks and the search."""
    acc_delta: Annotated[float, Field(ge=0)] = 1.0
    """How much a winner may lose, in points of accuracy."""
    ref_acc: Annotated[float, Field(gt=0, le=100)] | None = None
    """What winners are held against, in percent; by default the accuracy of the original."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    crossover_prob: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that two candidates are mixed."""
    crossover_eta: Annotated[float, Field(ge=0)] = 10.0
    """The larger, the closer are children to their parents."""
    mutation_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability that a choice changes; by default one choice of each candidate does on average."""
    mutation_eta: Annotated[float, Field(ge=0)] = 3.0
    """The larger, the smaller are changes."""
    aspiration_points: Annotated[tuple[tuple[float, float], ...], Field(min_length=1)] | None = Field(
        default=None, validate_default=True
    )
    """For RNSGA2, as BootstrapNAS has them: [MACs in millions, minus accuracy in percent]."""
    epsilon: Annotated[float, Field(ge=0)] = 0.001
    """For RNSGA2: how close to each other solutions around a point may be."""
    weights: tuple[float, float] | None = None
    """For RNSGA2: of MACs and accuracy."""
    extreme_points_as_ref_points: bool = False
    """For RNSGA2: also look around the best values of each objective."""
    objectives: Annotated[tuple[ObjectiveSection, ...], Field(min_length=1)] | None = None
    """What is searched for; accuracy must be one. By default the most accuracy and the fewest MACs."""
    constraints: tuple[str, ...] = ()
    """Such as "parameters <= 60 %"; see `bnas.search.Constraint`."""
    predictor: bool = False
    """Predict values, and evaluate only what is promising; needs scikit-learn."""

    @field_validator("aspiration_points")
    @classmethod
    def _of_rnsga2(cls, points: Any, known: ValidationInfo) -> Any:
        if "algorithm" in known.data and (known.data["algorithm"] == "RNSGA2") != (points is not None):
            raise ValueError("aspiration_points belong to the algorithm 'RNSGA2', which needs them")
        return points

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: Any, known: ValidationInfo) -> Any:
        names = [one.name for one in objectives or ()]
        if objectives is not None and "accuracy" not in names:
            raise ValueError("'accuracy' must be one of them, winners are chosen by it")
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in {', '.join(names)}")
        if objectives is not None and known.data.get("aspiration_points") is not None:
            raise ValueError("aspiration_points are of accuracy and MACs; leave objectives out")
        return objectives


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
