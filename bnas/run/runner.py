"""From configurations to jobs and steps: the work of the command line, without the terminal."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration
from bnas.config.loggers import loggers_of
from bnas.config.settings import device_named, dynamic_of, example_inputs_of, job_settings, search_of
from bnas.data.datasets import Transformed
from bnas.data.factories import SourceError, is_own_model
from bnas.data.sources import load_data, load_model
from bnas.passes.assembly.importance import read_scores
from bnas.passes.frontend.ir import as_call
from bnas.passes.wording import counted, shown
from bnas.runtime.feed import drawn
from bnas.runtime.nested import as_batch, described, placed, scores_of
from bnas.runtime.storage.checkpoint import SUPERNET
from bnas.runtime.storage.files import checksum, read_file, write_bytes
from bnas.runtime.train import random_state
from bnas.search import Remote

from .files.ledger import Ledger
from .files.lock import kept
from .files.mark import OutputError
from .files.names import CONFIG, SOURCE
from .files.output import Output, check_output, open_output
from .files.trust import remember_configuration
from .job import Job, Splits, Watch
from .pipeline import free_in
from .spread import Elsewhere
from .steps import Steps


class RandomWeightsWarning(UserWarning):
    """A model has random weights, because the configuration names no weights."""


def begin(
    configuration: Configuration,
    source: Path,
    folder: Path,
    watch: Watch | None = None,
    *,
    file: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    prune: Mapping[str, Any] | None = None,
) -> Steps:
    """Return the steps of a run in `folder`. The folder is not changed before model and data are loaded.

    `file` is the configuration file. Overwriting the former run must not remove it, or files that it names.
    `prune` has the settings of `bnas prune`, which the folder keeps beside the configuration.
    The user starts this run, so the code that the configuration names is remembered as trusted
    (`bnas.run.files.trust`).

    Raises:
        OutputError: The folder has a run, and neither `resume` nor `overwrite` is set, or that run has another
            configuration.
        BnasError: As `job_of`, or the folder cannot be written to.
    """
    watch, data = watch or Watch(), configuration.model_dump(mode="json")
    data |= {} if prune is None else {"prune": dict(prune)}
    said: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "free": free_in(folder)}
    check_output(folder, data, **said)
    watch.phase("loading model and data")
    remember_configuration(configuration, source)
    job = job_of(configuration, source)
    _warn_of_random_weights(configuration)
    with kept(folder):
        output = open_output(folder, data, **said, sources=sources_of(data, source, file))
        write_bytes(output.path(SOURCE), os.fsencode(source.resolve()) + b"\n")
    return Steps(job, output, watch, elsewhere=elsewhere(folder, source))


# Recreating the evaluator of a run in another process.


def elsewhere(folder: Path, source: Path) -> Elsewhere:
    """Return a function that describes how another process, with the same files, recreates an attribute of `Steps`."""
    return lambda wanted: Remote(made_in, str(folder.resolve()), str(source.resolve()), _stamp(folder), wanted)


def made_in(folder: str, source: str, stamp: str, wanted: str) -> Any:
    """Recreate an attribute of the `Steps` of a run from the configuration and super-network in its folder.

    The code that the configuration names is imported, because the searching process has checked that it is trusted.

    Raises:
        OutputError: The folder has another run, or none.
    """
    return getattr(_steps_in(folder, source, stamp), wanted)


@lru_cache(maxsize=1)
def _steps_in(folder: str, source: str, stamp: str) -> Steps:
    run = Path(folder)
    if not Ledger(run).exists or _stamp(run) != stamp:
        raise OutputError(f"{folder} here is not the run where the search began; all machines must see the same files")
    configuration = parse_configuration(Ledger(run).json(CONFIG), str(run / CONFIG))
    return Steps(job_of(configuration, Path(source), weights=False, loggers=False), Output(run, resumed=True))


def _stamp(run: Path) -> str:
    """Return a text that changes with the configuration and the super-network."""
    return checksum(b"".join(read_file(run / name) for name in (CONFIG, f"supernet/{SUPERNET.manifest}")))


def sources_of(data: Any, source: Path, file: Path | None = None) -> list[Path]:
    """Return the configuration file and all files that it names in the folder `source`: code, weights, data."""
    named = [source / one for text in _texts(data) for one in (text, text.rpartition(":")[0])]
    return [one for one in (file, *named) if one is not None and _there(one) and one.resolve() != source.resolve()]


FILES = ("model", "model_options", "weights", "data", "data_options", "dataset")
"""Keys whose texts may be names of files and folders."""


def _texts(data: Any, files: bool = False) -> Iterator[str]:
    if isinstance(data, str) and (files or not data.isidentifier()):
        yield data
    elif isinstance(data, Mapping):
        for key, one in data.items():
            yield from _texts(one, files or key in FILES)
    elif isinstance(data, list):
        for one in data:
            yield from _texts(one, files)


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # not a possible file name: too long, or contains NUL
        return False


def job_of(configuration: Configuration, folder: Path, *, weights: bool = True, loggers: bool = True) -> Job:
    """Return the job of `configuration`, with model and data loaded from `folder`.

    The model is on the device of the configuration. A process that only evaluates needs neither `weights` nor
    `loggers`. Random weights are determined by the seed.

    Raises:
        BnasError: Model, weights, data or device do not exist, or do not fit each other.
    """
    device = device_named(configuration.device)
    random_state.begin_at(search_of(configuration).seed)
    model = model_of(configuration, folder, weights=weights)
    data = data_of(configuration, folder)
    example = example_inputs_of(configuration, model)
    _check_channels(data, example.value)
    _check_classes(model, data, example.value)
    model, dynamic = model.to(device), dynamic_of(configuration, example)
    settings = job_settings(configuration, folder)
    if weights and settings["elasticity"].external_importance_path is not None:
        read_scores(Path(settings["elasticity"].external_importance_path))  # raises now, not in a later stage
    callbacks = loggers_of(configuration) if loggers else ()
    return Job(model, data, placed(example.value, device), dynamic=dynamic, callbacks=callbacks, **settings)


def model_of(configuration: Configuration, folder: Path, *, weights: bool = True) -> nn.Module:
    """Return the model that `configuration` names, with its weights if `weights` is set."""
    options = {**configuration.model_options, **_given(configuration, "num_classes")}
    file = Path(configuration.weights) if weights and configuration.weights else None
    return load_model(configuration.model, file, folder, **options)


def _warn_of_random_weights(configuration: Configuration) -> None:
    """Warn of random weights of a torchvision model; a user's factory may load weights itself."""
    if not (is_own_model(configuration.model) or configuration.weights or configuration.model_options.get("weights")):
        told = f"{configuration.model} starts from random weights; to use trained weights: --set weights=FILE"
        warnings.warn(told, RandomWeightsWarning, stacklevel=3)


def data_of(configuration: Configuration, folder: Path) -> Splits:
    """Load the data that `configuration` names by ``data``, or by ``dataset`` alone.

    Raises:
        SourceError, DataError: The data cannot be loaded.
    """
    options = {**configuration.data_options, **_given(configuration, "dataset", "batch_size", "batch_size_val")}
    if configuration.data is None:
        return load_data(options.pop("dataset"), folder, **options)
    return load_data(configuration.data, folder, **options)


def _check_channels(data: Splits, example: Any) -> None:
    """Raise unless built-in images have as many channels as the example inputs."""
    images = getattr(data.validation, "dataset", None)
    if not isinstance(images, Transformed) or not isinstance(example, torch.Tensor) or example.ndim != 4:
        return
    found = images[0][0].shape[0]
    if found != example.shape[1]:
        told = f"the images of the data have {counted(found, 'channel')}"
        raise SourceError(
            f"input_info.sample_size is {list(example.shape)}, and {told}; the second number must be {found}"
        )


def _check_classes(model: nn.Module, data: Splits, example: Any) -> None:
    """Raise if the data have more classes than the model; for a user's data, the first validation batch is checked."""
    known = (data.record or {}).get("classes")
    classes = known or _classes_seen(data)
    if classes is None:
        return
    args, kwargs = as_call(example)
    try:
        with torch.no_grad():
            outputs = scores_of(model(*args, **kwargs))
    except Exception as error:  # an error in the user's own code
        told = f"the model does not accept {_told_inputs(example)}"
        raise SourceError(f"input_info.sample_size: {told}: {shown(error)}") from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        return
    found = outputs.shape[1]
    if found < classes or (known and found > classes):
        told = f"the model has {found} outputs, but the data have {'' if known else 'at least '}{classes} classes"
        raise SourceError(
            f"{told}; for a torchvision model set num_classes={classes} and give weights with that many classes"
        )


def _told_inputs(example: Any) -> str:
    if isinstance(example, torch.Tensor) and example.ndim == 4:
        return f"images of shape {tuple(example.shape)}"
    return f"inputs of {described(example)}"


def _classes_seen(data: Splits) -> int | None:
    """Return the least number of classes that the first batch needs; None if targets are not class numbers."""
    targets = next((as_batch(batch)[1] for batch in drawn(data.validation, "the validation data")), None)
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point() or not len(targets):
        return None
    return int(targets.max()) + 1


def _given(configuration: Configuration, *keys: str) -> dict[str, Any]:
    values = {key: getattr(configuration, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}
