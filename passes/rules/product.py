"""Products of tensors and attention: contracted axes are one; zeros there are neutral, so they may be elastic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.errors import RuleError
from bnas.passes.terms import K, Prod, symbols


@register_rule(torch.matmul, torch.bmm, torch.mm, torch.mv, torch.dot, torch.vdot)
def matmul(types: AxisTypes, call: Call) -> Axes:
    """(..., n, k) @ (..., k, m); leading axes are broadcast."""
    return multiply(types, call, call.argument(0, "input"), call.args[1])


def multiply(types: AxisTypes, call: Call, first: Any, second: Any) -> Axes:
    """The type of the product of two matrices, vectors or batches of matrices."""
    left, right = types.type(first), types.type(second)
    rows = -1 if len(right) == 1 else -2
    types.unify(left[-1], right[rows])
    types.contract((first, -1), (second, rows))
    out = [
        *types.broadcast(left[:-2], right[:-2]),
        *left[-2:-1],
        *(right[-1:] if len(right) > 1 else []),
    ]
    types.count_macs(call, [*out, left[-1]])
    return out


@register_rule(torch.baddbmm, torch.addmm, torch.addmv)
def addmm(types: AxisTypes, call: Call) -> Axes:
    """A product, and something added to it."""
    product = multiply(types, call, call.args[1], call.args[2])
    return types.broadcast(product, types.type(call.argument(0, "input")))


@register_rule(torch.outer)
def outer(types: AxisTypes, call: Call) -> Axes:
    """Each entry of one with each of the other."""
    return [types.type(call.argument(0, "input"))[0], types.type(call.argument(1, "vec2"))[0]]


@register_rule(torch.kron)
def kron(types: AxisTypes, call: Call) -> Axes:
    """Blocks of the second, one for each entry of the first."""
    left, right = types.type(call.argument(0, "input")), types.type(call.argument(1, "other"))
    axes = max(len(left), len(right))
    padded = ([K(1)] * (axes - len(one)) + one for one in (left, right))
    return [Prod(pair) for pair in zip(*padded, strict=True)]


@register_rule(torch.einsum)
def einsum(types: AxisTypes, call: Call) -> Axes:
    """Every letter is one axis, and so is every place under an ellipsis, counted from the right."""
    given = call.args[1] if len(call.args) == 2 and isinstance(call.args[1], list | tuple) else call.args[1:]
    words, output = _labels(str(call.args[0]), [len(types.type(operand)) for operand in given])
    axes: dict[str, Axes] = {}
    for letters, operand in zip(words, given, strict=True):
        for letter, axis in zip(letters, types.type(operand), strict=True):
            axes.setdefault(letter, []).append(axis)
    for terms in axes.values():
        large = [term for term in terms if term.size != 1] or terms
        for term in large[1:]:
            types.unify(large[0], term)
        terms[:] = large
    for letter in axes.keys() - set(output):
        types.contract(*((one, w.index(letter)) for w, one in zip(words, given, strict=True) if letter in w))
    counts = Counter(letter for word in words for letter in word)
    if any(letter not in output and counts[letter] > 1 for letter in axes):  # else it is a pointwise product
        types.count_macs(call, [terms[0] for terms in axes.values()])
    return [axes[letter][0] for letter in output]


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """A label for each axis of the operands and of the output of an einsum; those of an ellipsis are numbers."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    words = inputs.split(",")
    hidden = [rank - len(word) + 3 if "..." in word else 0 for word, rank in zip(words, ranks, strict=True)]
    found = [_spelled(word, count) for word, count in zip(words, hidden, strict=True)]
    if arrow:
        return found, _spelled(output, max(hidden))
    counts = Counter(letter for word in found for letter in word)
    return found, [*_spelled("...", max(hidden)), *sorted(x for x, n in counts.items() if n == 1 and x.isalpha())]


def _spelled(word: str, hidden: int) -> list[str]:
    before, dots, after = word.partition("...")
    return [*before, *(str(place) for place in range(hidden if dots else 0, 0, -1)), *after]


@register_rule(F.scaled_dot_product_attention)
def attention(types: AxisTypes, call: Call) -> Axes:
    """Queries and keys share their width, keys and values their tokens; the scale is that of the full width."""
    query, key, value = (types.type(call.argument(n, name)) for n, name in enumerate(("query", "key", "value")))
    if call.argument(8, "enable_gqa", False):
        key, value = _heads_of_queries(types, query, key, value)
    types.unify(query[-1], key[-1])
    types.contract((call.argument(0, "query"), -1), (call.argument(1, "key"), -1))
    types.unify(key[-2], value[-2])
    types.pin_axes([query[-2], key[-2]], "attention runs over it")
    leading = types.broadcast(query[:-2], key[:-2], value[:-2])
    mask = call.argument(3, "attn_mask")
    if mask is not None:
        types.broadcast(types.type(mask), [*leading, query[-2], key[-2]])
    if call.argument(7, "scale") is None and any(symbols(query[-1])):
        raise RuleError("no scale is given: it would follow the width")
    types.count_macs(call, [*leading, query[-2], key[-2], query[-1]])
    types.count_macs(call, [*leading, query[-2], key[-2], value[-1]])
    return [*leading, query[-2], value[-1]]


def _heads_of_queries(types: AxisTypes, query: Axes, key: Axes, value: Axes) -> tuple[Axes, Axes]:
    """Keys and values with the heads of the queries: each of theirs serves a group of those."""
    heads, _ = types.factor(query[-3], query[-3].size // key[-3].size)
    types.unify(heads, key[-3])
    types.unify(heads, value[-3])
    return [*key[:-3], query[-3], *key[-2:]], [*value[:-3], query[-3], *value[-2:]]
