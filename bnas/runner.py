"""Runs from configurations: what the command line does, without the terminal."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bnas.configuration import Configuration, Search, Training
from bnas.output import Output
from bnas.passes import Elasticity
from bnas.pipeline import Job, Watch, run_job
from bnas.report import Report
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage
from bnas.runtime.files import write_bytes
from bnas.sources import load_data, load_model


def run_configuration(configuration: Configuration, folder: Path, output: Output, watch: Watch | None = None) -> Report:
    """Run `configuration`, whose files are looked for in `folder`."""
    job = job_of(configuration, folder)
    write_bytes(output.path("source.txt"), f"{folder.resolve()}\n".encode())  # `bnas export` loads the model again
    return run_job(job, output, watch)


def job_of(configuration: Configuration, folder: Path) -> Job:
    """What `configuration` asks for, with its model and data loaded from `folder`."""
    weights = Path(configuration.weights) if configuration.weights else None
    model = load_model(configuration.model, weights, folder)
    data = load_data(configuration.data, folder, **configuration.data_options)
    example = torch.zeros(configuration.input_info.sample_size)
    return Job(model, data, example, **_settings(configuration, folder))


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
        **optimizer.model_dump(exclude={"type", "base_lr"}),
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
    }
