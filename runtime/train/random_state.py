"""Save and restore the states of all random generators that a training may use, so that it can be resumed exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bnas.passes.generators import put_back, python_numbers

PATHS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset")
"""Attributes of a loader whose objects may have their own ``generator``."""


def capture(loader: Any) -> dict[str, Any]:
    """Return the states of the generators of Python, numpy, PyTorch and `loader`, for a JSON file."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(one) for one in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "loader": {path: _of(generator) for path, generator in _generators(loader)},
    }


def restore(loader: Any, state: Mapping[str, Any]) -> None:
    """Restore all generators to the states that `capture` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_bytes(one) for one in state["cuda"]])
    for path, generator in _generators(loader):
        if path in state["loader"]:
            _set(generator, state["loader"][path])


def begin_at(seed: int) -> None:
    """Seed the global generators of Python, numpy and PyTorch, from which a user's code may draw."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def part_ways(rank: int, seed: int | None = None) -> None:
    """Give each process different random numbers: seed its generators by rank and `seed`, which is drawn by default."""
    drawn = int(torch.empty((), dtype=torch.int64).random_()) if seed is None else seed
    begin_at((drawn + rank) % 2**63)


@contextmanager
def undisturbed(loader: Any, seed: int | None = None) -> Iterator[None]:
    """Restore all generators afterwards; with `seed`, all of them start from that seed inside."""
    state = capture(loader)
    if seed is not None:
        begin_at(seed)
        for _, generator in _generators(loader):
            _seed(generator, seed)
    try:
        yield
    finally:
        restore(loader, state)


@contextmanager
def unmoved() -> Iterator[None]:
    """Restore the global generators afterwards. Cheaper than `undisturbed`, so it can be used in each step."""
    states = Numbers._now()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    try:
        yield
    finally:
        Numbers._set(states)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class Numbers:
    """A separate stream of random numbers of Python, numpy and PyTorch, drawn only inside `used`."""

    def __init__(self) -> None:
        self._state = self._now()

    @staticmethod
    def _now() -> tuple[Any, Any]:
        return python_numbers(), torch.get_rng_state()

    @staticmethod
    def _set(state: tuple[Any, Any]) -> None:
        put_back(state[0])
        torch.set_rng_state(state[1])

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the global generators draw from this stream."""
        others = self._now()
        self._set(self._state)
        try:
            yield
        finally:
            self._state = self._now()
            self._set(others)


def _generators(loader: Any) -> Iterator[tuple[str, Any]]:
    """Return the loader's own generators, each once, by the name of their place."""
    seen: set[int] = set()
    for path in PATHS:
        owner: Any = loader
        for part in filter(None, path.split(".")):
            owner = getattr(owner, part, None)
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator | np.random.Generator) and id(generator) not in seen:
            seen.add(id(generator))
            yield path, generator


def _of(generator: torch.Generator | np.random.Generator) -> Any:
    return _hex(generator.get_state()) if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _set(generator: torch.Generator | np.random.Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(_bytes(state))
    else:
        generator.bit_generator.state = state


def _seed(generator: torch.Generator | np.random.Generator, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        bits: Any = type(generator.bit_generator)
        generator.bit_generator.state = bits(seed).state


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
