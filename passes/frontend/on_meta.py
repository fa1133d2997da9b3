"""Layers and functions on meta tensors, which have shapes and types and no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.ops.calls import settings_of
from bnas.passes.ops.record import Layer, Trait
from bnas.passes.ops.registry import OPERATORS
from bnas.passes.ops.shapes import like, quick

from .spelling import LIKES
from .structure import map_leaves

BATCH = 1009
"""The size of the batch axis in the graph's values: a prime, so that views of it are taken apart in one way only."""


Types = Mapping[torch.dtype, torch.dtype]
"""Types in place of which others are recorded."""


def to_meta(value: Any, types: Types = MappingProxyType({})) -> Any:
    """A meta tensor of the shape, strides and type of a real one; anything else as it is."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    dtype = types.get(value.dtype, value.dtype)
    return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")


def as_meta(value: Any) -> Any:
    """A nested value with meta tensors for real ones."""
    return map_leaves(value, lambda _, leaf: to_meta(leaf))


def run_on_meta(op: str, target: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call on meta tensors; moves to another device stay on the meta device."""
    found = quick_call(op, target, args, kwargs)
    if found is not None:
        return found
    if op == "call_method":
        if target in ("cpu", "cuda"):
            return args[0]
        if target == "to":
            args = tuple("meta" if isinstance(one, str) else one for one in args)
            kwargs = {**kwargs, **({"device": "meta"} if kwargs.get("device") is not None else {})}
        elif str(target).startswith("new_") and "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        return getattr(args[0], target)(*args[1:], **kwargs)
    if getattr(target, "__name__", "") in LIKES and target is not getattr:
        kwargs = {**kwargs, "device": "meta"}
    return target(*args, **kwargs)


def hooked(module: nn.Module) -> bool:
    """Whether a user's hooks run when a module is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or getattr(module, "_backward_hooks", None)
        or getattr(module, "_backward_pre_hooks", None)
    )


def run_leaf(module: nn.Module, form: Layer | None, args: Any, kwargs: Any, types: Types = MappingProxyType({})) -> Any:
    """The result of a layer in evaluation mode on meta tensors, its own tensors being meta tensors too."""
    if form is None:
        return module(*args, **kwargs)
    found = quick_leaf(module, form, args, kwargs, types)
    if found is not None:
        return found
    record, settings = OPERATORS.of(form.op), settings_of(module, form)
    settings.pop("padding_mode", None)
    tensors = {name: to_meta(getattr(module, name), types) for name in form.tensors}
    if form.op is F.batch_norm:
        settings |= {"training": tensors["running_mean"] is None, "momentum": 0.0}  # which may be None in a module
    elif record.trained is not None:  # in evaluation mode they hand on their input itself: its memory is then shared
        settings["training"] = False
    return form.op(*args, **tensors, **settings, **kwargs)


def quick_call(op: str, target: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The result of a function that its record gives without running it; None where PyTorch is to compute it."""
    if op != "call_function" or any(one is True for one in args):  # a True may say that the call writes in place
        return None
    record = OPERATORS.of(target)
    return None if record.shape is None or OPERATORS.writes(target) else quick(record, args, kwargs)


def quick_leaf(
    module: nn.Module, form: Layer, args: Any, kwargs: Any, types: Types = MappingProxyType({})
) -> Tensor | None:
    """The result of a layer that its record gives without running it; None where PyTorch is to compute it."""
    record = OPERATORS.of(form.op)
    if not args or not isinstance(args[0], Tensor):
        return None
    if record.has(Trait.HANDS_ON):
        return args[0]
    if record.shape is None:
        return None
    kwargs = {**settings_of(module, form), **kwargs}
    if kwargs.get("inplace"):
        return args[0].zero_() if record.shape is like else None
    tensors = {name: getattr(module, name) for name in form.tensors}
    if types:  # else of the tensors only shape and type are read
        tensors = {name: to_meta(value, types) for name, value in tensors.items()}
    return quick(record, args, {**tensors, **kwargs})
