"""Nested values with tensors (batches and inputs of models), and their memory layout and device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnas.passes.frontend.copies import deep_copy

from .errors import BatchError

# Nested values with tensors: batches of a loader, inputs and outputs of a model.

TARGETS = ("labels", "label", "targets", "target")
"""Keys of the target in a batch that is a dict, in the order of preference."""


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to the tensors of `value` (a tensor, or nested tuples, lists and dicts); keep everything else."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(one, change) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        return value
    entries = [map_tensors(one, change) for one in value]
    return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of `value` in order."""
    found: list[Tensor] = []
    map_tensors(value, lambda one: found.append(one) or one)  # type: ignore[func-returns-value]
    return found


def as_batch(batch: Any, takes: Collection[str] = ()) -> tuple[Any, Any]:
    """Split a batch, which is a pair or a dict, into inputs and targets.

    In a dict, the first key of `TARGETS` is the target (None if there is no such key), and the other entries are
    keyword inputs. If the model takes the target as an input, it is among the inputs too.

    Args:
        batch: A batch of a loader.
        takes: The names of the model's inputs; see `inputs_of`.

    Raises:
        BatchError: The batch is neither a pair nor a dict.
    """
    if isinstance(batch, Mapping):
        target = next((name for name in TARGETS if name in batch), None)
        inputs = {str(name): value for name, value in batch.items() if name != target or name in takes}
        return inputs, None if target is None else batch[target]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        inputs, targets = batch
        return dict(inputs) if isinstance(inputs, Mapping) else inputs, targets
    given = f"{len(batch)} entries" if isinstance(batch, list | tuple) else f"a {type(batch).__name__}"
    raise BatchError(
        f"a batch must be a pair of inputs and targets, or a dict with the key {TARGETS[0]!r}; the loader returned "
        f"{given}: put several inputs into a tuple or a dict"
    )


def inputs_of(module: nn.Module) -> frozenset[str]:
    """Return the names of a module's inputs: all of a graph or ONNX model, only the required ones of other modules."""
    if isinstance(module, GraphModule):
        return frozenset(str(node.target) for node in module.graph.nodes if node.op == "placeholder")
    known = getattr(module, "input_names", None)
    if known is not None:
        return frozenset(known)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(one.name for one in parameters if one.kind in plain and one.default is inspect.Parameter.empty)


def scores_of(outputs: Any) -> Any:
    """Return the scores in the outputs of a classifier: the tensor itself, ``logits``, or the first entry of a tuple.

    Outputs without such an entry are returned as they are.
    """
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    logits = None if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    return outputs[0] if isinstance(outputs, list | tuple) and outputs and isinstance(outputs[0], Tensor) else outputs


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the size of axis 0 of the first input."""
    return len(tensors_in(as_batch(batch)[0])[0])


def in_pieces(inputs: Any, count: int) -> list[Any]:
    """Split the inputs of a batch into pieces of `count` samples; the last one may have fewer."""
    starts = range(0, len(tensors_in(inputs)[0]), count)
    return [map_tensors(inputs, lambda one: one[start : start + count]) for start in starts]  # noqa: B023


def samples_of(batch: Any, some: slice | Tensor) -> Any:
    """Return the chosen samples of a batch, as a pair or a dict; None if its targets cannot be divided.

    Targets can be divided if their tensors have one entry for each sample along axis 0, and so can lists with one entry
    for each sample, such as the boxes of each image. Texts of different lengths in one tensor, as CTC losses take them,
    cannot be divided. An input with another size along axis 0 belongs to all samples and stays whole.
    """
    size = batch_size(batch)
    numbers = torch.arange(size)[some].tolist()
    pair = isinstance(batch, list | tuple)
    whole = dict(zip(("inputs", TARGETS[0]), as_batch(batch), strict=True)) if pair else dict(batch)
    try:
        found = {name: _selected(value, numbers, size, name in TARGETS) for name, value in whole.items()}
    except _UndividedError:
        return None
    return tuple(found.values()) if pair else found


class _UndividedError(Exception):
    """A value has no entry for each sample of its batch."""


def _selected(value: Any, numbers: list[int], size: int, is_target: bool) -> Any:
    """Return the entries of the samples `numbers`; raise `_UndividedError` for a target without an entry for each."""
    if isinstance(value, dict):
        return {name: _selected(one, numbers, size, is_target) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return _selected_list(value, numbers, size, is_target)
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    if len(value) == size:
        return value if len(numbers) == size else value[numbers]
    if is_target:
        raise _UndividedError
    return value


def _selected_list(values: Any, numbers: list[int], size: int, is_target: bool) -> Any:
    kind, one_each = type(values), len(values) == size and not hasattr(values, "_fields")
    if one_each and not any(isinstance(one, Tensor | list | tuple) for one in values):
        return kind(values[number] for number in numbers)  # dicts or texts, one for each sample
    try:
        entries = [_selected(one, numbers, size, is_target) for one in values]
    except _UndividedError:
        if not one_each:
            raise
        return kind(values[number] for number in numbers)  # tensors of different lengths, one for each sample
    return kind(*entries) if hasattr(values, "_fields") else kind(entries)


def described(value: Any) -> str:
    """Return the shapes and types of the tensors in `value`, for an error message."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {described(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(described(one) for one in value) + ")"
    return type(value).__name__


# The memory layout of images: channels_last makes some models twice as fast, and others slower.

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def laid_out(inputs: Any, layout: str) -> Any:
    """Convert the images among `inputs` (a tensor, or a tuple, list or dict of tensors) to `layout`."""
    form = LAYOUTS[layout]
    return map_tensors(inputs, lambda one: one.contiguous(memory_format=form) if one.ndim == 4 else one)


def placed(value: Any, device: torch.device) -> Any:
    """Move the tensors in `value` to `device`."""
    return map_tensors(value, lambda one: one.to(device, non_blocking=True))


def on_cpu(module: nn.Module) -> nn.Module:
    """Return `module` if it is on the CPU, else a copy on the CPU; the copy of a graph module is a graph module."""
    return module if device_of(module).type == "cpu" else deep_copy(module).cpu()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
