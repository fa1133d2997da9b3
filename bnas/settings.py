"""What a configuration says, as the settings of the API, whichever layout it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bnas import bootstrapnas
from bnas.bootstrapnas import BootstrapNAS, OptimizerSection
from bnas.configuration import Configuration
from bnas.inputs import Example, Input, example_of
from bnas.passes import Elasticity
from bnas.runtime import Int8, Recipe, Stage
from bnas.search import SearchSettings


def example_inputs_of(configuration: Configuration, model: nn.Module) -> Example:
    """The example inputs that `configuration` describes, for `model`."""
    entries = configuration.input_info
    return example_of(model, [Input(one.sample_size, one.keyword, one.type, one.range) for one in entries])


def dynamic_of(configuration: Configuration, example: Example) -> dict[str, dict[int, str]] | None:
    """The dynamic axes that `configuration` names, by the names of the inputs; None where it names none."""
    entries = zip(configuration.input_info, example.inputs, strict=True)
    named = {str(known.name): one.dynamic for one, known in entries if one.dynamic}
    return {name: {int(axis): title for axis, title in axes.items()} for name, axes in named.items()} or None


def _peer(configuration: Configuration) -> Any:
    return configuration.bootstrapNAS or BootstrapNAS()


def elasticity_of(configuration: Configuration, folder: Path) -> Elasticity:
    """The settings of the search space; names of files are relative to `folder`.

    Raises:
        ElasticityError: settings contradict each other.
    """
    if configuration.peer:
        scopes = configuration.ignored_scopes, configuration.target_scopes
        return bootstrapnas.elasticity_of(_peer(configuration).training.elasticity, *scopes, folder)
    own = configuration.elasticity
    path = own.external_importance_path
    return own if path is None else replace(own, external_importance_path=str(folder / path))


def stages_of(configuration: Configuration) -> tuple[Stage, ...]:
    """The stages of the training."""
    return bootstrapnas.stages_of(_peer(configuration).training) if configuration.peer else configuration.stages


def order_of(configuration: Configuration) -> tuple[str, ...]:
    """The order in which stages add dimensions."""
    holder = _peer(configuration).training if configuration.peer else configuration.recipe
    order: tuple[str, ...] = holder.progressivity_of_elasticity
    return order


def recipe_of(configuration: Configuration) -> Recipe:
    """How the stages are trained.

    Raises:
        TrainingError: settings contradict each other.
    """
    if not configuration.peer:
        return configuration.recipe
    peer, optimizer = _peer(configuration), configuration.optimizer or OptimizerSection()
    return bootstrapnas.recipe_of(peer.training, optimizer, peer.search.seed)


def search_of(configuration: Configuration) -> SearchSettings:
    """How sub-networks are searched for.

    Raises:
        SearchError: settings contradict each other.
    """
    return bootstrapnas.search_of(_peer(configuration).search) if configuration.peer else configuration.search


def int8_of(configuration: Configuration) -> Int8 | None:
    """How int8 files are made; None where there are none."""
    export = dict(configuration.export)
    wanted, samples = export.pop("int8"), export.pop("calibration_samples")
    return Int8(samples=samples, **export) if wanted else None


def _winners(configuration: Configuration) -> dict[str, Any]:
    """What is searched for, and what winners are held against."""
    if not configuration.peer:
        keys = ("objectives", "acc_delta", "reference", "num_bn_adaptation_samples")
        return {key: getattr(configuration, key) for key in keys}
    search = _peer(configuration).search
    objectives = {} if search.objectives is None else {"objectives": search.objectives}
    return {
        "acc_delta": search.acc_delta / 100,
        "reference": "original" if search.ref_acc is None else search.ref_acc / 100,
        "num_bn_adaptation_samples": search.batchnorm_adaptation.num_bn_adaptation_samples,
        **objectives,
    }


def job_settings(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """The settings of `bnas.Job` that need neither model nor data.

    Raises:
        BnasError: as `elasticity_of`, `recipe_of` and `search_of`.
    """
    peer = configuration.peer
    every = _peer(configuration).training.checkpoint_every if peer else configuration.checkpoint_every
    return {
        "elasticity": elasticity_of(configuration, folder),
        "stages": stages_of(configuration),
        "recipe": recipe_of(configuration),
        "training": {} if every is None else {"checkpoint_every": every},
        "search": search_of(configuration),
        "latency": configuration.latency,
        "int8": int8_of(configuration),
        "tensorboard": configuration.tensorboard,
        **_winners(configuration),
    }
