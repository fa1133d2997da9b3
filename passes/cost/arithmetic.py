"""Exact arithmetic on sizes: symbolic (sympy), or compiled to Python functions for many sub-networks at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import sympy

from bnas.passes.space.space import SearchSpace

# Exact arithmetic on the sizes of a sub-network, compiled to a Python function: for costs, which are large sums.
#
# sympy can do the same in readable form, but takes seconds to build the sums of a large network.

LINE = 64
"""Number of terms of a sum in one line of code, since the parser nests terms and its stack is small."""


@dataclass(frozen=True, slots=True)
class Number:
    """A rational factor times a product of values of a tape; a value may occur several times."""

    tape: Tape = field(repr=False)
    factor: Fraction | int
    values: tuple[int, ...] = ()

    def __mul__(self, other: Number | int | Fraction) -> Number:
        """Multiply by another number of the same tape, or by a constant."""
        if not isinstance(other, Number):
            return Number(self.tape, _whole(self.factor * other), self.values)
        return Number(self.tape, _whole(self.factor * other.factor), tuple(sorted(self.values + other.values)))

    def __add__(self, other: Number | int) -> Number:
        """Add another number of the same tape, or a constant."""
        return self.tape.sum((self, other))

    def __rsub__(self, other: int) -> Number:
        """Subtract from a constant."""
        return self.tape.sum((other, self * -1))

    __rmul__, __radd__ = __mul__, __add__


Definition = tuple[str, tuple[tuple[tuple[int, ...], int], ...]]
"""The definition of a value: an operation on products of earlier values with integer factors."""


class Tape:
    """A program of values in the order of computation: arguments, then sums and minima of products of earlier values.

    Equal values are computed once.
    """

    def __init__(self, arguments: int) -> None:
        self.arguments = [Number(self, 1, (place,)) for place in range(arguments)]
        self._definitions: list[Definition | None] = [None] * arguments
        self._known: dict[Definition, int] = {}

    def sum(self, numbers: Iterable[Number | int]) -> Number:
        """Return the sum, with the greatest common factor pulled out."""
        found: dict[tuple[int, ...], Fraction | int] = {}
        for number in numbers:
            values, factor = (number.values, number.factor) if isinstance(number, Number) else ((), number)
            found[values] = found.get(values, 0) + factor
        found = {values: factor for values, factor in found.items() if factor}
        if len(found) <= 1:
            values, factor = next(iter(found.items()), ((), 0))
            return Number(self, factor, values)
        factors = [Fraction(factor) for factor in found.values()]
        common = Fraction(math.gcd(*(f.numerator for f in factors)), math.lcm(*(f.denominator for f in factors)))
        parts = tuple(sorted((values, int(factor / common)) for values, factor in found.items()))
        return Number(self, _whole(common), (self._place(("sum", parts)),))

    def minimum(self, one: Number, bound: int) -> Number:
        """Return the minimum of a number with an integer factor and a constant."""
        return Number(self, 1, (self._place(("min", ((one.values, int(one.factor)), ((), bound)))),))

    def _place(self, definition: Definition) -> int:
        if definition not in self._known:
            self._known[definition] = len(self._definitions)
            self._definitions.append(definition)
        return self._known[definition]

    def compiled(self, numbers: Sequence[Number | int]) -> Callable[..., list[Any]]:
        """Return a function from arguments (integers, or int64 arrays of equal length) to the values of `numbers`."""
        results = [number if isinstance(number, Number) else Number(self, number) for number in numbers]
        needed = self._needed(value for number in results for value in number.values)
        lines = [line for place in sorted(needed) for line in self._lines(place)]
        given = ", ".join(f"v{place}" for place in range(len(self.arguments)))
        code = [f"def function({given}):", *lines, f"    return [{', '.join(map(_result, results))}]"]
        names: dict[str, Any] = {"minimum": np.minimum}
        exec("\n".join(code), names)
        function: Callable[..., list[Any]] = names["function"]
        return function

    def _needed(self, values: Iterable[int]) -> set[int]:
        stack, found = list(values), set[int]()
        while stack:
            place = stack.pop()
            definition = self._definitions[place]
            if place not in found and definition is not None:
                found.add(place)
                stack += [value for product, _ in definition[1] for value in product]
        return found

    def _lines(self, place: int) -> Iterator[str]:
        definition = self._definitions[place]
        assert definition is not None
        operation, parts = definition
        products = [_product(values, factor) for values, factor in parts]
        if operation == "min":
            yield f"    v{place} = minimum({', '.join(products)})"
            return
        for start in range(0, len(products), LINE):
            before = f"v{place} + " if start else ""
            yield f"    v{place} = {before}{' + '.join(products[start : start + LINE])}"


def _whole(factor: Fraction | int) -> Fraction | int:
    return factor.numerator if isinstance(factor, Fraction) and factor.denominator == 1 else factor


def _product(values: Sequence[int], factor: int) -> str:
    names = [f"v{value}" if n == 1 else f"v{value}**{n}" for value, n in Counter(values).items()]
    return "*".join(names if factor == 1 and names else [f"({factor})", *names])


def _result(number: Number) -> str:
    product = _product(number.values, Fraction(number.factor).numerator)
    denominator = Fraction(number.factor).denominator
    return product if denominator == 1 else f"({product}) // {denominator}"


# The algebras in which costs are computed: symbolic or numeric.


class Algebra(Protocol):
    """Interface of the numbers with which costs are computed."""

    def symbol(self, kind: str, name: str) -> Any:
        """Return the number for a width, block or kernel of the space."""

    def sum(self, numbers: Iterable[Any]) -> Any:
        """The sum of numbers and constants."""

    def minimum(self, number: Any, bound: int) -> Any:
        """The lesser of a number and a constant."""

    def content(self, number: Any) -> Any:
        """Return the same number with a single fraction in front."""


class Symbolic:
    """As sympy expressions."""

    def symbol(self, kind: str, name: str) -> sympy.Symbol:
        """Named as the width, with a prefix for the others; a switch may be 0."""
        prefix = {"width": "", "keep": "keep:", "kernel": "kernel:"}[kind]
        sign = {"nonnegative": True} if kind == "keep" else {"positive": True}
        return sympy.Symbol(f"{prefix}{name}", integer=True, **sign)

    def sum(self, numbers: Iterable[Any]) -> Any:
        """A sympy sum."""
        return sympy.Add(*numbers)

    def minimum(self, number: Any, bound: int) -> Any:
        """A sympy minimum."""
        return sympy.Min(number, bound)

    def content(self, number: Any) -> Any:
        """Else a fraction would stay inside."""
        factor, rest = sympy.sympify(number).as_content_primitive()
        return factor * rest


class Numeric:
    """As `bnas.passes.cost.arithmetic.Number`."""

    def __init__(self, space: SearchSpace) -> None:
        groups = (("keep", space.blocks), ("width", space.widths), ("kernel", space.kernels))
        names = [(kind, name) for kind, known in groups for name in known]
        self.tape = Tape(len(names))
        self._symbols = dict(zip(names, self.tape.arguments, strict=True))
        self.sum, self.minimum = self.tape.sum, self.tape.minimum

    def symbol(self, kind: str, name: str) -> Number:
        """The argument for the width, block or kernel; blocks come first, then widths."""
        return self._symbols[kind, name]

    def content(self, number: Any) -> Any:
        """Every number is written so."""
        return number
