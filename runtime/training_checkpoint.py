"""An interrupted training on disk: whoever resumes it ends bitwise where it would have ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .archive import Archive
from .errors import CheckpointError

TRAINING = Archive("training", "training", 1, ("settings", "model", "start", "state", "optimizer"), "training")
OPTIMIZER = "optimizer:"


def check_settings(directory: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where the settings of a training differ from those that it began with; names the key."""
    now = json.loads(json.dumps(now))
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            raise CheckpointError(
                f"{directory}: {key} is {now.get(key)!r}, and was {saved.get(key)!r} when this training began; "
                "resume it with the same settings, or begin in another folder"
            )


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors by name, and plain data for a JSON file.

    Raises:
        CheckpointError: it holds something else.
    """
    state = optimizer.state_dict()
    tensors = {
        f"{OPTIMIZER}{number}:{key}": value
        for number, entries in state["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    plain = {
        str(number): {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
        for number, entries in state["state"].items()
    }
    data = {"state": plain, "groups": [_plain(group) for group in state["param_groups"]]}
    try:
        json.dumps(data)
    except TypeError as error:
        raise CheckpointError(
            f"the state of {type(optimizer).__name__} has parts that are neither tensors nor numbers: {error}"
        ) from error
    return tensors, data


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in group.items()}


def set_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Set what `optimizer_state` found.

    Raises:
        CheckpointError: the optimizer has other groups of parameters.
    """
    own = [len(group["params"]) for group in optimizer.param_groups]
    saved = [len(group["params"]) for group in data["groups"]]
    if own != saved:
        raise CheckpointError(f"the optimizer has groups of {own} parameters; those of the checkpoint are {saved}")
    state: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in data["state"].items()}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            _, number, key = name.split(":", 2)
            state[int(number)][key] = tensor
    groups = [{key: tuple(v) if key == "betas" else v for key, v in group.items()} for group in data["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
