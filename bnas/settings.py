"""What a configuration says, as the settings of the API: search space, stages, recipe, search, files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from bnas.configuration import Configuration, ExportSection
from bnas.inputs import Example, Input, example_of
from bnas.optimizers import optimizer_of, settings_of
from bnas.passes import Elasticity
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.search import Objective
from bnas.search_section import Search
from bnas.training_section import Training


def example_inputs_of(configuration: Configuration, model: nn.Module) -> Example:
    """The example inputs that `configuration` describes, for `model`."""
    entries = configuration.input_info
    return example_of(model, [Input(one.sample_size, one.keyword, one.type, one.range) for one in entries])


def dynamic_of(configuration: Configuration, example: Example) -> dict[str, dict[int, str]] | None:
    """The dynamic axes that `configuration` names, by the names of the inputs; None where it names none."""
    entries = zip(configuration.input_info, example.inputs, strict=True)
    named = {str(known.name): one.dynamic for one, known in entries if one.dynamic}
    return {name: {int(axis): title for axis, title in axes.items()} for name, axes in named.items()} or None


def population_of(search: Search) -> int:
    """Candidates of a generation."""
    return min(20, search.num_evals) if search.population is None else search.population


def elasticity_of(configuration: Configuration, folder: Path) -> Elasticity:
    """The settings of the search space; scopes of the file's first level and of ``elasticity`` both count.

    Raises:
        ElasticityError: settings contradict each other.
    """
    section = configuration.bootstrapNAS.training.elasticity
    width = section.width.model_dump()
    if width["external_importance_path"] is not None:
        width["external_importance_path"] = str(folder / width["external_importance_path"])
    return Elasticity(
        dimensions=section.available_elasticity_dims,
        ignored_scopes=(*configuration.ignored_scopes, *section.ignored_scopes),
        target_scopes=(*configuration.target_scopes, *section.target_scopes),
        pin=section.pin,
        **width,
        **section.kernel.model_dump(),
        **section.depth.model_dump(),
    )


SAME_KEYS = set(Training.model_fields) & {field.name for field in fields(Recipe)} - {"lr_schedule"}
"""Keys of the training section that a recipe has under the same name."""


SGD = {"momentum", "nesterov", "weight_decay"}
"""Settings of the optimizer that a recipe has too."""


def recipe_of(configuration: Configuration) -> Recipe:
    """How the stages are trained.

    Raises:
        TrainingError: settings contradict each other.
    """
    training, optimizer = configuration.bootstrapNAS.training, configuration.optimizer
    parameters = training.lr_schedule.params
    return Recipe(
        distillation=_distillation(training),
        learning_rate=optimizer.base_lr,
        lr_schedule=None if parameters is None else CosineSchedule(**parameters.model_dump()),
        num_bn_adaptation_samples=training.batchnorm_adaptation.num_bn_adaptation_samples,
        seed=configuration.bootstrapNAS.search.seed,
        label_smoothing=optimizer.label_smoothing,
        **{key: value for key, value in settings_of(optimizer).items() if key in SGD},
        **training.model_dump(include=SAME_KEYS),
    )


def _distillation(training: Training) -> Distillation | None:
    if training.compression is not None:
        return Distillation(**training.compression.model_dump(exclude={"algorithm"}))
    asked_for_none = "compression" in training.model_fields_set
    return None if asked_for_none or training.rule == "random" else Distillation()


def searching(section: Search) -> dict[str, Any]:
    """The settings of `bnas.Searcher` in a section; its first objective is accuracy, its second MACs."""
    evolution = {"crossover_prob", "crossover_eta", "mutation_prob", "mutation_eta"}
    plain = {"algorithm", "constraints", "predictor", "epsilon", "extreme_points_as_ref_points"}
    settings = section.model_dump(include=plain | evolution)
    if section.aspiration_points is not None:  # theirs are [MACs in millions, minus accuracy in percent]
        settings["aspiration_points"] = [[abs(lost) / 100, 1e6 * macs] for macs, lost in section.aspiration_points]
    if section.weights is not None:
        settings["weights"] = section.weights[::-1]
    return settings


def _objectives(section: Search) -> dict[str, Any]:
    if section.objectives is None:
        return {}
    return {"objectives": tuple(Objective(one.name, one.direction) for one in section.objectives)}


def trainer_settings(configuration: Configuration, model: nn.Module) -> dict[str, Any]:
    """Settings of `bnas.Trainer` beside the recipe, whose optimizer serves where nothing else is asked for."""
    optimizer, every = configuration.optimizer, configuration.bootstrapNAS.training.checkpoint_every
    found: dict[str, Any] = {} if every is None else {"checkpoint_every": every}
    if optimizer.type != "sgd" or optimizer.no_decay_keys:
        found["optimizer"] = optimizer_of(optimizer, model)
    return found


def _int8(export: ExportSection) -> dict[str, Any] | None:
    if not export.int8:
        return None
    return {"samples": export.calibration_samples, **export.model_dump(exclude={"int8", "calibration_samples"})}


def job_settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """The settings of `bnas.Job` that need neither model nor data.

    Raises:
        BnasError: as `elasticity_of` and `recipe_of`.
    """
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    return {
        "elasticity": elasticity_of(configuration, folder),
        "stages": [Stage(**stage.model_dump()) for stage in training.schedule.list_stage_descriptions],
        "recipe": recipe_of(configuration),
        "num_evals": search.num_evals,
        "population": population_of(search),
        "seed": search.seed,
        "acc_delta": search.acc_delta / 100,
        "reference": "original" if search.ref_acc is None else search.ref_acc / 100,
        "calibration_samples": search.batchnorm_adaptation.num_bn_adaptation_samples,
        "search": searching(search),
        "latency": configuration.latency.model_dump(exclude={"subnets"}, exclude_none=True),
        "latency_subnets": configuration.latency.subnets,
        "int8": _int8(configuration.export),
        "tensorboard": configuration.tensorboard,
        **_objectives(search),
    }
