"""Sizes in attributes of modules, and their possible values in a sub-network.

Examples are ``self.num_heads``, an entry of ``self.split_sizes``, and ``self.config.hidden_size``. Such an integer may
be a size of the model if an axis, a part of an axis, or a constant of the graph has the same full size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnas.passes.assembly.rewriting import terms_of
from bnas.passes.axes.selection import active
from bnas.passes.axes.terms import Cat, K, Perm, Prod, Sym, Term, normalise, product, symbols
from bnas.passes.axes.types import AxisTypes

DEPTH = 3
"""Largest depth of nested containers in which sizes are searched."""
OF_TORCH = frozenset(vars(nn.Module())) | {"_version", "_is_full_backward_hook"}
NO_WIDTHS = ("layer", "vocab", "position", "label", "_id", "depth", "version", "beam", "epoch", "seed")
"""Parts of attribute names that show that a number is not a width."""


@dataclass(frozen=True)
class Place:
    """The place of a number in a module."""

    path: str
    """The module."""
    keys: tuple[Any, ...]
    """The attribute, and the keys that lead to the number inside it."""

    def __str__(self) -> str:
        owner = f"{self.path}." if self.path else ""
        return owner + "".join(f".{key}" if isinstance(key, str) else f"[{key}]" for key in self.keys)[1:]

    def set(self, root: nn.Module, value: int) -> None:
        """Write a number to the place."""
        held = vars(root.get_submodule(self.path))
        held[self.keys[0]] = _with(held[self.keys[0]], self.keys[1:], value)

    @property
    def is_width(self) -> bool:
        """Whether the number may be a width, judging by its name."""
        return not any(part in str(key) for key in self.keys for part in NO_WIDTHS)

    @property
    def counts_heads(self) -> bool:
        """Whether the number counts heads, judging by its name."""
        name = str(self.keys[-1])
        return "head" in name and "dim" not in name and "size" not in name


def _with(held: Any, keys: tuple[Any, ...], value: int) -> Any:
    """Return a container with another number inside; lists, dicts and objects are changed in place."""
    if not keys:
        return value
    first, rest = keys[0], keys[1:]
    if isinstance(held, tuple):
        entries = [_with(one, rest, value) if number == first else one for number, one in enumerate(held)]
        return type(held)(*entries) if hasattr(held, "_fields") else type(held)(entries)
    table = held if isinstance(held, list | dict) else vars(held)
    table[first] = _with(table[first], rest, value)
    return held


def numbers_of(module: nn.Module, path: str) -> Iterator[tuple[Place, int]]:
    """Yield the integers above 1 in a module, with their places."""
    for name, value in vars(module).items():
        if name not in OF_TORCH and not name.startswith("_forward") and "hooks" not in name:
            yield from ((Place(path, (name, *keys)), number) for keys, number in _numbers(value, DEPTH))


def _numbers(value: Any, depth: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    if type(value) is int:
        if value > 1:
            yield (), value
        return
    for key, part in _parts(value) if depth else ():
        yield from (((key, *keys), number) for keys, number in _numbers(part, depth - 1))


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, list | tuple):
        return enumerate(value)
    if isinstance(value, dict):
        return list(value.items())
    plain = isinstance(value, nn.Module | Tensor | type) or callable(value)
    return () if plain or not isinstance(getattr(value, "__dict__", None), dict) else list(vars(value).items())


Sizes = dict[int, dict[int, None]]
"""For each full size, the possible kept sizes in the order in which they were found."""


class Candidates:
    """Finds the possible values of modules' numbers in a sub-network."""

    def __init__(self, types: AxisTypes, assignment: Mapping[Sym, int]) -> None:
        self.assignment = assignment
        self.own: dict[str, Sizes] = {}
        """From constants in a module's own code, by its path."""
        self.inside: dict[str, Sizes] = {}
        """From constants, values and tensors of a module and all inside it."""
        self.heads: dict[str, Sizes] = {}
        """Groups of heads times the heads of each, which are one rigid number with the size of a head."""
        self._known: dict[Term, list[tuple[int, int]]] = {}
        for rewrite in types.rewrites:
            scope = str(rewrite.node.meta.get("scope", ""))
            for term in terms_of(rewrite):
                self._note(self.own, scope, term)
                self._note_around(scope, term)
        for name, axes in types.tensors.items():
            for axis in axes:
                self._note_around(name.rpartition(".")[0], axis)
                for part in _grouped(normalise(axis)):
                    self._note_around(name.rpartition(".")[0], part, self.heads)
        for node, value in types.values.items():
            for term in tree_leaves(value, is_leaf=lambda one: isinstance(one, Term)):
                if isinstance(term, Term) and any(True for _ in symbols(term)):  # no sizes of the inputs
                    self._note_around(str(node.meta.get("scope", "")), term)

    def of(self, place: Place, number: int) -> list[int]:
        """Return the possible values of a number, most likely first; only the number itself if no axis has its size."""
        own = list(self.own.get(place.path, {}).get(number, ()))
        inside = list(self.inside.get(place.path, {}).get(number, ()))
        if place.counts_heads:
            inside = list(dict.fromkeys((*inside, *self.heads.get(place.path, {}).get(number, ()))))
            changed = [one for one in inside if one != number]
            inside = changed if len(changed) == 1 else inside  # an equal size of something else is a coincidence
        likely = own if len(own) == 1 else inside if len(inside) == 1 and place.is_width else [number]
        return list(dict.fromkeys((*likely, *own, *inside, number)))

    def _note_around(self, scope: str, term: Term, table: dict[str, Sizes] | None = None) -> None:
        parts = scope.split(".") if scope else []
        for end in range(len(parts) + 1):
            self._note(self.inside if table is None else table, ".".join(parts[:end]), term)

    def _note(self, table: dict[str, Sizes], path: str, term: Term) -> None:
        sizes = table.setdefault(path, {})
        for full, kept in self._sizes(term):
            sizes.setdefault(full, {})[kept] = None

    def _sizes(self, term: Term) -> list[tuple[int, int]]:
        if term not in self._known:
            pairs = ((one.size, active(one, self.assignment)) for one in _parts_of(normalise(term)))
            self._known[term] = list(dict.fromkeys(pair for pair in pairs if pair[0] > 1))
        return self._known[term]


def _parts_of(term: Term) -> Iterator[Term]:
    """Yield a term, and those parts of it whose size a number may be."""
    yield term
    if isinstance(term, Perm):
        yield from _parts_of(term.term)
    elif isinstance(term, Cat):
        for part in term.terms:
            yield from _parts_of(part)
    elif isinstance(term, Prod):
        for start, end in itertools.combinations(range(len(term.terms) + 1), 2):
            if end - start < len(term.terms):
                yield from _parts_of(product(term.terms[start:end]))


def _grouped(term: Term) -> Iterator[Term]:
    """Yield the first factor of a product, times the divisors of the rigid number after it."""
    if isinstance(term, Prod) and isinstance(term.terms[0], Sym) and isinstance(term.terms[1], K):
        for factor in range(2, term.terms[1].n):
            if term.terms[1].n % factor == 0:
                yield Prod((K(factor), term.terms[0]))
