"""BootstrapNAS's layout of a configuration: its sections, its spellings, and its own defaults.

Every key stands for a field of a class of settings, which has its kind, bounds and meaning: see `takes`. Defaults are
those of the classes, but for `DEFAULTS`. These of the peer's are not taken, since they are traps: stages that train
kernels only (`train_dims`) at a rate of 3.5e-6; widths in steps of 32 from 32 on, which are 64 choices for a layer of
2048 channels, and none for a small network; a mutation of each choice with a probability of 0.02, which leaves most
children of a small space as they are; and "L1", where its documentation says "L2".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)
from pydantic.fields import FieldInfo

from bnas.job import Job
from bnas.passes import Elasticity
from bnas.passes.settings import NUMBER, Count, Names, NotNegative, Number
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.runtime.recipe import check_of_optimizer
from bnas.search import NSGA2, RNSGA2, Objective, RandomSearch, SearchSettings
from bnas.search.algorithms import Population
from bnas.search.settings import check_population
from bnas.section import Section

S = TypeVar("S", bound=type[Section])

POPULATION = 40
"""Candidates of a generation, where nothing else is said and there are as many evaluations."""
DEFAULTS: Mapping[str, Any] = {"num_evals": 3000, "teacher": "original", "hard": 1.0}
"""BootstrapNAS's own defaults, by key."""


def takes(settings: type, *names: str, **renamed: str) -> Callable[[S], S]:
    """Add keys to a section: fields of a class of settings, those of `renamed` by another name."""
    hints, known = get_type_hints(settings, include_extras=True), settings.__pydantic_fields__  # type: ignore[attr-defined]

    def decorate(section: S) -> S:
        taken = {name: name for name in names} | renamed
        fields: Any = {key: _field(section, key, hints[name], known[name]) for key, name in taken.items()}
        kept: Any = {"__base__": section, "__doc__": section.__doc__, "__module__": section.__module__}
        made: Any = create_model(section.__name__, **kept, __validators__=_checks(settings, set(names)), **fields)
        return made  # type: ignore[no-any-return]

    return decorate


def _field(section: type[Section], key: str, kind: Any, info: FieldInfo) -> tuple[Any, Any]:
    """A field of a class of settings as a field of a section."""
    default = ... if key in section.needed else DEFAULTS.get(key, info.default)
    return _or_no_limit(kind) if key in section.no_limit else kind, Field(default, description=info.description)


def _checks(settings: type, names: set[str]) -> dict[str, Any]:
    """The checks of a class that a section with these of its fields has too."""
    known = settings.__pydantic_decorators__.field_validators  # type: ignore[attr-defined]
    copied = {name: one for name, one in known.items() if set(one.info.fields) <= names}
    return {name: field_validator(*one.info.fields)(_unbound(one.func)) for name, one in copied.items()}


def _unbound(check: Any) -> Any:
    """A check that may be bound to the class that it comes from."""
    return classmethod(getattr(check, "__func__", check))


def _or_no_limit(kind: Any) -> Any:
    """BootstrapNAS writes -1 for no limit."""
    return Annotated[
        kind, BeforeValidator(lambda value: None if value == -1 else value, json_schema_input_type=kind | Literal[-1])
    ]


WIDTH = ("width_step", "width_multipliers", "divisor", "widths", "overwrite_groups", "overwrite_groups_widths")
IMPORTANCE = ("filter_importance", "external_importance_path")


@takes(Elasticity, "min_width", "max_num_widths", *WIDTH, *IMPORTANCE)
class Width(Section):
    """``elasticity.width``; see `bnas.Elasticity`."""

    no_limit: ClassVar[tuple[str, ...]] = ("max_num_widths",)
    other_names: ClassVar[dict[str, str]] = {"width_multiplier": "width_multipliers", "min_out_channels": "min_width"}
    warned: ClassVar[dict[str, str]] = {
        "min_out_channels": "width.min_out_channels is read as min_width: BootstrapNAS ignored it"
    }
    unneeded: ClassVar[dict[str, str]] = {
        "add_dynamic_inputs": "width.add_dynamic_inputs needs nothing here: input widths follow from the model itself"
    }


@takes(Elasticity, "max_num_kernels", "min_kernel")
class Kernel(Section):
    """``elasticity.kernel``; see `bnas.Elasticity`."""

    no_limit: ClassVar[tuple[str, ...]] = ("max_num_kernels",)


@takes(Elasticity, "min_block_size", "max_block_size", "hw_fused_ops", "skipped_blocks")
class Depth(Section):
    """``elasticity.depth``; see `bnas.Elasticity`."""

    unneeded: ClassVar[dict[str, str]] = {
        "mode": "depth.mode says nothing here: blocks are found unless skipped_blocks lists them"
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
    algorithm: Literal["knowledge_distillation"]
    """The one that there is."""


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


@takes(Recipe, "num_bn_adaptation_samples")
class BatchNormAdaptation(Section):
    """``batchnorm_adaptation``."""


LEARNING = ("clip_norm", "ema_decay", "precision", "memory_format", "accumulate")


@takes(Recipe, "progressivity_of_elasticity", "train_steps", "rule", "subnets_per_step", "sampling", *LEARNING)
class Training(Section):
    """``bootstrapNAS.training``; what BootstrapNAS has not is explained at `bnas.Recipe`."""

    algorithm: Literal["progressive_shrinking"] = "progressive_shrinking"
    """The one that there is."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    schedule: ScheduleSection = ScheduleSection()
    lr_schedule: LearningRateSchedule = LearningRateSchedule()
    elasticity: ElasticitySection = ElasticitySection()
    compression: Compression = None
    """By default sub-networks learn from the maximal one, where `rule` trains it; an empty list: from targets only."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, which an interrupted training goes on from; by default every epoch."""

    @model_serializer(mode="wrap")
    def _as_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``compression`` where the file has none: null is no compression."""
        said = "compression" in self.model_fields_set
        return {key: value for key, value in handler(self).items() if said or key != "compression"}


OF_RNSGA2 = ("epsilon", "extreme_points_as_ref_points")
VARIATION = ("crossover_prob", "crossover_eta", "mutation_prob", "mutation_eta")


@takes(RNSGA2, *OF_RNSGA2)
@takes(NSGA2, *VARIATION, "predictor")
@takes(SearchSettings, "num_evals", "seed", "constraints", "racing")
class Search(Section):
    """``bootstrapNAS.search``; see `bnas.SearchSettings`."""

    algorithm: Literal["NSGA2", "RNSGA2", "random"] = "NSGA2"
    """How candidates are made."""
    population: Population | None = None
    """Candidates of a generation, at least 4; by default 40, or as many as there are evaluations."""
    acc_delta: NotNegative = 100 * Job.acc_delta
    """How much a winner may lose, in points of accuracy."""
    ref_acc: Annotated[float, Field(gt=0, le=100), NUMBER] | None = None
    """What winners are held against, in percent; by default the accuracy of the original."""
    batchnorm_adaptation: BatchNormAdaptation = BatchNormAdaptation()
    aspiration_points: Annotated[tuple[tuple[Number, Number], ...], Field(min_length=1)] | None = Field(
        default=None, validate_default=True
    )
    """For RNSGA2, as BootstrapNAS has them: [MACs in millions, minus accuracy in percent]."""
    weights: tuple[NotNegative, NotNegative] | None = None
    """For RNSGA2: of MACs and accuracy."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] | None = None
    """What is searched for; accuracy must be one. By default the most accuracy and the fewest MACs."""

    @field_validator("aspiration_points")
    @classmethod
    def _of_rnsga2(cls, points: Any, known: ValidationInfo) -> Any:
        if "algorithm" in known.data and (known.data["algorithm"] == "RNSGA2") != (points is not None):
            raise ValueError("aspiration_points belong to the algorithm 'RNSGA2', which needs them")
        return points

    @field_validator("objectives")
    @classmethod
    def _of_winners(cls, objectives: Any, known: ValidationInfo) -> Any:
        check_objectives(objectives)
        if objectives is not None and known.data.get("aspiration_points") is not None:
            raise ValueError("aspiration_points are of accuracy and MACs; leave objectives out")
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
            raise ValueError("of no use to the algorithm 'random'; take NSGA2 or RNSGA2")
        return predictor


def check_objectives(objectives: Any) -> None:
    """Raise ValueError unless winners can be chosen by these objectives."""
    names = [one.name for one in objectives or ()]
    if objectives is not None and "accuracy" not in names:
        raise ValueError("'accuracy' must be one of them, winners are chosen by it")
    if len(set(names)) < len(names):
        raise ValueError(f"a name stands twice in {', '.join(names)}")


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


def elasticity_of(section: Any, ignored: Names, target: Names, folder: Path) -> Elasticity:
    """The settings of the search space; scopes of the file's first level and of ``elasticity`` both count.

    Raises:
        ElasticityError: settings contradict each other.
    """
    width: dict[str, Any] = dict(section.width)
    if width["external_importance_path"] is not None:
        width["external_importance_path"] = str(folder / width["external_importance_path"])
    return Elasticity(
        dimensions=section.available_elasticity_dims,
        ignored_scopes=(*ignored, *section.ignored_scopes),
        target_scopes=(*target, *section.target_scopes),
        pin=section.pin,
        **width,
        **dict(section.kernel),
        **dict(section.depth),
    )


def recipe_of(training: Any, optimizer: Any, seed: int) -> Recipe:
    """How the stages are trained.

    Raises:
        TrainingError: settings contradict each other.
    """
    parameters, settings = training.lr_schedule.params, dict(optimizer)
    kept = {key: value for key, value in training if key in Recipe.__pydantic_fields__ and key != "lr_schedule"}  # type: ignore[attr-defined]
    if "compression" in training.model_fields_set:
        kept["distillation"] = _distillation(training)
    return Recipe(
        optimizer=settings.pop("type"),
        learning_rate=settings.pop("base_lr"),
        lr_schedule=None if parameters is None else CosineSchedule(**dict(parameters)),
        num_bn_adaptation_samples=training.batchnorm_adaptation.num_bn_adaptation_samples,
        seed=seed,
        **kept,
        **settings,
    )


def _distillation(training: Any) -> Distillation | None:
    given = training.compression
    return None if given is None else Distillation(**{key: value for key, value in given if key != "algorithm"})


def stages_of(training: Any) -> tuple[Stage, ...]:
    """The stages of the training."""
    return tuple(Stage(**dict(one)) for one in training.schedule.list_stage_descriptions)


def search_of(search: Any) -> SearchSettings:
    """How the search goes on."""
    given = {key: getattr(search, key) for key in ("num_evals", "seed", "constraints", "racing")}
    return SearchSettings(algorithm=_algorithm(search), **given)


def _algorithm(search: Any) -> NSGA2 | RNSGA2 | RandomSearch:
    population = search.population or min(POPULATION, search.num_evals)
    if search.algorithm == "random":
        return RandomSearch(population=population)
    settings = {key: getattr(search, key) for key in (*VARIATION, "predictor")} | {"population": population}
    if search.algorithm == "NSGA2":
        return NSGA2(**settings)
    settings |= {key: getattr(search, key) for key in OF_RNSGA2}
    # Theirs are [MACs in millions, minus accuracy in percent]; the first objective here is accuracy.
    points = [[abs(lost) / 100, 1e6 * macs] for macs, lost in search.aspiration_points]
    weights = None if search.weights is None else search.weights[::-1]
    return RNSGA2(aspiration_points=points, weights=weights, **settings)
