"""The keys of the training: ``bootstrapNAS.training``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bnas.elasticity_section import ElasticitySection
from bnas.section import BatchNormAdaptation, Count, Dimension, Fraction, Positive, Section, Whole, no_limit


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
