"""Products of tensors and attention: contracted axes are one; zeros there are neutral, so they may be elastic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.errors import RuleError
from bnas.passes.terms import symbols


@register_rule(torch.matmul, torch.bmm, torch.mm, torch.mv, torch.dot)
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


@register_rule(torch.einsum)
def einsum(types: AxisTypes, call: Call) -> Axes:
    """Every letter is one axis."""
    equation = str(call.args[0]).replace(" ", "")
    given = call.args[1] if len(call.args) == 2 and isinstance(call.args[1], list | tuple) else call.args[1:]
    if "->" not in equation or "." in equation:
        raise RuleError(f"einsum {equation!r}: without an output, or with an ellipsis")
    inputs, output = equation.split("->")
    axes: dict[str, Axes] = {}
    words = inputs.split(",")
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
    if any(letter not in output and equation.count(letter) > 1 for letter in axes):  # else it is a pointwise product
        types.count_macs(call, [terms[0] for terms in axes.values()])
    return [axes[letter][0] for letter in output]


@register_rule(F.scaled_dot_product_attention)
def attention(types: AxisTypes, call: Call) -> Axes:
    """Queries and keys share their width, keys and values their tokens; the scale is that of the full width."""
    query, key, value = (types.type(call.argument(n, name)) for n, name in enumerate(("query", "key", "value")))
    if call.argument(8, "enable_gqa", False):
        raise RuleError("grouped queries")
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
