"""The width policy: which symbols become elastic widths, with which sizes and names.

In a product of several symbols (heads x head_dim, groups x channels), only the first one is elastic by default.
Otherwise "everything at 50 %" would quarter the layer. Also, a prefix of the first factor is a prefix of the whole axis
and therefore a view.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from bnas.passes.axes.terms import Cat, K, Prod, Sym, Term, resolve, symbols
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic, ElasticityError

from .elasticity import Elasticity
from .scopes import Vetoes, find_scopes, nearest

INNER = ":inner"
"""Suffix of the name of a symbol that is not the first factor of a product."""


@dataclass(frozen=True)
class Width:
    """A symbol with a choice of sizes."""

    symbol: Sym
    sizes: tuple[int, ...]
    """Ascending; the last is the full size."""
    members: tuple[str, ...]
    """The tensors in which the symbol occurs, in the order of their first use."""


@dataclass(frozen=True)
class Widths:
    """The elastic widths by name, and the symbols that stay full, with the reason."""

    found: Mapping[str, Width]
    refused: tuple[Diagnostic, ...]


def find_widths(types: AxisTypes, elasticity: Elasticity, vetoes: Vetoes) -> Widths:
    """Find every free symbol that has at least two sizes under the policy.

    Vetoes (pin, ignored_scopes, target_scopes) take precedence over groups, groups over single widths, and single
    widths over the general settings.

    Raises:
        ElasticityError: a pattern matches nothing, or a size is not one of the symbol's.
    """
    policy = _Policy(types, elasticity, vetoes)
    found, refused = dict[str, Width](), list[Diagnostic]()
    for symbol, name in policy.names.items():
        decision = policy.decide(symbol, name)
        if isinstance(decision, str):
            refused.append(Diagnostic(name, decision))
        else:
            found[name] = Width(symbol, decision, tuple(policy.members[symbol]))
    return Widths(found, tuple(refused))


def tie_groups(types: AxisTypes, groups: Sequence[Sequence[str]]) -> None:
    """State that the layers of each group make the same channels: one width for all of them. Changes `types`.

    Raises:
        ElasticityError: a name matches nothing or makes no channels, or the layers of a group differ in width.
    """
    for number, group in enumerate(groups):
        first, *others = _made_by(types, number, group)
        for other in others:
            if first.size != other.size:
                raise ElasticityError(
                    f"overwrite_groups[{number}] ({', '.join(group)}): layers of {first.size} and {other.size} "
                    "channels; group only layers with equal numbers of channels"
                )
            types.unify(first, other, "a group of overwrite_groups joins axes of another structure")
    types.settle()


def _made_by(types: AxisTypes, number: int, group: Sequence[str]) -> list[Term]:
    """Return the output axes of the layers of a group."""
    found = []
    for name in group:
        scope = find_scopes(types.ir, f"overwrite_groups[{number}]", [name])
        made = [types.tensors[t][axis] for t, axis in types.producers.items() if scope.covers_tensor(t)]
        if not made:
            raise ElasticityError(
                f"overwrite_groups[{number}]: {name!r} produces no channels: name a convolution or a similar layer"
            )
        found += made
    return found


@dataclass
class _Policy:
    """The settings, looked up for one typed graph."""

    types: AxisTypes
    elasticity: Elasticity
    vetoes: Vetoes
    names: dict[Sym, str] = field(init=False)

    def __post_init__(self) -> None:
        self.units = _units(self.types)
        self.names = symbol_names(self.types)
        self.members, self.makers = _members(self.types)
        groups = self.elasticity.overwrite_groups
        self.groups = None if groups is None else self._groups(groups)
        self.single = self._single()

    def decide(self, symbol: Sym, name: str) -> tuple[int, ...] | str:
        """Return the sizes of a symbol, at least two, or the reason why it stays full."""
        members = self.members[symbol]
        veto = self.vetoes.on_width(members, self.makers.get(symbol, members))
        if veto:
            return veto
        if self.groups is not None and symbol not in self.groups:
            return "it is in no group of overwrite_groups"
        sizes = (self.groups or {}).get(symbol) or self.single.get(symbol)
        if sizes is None and symbol not in self.units:
            return "it stays full by default: the inner size of a product, such as width per group or head size"
        sizes = sizes or self.elasticity.choices(symbol.n, self.units[symbol])
        return sizes if len(sizes) > 1 else f"the settings give no size below {symbol.n}{self._help(symbol, name)}"

    def _help(self, symbol: Sym, name: str) -> str:
        """Return a text with the settings that would give more sizes."""
        if symbol.n == 1:
            return ": the axis has one entry"
        small, unit = replace(self.elasticity, min_width=1, divisor=1), self.units.get(symbol, 1)
        finer = replace(small, width_multipliers=(0.5,), width_step=None, max_num_widths=None)
        now = f"min_width={self.elasticity.min_width} and divisor={self.elasticity.divisor}"
        if len(small.choices(symbol.n, unit)) > 1:
            advice = f"{now} are too large: lower them, min_width=1 and divisor=1 for all sizes"
        elif len(finer.choices(symbol.n, unit)) > 1:
            advice = "give smaller width_multipliers, such as 0.5, a width_step or a larger max_num_widths"
        else:
            advice = "no fraction of it is a whole number"
        return f": {advice}; or list sizes for it alone, widths={{{name!r}: [{symbol.n // 2}, {symbol.n}]}}"

    def _groups(self, groups: Sequence[Sequence[str]]) -> dict[Sym, tuple[int, ...]]:
        """Return the symbols of all groups with their sizes; empty sizes mean that the general settings apply."""
        found: dict[Sym, tuple[int, ...]] = {}
        for number, group in enumerate(groups):
            place = f"overwrite_groups[{number}] ({', '.join(group)})"
            terms = _made_by(self.types, number, group)
            own = {s for term in terms for s in symbols(term) if s in self.units}
            if not own:
                why = next((t.why for t in map(resolve, terms) if isinstance(t, K)), "") or "an axis is rigid"
                raise ElasticityError(f"{place}: its width is rigid: {why}; remove it from the group")
            shared = [self.names[symbol] for symbol in own & found.keys()]
            if shared:
                raise ElasticityError(
                    f"{place}: the width {shared[0]} is in another group too; name it in one group only"
                )
            given = (self.elasticity.overwrite_groups_widths or ((),) * len(groups))[number]
            found.update(dict.fromkeys(own, self._group_sizes(place, terms[0], own, given)))
        return found

    def _group_sizes(self, place: str, term: Term, own: set[Sym], given: Sequence[int]) -> tuple[int, ...]:
        """Convert sizes given in channels to entries of the group's symbol."""
        if not given:
            return ()
        (symbol, *others), unit = own, term.size // next(iter(own)).n
        if others or symbol.n * unit != term.size:
            raise ElasticityError(
                f"{place}: its axis consists of {len(own)} widths and other parts, so it cannot have a list of "
                "sizes: give an empty list in overwrite_groups_widths"
            )
        wrong = [size for size in given if size % unit or not 0 < size <= term.size]
        if wrong or max(given) != term.size:
            raise ElasticityError(
                f"{place}: sizes {list(given)}; must be multiples of {unit}, including the full size {term.size}"
            )
        return tuple(sorted({size // unit for size in given}))

    def _single(self) -> dict[Sym, tuple[int, ...]]:
        """Return the symbols that the setting `widths` names, with their sizes."""
        found: dict[Sym, tuple[int, ...]] = {}
        given = self.elasticity.sizes
        for pattern in sorted(given, key=lambda p: p not in self.names.values()):  # exact names first
            matched = [s for s, name in self.names.items() if _names_it(pattern, name)]
            if not matched:
                raise nearest("widths", pattern, list(self.names.values()), "width")
            for symbol in matched:
                if max(given[pattern]) > symbol.n:
                    name, most = self.names[symbol], max(given[pattern])
                    raise ElasticityError(f"widths: {most} for {name}; allowed are 1 up to {symbol.n}, its full size")
                found.setdefault(symbol, tuple(sorted({*given[pattern], symbol.n})))
        return found


def _names_it(pattern: str, name: str) -> bool:
    """Whether a pattern names a width. Inner symbols are matched only by patterns with their suffix."""
    return pattern == name or (fnmatchcase(name, pattern) and (":" in pattern or not _is_inner(name)))


def _is_inner(name: str) -> bool:
    return name.partition("#")[0].endswith(INNER)


def _members(types: AxisTypes) -> tuple[dict[Sym, list[str]], dict[Sym, list[str]]]:
    """Return, for each free symbol, the tensors in which it occurs, and those that produce its channels."""
    members, makers = dict[Sym, list[str]](), dict[Sym, list[str]]()
    for name, axes in types.tensors.items():
        for symbol in dict.fromkeys(s for axis in axes for s in symbols(axis)):
            members.setdefault(symbol, []).append(name)
    for name, axis in types.producers.items():
        for symbol in dict.fromkeys(symbols(types.tensors[name][axis])):
            makers.setdefault(symbol, []).append(name)
    return members, makers


def _units(types: AxisTypes) -> dict[Sym, int]:
    """Return the symbols that are elastic by default, with the number of axis entries per entry of the symbol."""
    held: set[Sym] = set()
    units: dict[Sym, int] = dict.fromkeys(types.free_symbols(), 1)
    for axes in types.tensors.values():
        for first, others in (pair for axis in axes for pair in _products(axis)):
            held.update(others)
            units[first] = max(units[first], math.prod(s.n for s in others))
    return {symbol: unit for symbol, unit in units.items() if symbol not in held}


def _products(term: Term) -> Iterator[tuple[Sym, list[Sym]]]:
    """Yield the first free symbol of each product, and the other symbols of the product."""
    if isinstance(term, Cat):
        for part in term.terms:
            yield from _products(part)
    elif isinstance(term, Prod) and (found := list(symbols(term))):
        yield found[0], found[1:]


def symbol_names(types: AxisTypes) -> dict[Sym, str]:
    """Name each free symbol by the layer that produces its channels, else by its first parameter."""
    units, places = _units(types), dict[Sym, str]()
    makers = [(name, types.tensors[name][axis]) for name, axis in types.producers.items()]
    for name, axis in [*makers, *((n, a) for n, axes in types.tensors.items() for a in axes)]:
        for symbol in symbols(axis):
            places.setdefault(symbol, (name.rpartition(".")[0] or name) + ("" if symbol in units else INNER))
    free = types.free_symbols()
    count, seen = Counter(places[s] for s in free), Counter[str]()
    names = {}
    for symbol in free:
        place = places[symbol]
        seen[place] += 1
        names[symbol] = place if count[place] == 1 else f"{place}#{seen[place]}"
    return names
