"""Saved super-networks and models, and the state of an interrupted training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnas.passes import Elasticity, SearchSpace
from bnas.passes.frontend.ir import as_call
from bnas.runtime.errors import CheckpointError
from bnas.runtime.nested import device_of, placed

from .archive import Archive, tensor_bytes

# A super-network on disk.

SUPERNET = Archive("supernet", "super-network", 1, ("elasticity", "space", "inputs"), "weights")
MODEL = Archive("model", "model", 1, (), "weights")
MATRICES = "kernel matrix:"


def write_supernet(
    directory: Path,
    tensors: Mapping[str, Tensor],
    elasticity: Elasticity,
    space: SearchSpace,
    example_inputs: Any,
    dynamic: Any,
) -> None:
    """Write a super-network atomically."""
    manifest = {"elasticity": asdict(elasticity), "space": described_space(space), "inputs": _describe(example_inputs)}
    manifest["dynamic"] = dynamic
    SUPERNET.write(directory, tensors, manifest)


def shared_bytes(model: nn.Module, matrices: nn.Module) -> bytes:
    """Return the content of the tensors file with all shared tensors."""
    return tensor_bytes(shared_tensors(model) | matrix_tensors(matrices))


def read_supernet(
    directory: Path, model: nn.Module
) -> tuple[Elasticity, Any, Any, Callable[[SearchSpace, nn.Module], None]]:
    """Return the saved elasticity, example inputs and named dynamic axes, and a function that restores the tensors.

    The function takes a search space, which must equal the saved one, and the matrices of elastic kernels. It sets
    these matrices and the tensors of `model`.
    """
    manifest, tensors = SUPERNET.read(directory)
    path = directory / manifest["weights"]
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(MATRICES)}
    check_state(shared_tensors(model), own, str(path))

    def restore(space: SearchSpace, matrices: nn.Module) -> None:
        if json.loads(json.dumps(described_space(space))) != manifest["space"]:
            raise CheckpointError(f"{directory}: the search space of this model differs from the saved one")
        _fill(shared_tensors(model) | matrix_tensors(matrices), tensors, path)

    inputs = placed(_inputs(manifest["inputs"]), device_of(model))
    return Elasticity(**manifest["elasticity"]), inputs, manifest.get("dynamic"), restore


def write_model(directory: Path, model: nn.Module) -> None:
    """Write the parameters and buffers of a model atomically."""
    MODEL.write(directory, shared_tensors(model), {})


def read_model(directory: Path, model: nn.Module) -> None:
    """Load the tensors that `write_model` wrote into `model`.

    Raises:
        CheckpointError: a file is missing, damaged, of another format version or of another model.
    """
    manifest, tensors = MODEL.read(directory)
    _fill(shared_tensors(model), tensors, directory / manifest["weights"])


def _fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Set `targets` to `tensors`, which were read from `path`: all of them, or none if they do not fit."""
    check_state(targets, tensors, str(path))
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(tensors[name])


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> None:
    """Raise `CheckpointError` unless names and shapes agree. It lists missing, unexpected and misshapen tensors."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{n} {tuple(found[n].shape)} instead of {tuple(t.shape)}"
        for n, t in expected.items()
        if n in found and found[n].shape != t.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = "; ".join(f"{what}: {_first(names)}" for what, names in problems.items() if names)
    if told:
        raise CheckpointError(f"{place} does not fit the model: {told}; give the model that it was made from")


def _first(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers; tied ones appear once."""
    persistent = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in persistent}


def matrix_tensors(matrices: nn.Module) -> dict[str, Tensor]:
    """Return the matrices of elastic kernels, under names that no tensor of a model can have."""
    return {f"{MATRICES}{name}": matrix for name, matrix in matrices.named_parameters()}


def described_space(space: SearchSpace) -> dict[str, Any]:
    """Return the choices of a space as JSON values."""
    sizes = {"widths": dict(space.widths), "kernels": dict(space.kernels)}
    return {**sizes, "blocks": space.blocks, "chains": space.chains}


def _describe(example_inputs: Any) -> dict[str, Any]:
    """Describe structure, shapes and types of the inputs, and the range of integers. Other values do not matter."""
    args, kwargs = as_call(example_inputs)
    return {"args": [_described(v) for v in args], "kwargs": {name: _described(v) for name, v in kwargs.items()}}


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        told: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if value.numel() and not value.is_floating_point() and not value.is_complex():
            told["range"] = [int(value.min()), int(value.max())]
        return told
    if isinstance(value, Mapping):
        return {"dict": {str(key): _described(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_described(item) for item in value]}
    return {"value": value}


def _inputs(described: Mapping[str, Any]) -> Any:
    kwargs = {name: _made(entry) for name, entry in described["kwargs"].items()}
    return kwargs or tuple(_made(entry) for entry in described["args"])


def _made(entry: Mapping[str, Any]) -> Any:
    """Make inputs from a description: zeros, and integers that cycle through their range."""
    if "shape" in entry:
        made = torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        low, high = entry.get("range", (0, 0))
        if high > low:
            numbers = torch.arange(made.numel()).remainder(int(high) - int(low) + 1) + int(low)
            made = numbers.reshape(made.shape).to(made.dtype)
        return made
    if "dict" in entry:
        return {key: _made(item) for key, item in entry["dict"].items()}
    for kind, name in ((tuple, "tuple"), (list, "list")):
        if name in entry:
            return kind(_made(item) for item in entry[name])
    return entry["value"]


# The state of an interrupted training. A resumed training gives bitwise the result of an uninterrupted one.

TRAINING = Archive("training", "training", 1, ("settings", "model", "start", "state", "optimizer"), "training")
OPTIMIZER = "optimizer:"


def check_settings(directory: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `CheckpointError`, which names the key, if the settings differ from those the training began with."""
    now = json.loads(json.dumps(now))
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            raise CheckpointError(
                f"{directory}: {key} was {saved.get(key)!r} when this training began and is now {now.get(key)!r}; "
                "resume with the same settings, or start in another folder"
            )


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer as tensors by name and plain data for a JSON file.

    Raises:
        CheckpointError: The state has other values than tensors and plain data.
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
            f"the state of {type(optimizer).__name__} has parts that are neither tensors nor numbers: {error}; "
            "keep only tensors and plain values in its state"
        ) from error
    return tensors, data


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in group.items()}


def set_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Restore the state that `optimizer_state` returned.

    Raises:
        CheckpointError: The optimizer has other groups of parameters.
    """
    own = [len(group["params"]) for group in optimizer.param_groups]
    saved = [len(group["params"]) for group in data["groups"]]
    if own != saved:
        raise CheckpointError(
            f"the optimizer has groups of {own} parameters, but the checkpoint has groups of {saved}: "
            "resume with the same optimizer and groups, or train in another folder"
        )
    state: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in data["state"].items()}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            _, number, key = name.split(":", 2)
            state[int(number)][key] = tensor
    groups = [
        {key: tuple(v) if key == "betas" else v for key, v in group.items()} | _kernels(own)
        for group, own in zip(data["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _kernels(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that select the update kernel, which depend on the device and are therefore not restored."""
    return {key: group[key] for key in ("fused", "foreach") if key in group}
