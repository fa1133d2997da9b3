"""Equations between axis types: `unify`, `cut`, `factor` and `pin`.

To refine a symbol means to bind it to a term. Terms that do not match are pinned (made rigid), with the reason. Every
stated equation therefore holds in every sub-network. The order of equations does not matter for this guarantee, because
equations relate terms, and later refinements act through the bindings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from bnas.passes.errors import Diagnostic, RuleError

from .terms import Cat, K, Perm, Prod, Sym, Term, concatenation, normalise, permutation, product, symbols


@dataclass
class Unifier:
    """Solves equations between terms by binding symbols; `pins` tells what became rigid and why."""

    pins: list[Diagnostic] = field(default_factory=list)
    reasons: dict[Sym, str] = field(default_factory=dict)
    """Why each pinned symbol is rigid."""

    def pin(self, term: Term, why: str) -> None:
        """Make every symbol of `term` rigid and record the reason."""
        for symbol in list(symbols(term)):
            if symbol.binding is None:
                symbol.binding = K(symbol.n, why)
                self.reasons[symbol] = why
                self.pins.append(Diagnostic(symbol.origin or f"an axis of {symbol.n}", why))

    def unify(self, left: Term, right: Term, why: str = "two axes do not line up") -> None:
        """State that two axes keep the same entries.

        Raises:
            RuleError: the axes differ in size, which no operator can ask for.
        """
        if left.size != right.size:
            raise RuleError(f"an axis of {left.size} ({left}) cannot equal an axis of {right.size} ({right})")
        left, right = normalise(left), normalise(right)
        if left == right:
            return
        if isinstance(right, Sym) and not isinstance(left, Sym):
            left, right = right, left
        if isinstance(left, Sym):
            self._bind(left, right, why)
        elif isinstance(left, K) or isinstance(right, K):
            rigid, other = (left, right) if isinstance(left, K) else (right, left)
            self.pin(other, rigid.why or why)  # type: ignore[attr-defined]
        elif isinstance(left, Perm) or isinstance(right, Perm):
            self._unify_orders(left, right, why)
        elif isinstance(left, Cat) or isinstance(right, Cat):
            self._unify_parts(left, right, why)
        else:
            self._unify_factors(left, right, why)

    def _bind(self, symbol: Sym, term: Term, why: str) -> None:
        if isinstance(term, K):
            self.pin(symbol, term.why or why)
        elif any(symbol is inner for inner in symbols(term)):  # the term would be infinite
            self.pin(term, why)
        else:
            symbol.binding = term

    def _unify_orders(self, left: Term, right: Term, why: str) -> None:
        """Unify two permutations: if their orders are equal, unify the permuted terms; otherwise pin both."""
        if isinstance(left, Perm) and isinstance(right, Perm) and left.order == right.order:
            self.unify(left.term, right.term, why)
        else:
            self.pin(left, why)
            self.pin(right, why)

    def _unify_parts(self, left: Term, right: Term, why: str) -> None:
        """Cut both concatenations at the first boundary of either one, unify the first parts, and continue."""
        boundary = min(t.terms[0].size for t in (left, right) if isinstance(t, Cat))
        left_head, left_tail = self.cut(left, boundary, why)
        right_head, right_tail = self.cut(right, boundary, why)
        self.unify(left_head, right_head, why)
        self.unify(left_tail, right_tail, why)

    def _unify_factors(self, left: Term, right: Term, why: str) -> None:
        """Unify two products by their last factors; the larger one is split so that the sizes match."""
        smallest = min(_factors(left)[-1].size, _factors(right)[-1].size)
        if max(_factors(left)[-1].size, _factors(right)[-1].size) % smallest:
            self.pin(left, why)
            self.pin(right, why)
            return
        left_rest, left_last = self.factor(left, smallest, why)
        right_rest, right_last = self.factor(right, smallest, why)
        self.unify(left_last, right_last, why)
        self.unify(left_rest, right_rest, why)

    def cut(self, term: Term, k: int, why: str = "a cut does not line up") -> tuple[Term, Term]:
        """Split `term` into two terms: its first `k` entries, and the rest."""
        term = normalise(term)
        if not 0 <= k <= term.size:
            raise RuleError(f"cannot cut an axis of {term.size} at {k}")
        if k in (0, term.size):
            return (K(0), term) if k == 0 else (term, K(0))
        if isinstance(term, Sym):
            halves = Sym(k, term.origin), Sym(term.n - k, term.origin)
            term.binding = Cat(halves)
            return halves
        if isinstance(term, Cat):
            return self._cut_parts(term, k, why)
        if isinstance(term, Prod):
            return self._cut_product(term, k, why)
        if isinstance(term, Perm):
            return self._cut_order(term, k, why)
        return K(k), K(term.size - k)

    def _cut_parts(self, term: Cat, k: int, why: str) -> tuple[Term, Term]:
        head, *rest = term.terms
        tail = concatenation(rest)
        if k <= head.size:
            first, second = self.cut(head, k, why)
            return first, concatenation((second, tail))
        first, second = self.cut(tail, k - head.size, why)
        return concatenation((head, first)), second

    def _cut_product(self, term: Prod, k: int, why: str) -> tuple[Term, Term]:
        """Cut a product. A cut between rows cuts the first factor; a cut inside a row needs a rigid first factor."""
        first, row = term.terms[0], product(term.terms[1:])
        rows, inside = divmod(k, row.size)
        if not inside:
            top, bottom = self.cut(first, rows, why)
            return product((normalise(top), row)), product((normalise(bottom), row))
        if isinstance(first, K):
            head, tail = self.cut(row, inside, why)
            row = normalise(row)
            upper, lower = product((K(rows), row)), product((K(first.n - rows - 1), row))
            return (
                concatenation((upper if rows else K(0), normalise(head))),
                concatenation((normalise(tail), lower if first.n - rows - 1 else K(0))),
            )
        self.pin(term, why)
        return K(k), K(term.size - k)

    def _cut_order(self, term: Perm, k: int, why: str) -> tuple[Term, Term]:
        """Cut a permutation, by cutting each part; possible if the first half has the first entries of each part."""
        parts = term.term.terms if isinstance(term.term, Cat) else (term.term,)
        starts = list(accumulate((part.size for part in parts), initial=0))
        first = np.zeros(term.size, dtype=bool)
        first[list(term.order[:k])] = True
        taken = [first[a:b] for a, b in pairwise(starts)]
        if any((np.diff(part.astype(int)) > 0).any() for part in taken):
            self.pin(term, why)
            return K(k), K(term.size - k)
        counts = [int(part.sum()) for part in taken]
        halves = [self.cut(part, count, why) for part, count in zip(parts, counts, strict=True)]
        place = np.where(first, np.cumsum(first), np.cumsum(~first)) - 1
        order = [int(place[entry]) for entry in term.order]
        upper, lower = (concatenation(map(normalise, half)) for half in zip(*halves, strict=True))
        return permutation(upper, tuple(order[:k])), permutation(lower, tuple(order[k:]))

    def factor(self, term: Term, m: int, why: str = "a split does not line up") -> tuple[Term, Term]:
        """Split `term` into X and Y with ``term = X * Y`` (row-major) and ``Y.size == m``.

        Raises:
            RuleError: `m` does not divide the size.
        """
        term = normalise(term)
        if m < 1 or term.size % m:
            raise RuleError(f"an axis of {term.size} ({term}) does not split into rows of {m}")
        if m == 1:
            return term, K(1)
        if m == term.size:
            return K(1), term
        if isinstance(term, Sym):
            parts = Sym(term.n // m, term.origin), Sym(m, term.origin)
            term.binding = Prod(parts)
            return parts
        if isinstance(term, Prod):
            return self._factor_product(term, m, why)
        if isinstance(term, Cat):
            return self._factor_parts(term, m, why)
        if isinstance(term, Perm):
            self.pin(term, why)
        return K(term.size // m), K(m)

    def _factor_product(self, term: Prod, m: int, why: str) -> tuple[Term, Term]:
        rest, last = product(term.terms[:-1]), term.terms[-1]
        if last.size % m == 0:
            outer, inner = self.factor(last, m, why)
            return product((normalise(rest), normalise(outer))), inner
        if m % last.size == 0:
            outer, inner = self.factor(rest, m // last.size, why)
            return outer, product((normalise(inner), normalise(last)))
        self.pin(term, why)
        return K(term.size // m), K(m)

    def _factor_parts(self, term: Cat, m: int, why: str) -> tuple[Term, Term]:
        """Factor a concatenation: split each part in the same way and join the rows."""
        if any(part.size % m for part in term.terms):
            self.pin(term, why)
            return K(term.size // m), K(m)
        split = [self.factor(part, m, why) for part in term.terms]
        for _, row in split[1:]:
            self.unify(split[0][1], row, why)
        return concatenation(normalise(outer) for outer, _ in split), normalise(split[0][1])


def _factors(term: Term) -> tuple[Term, ...]:
    return term.terms if isinstance(term, Prod) else (term,)
