"""The generators of random numbers of Python and NumPy, which `torch.random.fork_rng` does not put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def python_numbers() -> tuple[Any, ...]:
    """The states of both generators."""
    state: Any = np.random.get_state()  # numpy's global generator
    kind, keys, *rest = state
    return random.getstate(), (kind, keys.tobytes(), *rest)


def put_back(states: tuple[Any, ...]) -> None:
    """Set both generators to the states that `python_numbers` gave."""
    if python_numbers() == states:
        return
    random.setstate(states[0])
    kind, keys, *rest = states[1]
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))


def seed_python() -> None:
    """Set both generators to the same state each time."""
    random.seed(0)
    np.random.seed(0)
