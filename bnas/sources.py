"""Models and data by name: ``torchvision:NAME``, ``package.module:FACTORY`` or ``path/file.py:FACTORY``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bnas.passes import BnasError
from bnas.pipeline import Splits
from bnas.runtime.checkpoint import check_state


class SourceError(BnasError):
    """A model, its weights or the data cannot be found or do not fit."""


def load_model(name: str, weights: Path | None = None, folder: Path | None = None, **options: Any) -> nn.Module:
    """The model called `name`, in evaluation mode, with the state dict in `weights` (.safetensors, or .pt tensors).

    Files are looked for in `folder`, by default the current one. `options` are the factory's keyword arguments.

    Raises:
        SourceError: there is no such model, its factory takes other arguments, or gives no module.
        CheckpointError: the weights do not fit; names the missing and unexpected keys.
    """
    factory = _torchvision(name) if name.startswith("torchvision:") else find_factory(name, folder)
    model = _called(name, factory, options)
    if not isinstance(model, nn.Module):
        raise SourceError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        state = read_weights((folder or Path()) / weights)
        check_state(model.state_dict(), state, str(weights))
        model.load_state_dict(state)
    return model.eval()


def load_data(name: str, folder: Path | None = None, **options: Any) -> Splits:
    """The data called `name`, from a factory that returns `bnas.Splits`.

    Raises:
        SourceError: there is no such factory, it takes other arguments, or gives something else.
    """
    data = _called(name, find_factory(name, folder), options)
    if not isinstance(data, Splits):
        raise SourceError(f"{name} gives a {type(data).__name__}, not bnas.Splits")
    return data


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from a .pt file that holds tensors only: no code is run.

    Raises:
        SourceError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise SourceError(f"weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"weights {path} cannot be read as tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SourceError(f"weights {path}: expected a state dict, tensors by name")
    return state


def _called(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        allowed = ", ".join(inspect.signature(factory).parameters) or "none"
        raise SourceError(f"{name} is called with the arguments {options}: {error}; its own are {allowed}") from None
    return factory(**options)


def _torchvision(name: str) -> Callable[..., Any]:
    import torchvision

    wanted = name.removeprefix("torchvision:")
    known = torchvision.models.list_models()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        raise SourceError(f"torchvision has no model {wanted!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return partial(torchvision.models.get_model, wanted, weights=None)


def find_factory(name: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function or class behind ``package.module:NAME`` or ``path/file.py:NAME``."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        allowed = "torchvision:NAME, package.module:FACTORY or path/file.py:FACTORY"
        raise SourceError(f"{name!r} is not a name of this form: {allowed}")
    module = _file_module((folder or Path()) / place) if place.endswith(".py") else _import(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(attribute, names, n=1)
        raise SourceError(f"{place} has no factory {attribute!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return factory  # type: ignore[no-any-return]


def _import(place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        raise SourceError(f"there is no module {place!r}; a file is given as path/file.py:FACTORY") from error


def _file_module(path: Path) -> Any:
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
