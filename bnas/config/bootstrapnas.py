"""BootstrapNAS's layout of a configuration: its sections, its spellings, and its own defaults.

Each key stands for a field of a settings class, from which it takes type, bounds and meaning: see `takes`. Defaults are
those of the settings classes, except for the `defaults` of a section and `POPULATION`. Some defaults of BootstrapNAS
are traps and are not taken over:

- stages that train only kernels (`train_dims`), at a learning rate of 3.5e-6;
- widths in steps of 32 from 32 on: 64 choices for a layer of 2048 channels, and none in a small network;
- a mutation probability of 0.02 per choice, which leaves most children unchanged in a small space;
- "L1", where BootstrapNAS's documentation says "L2".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
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

from bnas.passes import Elasticity
from bnas.passes.settings import NUMBER, Count, NotNegative, Number
from bnas.run.job import Job
from bnas.run.latencies import INT8_ACCURACY
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.runtime.train.recipe import check_of_optimizer
from bnas.search import NSGA2, RNSGA2, Objective, SearchSettings
from bnas.search.algorithms.settings import Population
from bnas.search.settings import check_population

from .section import Section, Unneeded, takes

POPULATION = 40
"""Default number of candidates in a generation, if there are as many evaluations."""


WIDTH = ("width_step", "width_multipliers", "divisor", "widths", "overwrite_groups", "overwrite_groups_widths")
IMPORTANCE = ("filter_importance", "external_importance_path", "importance_samples")


@takes(Elasticity, "min_width", "max_num_widths", *WIDTH, *IMPORTANCE)
class Width(Section):
    """``elasticity.width``; see `bnas.Elasticity`."""

    no_limit: ClassVar[tuple[str, ...]] = ("max_num_widths",)
    other_names: ClassVar[dict[str, str]] = {"width_multiplier": "width_multipliers", "min_out_channels": "min_width"}
    warned: ClassVar[dict[str, str]] = {
        "min_out_channels": "width.min_out_channels is read as min_width: BootstrapNAS ignored it"
    }
    unneeded: ClassVar[dict[str, Any]] = {
        "add_dynamic_inputs": Unneeded(
            "width.add_dynamic_inputs has no effect: bnas finds input widths itself",
            TypeAdapter(list[str] | None),
            "must be a list of names",
        )
    }


@takes(Elasticity, "max_num_kernels", "min_kernel")
class Kernel(Section):
    """``elasticity.kernel``; see `bnas.Elasticity`."""

    no_limit: ClassVar[tuple[str, ...]] = ("max_num_kernels",)


@takes(Elasticity, "min_block_size", "max_block_size", "hw_fused_ops", "skipped_blocks")
class Depth(Section):
    """``elasticity.depth``; see `bnas.Elasticity`."""

    unneeded: ClassVar[dict[str, Any]] = {
        "mode": Unneeded(
            "depth.mode has no effect: bnas finds the blocks itself, unless skipped_blocks lists them",
            TypeAdapter(Literal["manual", "auto"] | None),
            "must be 'manual' or 'auto'",
        )
    }


@takes(Elasticity, "ignored_scopes", "target_scopes", "pin", available_elasticity_dims="dimensions")
class ElasticitySection(Section):
    """``elasticity``."""

    width: Width = Width()
    kernel: Kernel = Kernel()
    depth: Depth = Depth()


@takes(Stage, *Stage.__pydantic_fields__)  # type: ignore[attr-defined]
class StageDescription(Section):
    """An entry of ``list_stage_descriptions``; see `bnas.Stage`."""

    no_limit: ClassVar[tuple[str, ...]] = ("width_indicator",)


class ScheduleSection(Section):
    """``schedule``."""

    list_stage_descriptions: Annotated[tuple[StageDescription, ...], Field(min_length=1)] = tuple(
        StageDescription(**asdict(one)) for one in Job.stages
    )
    """The stages of the training, in order."""


@takes(CosineSchedule, *CosineSchedule.__pydantic_fields__)  # type: ignore[attr-defined]
class CosineParameters(Section):
    """``lr_schedule.params``; see `bnas.runtime.CosineSchedule`."""

    needed: ClassVar[tuple[str, ...]] = ("base_lr",)


class Empty(Section):
    """``{}``."""


class LearningRateSchedule(Section):
    """``lr_schedule``; empty: each stage has a cosine of its own."""

    params: Annotated[
        CosineParameters | None,
        BeforeValidator(lambda v: v or None, json_schema_input_type=CosineParameters | Empty | None),
    ] = None
    """One cosine over the whole training; empty: none."""


@takes(Distillation, "type", "scale", "temperature", "teacher", "hard")
class KnowledgeDistillation(Section):
    """An entry of ``compression``; see `bnas.Distillation`."""

    needed: ClassVar[tuple[str, ...]] = ("type",)
    defaults: ClassVar[Mapping[str, Any]] = {"teacher": "original", "hard": 1.0}
    algorithm: Literal["knowledge_distillation"]
    """The only algorithm."""


def _one_entry(value: Any) -> Any:
    """Accept an object or a list with one object, as BootstrapNAS does; there is only one distillation loss."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise ValueError(f"has {len(value)} entries; allowed is one, knowledge_distillation")
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


@takes(Recipe, "num_bn_adaptation_samples")
class BatchNormAdaptation(Section):
    """``batchnorm_adaptation``."""


LEARNING = ("clip_norm", "ema_decay", "precision", "checkpoint_activations", "memory_format", "accumulate")


@takes(Recipe, "progressivity_of_elasticity", "train_steps", "rule", "subnets_per_step", "sampling", *LEARNING)
class Training(Section):
    """``bootstrapNAS.training``; what BootstrapNAS has not is explained at `bnas.Recipe`."""

    algorithm: Literal["progressive_shrinking"] = "progressive_shrinking"
    """The only algorithm."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    schedule: ScheduleSection = ScheduleSection()
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    elasticity: ElasticitySection = ElasticitySection()
    compression: Compression = None
    """By default sub-networks learn from the maximal one, if `rule` trains it. An empty list: from targets only."""
    checkpoint_every: Count | None = None
    """Number of steps between two checkpoints, besides those after each epoch; by default only after epochs, and seldom
    enough that writing takes a twentieth of the time at most."""

    @model_serializer(mode="wrap")
    def _as_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit ``compression`` if the file has none, because null means no compression."""
        said = "compression" in self.model_fields_set
        return {key: value for key, value in handler(self).items() if said or key != "compression"}


OF_RNSGA2 = ("epsilon", "extreme_points_as_ref_points")
VARIATION = ("crossover_prob", "crossover_eta", "mutation_prob", "mutation_eta")


@takes(RNSGA2, *OF_RNSGA2)
@takes(NSGA2, *VARIATION, "predictor")
@takes(SearchSettings, "num_evals", "seed", "constraints", "racing", "executor")
class Search(Section):
    """``bootstrapNAS.search``; see `bnas.SearchSettings`."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_evals": 3000}

    algorithm: Literal["NSGA2", "RNSGA2", "random"] = "NSGA2"
    """The search algorithm."""
    population: Population | None = None
    """Number of candidates in a generation, at least 4. Default: 40, or all evaluations if fewer."""
    acc_delta: NotNegative = 100 * Job.acc_delta
    """Accuracy that a winner may lose, in points."""
    ref_acc: Annotated[float, Field(gt=0, le=100), NUMBER] | None = None
    """Reference accuracy for winners, in percent; by default that of the original."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    aspiration_points: Annotated[tuple[tuple[Number, Number], ...], Field(min_length=1)] | None = Field(
        default=None, validate_default=True
    )
    """For RNSGA2, as BootstrapNAS has them: [MACs in millions, minus accuracy in percent]."""
    weights: tuple[NotNegative, NotNegative] | None = None
    """For RNSGA2: weights of MACs and accuracy."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] | None = None
    """Objectives of the search; accuracy must be one. By default high accuracy and low values of the costs that targets
    bound, or without targets few MACs."""

    @field_validator("aspiration_points")
    @classmethod
    def _of_rnsga2(cls, points: Any, known: ValidationInfo) -> Any:
        if "algorithm" in known.data and (known.data["algorithm"] == "RNSGA2") != (points is not None):
            raise ValueError("aspiration_points and the algorithm 'RNSGA2' need each other: give both or neither")
        return points

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: Any, known: ValidationInfo) -> Any:
        check_objectives(objectives)
        if objectives is not None and known.data.get("aspiration_points") is not None:
            raise ValueError(
                "aspiration_points are points of accuracy and MACs, which are then the objectives; leave objectives out"
            )
        return objectives

    @field_validator("num_evals", check_fields=False)
    @classmethod
    def _one_generation_at_least(cls, count: int, known: ValidationInfo) -> int:
        check_population(known.data.get("population"), count)
        return count

    @field_validator("predictor", check_fields=False)
    @classmethod
    def _not_of_chance(cls, predictor: bool, known: ValidationInfo) -> bool:
        if predictor and known.data.get("algorithm") == "random":
            raise ValueError("has no use with the algorithm 'random'; use NSGA2 or RNSGA2")
        return predictor


def check_objectives(objectives: Any, metric: str = "accuracy") -> None:
    """Raise ValueError unless winners can be chosen by these objectives."""
    names = [one.name for one in objectives or ()]
    if objectives is not None and not {metric, INT8_ACCURACY}.intersection(names):
        raise ValueError(f"{metric!r} must be one of them, since winners are chosen by {metric}")
    if len(set(names)) < len(names):
        raise ValueError(f"a name appears twice in {', '.join(names)}")


class BootstrapNAS(Section):
    """``bootstrapNAS``."""

    training: Training = Training()
    search: Search = Search()


OPTIMIZER = ("momentum", "nesterov", "betas", "weight_decay", "label_smoothing", "no_decay_keys")


@takes(Recipe, type="optimizer", base_lr="learning_rate")
class _Optimizer(Section):
    """``optimizer``; see `bnas.Recipe`."""


@takes(Recipe, *OPTIMIZER)
class OptimizerSection(_Optimizer):
    """``optimizer``; see `bnas.Recipe`."""

    @field_validator("momentum", "nesterov", "betas", check_fields=False)
    @classmethod
    def _of_the_type(cls, value: Any, known: ValidationInfo) -> Any:
        check_of_optimizer(known.data.get("type"), str(known.field_name), value)
        return value
