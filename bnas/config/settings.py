"""Translate a configuration of either layout into the settings of the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnas.data.factories import SourceError, load_function
from bnas.data.inputs import Example, Input, example_of
from bnas.passes import Elasticity
from bnas.passes.errors import BnasError
from bnas.run.job import sought
from bnas.run.latencies import check_clocks, check_quality
from bnas.run.plan.budget import seconds_of
from bnas.run.quality import Quality
from bnas.runtime import Int8, Recipe, Stage
from bnas.runtime.onnx.session import check_provider
from bnas.runtime.train.stages import check_stages
from bnas.search import SearchError, SearchSettings

from . import translation
from .bootstrapnas import BootstrapNAS, OptimizerSection
from .configuration import Configuration
from .loggers import TITLES, check_installed

# The device of a run, by its name in PyTorch.

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices to suggest if the requested one is not available."""


class DeviceError(BnasError, ValueError):
    """A device does not exist, or this machine or this PyTorch does not have it."""


def device_named(name: str) -> torch.device:
    """Return the device called `name`, such as ``cuda:0``, after checking that this machine has it.

    Raises:
        DeviceError: The device is not available; the message lists the available ones.
    """
    try:
        device = torch.device(name)
        module: Any = torch.get_device_module(device)
    except RuntimeError:
        raise DeviceError(f"{name!r} is not a compute device; {_available()}") from None
    if not _is_there(module):
        told = f"PyTorch {torch.__version__} finds no {device.type} here"
        raise DeviceError(f"device {name!r}: {told}; {_available()}, or install a PyTorch that is built for it")
    if device.index is not None and device.index >= (count := module.device_count()):
        raise DeviceError(f"device {name!r}: there are {count} {device.type} devices, numbered from {device.type}:0")
    return device


def _is_there(module: Any) -> bool:
    return bool(module.is_available())


def _available() -> str:
    there = [kind for kind in DEVICES if _is_there(torch.get_device_module(kind))]
    return f"use {' or '.join(there)}"


def example_inputs_of(configuration: Configuration, model: nn.Module) -> Example:
    """Return the example inputs of `configuration` for `model`."""
    entries = configuration.input_info
    return example_of(model, [Input(one.sample_size, one.keyword, one.type, one.range) for one in entries])


def dynamic_of(configuration: Configuration, example: Example) -> dict[str, dict[int, str]] | None:
    """Return the dynamic axes that `configuration` names, by the names of the inputs; None if it names none."""
    entries = zip(configuration.input_info, example.inputs, strict=True)
    named = {str(known.name): one.dynamic for one, known in entries if one.dynamic}
    return {name: {int(axis): title for axis, title in axes.items()} for name, axes in named.items()} or None


def _peer(configuration: Configuration) -> Any:
    return configuration.bootstrapNAS or BootstrapNAS()


def elasticity_of(configuration: Configuration, folder: Path) -> Elasticity:
    """Return the settings of the search space; file names are relative to `folder`.

    Raises:
        ElasticityError: Settings contradict each other.
    """
    if configuration.peer:
        scopes = configuration.ignored_scopes, configuration.target_scopes
        return translation.elasticity_of(_peer(configuration).training.elasticity, *scopes, folder)
    own = configuration.elasticity
    path = own.external_importance_path
    return own if path is None else replace(own, external_importance_path=str(folder / path))


def stages_of(configuration: Configuration) -> tuple[Stage, ...]:
    """The stages of the training."""
    return translation.stages_of(_peer(configuration).training) if configuration.peer else configuration.stages


def order_of(configuration: Configuration) -> tuple[str, ...]:
    """The order in which stages add dimensions."""
    holder = _peer(configuration).training if configuration.peer else configuration.recipe
    order: tuple[str, ...] = holder.progressivity_of_elasticity
    return order


def recipe_of(configuration: Configuration) -> Recipe:
    """Return the settings of the training.

    Raises:
        TrainingError: settings contradict each other.
    """
    if not configuration.peer:
        return configuration.recipe
    peer, optimizer = _peer(configuration), configuration.optimizer or OptimizerSection()
    return translation.recipe_of(peer.training, optimizer, peer.search.seed)


def search_of(configuration: Configuration) -> SearchSettings:
    """Return the settings of the search.

    Raises:
        SearchError: settings contradict each other.
    """
    return translation.search_of(_peer(configuration).search) if configuration.peer else configuration.search


def int8_of(configuration: Configuration) -> Int8 | None:
    """Return the settings of int8 files; None if no int8 files are requested."""
    export = dict(configuration.export)
    wanted, samples = export.pop("int8"), export.pop("calibration_samples")
    return Int8(samples=samples, **export) if wanted else None


def quality_of(configuration: Configuration, folder: Path) -> Quality:
    """Return the metric by which winners are chosen; its file is relative to `folder`.

    Raises:
        SourceError: There is no such function.
    """
    metric = configuration.metric
    if metric is None:
        return Quality()
    return Quality(metric.title, metric.direction, load_function("metric.function", metric.function, folder))


def _criterion_of(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Return the user's own loss as an argument of the trainer, on the device of the run."""
    if configuration.criterion is None:
        return {}
    found = load_function("criterion", configuration.criterion, folder)
    return {"criterion": found.to(device_named(configuration.device)) if isinstance(found, nn.Module) else found}


def _winners(configuration: Configuration) -> dict[str, Any]:
    """Return the objectives, and the reference for winners."""
    if not configuration.peer:
        keys = ("objectives", "acc_delta", "reference", "num_bn_adaptation_samples")
        return {key: getattr(configuration, key) for key in keys}
    search = _peer(configuration).search
    objectives = search.objectives
    if objectives is None and search.aspiration_points is not None:  # their points have accuracy and MACs
        objectives = sought((), Quality())
    return {
        "acc_delta": search.acc_delta / 100,
        "reference": "original" if search.ref_acc is None else search.ref_acc / 100,
        "num_bn_adaptation_samples": search.batchnorm_adaptation.num_bn_adaptation_samples,
        "objectives": objectives,
    }


def job_settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Return the settings of `bnas.Job` that need neither model nor data.

    Raises:
        BnasError: as `elasticity_of`, `recipe_of` and `search_of`.
    """
    peer = configuration.peer
    every = _peer(configuration).training.checkpoint_every if peer else configuration.checkpoint_every
    return {
        "elasticity": elasticity_of(configuration, folder),
        "stages": stages_of(configuration),
        "recipe": recipe_of(configuration),
        "training": {**({} if every is None else {"checkpoint_every": every}), **_criterion_of(configuration, folder)},
        "quality": quality_of(configuration, folder),
        "search": search_of(configuration),
        "targets": configuration.targets,
        "fine_tune": configuration.fine_tune,
        "budget": None if configuration.budget is None else seconds_of(configuration.budget),
        "latency": configuration.latency,
        "latencies": configuration.latencies,
        "int8": int8_of(configuration),
        "tensorboard": configuration.tensorboard,
        **_winners(configuration),
    }


# Checks of a configuration before its model and data are loaded.


@dataclass(frozen=True)
class Check:
    """A check of a configuration."""

    place: str
    """The place of the error in the file."""
    check: Callable[[], object]
    """Raises BnasError if the check fails."""
    reads: tuple[str, ...]
    """The places that the check uses. If one of them is invalid by itself, the check is skipped."""


def checks_of(configuration: Configuration, folder: Path) -> list[Check]:
    """Yield the checks of `configuration` that need neither model nor data."""

    def check(place: str, test: Callable[[], object], *reads: str) -> Check:
        return Check(place, test, reads or (place,))

    return [
        check("model_options", partial(_check_options, configuration), "model_options", "num_classes"),
        check("device", partial(device_named, configuration.device)),
        *(_of_peer if configuration.peer else _of_own)(configuration, folder),
        check("latency.provider", partial(check_provider, configuration.latency.provider)),
        *(
            check(f"latencies.{name}.provider", partial(check_provider, one.provider))
            for name, one in configuration.latencies.items()
        ),
        check("latencies", partial(_check_clocks, configuration), "latency", "latencies", "objectives"),
        check("metric", partial(_check_quality, configuration), "metric", "latencies", "objectives"),
        *(check(key, partial(check_installed, configuration, key)) for key in TITLES),
    ]


def _check_clocks(configuration: Configuration) -> None:
    objectives = _winners(configuration)["objectives"]
    check_clocks(configuration.latency, configuration.latencies, objectives)


def _check_quality(configuration: Configuration) -> None:
    if (metric := configuration.metric) is not None:
        quality = Quality(metric.title, metric.direction)
        check_quality(quality, configuration.latencies, configuration.objectives)


def _of_peer(configuration: Configuration, folder: Path) -> list[Check]:
    training, search = "bootstrapNAS.training", "bootstrapNAS.search"
    elastic, schedule = f"{training}.elasticity", f"{training}.schedule"
    dims, order = f"{elastic}.available_elasticity_dims", f"{training}.progressivity_of_elasticity"
    scopes = ("ignored_scopes", "target_scopes")
    return [
        Check(elastic, partial(elasticity_of, configuration, folder), (elastic, *scopes)),
        Check(training, partial(_check_teacher, configuration), (f"{training}.rule", f"{training}.compression")),
        Check(schedule, partial(_check_stages, configuration), (schedule, dims, order)),
        Check(search, partial(_check_search, configuration), (search,)),
    ]


def _of_own(configuration: Configuration, folder: Path) -> list[Check]:
    dims, order = "elasticity.dimensions", "recipe.progressivity_of_elasticity"
    return [
        Check("stages", partial(_check_stages, configuration), ("stages", dims, order)),
        Check("search", partial(_check_search, configuration), ("search",)),
    ]


def _check_options(configuration: Configuration) -> None:
    if configuration.num_classes is not None and "num_classes" in configuration.model_options:
        raise SourceError("num_classes is also a key of the first level; give only one of them")


def _check_teacher(configuration: Configuration) -> None:
    """Check the teacher against the rule, because they are in two different sections."""
    recipe_of(configuration)


def _check_stages(configuration: Configuration) -> None:
    dimensions = elasticity_of(configuration, Path()).dimensions
    check_stages(stages_of(configuration), dimensions, order_of(configuration))


def _check_search(configuration: Configuration) -> None:
    settings: SearchSettings = search_of(configuration)
    if getattr(settings.algorithm, "predictor", False) and find_spec("sklearn") is None:
        raise SearchError("predictor: scikit-learn is not installed: pip install 'bnas[surrogate]'")
