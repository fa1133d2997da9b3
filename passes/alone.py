"""One thread at a time, where bnas changes for a while what all threads of a process share: PyTorch's own functions.

A capture stands in the place of ``nn.Module.__call__``, and the oracle turns the fused path of encoders off. A second
thread that did so meanwhile would put back what the first one set, and leave the process with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = threading.RLock()


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, for one thread at a time; a call inside of another one is of the same thread."""

    @wraps(function)
    def waits(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return function(*args, **kwargs)

    return waits
