"""Values and sizes during lowering. A fixed size is a plain number; a size that depends on the inputs is a `Size`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

# Sizes during lowering.
#
# Every graph is evaluated on meta tensors for two sets of sizes of its dynamic axes, `DimSizes`. A size that is equal
# in both is fixed; a size that differs is dynamic, whatever function of the input sizes it is.

BATCH = 10_007
"""The first batch size during lowering, a number that hardly any model contains by accident."""

PRIMES = (1_009, 1_523), (1_021, 1_619), (1_033, 1_721), (1_049, 1_823), (1_061, 1_931), (1_069, 2_027), (1_091, 2_131)
"""Both sizes of each further dynamic axis: large enough for deep networks, small enough for products of several sizes,
and so far apart that they still differ after strides have divided them by hundreds."""

FACTORS = (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15), (16, 17)
"""Multiples of the example's sizes, for models whose axes must be divisible."""


DimSizes = Mapping[str, tuple[int, int]]
"""The two sizes of each dynamic axis, by its name."""


@dataclass(frozen=True, eq=False)
class Size:
    """A number that depends on input sizes: its values at both sets of sizes, and its place in the graph."""

    sample: Any
    """Its value at the first set of sizes: an integer, or a number computed from integers."""
    twin: Any
    name: str | None = None
    """Name of the ONNX vector with one entry that contains it."""
    of: tuple[str, int] | None = None
    """Otherwise the ONNX tensor and the axis whose size it is; ``None`` if not located yet."""

    @property
    def pair(self) -> tuple[Any, Any]:
        """Both values. Numbers with equal pairs are treated as the same size."""
        return self.sample, self.twin

    @property
    def whole(self) -> bool:
        """Whether the number is an integer."""
        return isinstance(self.sample, int)


AnySize = int | Size
"""A fixed or a dynamic size."""


def size_of(sample: int, twin: int, of: tuple[str, int] | None = None) -> AnySize:
    """Return the number with the value `sample` at the first and `twin` at the second set of sizes."""
    return sample if sample == twin else Size(sample, twin, of=of)


def pair_of(number: Any) -> tuple[Any, Any]:
    """Return the values of a number or `Size` at both sets of sizes."""
    return number.pair if isinstance(number, Size) else (number, number)


def same_size(one: AnySize, other: AnySize) -> bool:
    """Whether two sizes are the same at both sets of sizes."""
    return pair_of(one) == pair_of(other)


def leaves(given: Any) -> list[Any]:
    """Yield the leaves of nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_aggregate(given, lambda leaf: found.append(leaf))
    return found


def dim_sizes(examples: Mapping[str, int], steps: Mapping[str, int]) -> Iterator[DimSizes]:
    """Yield the pairs of `_dim_sizes`, each size reduced until it differs from the example's by a multiple of the step.

    Args:
        examples: The size of each dynamic axis in the example inputs.
        steps: The step of each axis that does not accept every size.
    """

    def allowed(name: str, size: int) -> int:
        step, example = steps.get(name, 1), examples[name]
        return example + (size - example) // step * step

    for sizes in _dim_sizes(examples):
        found = {name: (allowed(name, one), allowed(name, other)) for name, (one, other) in sizes.items()}
        if all(one != other and min(one, other) > 0 for one, other in found.values()):
            yield found


def _dim_sizes(examples: Mapping[str, int]) -> Iterator[DimSizes]:
    """Yield sizes to try for dynamic axes, given their sizes in the example, until the model runs.

    Large primes come first, so that sizes are never equal by accident. Then come multiples of the example's sizes, for
    models that split axes, and sizes up to the example's, for models with tables of limited length.
    """
    names = list(examples)
    primes = iter(PRIMES * (len(names) // len(PRIMES) + 1))
    yield {name: (BATCH, 15_013) if name == "batch" else next(primes) for name in names}
    factors = dict(zip(names, FACTORS * (len(names) // len(FACTORS) + 1), strict=False))
    yield {name: (size * factors[name][0], size * factors[name][1]) for name, size in examples.items()}
    yield _different({name: [(size, size // 2), (size, size // 4)] for name, size in examples.items()})
    yield _different({name: [(size, size - step) for step in (1, 2, 3)] for name, size in examples.items()})


def _different(choices: Mapping[str, Sequence[tuple[int, int]]]) -> DimSizes:
    """Return, for each axis, the first pair that no earlier axis has."""
    found: dict[str, tuple[int, int]] = {}
    for name, pairs in choices.items():
        usable = [pair for pair in (*pairs, (2, 3), (3, 2), (4, 3), (5, 3)) if min(pair) > 1 and pair[0] != pair[1]]
        found[name] = next((pair for pair in usable if pair not in found.values()), usable[0])
    return found


# Values during lowering: the inputs and outputs of rules.


class Memory:
    """The memory that a value and all its views share: the number of writes, and the current value."""

    __slots__ = ("root", "version")

    def __init__(self) -> None:
        self.version = 0
        self.root: Value | None = None
        """All of it, as it is after the last write; ``None`` before the first."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph: shape and dtype, and also its numbers if it does not depend on the inputs."""

    tensor: Tensor
    """On the meta device if it depends on the inputs."""
    name: str
    """Its name in the ONNX graph, or the wanted name if it is not stored yet."""
    state: bool = False
    """Whether it is a parameter or buffer of the model."""
    twin: Tensor | None = None
    """The tensor at the second set of sizes; ``None`` if it does not depend on the inputs."""
    memory: Memory = field(default_factory=Memory, repr=False)
    steps: tuple[Any, ...] = ()
    """The operators by which the value is a view of its memory."""
    version: int = 0
    """The version of the memory that the value shows."""

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
"""An input of a node: a value, a tensor to store, the name of an earlier output, or nothing."""


def kept_axes(source: Source, sizes: Sequence[AnySize]) -> set[int]:
    """Return the dynamic axes of a view that equal those of `source` at the same place: in ONNX a 0 copies them."""
    if not isinstance(source, Value) or any(size == 0 for size in sizes):
        return set()
    both = enumerate(zip(source.sizes, sizes, strict=False))
    return {axis for axis, (one, other) in both if isinstance(other, Size) and same_size(one, other)}


def called(function: Callable[..., Any], args: Any, second: bool) -> Any:
    """Return PyTorch's result at the first or second set of sizes."""
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
