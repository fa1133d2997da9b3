"""From an axis type and a choice to the kept entries: sizes, index vectors, permutations.

An assignment maps a symbol to the number of its entries that are kept. Extraction, programs, costs, reordering and the
oracle all follow from `active` and `index`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .terms import Cat, K, Perm, Prod, Sym, Term, resolve

Indices = NDArray[np.int64]


def active(term: Term, assignment: Mapping[Sym, Any]) -> Any:
    """Return the number of kept entries: an int, or an expression if the assignment returns sympy symbols."""
    term = resolve(term)
    if isinstance(term, K):
        return term.n
    if isinstance(term, Sym):
        return assignment.get(term, term.n)
    if isinstance(term, Perm):
        return active(term.term, assignment)
    assert isinstance(term, Prod | Cat)
    total: Any = 1 if isinstance(term, Prod) else 0
    for part in term.terms:
        value = active(part, assignment)
        total = total * value if isinstance(term, Prod) else total + value
    return total


def arrange(term: Term, choose: Callable[[Sym], Indices]) -> Indices:
    """The entries of the axis in the order that `choose` gives for each symbol (row-major, concatenated)."""
    term = resolve(term)
    if isinstance(term, K):
        return np.arange(term.n)
    if isinstance(term, Sym):
        return choose(term)
    if isinstance(term, Perm):
        return _permuted(term, choose)
    assert isinstance(term, Prod | Cat)
    if isinstance(term, Prod):
        entries = np.zeros(1, dtype=np.int64)
        for part in term.terms:
            entries = (entries[:, None] * part.size + arrange(part, choose)[None, :]).reshape(-1)
        return entries
    offsets = np.cumsum([0, *(part.size for part in term.terms)])
    return np.concatenate([arrange(p, choose) + o for p, o in zip(term.terms, offsets, strict=False)])


def _permuted(term: Perm, choose: Callable[[Sym], Indices]) -> Indices:
    """Return the chosen entries in the order of the axis, with the order inside each symbol preserved."""
    chosen, place = arrange(term.term, choose), np.argsort(term.order)
    if len(chosen) < term.size:
        found: Indices = np.sort(place[chosen])
        return found
    # All are chosen, in a new order inside of each symbol: entry i of the old order is now entry chosen[i].
    entries: Indices = place[chosen][np.array(term.order)]
    return entries


def index(term: Term, assignment: Mapping[Sym, int]) -> Indices:
    """Return the indices of the kept entries of the axis, ascending."""
    return arrange(term, lambda symbol: np.arange(assignment.get(symbol, symbol.n)))


def members(term: Term, symbol: Sym) -> Indices:
    """Return, for each entry of the axis, the entry of `symbol` to which it belongs, or -1."""
    term = resolve(term)
    if isinstance(term, K | Sym):
        return np.arange(term.size) if term is symbol else np.full(term.size, -1)
    if isinstance(term, Perm):
        owners: Indices = members(term.term, symbol)[np.array(term.order)]
        return owners
    assert isinstance(term, Prod | Cat)
    parts = [members(part, symbol) for part in term.terms]
    if isinstance(term, Cat):
        return np.concatenate(parts)
    owner = np.full(1, -1)
    for part in parts:
        owner = np.maximum(owner[:, None], part[None, :]).reshape(-1)
    return owner


Kept = int | Indices | None
"""The kept entries of an axis: all (None), the first k (int), or the listed ones."""


def kept(term: Term, assignment: Mapping[Sym, int]) -> Kept:
    """Return the kept entries of the axis, as a prefix if possible: prefixes can be views, others must be gathered."""
    size = active(term, assignment)
    if size == term.size:
        return None
    return size if _is_prefix(term, assignment) else index(term, assignment)


def _is_prefix(term: Term, assignment: Mapping[Sym, int]) -> bool:
    """Whether the kept entries are the first ones; may return False for a prefix in an unusual form."""
    term = resolve(term)
    if isinstance(term, K | Sym):
        return True
    if isinstance(term, Perm):
        return False
    assert isinstance(term, Prod | Cat)
    whole = [active(part, assignment) == part.size for part in term.terms]
    if isinstance(term, Prod):
        return all(whole[1:]) and _is_prefix(term.terms[0], assignment)
    return all(whole[:-1]) and _is_prefix(term.terms[-1], assignment)


def moved(order: tuple[int, ...], term: Term, assignment: Mapping[Sym, int]) -> list[int]:
    """Return the order that takes the kept entries of `term` to the kept entries of ``Perm(term, order)``."""
    entries = index(term, assignment)
    place = np.full(term.size, -1)
    place[entries] = np.arange(len(entries))
    return [int(p) for p in place[np.array(order)] if p >= 0]
