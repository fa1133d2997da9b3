"""Jobs from configurations: what the command line does, without the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnas.configuration import Configuration, ExportSection, Search, Training
from bnas.devices import device_named
from bnas.job import Job, Splits, Watch
from bnas.optimizers import optimizer_of, settings_of
from bnas.output import check_output, open_output
from bnas.passes import Elasticity
from bnas.runtime import CosineSchedule, Distillation, Recipe, Stage, TrainingError
from bnas.runtime.files import write_bytes
from bnas.runtime.onnx_session import check_provider
from bnas.runtime.stage import check_stages
from bnas.search import Constraint, Objective, SearchError
from bnas.settled import free_in
from bnas.sources import SourceError, load_data, load_model
from bnas.steps import Steps

SOURCE = "source.txt"
"""In the folder of a run: where the names of files in its configuration are relative to."""


class RandomWeightsWarning(UserWarning):
    """A model begins with random weights, since the configuration names none."""


def begin(
    configuration: Configuration,
    source: Path,
    folder: Path,
    watch: Watch | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Steps:
    """The steps of a run in `folder`, which is not touched before model and data are there.

    Raises:
        OutputError: the folder holds a run, and neither is said, or one that does not go with this configuration.
        BnasError: as `job_of`, or the folder cannot be written to.
    """
    watch, data = watch or Watch(), configuration.model_dump(mode="json")
    said: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "free": free_in(folder)}
    check_output(folder, data, **said)
    watch.phase("loading model and data")
    job = job_of(configuration, source)
    _warn_of_random_weights(configuration)
    output = open_output(folder, data, **said)
    write_bytes(output.path(SOURCE), f"{source.resolve()}\n".encode())
    return Steps(job, output, watch)


def job_of(configuration: Configuration, folder: Path, *, weights: bool = True) -> Job:
    """What `configuration` asks for, with its model and data loaded from `folder`.

    The model is on the configuration's device, and has its weights unless told otherwise. Random ones are those of the
    seed.

    Raises:
        BnasError: model, weights, data or device are not there, or do not fit one another.
    """
    device = device_named(configuration.device)
    torch.manual_seed(configuration.bootstrapNAS.search.seed)
    model = model_of(configuration, folder, weights=weights)
    data = data_of(configuration, folder)
    example = torch.zeros(configuration.input_info.sample_size)
    _check_classes(model, data, example)
    model = model.to(device)
    training = _training(configuration, model)
    return Job(model, data, example.to(device), training=training, **_settings(configuration, folder))


def model_of(configuration: Configuration, folder: Path, *, weights: bool = True) -> nn.Module:
    """The model that `configuration` names, with its weights unless told otherwise."""
    options = {**configuration.model_options, **_given(configuration, "num_classes")}
    file = Path(configuration.weights) if weights and configuration.weights else None
    return load_model(configuration.model, file, folder, **options)


def _warn_of_random_weights(configuration: Configuration) -> None:
    """Of a model by name: a user's factory may well load weights itself."""
    own = ":" in configuration.model.removeprefix("torchvision:")
    if not (own or configuration.weights or configuration.model_options.get("weights")):
        told = f"{configuration.model} begins with random weights; --set weights=FILE gives it trained ones"
        warnings.warn(told, RandomWeightsWarning, stacklevel=3)


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
    """Built-in data say how many classes they have; of a user's the first batch that is held out is looked at."""
    known = (data.record or {}).get("classes")
    classes = known or _classes_seen(data)
    if classes is None:
        return
    try:
        with torch.no_grad():
            outputs = model(example)
    except (RuntimeError, TypeError, ValueError) as error:
        told = f"the model does not take images of shape {tuple(example.shape)}"
        raise SourceError(f"input_info.sample_size: {told}: {error}") from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        return
    found = outputs.shape[1]
    if found < classes or (known and found > classes):
        told = f"the model has {found} outputs, and the data {'' if known else 'at least '}{classes} classes"
        raise SourceError(f"{told}; num_classes={classes} makes a model of torchvision fit, with weights for as many")


def _classes_seen(data: Splits) -> int | None:
    """How many classes the first batch has at least; None where its targets are no class numbers."""
    targets = next((targets for _, targets in data.validation), None)
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point() or not len(targets):
        return None
    return int(targets.max()) + 1


def _given(configuration: Configuration, *keys: str) -> dict[str, Any]:
    values = {key: getattr(configuration, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def checks_of(configuration: Configuration, folder: Path) -> list[tuple[str, Callable[[], object]]]:
    """What can be told of `configuration` before its model and data are loaded: each raises BnasError, for a place."""
    training, search = configuration.bootstrapNAS.training, configuration.bootstrapNAS.search
    stages = training.schedule.list_stage_descriptions
    dimensions, order = training.elasticity.available_elasticity_dims, training.progressivity_of_elasticity
    checks: list[tuple[str, Callable[[], object]]] = [
        ("model_options", partial(_check_options, configuration)),
        ("device", partial(device_named, configuration.device)),
        ("optimizer", partial(settings_of, configuration.optimizer)),
        ("bootstrapNAS.training.elasticity", partial(elasticity_of, configuration, folder)),
        ("bootstrapNAS.training", partial(recipe_of, configuration)),
        ("bootstrapNAS.search", partial(_check_search, search)),
        ("latency.provider", partial(check_provider, configuration.latency.provider)),
        ("tensorboard", partial(_check_tensorboard, configuration.tensorboard)),
    ]
    for number, stage in enumerate(stages):
        place = f"bootstrapNAS.training.schedule.list_stage_descriptions[{number}]"
        checks.append((place, partial(Stage, **stage.model_dump())))
    dims = [Stage(one.train_dims) for one in stages]
    checks.append(("bootstrapNAS.training.schedule", partial(check_stages, dims, dimensions, order)))
    for number, text in enumerate(search.constraints):
        checks.append((f"bootstrapNAS.search.constraints[{number}]", partial(Constraint.parse, text)))
    return checks


def _check_options(configuration: Configuration) -> None:
    if configuration.num_classes is not None and "num_classes" in configuration.model_options:
        raise SourceError("num_classes is a key of the first level too; give one of them")


def _check_search(search: Search) -> None:
    if population_of(search) > search.num_evals:
        told = f"population {search.population} is larger than num_evals {search.num_evals}"
        raise SearchError(
            f"{told}: say --set bootstrapNAS.search.population={min(20, search.num_evals)}, or evaluate more"
        )
    if search.predictor and find_spec("sklearn") is None:
        raise SearchError("predictor: scikit-learn is not installed: pip install 'bnas[surrogate]'")


def _check_tensorboard(wanted: bool) -> None:
    if wanted and find_spec("tensorboard") is None:
        raise TrainingError("TensorBoard is not installed: pip install 'bnas[tensorboard]'")


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


def _training(configuration: Configuration, model: nn.Module) -> dict[str, Any]:
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


def _settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
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
        "latency": configuration.latency.model_dump(exclude={"subnets"}),
        "latency_subnets": configuration.latency.subnets,
        "int8": _int8(configuration.export),
        "tensorboard": configuration.tensorboard,
        **_objectives(search),
    }
