"""A super-network on disk: tensors in safetensors, everything else in JSON with a format version and a checksum."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bnas.passes import BnasError, Elasticity, SearchSpace
from bnas.passes.ir import as_call

from .files import checksum, write_bytes, write_json

FORMAT = 1
MANIFEST = "supernet.json"
MATRICES = "kernel matrix:"


class CheckpointError(BnasError):
    """A saved super-network is missing, damaged, or does not fit the model."""


def write_supernet(
    directory: Path, tensors: Mapping[str, Tensor], elasticity: Elasticity, space: SearchSpace, example_inputs: Any
) -> None:
    """Write tensors first and the manifest that names them last, so that an interrupted write loses nothing."""
    data = safetensors.torch.save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    name = f"weights-{checksum(data)[:12]}.safetensors"
    write_bytes(directory / name, data)
    manifest = {
        "format": FORMAT,
        "weights": name,
        "sha256": checksum(data),
        "elasticity": asdict(elasticity),
        "space": _space(space),
        "inputs": _describe(example_inputs),
    }
    write_json(directory / MANIFEST, manifest)
    for old in directory.glob("weights-*.safetensors"):
        if old.name != name:
            old.unlink()


def read_supernet(
    directory: Path, model: nn.Module
) -> tuple[Elasticity, Any, Callable[[SearchSpace, nn.Module], None]]:
    """Elasticity and example inputs as saved, and a function that sets the tensors if the space is the saved one.

    It sets those of `model`, and of the matrices of elastic kernels that it is given.
    """
    manifest = _manifest(directory)
    path = directory / manifest["weights"]
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {MANIFEST} names it")
    data = path.read_bytes()
    if checksum(data) != manifest["sha256"]:
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")
    tensors = safetensors.torch.load(data)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(MATRICES)}
    check_state(shared_tensors(model), own, str(path))

    def restore(space: SearchSpace, matrices: nn.Module) -> None:
        if json.loads(json.dumps(_space(space))) != manifest["space"]:
            raise CheckpointError(f"{directory}: the search space of this model is not the one that was saved")
        targets = shared_tensors(model) | matrix_tensors(matrices)
        check_state(targets, tensors, str(path))
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(tensors[name])

    return Elasticity.of(manifest["elasticity"]), _inputs(manifest["inputs"]), restore


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> None:
    """Raise `CheckpointError` unless names and shapes agree; names what is missing, unexpected or of other shape."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [
        f"{n} {tuple(found[n].shape)} instead of {tuple(t.shape)}"
        for n, t in expected.items()
        if n in found and found[n].shape != t.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    if told:
        raise CheckpointError(f"{place} does not fit the model: {told}")


def shared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones once."""
    persistent = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in persistent}


def matrix_tensors(matrices: nn.Module) -> dict[str, Tensor]:
    """The matrices of elastic kernels, by names that no tensor of a model has."""
    return {f"{MATRICES}{name}": matrix for name, matrix in matrices.named_parameters()}


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{directory} holds no super-network: {MANIFEST} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} has another format than {FORMAT}, the one that this version of bnas reads")
    absent = [key for key in ("weights", "sha256", "elasticity", "space", "inputs") if key not in manifest]
    if absent:
        raise CheckpointError(f"{path} is damaged: {absent[0]!r} is missing")
    return manifest


def _space(space: SearchSpace) -> dict[str, Any]:
    sizes = {"widths": dict(space.widths), "kernels": dict(space.kernels)}
    return {**sizes, "blocks": space.blocks, "chains": space.chains}


def _describe(example_inputs: Any) -> dict[str, Any]:
    """Shapes and types of the inputs; their values do not matter."""
    args, kwargs = as_call(example_inputs)

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {"value": value}

    return {"args": [describe(v) for v in args], "kwargs": {name: describe(v) for name, v in kwargs.items()}}


def _inputs(described: Mapping[str, Any]) -> Any:
    def make(entry: Mapping[str, Any]) -> Any:
        return torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"])) if "shape" in entry else entry["value"]

    kwargs = {name: make(entry) for name, entry in described["kwargs"].items()}
    return kwargs or tuple(make(entry) for entry in described["args"])
