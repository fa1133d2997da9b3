"""Values with tensors somewhere in them: what a loader gives, and what a model is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` (a tensor, or a tuple, list or dict of such values) with its tensors changed; all else stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(one, change) for name, one in value.items()}
    return type(value)(map_tensors(one, change) for one in value) if isinstance(value, list | tuple) else value
