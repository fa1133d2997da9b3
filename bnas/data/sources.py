"""Models and data by name: built-in ones, ``package.module:FACTORY`` or ``path/file.py:FACTORY``."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bnas.passes.errors import BnasError, add_note
from bnas.passes.faults import short
from bnas.passes.frontend.exported.program import as_module
from bnas.passes.settings import checked
from bnas.passes.wording import shown
from bnas.run.job import Splits
from bnas.runtime import CheckpointError
from bnas.runtime.storage.checkpoint import check_state

from .datasets import default_place, images
from .digits import splits
from .factories import EXPORTED, SourceError, find_factory, is_own_model, running
from .files import DataError, is_file
from .models import named

# Reading the user's files of weights without running code.

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
"""Keys under which training scripts save a state dict, besides other data."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, `torch.compile` and Lightning add to all names."""


class WeightsError(BnasError):
    """A file of weights is missing or damaged, or has other content."""


class WeightsWarning(UserWarning):
    """Weights were found inside another dictionary, or under names with a prefix."""


def read_weights(path: Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a .pt file that contains only tensors, numbers and texts.

    The state dict may be under a key of `WRAPPERS`, or all its names may have one of `PREFIXES` that `names` lack. Both
    cases are recognised, with a `WeightsWarning`.

    Raises:
        WeightsError: The file is missing or damaged, or has other content.
    """
    if not is_file(path):
        told = "it is a folder; give a file" if path.is_dir() else "there is no such file"
        raise WeightsError(f"weights {shown(path)}: {told}")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message would explain how to run the code in the file
        told = "it holds Python objects, or is damaged; save only the tensors: torch.save(model.state_dict(), FILE)"
        raise WeightsError(f"weights {shown(path)} cannot be read as tensors: {told}") from error
    except Exception as error:
        told = f"it is truncated, damaged or of another kind ({shown(error)})"
        raise WeightsError(f"weights {shown(path)} cannot be read as tensors: {told}") from error
    return _without_prefix(_unwrapped(found, path), set(names), path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    if _is_state(found):
        return dict(found)
    for key in WRAPPERS:
        if isinstance(found, dict) and _is_state(found.get(key)):
            warnings.warn(f"weights {path}: taken from the key {key!r}", WeightsWarning, stacklevel=4)
            return dict(found[key])
    there = f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
    raise WeightsError(
        f"weights {path}: expected tensors by name (a state dict), at the top or under {WRAPPERS}; found {there}"
    )


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(one, Tensor) for one in found.values())


def _without_prefix(state: dict[str, Tensor], names: set[str], path: Path) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if not names & state.keys() and all(name.startswith(prefix) for name in state):
            warnings.warn(f"weights {path}: removed the prefix {prefix!r} from all names", WeightsWarning, stacklevel=4)
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_model(name: str, weights: Path | None = None, folder: Path | None = None, /, **options: Any) -> nn.Module:
    """Return the model called `name`, in evaluation mode, with weights from a file (`read_weights`).

    The name is a file of `torch.export.save` (``.pt2``), a factory (with a colon), or a model of
    `bnas.data.models.named` (also after ``torchvision:``). Files are relative to `folder`, by default the current
    folder. `options` are keyword arguments of the factory.

    Raises:
        ModelError, SourceError: There is no such model, or its factory refuses the arguments or returns no module.
        WeightsError: The weights cannot be read.
        CheckpointError: The weights do not fit; the message lists missing and unexpected keys.
    """
    factory: Callable[..., Any]
    if name.endswith(EXPORTED):
        factory = partial(_exported, (folder or Path()) / name)
    elif is_own_model(name):
        factory = find_factory(name, folder, nn.Module)
        if isinstance(factory, nn.Module):
            raise SourceError(f"{name} is a module itself; name a class, or a function that returns the module")
    else:
        factory = named(name.removeprefix("torchvision:"))
    model = _called(name, factory, options)
    if not isinstance(model, nn.Module):
        raise SourceError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        state = read_weights((folder or Path()) / weights, model.state_dict())
        _check_weights(name, model, state, (folder or Path()) / weights)
        model.load_state_dict(state)
    return model.eval()


def _exported(path: Path, /) -> nn.Module:
    """The exported program in a file, as a model."""
    if not is_file(path):
        raise SourceError(f"there is no file {shown(path)}")
    with running(str(path)):
        return as_module(torch.export.load(path))


def _check_weights(name: str, model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        check_state(model.state_dict(), state, str(path))
    except CheckpointError as error:
        add_note(
            error,
            f"the model is {name}: give the weights of this model, or name the model that these weights belong to",
        )
        raise


def load_data(name: str, folder: Path | None = None, /, dataset: str | None = None, **options: Any) -> Splits:
    """Load the data called `name`: from a factory that returns `bnas.Splits`, or built in.

    Built-in data are digits, cifar10, cifar100, fashion_mnist and imagenet (in `folder` / data), or a path in `folder`;
    see `bnas.data.datasets.images`. `dataset` and `options` are keyword arguments.

    Raises:
        SourceError: There is no such factory, or it refuses the arguments or returns something else.
        DataError: Built-in data are missing or damaged.
    """
    factory: Callable[..., Any]
    if ":" in name:
        factory, options = (
            find_factory(name, folder, Splits),
            options | ({} if dataset is None else {"dataset": dataset}),
        )
    elif name == "digits":
        factory = checked(splits, DataError)
    else:
        place, known = default_place(name, folder or Path())
        factory = partial(checked(images, DataError), place, dataset or known)
    data = _called(name, factory, options)
    if not isinstance(data, Splits):
        raise SourceError(f"{name} gives a {type(data).__name__}, not bnas.Splits")
    return data


def _called(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of some functions in C
        raise SourceError(f"{shown(name)} is not a Python function: its arguments are unknown") from None
    try:
        signature.bind(**options)
    except TypeError as error:
        told = f"{shown(name)} is called with the arguments {short(dict(options))}: {shown(error)}"
        raise SourceError(f"{told}; it accepts {', '.join(signature.parameters) or 'no arguments'}") from None
    return factory(**options)
