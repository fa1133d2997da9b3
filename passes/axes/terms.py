"""Axis types: the composition of an axis, as a term over elastic symbols.

    K(n)            a rigid run of n entries, which are always kept
    Sym(n)          elastic: keeps its first k of n entries; a union-find variable that may be bound to a term
    Prod(t1..tm)    row-major product (heads x head_dim, groups x channels, C x H x W after flatten)
    Cat(t1..tm)     concatenation (torch.cat, chunk, F.pad)
    Perm(t, order)  the entries of t in another order (channel shuffle)

Two axes with the same term keep the same entries in every sub-network. Binding a symbol only refines it, so earlier
terms stay valid; `normalise` substitutes all current bindings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate


class Term:
    """An axis type. `size` is the number of entries of the maximal sub-network."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        raise TypeError(f"{type(self).__name__} has no size")


@dataclass(frozen=True, slots=True)
class K(Term):
    """A rigid run of `n` entries: all of them are always kept."""

    n: int
    why: str = field(default="", compare=False)
    """Why the run is rigid, if known."""

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        return self.n

    def __repr__(self) -> str:
        return str(self.n)


@dataclass(eq=False, slots=True)
class Sym(Term):
    """An elastic run of `n` entries of which a sub-network keeps the first k; free until it is bound to a term."""

    n: int
    origin: str = ""
    """The parameter (or place) for which the symbol was created."""
    binding: Term | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        return self.n

    def __repr__(self) -> str:
        return f"Sym({self.n}, {self.origin})" if self.binding is None else repr(self.binding)


@dataclass(frozen=True, slots=True)
class Prod(Term):
    """A row-major product: entry (i, j) of ``Prod((a, b))`` stands at ``i * b.size + j``."""

    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        return math.prod(term.size for term in self.terms)


@dataclass(frozen=True, slots=True)
class Cat(Term):
    """A concatenation: the entries of the first term, then those of the second, and so on."""

    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True, slots=True)
class Perm(Term):
    """The entries of `term` in another order: entry i is entry ``order[i]`` of `term`."""

    term: Term
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries of the whole axis."""
        return len(self.order)


def resolve(term: Term) -> Term:
    """Return the term to which a symbol is bound (with path compression), or `term` itself."""
    if not isinstance(term, Sym) or term.binding is None:
        return term
    last = resolve(term.binding)
    term.binding = last
    return last


def normalise(term: Term) -> Term:
    """Return the normal form: bindings substituted, nesting flattened, size 1 dropped, adjacent runs merged.

    Also ``(A + B) * D -> A*D + B*D`` and ``n*X + m*X -> (n+m)*X``, so that equal sets of entries usually get equal
    terms. Different normal forms may still mean the same entries; to treat them as different is safe.
    """
    term = resolve(term)
    if isinstance(term, Prod):
        return product(normalise(t) for t in term.terms)
    if isinstance(term, Cat):
        return concatenation(normalise(t) for t in term.terms)
    if isinstance(term, Perm):
        return permutation(normalise(term.term), term.order)
    return term


def permutation(term: Term, order: tuple[int, ...]) -> Term:
    """The normal form of a permutation of a normal form: those of parts are taken together into one."""
    if isinstance(term, Cat) and any(isinstance(part, Perm) for part in term.terms):
        offsets = list(accumulate((part.size for part in term.terms), initial=0))
        inner = [o + at for part, at in zip(term.terms, offsets, strict=False) for o in _order(part)]
        term = concatenation(part.term if isinstance(part, Perm) else part for part in term.terms)
        order = tuple(inner[i] for i in order)
    elif isinstance(term, Perm):
        inner = list(term.order)
        term, order = term.term, tuple(inner[i] for i in order)
    return term if isinstance(term, K) or order == tuple(range(len(order))) else Perm(term, order)


def _order(term: Term) -> Iterable[int]:
    return term.order if isinstance(term, Perm) else range(term.size)


def product(factors: Iterable[Term]) -> Term:
    """The normal form of a row-major product of normal forms."""
    flat: list[Term] = []
    for factor in factors:
        for term in factor.terms if isinstance(factor, Prod) else (factor,):
            if isinstance(term, K) and flat and isinstance(flat[-1], K):
                flat[-1] = K(flat[-1].n * term.n, flat[-1].why or term.why)
            elif term.size != 1 or not isinstance(term, K | Prod | Cat):
                flat.append(term)
    flat = [t for t in flat if t.size != 1] or [K(1)]
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Cat):  # a product distributes over a concatenation on its left only
        return concatenation(product((part, *flat[1:])) for part in flat[0].terms)
    return Prod(tuple(flat))


def concatenation(parts: Iterable[Term]) -> Term:
    """The normal form of a concatenation of normal forms."""
    flat: list[Term] = []
    for part in parts:
        for term in part.terms if isinstance(part, Cat) else (part,):
            if term.size == 0:
                continue
            merged = _merge(flat[-1], term) if flat else None
            if merged is None:
                flat.append(term)
            else:
                flat[-1] = merged
    if not flat:
        return K(0)
    return flat[0] if len(flat) == 1 else Cat(tuple(flat))


def _merge(left: Term, right: Term) -> Term | None:
    """``n*X + m*X`` as one term, or None; a plain X counts as 1*X and a run K(n) as n*1."""
    (n, x), (m, y) = _copies(left), _copies(right)
    why = next((t.why for t in (left, right) if isinstance(t, K)), "")
    return product((K(n + m, why), x)) if x == y else None


def _copies(term: Term) -> tuple[int, Term]:
    if isinstance(term, K):
        return term.n, K(1)
    if isinstance(term, Prod) and isinstance(term.terms[0], K):
        return term.terms[0].n, product(term.terms[1:])
    return 1, term


def leaves(term: Term) -> Iterator[K | Sym]:
    """Return the rigid runs and free symbols of `term` from left to right, with repetitions."""
    term = resolve(term)
    if isinstance(term, K | Sym):
        yield term
    elif isinstance(term, Prod | Cat):
        for part in term.terms:
            yield from leaves(part)
    elif isinstance(term, Perm):
        yield from leaves(term.term)


def symbols(term: Term) -> Iterator[Sym]:
    """Return the free symbols of `term` from left to right, with repetitions."""
    return (leaf for leaf in leaves(term) if isinstance(leaf, Sym))
