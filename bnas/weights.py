"""Weights of users' files, read without running code."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bnas.passes.errors import BnasError

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
"""Keys under which training scripts keep a state dict beside other things."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, `torch.compile` and Lightning put before all names."""


class WeightsError(BnasError):
    """A file of weights is missing, damaged, or holds something else."""


class WeightsWarning(UserWarning):
    """Weights were found inside of something else, or under longer names."""


def read_weights(path: Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from a .pt file that holds tensors, numbers and texts only.

    One that is under a key of `WRAPPERS`, or whose names all begin with one of `PREFIXES` and `names` do not, is
    recognised, with a `WeightsWarning` that says so.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"weights {path} cannot be read as tensors: {error}") from error
    return _without_prefix(_unwrapped(found, path), set(names), path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    if _is_state(found):
        return dict(found)
    for key in WRAPPERS:
        if isinstance(found, dict) and _is_state(found.get(key)):
            warnings.warn(f"weights {path}: taken from the key {key!r}", WeightsWarning, stacklevel=4)
            return dict(found[key])
    there = f"a dictionary of {', '.join(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
    raise WeightsError(f"weights {path}: expected a state dict, tensors by name, or one at {WRAPPERS}; it is {there}")


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(one, Tensor) for one in found.values())


def _without_prefix(state: dict[str, Tensor], names: set[str], path: Path) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if not names & state.keys() and all(name.startswith(prefix) for name in state):
            warnings.warn(f"weights {path}: names without their {prefix!r}", WeightsWarning, stacklevel=4)
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
