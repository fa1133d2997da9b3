"""Values and sizes while lowering: plain numbers where they are fixed, `Size` where they follow the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

# Sizes while lowering: plain numbers where they are fixed, and `Size` where they follow the model's inputs.
#
# Every graph is evaluated at two sets of sizes of its dynamic axes, `DimSizes`, on meta tensors. A size that is the
# same in both is fixed; one that differs is dynamic, whatever function of the inputs' sizes it is.

BATCH = 10_007
"""The first size of the batch while lowering: few models meet it by accident."""

PRIMES = (1_009, 1_523), (1_021, 1_619), (1_033, 1_721), (1_049, 1_823), (1_061, 1_931), (1_069, 2_027), (1_091, 2_131)
"""Both sizes of each further dynamic axis: large enough for deep networks, small enough for products of several, and
so far apart that they still differ where strides have divided them by hundreds."""

FACTORS = (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15), (16, 17)
"""Multiples of the example's sizes, for models whose axes must be divisible."""


DimSizes = Mapping[str, tuple[int, int]]
"""The two sizes of each dynamic axis, by its name."""


@dataclass(frozen=True, eq=False)
class Size:
    """A number that follows the sizes of the inputs: what it is at both sets of sizes, and where it is in the graph."""

    sample: Any
    """An integer, or a number that was computed from integers."""
    twin: Any
    name: str | None = None
    """The ONNX vector of one entry that holds it."""
    of: tuple[str, int] | None = None
    """Else the ONNX tensor, and the axis, whose size it is; ``None`` if that is to be found."""

    @property
    def pair(self) -> tuple[Any, Any]:
        """Both numbers: what is the same in both is taken for the same size."""
        return self.sample, self.twin

    @property
    def whole(self) -> bool:
        """Whether it is an integer."""
        return isinstance(self.sample, int)


AnySize = int | Size
"""A fixed or a dynamic size."""


def size_of(sample: int, twin: int, of: tuple[str, int] | None = None) -> AnySize:
    """A number that is `sample` at the one and `twin` at the other set of sizes."""
    return sample if sample == twin else Size(sample, twin, of=of)


def pair_of(number: Any) -> tuple[Any, Any]:
    """A number or a `Size` at both sets of sizes."""
    return number.pair if isinstance(number, Size) else (number, number)


def same_size(one: AnySize, other: AnySize) -> bool:
    """Whether two sizes are the same at both sets of sizes."""
    return pair_of(one) == pair_of(other)


def leaves(given: Any) -> list[Any]:
    """What is inside nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_aggregate(given, lambda leaf: found.append(leaf))
    return found


def dim_sizes(examples: Mapping[str, int], steps: Mapping[str, int]) -> Iterator[DimSizes]:
    """The pairs of `_dim_sizes`, each size moved down to one that differs from the example's by a multiple of a step.

    Args:
        examples: the size of each dynamic axis in the example inputs.
        steps: the step of those that do not take every size.
    """

    def allowed(name: str, size: int) -> int:
        step, example = steps.get(name, 1), examples[name]
        return example + (size - example) // step * step

    for sizes in _dim_sizes(examples):
        found = {name: (allowed(name, one), allowed(name, other)) for name, (one, other) in sizes.items()}
        if all(one != other and min(one, other) > 0 for one, other in found.values()):
            yield found


def _dim_sizes(examples: Mapping[str, int]) -> Iterator[DimSizes]:
    """Sizes to try for dynamic axes, whose sizes in the example inputs are given, until the model can be run at them.

    Large primes first: no size is another one by accident. Then multiples of the example's sizes, for models that take
    axes apart; and sizes up to those of the example, for models with tables that must be long enough.
    """
    names = list(examples)
    primes = iter(PRIMES * (len(names) // len(PRIMES) + 1))
    yield {name: (BATCH, 15_013) if name == "batch" else next(primes) for name in names}
    factors = dict(zip(names, FACTORS * (len(names) // len(FACTORS) + 1), strict=False))
    yield {name: (size * factors[name][0], size * factors[name][1]) for name, size in examples.items()}
    yield _different({name: [(size, size // 2), (size, size // 4)] for name, size in examples.items()})
    yield _different({name: [(size, size - step) for step in (1, 2, 3)] for name, size in examples.items()})


def _different(choices: Mapping[str, Sequence[tuple[int, int]]]) -> DimSizes:
    """The first pair of each axis that no axis before it has."""
    found: dict[str, tuple[int, int]] = {}
    for name, pairs in choices.items():
        usable = [pair for pair in (*pairs, (2, 3), (3, 2), (4, 3), (5, 3)) if min(pair) > 1 and pair[0] != pair[1]]
        found[name] = next((pair for pair in usable if pair not in found.values()), usable[0])
    return found


# Values while lowering: what a rule reads and gives.


class Memory:
    """The memory that a value and all its views share: how often it was written, and what it holds then."""

    __slots__ = ("root", "version")

    def __init__(self) -> None:
        self.version = 0
        self.root: Value | None = None
        """All of it, as it is after the last write; ``None`` before the first."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph: its shape and dtype, and its numbers if it does not depend on the inputs."""

    tensor: Tensor
    """On the meta device if it depends on the inputs."""
    name: str
    """Its name in the ONNX graph; what it should be called there if it is not stored yet."""
    state: bool = False
    """Whether it is a parameter or buffer of the model."""
    twin: Tensor | None = None
    """The tensor at the other set of sizes; ``None`` if it does not depend on the inputs."""
    memory: Memory = field(default_factory=Memory, repr=False)
    steps: tuple[Any, ...] = ()
    """How it is seen as a view of the memory, operator for operator."""
    version: int = 0
    """Which version of the memory it shows."""

    @property
    def constant(self) -> bool:
        """Whether its numbers are known."""
        return not self.tensor.is_meta

    @property
    def sizes(self) -> list[AnySize]:
        """Its shape: an integer for each fixed axis, a `Size` for each dynamic one."""
        twin = self.tensor if self.twin is None else self.twin
        pairs = enumerate(zip(self.tensor.shape, twin.shape, strict=True))
        return [size_of(one, other, (self.name, axis)) for axis, (one, other) in pairs]


Source: TypeAlias = "Value | Tensor | str | None"
"""What a node can read: a value, a tensor to store, the name of an earlier node's output, or nothing."""


def kept_axes(source: Source, sizes: Sequence[AnySize]) -> set[int]:
    """The dynamic axes of a view that are those of `source` at the same place: ONNX copies them for a 0."""
    if not isinstance(source, Value) or any(size == 0 for size in sizes):
        return set()
    both = enumerate(zip(source.sizes, sizes, strict=False))
    return {axis for axis, (one, other) in both if isinstance(other, Size) and same_size(one, other)}


def called(function: Callable[..., Any], args: Any, second: bool) -> Any:
    """What PyTorch returns at the one or at the other set of sizes."""
    given: Any = map_aggregate(list(args), lambda leaf: _meta_of(leaf, second))
    return function(*given)


def _meta_of(leaf: Any, second: bool) -> Any:
    if isinstance(leaf, Size):
        return leaf.twin if second else leaf.sample
    if isinstance(leaf, Tensor):
        return leaf.to("meta")
    if not isinstance(leaf, Value):
        return leaf
    return torch.empty_like(leaf.twin if second and leaf.twin is not None else leaf.tensor, device="meta")
