"""The policy that turns symbols and blocks into choices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch.fx import Node

from .axes import AxisTypes
from .blocks import Block, Blocks
from .errors import ElasticityError
from .kernels import Kernels, find_kernels
from .space import SearchSpace
from .terms import Cat, Prod, Sym, Term, symbols

DIMENSIONS = ("depth", "width", "kernel")


@dataclass(frozen=True)
class Elasticity:
    """What may change, and in which steps."""

    dimensions: tuple[str, ...] = DIMENSIONS
    """Elastic dimensions: "depth", "width" and "kernel"."""
    width_multipliers: tuple[float, ...] = (1.0, 0.75, 0.5)
    """Sizes as fractions of the full one, which is always a choice itself."""
    min_width: int = 8
    """No choice is smaller, except where the full size is."""
    divisor: int = 8
    """Choices are rounded down to a multiple of this; the full size is left as it is."""
    max_num_widths: int | None = None
    """At most so many choices, counted from the largest."""
    min_kernel: int = 3
    """No kernel gets smaller."""
    max_num_kernels: int | None = None
    """At most so many choices for a kernel, counted from the largest."""

    def __post_init__(self) -> None:
        """Check the bounds of every setting."""
        unknown = [d for d in self.dimensions if d not in DIMENSIONS]
        if unknown:
            raise ElasticityError(f"dimensions: {unknown[0]!r} is not one of {', '.join(DIMENSIONS)}")
        wrong = [m for m in self.width_multipliers if not 0 < m <= 1]
        if wrong:
            raise ElasticityError(f"width_multipliers: {wrong[0]} is not in (0, 1]")
        for name in ("min_width", "divisor", "max_num_widths", "min_kernel", "max_num_kernels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ElasticityError(f"{name}: {value} is smaller than 1")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Elasticity:
        """From plain settings, as they come from a file: lists become tuples.

        Raises:
            ElasticityError: there is no such setting, or it is out of its bounds.
        """
        names = [one.name for one in fields(cls)]
        unknown = sorted(set(settings) - set(names))
        if unknown:
            raise ElasticityError(f"there is no setting {unknown[0]!r}; there are {', '.join(names)}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**plain)

    def choices(self, full: int, unit: int = 1) -> tuple[int, ...]:
        """Ascending sizes for a symbol of `full` entries, each standing for `unit` entries of its axis."""
        step = self.divisor // math.gcd(self.divisor, unit)
        least = min(full, -(-self.min_width // unit))
        smaller = (int(full * m + 1e-9) // step * step for m in self.width_multipliers if m < 1)
        sizes = {max(least, size) for size in smaller} | {full}
        largest = sorted((s for s in sizes if s > 0), reverse=True)[: self.max_num_widths]
        return tuple(sorted(largest))


@dataclass(frozen=True)
class Choices:
    """A search space together with the symbols and blocks that its names stand for."""

    space: SearchSpace
    symbols: Mapping[str, Sym]
    blocks: Mapping[str, Block]
    kernels: Kernels = field(default_factory=Kernels)
    """The elastic kernels, and those that were left alone with the reason."""


def choose(types: AxisTypes, blocks: Blocks, elasticity: Elasticity) -> Choices:
    """The search space of a typed graph.

    Of a product of several symbols (heads x head_dim, groups x channels) only the first is elastic: 'all at 50 %'
    would otherwise quarter the layer, and a prefix of the first is a prefix of the axis, so that it stays a view.
    """
    found = {b.name: b for b in blocks.found} if "depth" in elasticity.dimensions else {}
    units = _units(types) if "width" in elasticity.dimensions else {}
    names = _names(types, list(units))
    options = {names[s]: elasticity.choices(s.n, unit) for s, unit in units.items()}
    widths = {name: sizes for name, sizes in options.items() if len(sizes) > 1}
    elastic = {names[s]: s for s in units if names[s] in widths}
    inside = {name: uses for name, s in elastic.items() if (uses := _uses(types, s, found))}
    kernels = Kernels()
    if "kernel" in elasticity.dimensions:
        kernels = find_kernels(types, elasticity.min_kernel, elasticity.max_num_kernels)
    sizes = {name: kernel.choices for name, kernel in kernels.found.items()}
    around = {name: uses for name, kernel in kernels.found.items() if (uses := _around(kernel.nodes, found))}
    return Choices(SearchSpace(widths, tuple(found), inside, sizes, around), elastic, found, kernels)


def _units(types: AxisTypes) -> dict[Sym, int]:
    """The symbols that may change, with the entries of the axis that one of theirs stands for."""
    held: set[Sym] = set()
    units: dict[Sym, int] = dict.fromkeys(types.free_symbols(), 1)
    for axes in types.tensors.values():
        for first, others in (pair for axis in axes for pair in _products(axis)):
            held.update(others)
            units[first] = max(units[first], math.prod(s.n for s in others))
    return {symbol: unit for symbol, unit in units.items() if symbol not in held}


def _products(term: Term) -> Iterator[tuple[Sym, list[Sym]]]:
    """The first free symbol of each product, and the others of the same product."""
    if isinstance(term, Cat):
        for part in term.terms:
            yield from _products(part)
    elif isinstance(term, Prod) and (found := list(symbols(term))):
        yield found[0], found[1:]


def _names(types: AxisTypes, chosen: list[Sym]) -> dict[Sym, str]:
    """Each symbol by the layer that makes its channels, else by the first parameter it stands in."""
    places: dict[Sym, str] = {}
    makers = [(name, types.tensors[name][axis]) for name, axis in types.producers.items()]
    for name, axis in [*makers, *((n, a) for n, axes in types.tensors.items() for a in axes)]:
        for symbol in symbols(axis):
            places.setdefault(symbol, name.rpartition(".")[0] or name)
    count, seen = Counter(places[s] for s in chosen), Counter[str]()
    names = {}
    for symbol in chosen:
        place = places[symbol]
        seen[place] += 1
        names[symbol] = place if count[place] == 1 else f"{place}#{seen[place]}"
    return names


def _uses(types: AxisTypes, symbol: Sym, blocks: Mapping[str, Block]) -> tuple[frozenset[str], ...]:
    """The blocks around each use of the symbol; see `_around`."""
    nodes = {
        node
        for name, axes in types.tensors.items()
        if any(symbol is s for axis in axes for s in symbols(axis))
        for node in types.users.get(name, ())
    }
    return _around(nodes, blocks)


def _around(nodes: Iterable[Node], blocks: Mapping[str, Block]) -> tuple[frozenset[str], ...]:
    """The blocks around each node; empty where one of them is in no block."""
    around = [frozenset(b.name for b in blocks.values() if node in b.body) for node in nodes]
    return tuple(sorted(set(around), key=sorted)) if all(around) else ()
