"""Values with tensors somewhere in them: what a loader gives, and what a model is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bnas.passes.ir import as_program_call


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` (a tensor, or a tuple, list or dict of such values) with its tensors changed; all else stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(one, change) for name, one in value.items()}
    return type(value)(map_tensors(one, change) for one in value) if isinstance(value, list | tuple) else value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of `value` in order."""
    found: list[Tensor] = []
    map_tensors(value, lambda one: found.append(one) or one)  # type: ignore[func-returns-value]
    return found


def batch_size(batch: tuple[Any, Any]) -> int:
    """Samples of a batch of inputs and targets: axis 0 of the first input."""
    tensors, named = as_program_call(batch[0])
    return len(next(iter((*tensors, *named.values()))))


def described(value: Any) -> str:
    """Shapes and types of the tensors in `value`, for an error."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {described(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(described(one) for one in value) + ")"
    return type(value).__name__
