"""Results of modules and methods that cannot be recorded, found by running a copy with real numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import CaptureError
from bnas.passes.generators import put_back, python_numbers

from .copies import deep_copy
from .state import ModelState
from .structure import at, leaves_of, map_leaves, parts_of, tensors_of

# A layer that calls a method of the model which cannot be recorded, on a copy of its module without tensors.


class OpaqueMethod(nn.Module):
    """A layer of the graph that calls a method of a module, on a copy without parameters and buffers."""

    def __init__(self, holder: nn.Module, place: str, method: str, modes: Mapping[nn.Module, bool]) -> None:
        super().__init__()
        self.place, self.method = place, method
        self._holder = (stripped(holder),)  # in a tuple, so that it is not a submodule
        self._modes = tuple(modes.get(one, True) for one in holder.modules())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the mode of this layer."""
        (holder,) = self._holder
        for module, mode in zip(holder.modules(), self._modes, strict=True):
            module.training = self.training and mode
        given = [_changeable(args), _changeable(kwargs)]
        before = [_content(one) for one in (*given[0], *given[1].values())]
        result = getattr(holder, self.method)(*given[0], **given[1])
        _check_unchanged((*given[0], *given[1].values()), before, result)
        return result

    def extra_repr(self) -> str:
        """The place of the module and the name of the method."""
        return self.place


def stripped(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module without parameters and buffers; code that reads one then fails."""
    held = ModelState(module).tensors
    own = {id(one) for one in (*module.parameters(), *module.buffers())}
    gone = {id(one): None for one in held if isinstance(one, nn.Parameter) or id(one) in own}
    twin = deep_copy(module, gone)
    for source, made in zip(module.modules(), twin.modules(), strict=True):
        for table, without in ((source._parameters, made._parameters), (source._buffers, made._buffers)):
            for name in [name for name, tensor in table.items() if tensor is not None]:
                del without[name]
    return twin


def _changeable(value: Any) -> Any:
    """Make arguments mutable for the method: an interpreted graph passes read-only lists and dicts."""
    if isinstance(value, list):
        return [_changeable(one) for one in value]
    if type(value) is tuple:
        return tuple(_changeable(one) for one in value)
    if isinstance(value, dict) and type(value).__module__.startswith("torch.fx"):
        return {key: _changeable(one) for key, one in value.items()}
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({key: _changeable(one) for key, one in value.items()})
        return made
    return value


def _content(value: Any) -> list[tuple[Any, int]]:
    return [(path, id(leaf)) for path, leaf in leaves_of(value)]


def _check_unchanged(given: Sequence[Any], before: Sequence[Any], result: Any) -> None:
    """Raise if a method changed a list or dict argument without returning it, because it got a copy."""
    returned = [result, *(part for _, part in parts_of(result) or ())]
    for one, content in zip(given, before, strict=True):
        if _content(one) != content and not any(one is part for part in returned):
            raise CaptureError("it changes a list or dict argument and does not return it")


@dataclass
class Draws:
    """Replaces numbers that depend on tensor values, such as the number of found boxes.

    Every recording has its own turn, so that such a number differs between recordings, as sizes do.
    """

    turn: int = 0
    count: int = 0
    """Number of replaced numbers so far."""
    _step: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """Replacements in the current step, by the observed values."""

    def begin(self) -> None:
        """Begin the numbers of another step."""
        self._step = {}

    def number(self, seen: tuple[int, ...]) -> int:
        """Return the replacement for a number with these observed values; equal in one step for equal values."""
        if seen not in self._step:
            self._step[seen] = max(*seen, 1) + self.turn * (2 * self.count + 3)
            self.count += 1
        return self._step[seen]


@dataclass(frozen=True)
class Given:
    """The arguments of a call, with meta tensors instead of real ones."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    """Size of the batch axis, a prime. A size that is a multiple of it is assumed to contain the batch."""
    device: torch.device

    @property
    def batched(self) -> bool:
        """Whether any size contains the batch."""
        return any(self._carries(size) for one in tensors_of((self.args, self.kwargs)) for size in one.shape)

    def _carries(self, size: int) -> bool:
        return size > 0 and size % self.batch == 0

    def real(self, count: int, fill: Fill = torch.zeros) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return real tensors with a batch of `count`; `fill` makes numbers and masks, integers are zeros."""

        def made(_: Any, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return self.device if isinstance(leaf, torch.device) else leaf
            shape = [size // self.batch * count if self._carries(size) else size for size in leaf.shape]
            if leaf.dtype == torch.bool:
                return (fill(shape) > 0.5).to(self.device)
            return (fill if leaf.is_floating_point() else torch.zeros)(shape).to(self.device, leaf.dtype)

        return map_leaves((self.args, self.kwargs), made)  # type: ignore[no-any-return]


Fill = Callable[[list[int]], Tensor]

AGAIN = 3
"""Number of repeated runs that decide whether a forward draws random numbers."""
FILLS: tuple[Fill, ...] = (torch.rand, torch.randn)
"""Random inputs for a step, besides zeros, so that numbers of entries above a threshold differ."""


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
    """Return the result of a module on meta tensors, found by running a copy on zeros and on random numbers.

    The copy runs with two small batches; a size of the result that differs between them contains the batch. A size
    that differs between zeros and random numbers depends on values, and `draws` replaces it. These guesses cannot make
    the graph wrong unnoticed, because it is compared with the model before it is used.

    Args:
        module: A module, or a method as a layer.
        args: Meta tensors and other values.
        kwargs: The same by keyword.
        batch: The size of the batch axis.
        device: The device to run on.
        draws: Replaces numbers that depend on values.
        training: Whether it runs in training mode.
        pure: Whether it must not write into its inputs.

    Raises:
        Exception: The module fails on zeros, or the structure of its result depends on the batch or on values.
    """
    given, draws = Given(tuple(args), dict(kwargs), batch, device), draws or Draws()
    draws.begin()
    twin = deep_copy(module)
    run = partial(_run, twin if module.training is training else twin.train(training), pure)
    numbers = python_numbers()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not those of a GPU, which are not restored
        try:
            zeros = run(given.real(2))
            more = run(given.real(3)) if given.batched else zeros
            drawn = [_drawn(run, given.real(2, fill), zeros) for fill in FILLS]
        finally:
            put_back(numbers)
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


def draws_itself(module: nn.Module, args: Any, kwargs: Any, batch: int, device: torch.device) -> bool:
    """Whether forward itself draws numbers of Python or NumPy, or only another thread drew some while it ran.

    A copy of the module is run again on zeros: forward would draw each time, a thread only now and then. A module that
    fails on zeros counts as one that draws.
    """
    given, twin = Given(tuple(args), dict(kwargs), batch, device), deep_copy(module)
    with torch.random.fork_rng(devices=[]):
        for _ in range(AGAIN):
            before = python_numbers()
            try:
                _run(twin, False, given.real(2))
            except Exception:
                return True
            if python_numbers() == before:
                return False
    return True


def _run(twin: nn.Module, pure: bool, given: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    before = [(one, one._version) for one in tensors_of(given)]
    with torch.no_grad():
        result = twin(*given[0], **given[1])
    if pure and any(one._version != version for one, version in before):
        raise ValueError("it writes into its inputs")
    return result


def _drawn(run: Callable[[Any], Any], given: Any, zeros: Any) -> Any:
    """Return the result of the copy on random numbers, or on zeros if it fails."""
    try:
        return run(given)
    except Exception:
        return zeros


def _check_same(left: Any, right: Any, what: str) -> None:
    """Raise unless both have the same structure."""
    if [path for path, _ in leaves_of(left)] != [path for path, _ in leaves_of(right)]:
        raise ValueError(f"the structure of its result depends on {what}")


def _size(seen: Sequence[int], batch: int, draws: Draws) -> int:
    """Return a size from its values with a batch of 2, with a batch of 3, and on random numbers."""
    two, three, *drawn = seen
    if two != three:
        return two // 2 * batch
    return two if all(one == two for one in drawn) else draws.number((two, *drawn))
