"""A lock for code that temporarily changes PyTorch's own functions, which all threads of a process share.

A capture replaces ``nn.Module.__call__``, and the oracle turns off the fused path of encoders. Without the lock, a
second thread could restore the replacement of the first one, and the process would keep it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = threading.RLock()


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: only one thread at a time runs the function. Nested calls in the same thread are allowed."""

    @wraps(function)
    def waits(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return function(*args, **kwargs)

    return waits


@contextmanager
def unfused() -> Iterator[None]:
    """While it lasts, PyTorch's fused path of encoder layers is off, which calls none of the modules inside them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
