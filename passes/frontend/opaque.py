"""Modules and methods that cannot be recorded: what they return, found by running a copy of them for real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .state import deep_copy
from .structure import at, leaves_of, map_leaves, tensors_of


@dataclass
class Draws:
    """Stands in for sizes and numbers that depend on the numbers of tensors: how many boxes are found.

    Every recording has a turn of its own, so that such a number differs between recordings, as a size does.
    """

    turn: int = 0
    count: int = 0
    """How many numbers were drawn."""
    _step: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """Those of the step that is run now, by what was seen of them."""

    def begin(self) -> None:
        """The next numbers are of another step."""
        self._step = {}

    def number(self, seen: tuple[int, ...]) -> int:
        """A number in place of those that runs on several values gave: the same for the same ones of one step."""
        if seen not in self._step:
            self._step[seen] = max(*seen, 1) + self.turn * (2 * self.count + 3)
            self.count += 1
        return self._step[seen]


@dataclass(frozen=True)
class Given:
    """What a module is called with: meta tensors in place of real ones."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    """The size of the batch axis, a prime: a size that is a multiple of it is taken for one that carries the batch."""
    device: torch.device

    @property
    def batched(self) -> bool:
        """Whether any size carries the batch."""
        return any(self._carries(size) for one in tensors_of((self.args, self.kwargs)) for size in one.shape)

    def _carries(self, size: int) -> bool:
        return size > 0 and size % self.batch == 0

    def real(self, count: int, fill: Fill = torch.zeros) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Real tensors with a batch of `count`: `fill` makes those of floating point, and others are zeros."""

        def made(_: Any, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return self.device if isinstance(leaf, torch.device) else leaf
            shape = [size // self.batch * count if self._carries(size) else size for size in leaf.shape]
            return (fill if leaf.is_floating_point() else torch.zeros)(shape).to(self.device, leaf.dtype)

        return map_leaves((self.args, self.kwargs), made)  # type: ignore[no-any-return]


Fill = Callable[[list[int]], Tensor]

FILLS: tuple[Fill, ...] = (torch.rand, torch.randn)
"""Random numbers that a step is run on beside zeros: how many are above a limit differs."""


def run_opaque(
    module: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any],
    batch: int,
    device: torch.device,
    draws: Draws | None = None,
    *,
    training: bool = False,
    pure: bool = False,
) -> Any:
    """The value of a module on meta tensors: a copy of it is run on zeros, and on random numbers.

    The copy is run with two small batches, and a size of the result that differs between them carries the batch too. A
    size that differs between zeros and random numbers depends on values: `draws` gives another one. The graph does
    not depend on these guesses: it is compared with the model before it is used.

    Args:
        module: a module, or a method as a layer.
        args: meta tensors, and other values.
        kwargs: the same by keyword.
        batch: the size of the batch axis.
        device: where to run.
        draws: for what depends on values.
        training: the mode to run in.
        pure: whether it may not write into its inputs.

    Raises:
        Exception: the module fails on zeros, or the structure of what it returns depends on the batch or on values.
    """
    given, draws = Given(tuple(args), dict(kwargs), batch, device), draws or Draws()
    draws.begin()
    twin = deep_copy(module)
    run = partial(_run, twin if module.training is training else twin.train(training), pure)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # and none of a GPU, which nobody puts back
        zeros = run(given.real(2))
        more = run(given.real(3)) if given.batched else zeros
        drawn = [_drawn(run, given.real(2, fill), zeros) for fill in FILLS]
    _check_same(zeros, more, "the batch")
    for one in drawn:
        _check_same(zeros, one, "values")

    def lift(path: Any, leaf: Any) -> Any:
        seen = [leaf, *(at(one, path) for one in (more, *drawn))]
        if isinstance(leaf, Tensor):
            shape = [_size(sizes, batch, draws) for sizes in zip(*(one.shape for one in seen), strict=True)]
            return torch.empty(shape, dtype=leaf.dtype, device="meta")
        return _size(seen, batch, draws) if type(leaf) is int else leaf

    return map_leaves(zeros, lift)


def _run(twin: nn.Module, pure: bool, given: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    before = [(one, one._version) for one in tensors_of(given)]
    with torch.no_grad():
        result = twin(*given[0], **given[1])
    if pure and any(one._version != version for one, version in before):
        raise ValueError("it writes into its inputs")
    return result


def _drawn(run: Callable[[Any], Any], given: Any, zeros: Any) -> Any:
    """What the copy gives for random numbers; what it gives for zeros, where it fails."""
    try:
        return run(given)
    except Exception:
        return zeros


def _check_same(left: Any, right: Any, what: str) -> None:
    """Raise unless both have the same structure."""
    if [path for path, _ in leaves_of(left)] != [path for path, _ in leaves_of(right)]:
        raise ValueError(f"the structure of what it returns depends on {what}")


def _size(seen: Sequence[int], batch: int, draws: Draws) -> int:
    """A size, from its values with a batch of 2, with one of 3, and for random numbers."""
    two, three, *drawn = seen
    if two != three:
        return two // 2 * batch
    return two if all(one == two for one in drawn) else draws.number((two, *drawn))
