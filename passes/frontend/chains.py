"""Numbers as chains of operators on a size, such as ``(n - 1) // 2 + 1``, that are right in all recordings."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from math import gcd
from typing import Any

from .functions import BATCH

Vector = tuple[int, ...]
"""A size in each of the recordings."""

Chain = tuple[tuple[Any, Any], ...]
"""Operators with their right operands, applied to a size one after the other."""


def part_of(size: float, whole: float) -> float:
    """Return the size of a part if `whole` is divided into `size` equal parts."""
    return whole / size


def chains(family: Family, vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Return the chains of a family that compute `vector` from `sizes`.

    In the recordings the batch grows together with the other sizes. So a number that does not depend on the batch must
    not be explained by a part of the batch.
    """
    whole = type(vector[0]) is int
    if whole and (sizes[0] % BATCH == 0) is not (vector[0] % BATCH == 0 and vector[0] != 0):
        return
    for chain in family(vector, sizes):
        if all(_followed(chain, size) == one for size, one in zip(sizes, vector, strict=True)):
            yield chain


def exact(found: Iterable[Chain], sizes: Vector) -> Iterator[Chain]:
    """Return the chains without rounding. From a large product, a chain with rounding can produce almost any number."""
    for chain in found:
        rounds = [number for function, number in chain if function is operator.floordiv]
        if not rounds or (len(chain) == 1 and all(size % rounds[0] == 0 for size in sizes)):
            yield chain


def _followed(chain: Chain, value: Any) -> Any:
    for function, number in chain:
        value = function(value, number)
    return value


def _parts(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Yield multiples, parts, sums, numbers of strides, and quotients of a number and a size."""
    first, size = vector[0], sizes[0]
    if not size or not isinstance(first, int | float):
        return
    if isinstance(first, float):
        yield ((operator.mul, first / size),)
        if first:
            yield ((operator.truediv, size / first),)
            yield ((part_of, round(first * size)),)
            yield ((part_of, first * size),)
        yield ((operator.add, first - size),)
        return
    if first and first % size == 0:
        yield ((operator.mul, first // size),)
    if first and size % first == 0:
        yield ((operator.floordiv, size // first),)
    yield ((operator.add, first - size),)
    for number in sorted({size // first, size // first + 1, -(-size // first)} if first > 0 else ()):
        if number > 1:
            yield ((operator.floordiv, number),)
            yield ((operator.sub, 1), (operator.floordiv, number), (operator.add, 1))


def _fills(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Yield chains that round a size up or down to a multiple, or compute the padding up to the multiple."""
    if not all(type(one) is int for one in vector):
        return
    for number in _divisors(gcd(*(a + b for a, b in zip(sizes, vector, strict=True))), max(vector)):
        yield ((operator.mul, -1), (operator.mod, number))
    for number in _divisors(gcd(*vector), max(abs(a - b) for a, b in zip(sizes, vector, strict=True))):
        yield ((operator.add, number - 1), (operator.floordiv, number), (operator.mul, number))
        yield ((operator.floordiv, number), (operator.mul, number))


def _lines(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Yield a multiple of a size plus a number."""
    if not all(type(one) is int for one in vector):
        return
    first, size = vector[0], sizes[0]
    other = next((n for n in range(len(sizes)) if sizes[n] != size), None)
    if other is not None and (vector[other] - first) % (sizes[other] - size) == 0:
        slope = (vector[other] - first) // (sizes[other] - size)
        yield ((operator.mul, slope), (operator.add, first - slope * size))


def _limits(vector: tuple[Any, ...], sizes: Vector) -> Iterator[Chain]:
    """Yield a size that is cut at a limit, and the excess of a size over a limit."""
    if not all(type(one) is int for one in vector):
        return
    yield ((min, max(vector)),)
    for place, one in enumerate(vector):
        yield ((operator.sub, sizes[place] - one), (max, min(vector)))


Family = Callable[[tuple[Any, ...], Vector], Iterator[Chain]]
FAMILIES: tuple[Family, ...] = (_parts, _fills, _lines, _limits)
"""Kinds of chains, the simplest first."""


def _divisors(number: int, above: int) -> list[int]:
    """The least divisor of a number that is greater than `above` and 1: others take more sizes to tell apart."""
    return [n for n in range(max(above + 1, 2), min(number, MOST) + 1) if number % n == 0][:1]


MOST = 4096
"""No model pads to a multiple of more."""
