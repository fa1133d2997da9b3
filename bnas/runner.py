"""Runs from configurations: what the command line does, without the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from bnas.configuration import Configuration, Search, Training
from bnas.output import Output
from bnas.passes import Elasticity
from bnas.pipeline import Job, Splits, Watch, run_job
from bnas.report import Report
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.runtime.files import write_bytes
from bnas.runtime.stage import check_stages
from bnas.search import Constraint, Objective
from bnas.sources import SourceError, load_data, load_model


def run_configuration(configuration: Configuration, folder: Path, output: Output, watch: Watch | None = None) -> Report:
    """Run `configuration`, whose files are looked for in `folder`."""
    job = job_of(configuration, folder)
    write_bytes(output.path("source.txt"), f"{folder.resolve()}\n".encode())  # `bnas export` loads the model again
    return run_job(job, output, watch)


def job_of(configuration: Configuration, folder: Path) -> Job:
    """What `configuration` asks for, with its model and data loaded from `folder`."""
    model = model_of(configuration, folder)
    data = data_of(configuration, folder)
    example = torch.zeros(configuration.input_info.sample_size)
    _check_classes(model, data, example)
    return Job(model, data, example, **_settings(configuration, folder), training=_optimizer(configuration, model))


def model_of(configuration: Configuration, folder: Path, *, weights: bool = True) -> nn.Module:
    """The model that `configuration` names, with its weights unless told otherwise."""
    file = Path(configuration.weights) if weights and configuration.weights else None
    return load_model(configuration.model, file, folder, **_given(configuration, "num_classes"))


def data_of(configuration: Configuration, folder: Path) -> Splits:
    """The data that `configuration` names: by ``data``, or by ``dataset`` alone.

    Raises:
        SourceError, DataError: they cannot be loaded.
    """
    options = {**configuration.data_options, **_given(configuration, "dataset", "batch_size", "batch_size_val")}
    if configuration.data is None:
        return load_data(options.pop("dataset"), folder, **options)
    return load_data(configuration.data, folder, **options)


def _check_classes(model: nn.Module, data: Splits, example: torch.Tensor) -> None:
    """Built-in data say how many classes they have; data of a user's factory need not."""
    classes = (data.record or {}).get("classes")
    if classes is None:
        return
    try:
        with torch.no_grad():
            outputs = model(example)
    except (RuntimeError, TypeError, ValueError) as error:
        told = f"the model does not take images of shape {tuple(example.shape)}"
        raise SourceError(f"input_info.sample_size: {told}: {error}") from error
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and outputs.shape[1] != classes:
        told = f"the model has {outputs.shape[1]} outputs, and the data {classes} classes"
        raise SourceError(f"{told}; num_classes={classes} makes a model of torchvision fit, with weights for as many")


def _given(configuration: Configuration, *keys: str) -> dict[str, Any]:
    values = {key: getattr(configuration, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def _optimizer(configuration: Configuration, model: nn.Module) -> dict[str, Any]:
    """An optimizer that leaves the parameters named by ``no_decay_keys`` without weight decay; else the recipe's."""
    section = configuration.optimizer
    if not section.no_decay_keys:
        return {}
    parts = section.no_decay_keys.split("#")
    whole = {id(tensor) for name, tensor in model.named_parameters() if any(part in name for part in parts)}

    def make(parameters: Iterable[nn.Parameter]) -> SGD:
        every = list(parameters)
        decayed = {"params": [one for one in every if id(one) not in whole]}
        kept = {"params": [one for one in every if id(one) in whole], "weight_decay": 0.0}
        groups = [group for group in (decayed, kept) if group["params"]]
        settings = section.model_dump(include={"momentum", "weight_decay", "nesterov"})
        return SGD(groups, lr=section.base_lr, **settings)

    return {"optimizer": make}


def checks_of(configuration: Configuration, folder: Path) -> list[tuple[str, Callable[[], object]]]:
    """What can be told of `configuration` before its model and data are loaded: each raises BnasError, for a place."""
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    stages = training.schedule.list_stage_descriptions
    dimensions, order = training.elasticity.available_elasticity_dims, training.progressivity_of_elasticity
    checks: list[tuple[str, Callable[[], object]]] = [
        ("bootstrapNAS.training.elasticity", partial(elasticity_of, configuration, folder)),
        ("bootstrapNAS.training", partial(recipe_of, configuration)),
    ]
    for number, stage in enumerate(stages):
        place = f"bootstrapNAS.training.schedule.list_stage_descriptions[{number}]"
        checks.append((place, partial(Stage, **stage.model_dump())))
    dims = [Stage(one.train_dims) for one in stages]
    checks.append(("bootstrapNAS.training.schedule", partial(check_stages, dims, dimensions, order)))
    for number, text in enumerate(search.constraints):
        checks.append((f"bootstrapNAS.search.constraints[{number}]", partial(Constraint.parse, text)))
    return checks


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
        **optimizer.model_dump(exclude={"type", "base_lr", "no_decay_keys"}),
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


def _settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    return {
        "elasticity": elasticity_of(configuration, folder),
        "stages": [Stage(**stage.model_dump()) for stage in training.schedule.list_stage_descriptions],
        "recipe": recipe_of(configuration),
        "num_evals": search.num_evals,
        "population": search.population,
        "seed": search.seed,
        "acc_delta": search.acc_delta / 100,
        "reference": "original" if search.ref_acc is None else search.ref_acc / 100,
        "calibration_samples": search.batchnorm_adaptation.num_bn_adaptation_samples,
        "search": searching(search),
        **_objectives(search),
    }
