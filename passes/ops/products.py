"""Products of tensors and attention: contracted axes are one; zeros there are neutral, so they may be elastic."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnas.passes.axes.terms import K, Prod, symbols
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Source

from . import shapes
from .calls import Call
from .record import Operator, Sample, Spelled, Trait
from .zeros import keeps, outer_product


def matmul_axes(types: AxisTypes, call: Call) -> Axes:
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


def addmm_axes(types: AxisTypes, call: Call) -> Axes:
    """A product, and something added to it."""
    product = multiply(types, call, call.args[1], call.args[2])
    return types.broadcast(product, types.type(call.argument(0, "input")))


def outer_axes(types: AxisTypes, call: Call) -> Axes:
    """Each entry of one with each of the other."""
    return [types.type(call.argument(0, "input"))[0], types.type(call.argument(1, "vec2"))[0]]


def kron_axes(types: AxisTypes, call: Call) -> Axes:
    """Blocks of the second, one for each entry of the first."""
    left, right = types.type(call.argument(0, "input")), types.type(call.argument(1, "other"))
    axes = max(len(left), len(right))
    padded = ([K(1)] * (axes - len(one)) + one for one in (left, right))
    return [Prod(pair) for pair in zip(*padded, strict=True)]


def einsum_axes(types: AxisTypes, call: Call) -> Axes:
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


def attention_axes(types: AxisTypes, call: Call) -> Axes:
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
        raise RuleError("no scale is given, and the default scale depends on the width")
    types.count_macs(call, [*leading, query[-2], key[-2], query[-1]])
    types.count_macs(call, [*leading, query[-2], key[-2], value[-1]])
    return [*leading, query[-2], value[-1]]


def _heads_of_queries(types: AxisTypes, query: Axes, key: Axes, value: Axes) -> tuple[Axes, Axes]:
    """Keys and values with the heads of the queries: each of theirs serves a group of those."""
    heads, _ = types.factor(query[-3], query[-3].size // key[-3].size)
    types.unify(heads, key[-3])
    types.unify(heads, value[-3])
    return [*key[:-3], query[-3], *key[-2:]], [*value[:-3], query[-3], *value[-2:]]


def matmul_onnx(site: Site) -> str:
    """Products of matrices, broadcast over all other axes."""
    second = site.optional(1, "other") or site.optional(1, "mat2") or site.value(1, "vec")
    return site.emit("MatMul", site.x, second)


def add_matmul_onnx(site: Site) -> str:
    """``beta * input + alpha * (first @ second)``."""
    names = ("mat1", "mat2") if site.call.op is torch.addmm else ("batch1", "batch2")
    product = site.emit("MatMul", site.value(1, names[0]), site.value(2, names[1]))
    return site.emit("Add", _times(site, site.name(site.x), "beta"), _times(site, product, "alpha"))


def _times(site: Site, source: str, factor: str) -> str:
    number = site.call.kwargs.get(factor, 1)
    return source if number == 1 else site.emit("Mul", source, site.operand(number, site.result.dtype))


def einsum_onnx(site: Site) -> str:
    """An equation and its operands, given one by one or as one list."""
    operands = site.call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return site.emit("Einsum", *operands, equation=site.arg(0, "equation").replace(" ", ""))


def attention_onnx(site: Site) -> str:
    """Scaled product, mask, softmax, product; dropout and grouped queries are refused."""
    query, key, value = site.value(0, "query"), site.value(1, "key"), site.value(2, "value")
    if site.arg(4, "dropout_p", 0.0) or site.call.kwargs.get("enable_gqa"):
        raise site.refuse("drops values at random or shares keys between heads")
    dtype, dims = query.tensor.dtype, key.tensor.ndim
    scale = site.call.kwargs.get("scale") or site.calculated("Pow", query.sizes[-1], -0.5)
    turned = site.transpose(key, [*range(dims - 2), dims - 1, dims - 2])
    scores = site.emit("MatMul", site.emit("Mul", query, site.operand(scale, dtype)), turned)
    weights = site.emit("Softmax", _masked(site, scores, dtype), axis=-1)
    return site.emit("MatMul", weights, value)


def _masked(site: Site, scores: str, dtype: torch.dtype) -> str:
    """Return the scores without those of keys that a query must not see."""
    mask = site.optional(3, "attn_mask")
    if site.arg(5, "is_causal", False):
        length, width = site.x.sizes[-2], site.value(1, "key").sizes[-2]
        return site.emit("Where", _triangle(site, length, width), scores, site.operand(-math.inf, dtype))
    if mask is None:
        return scores
    if mask.tensor.dtype == torch.bool:
        return site.emit("Where", mask, scores, site.operand(-math.inf, dtype))
    return site.emit("Add", scores, site.operand(mask, dtype))


def _triangle(site: Site, length: AnySize, width: AnySize) -> Source:
    """Return the causal mask: the keys that each query may see."""
    if isinstance(length, int) and isinstance(width, int):
        return torch.ones(length, width, dtype=torch.bool).tril()
    rows = site.emit("Unsqueeze", site.range(length), site.ints([1]))
    return site.emit("GreaterOrEqual", rows, site.range(width))


def outer_onnx(site: Site) -> str:
    """All products of two vectors' entries."""
    first, second = (site.operand(site.arg(*one), site.result.dtype) for one in ((0, "input"), (1, "vec2")))
    return site.emit(
        "Mul", site.emit("Unsqueeze", first, site.ints([1])), site.emit("Unsqueeze", second, site.ints([0]))
    )


def _einsum(equation: str, tensors: Any, path: Any) -> Spelled:
    return torch.einsum, (equation, *tensors), {}


def _attended(x: Tensor, causal: bool) -> Tensor:
    """An example: attention of pixels to each other in two heads."""
    tokens = x.flatten(2).unflatten(1, (2, -1)).mT  # type: ignore[no-untyped-call]
    return F.scaled_dot_product_attention(tokens, tokens, tokens.exp(), is_causal=causal).mT.flatten(1, 2)


RECORDS = (
    Operator(
        torch.matmul,
        spellings=(operator.matmul, operator.imatmul, "__matmul__"),
        traits={Trait.OWNS_MEMORY},
        axes=matmul_axes,
        zeros=keeps,
        onnx=matmul_onnx,
        samples=(
            Sample(lambda x: x.flatten(2).mT @ x.flatten(2)),
            Sample(lambda x: x.flatten(2).exp().mT @ x.flatten(2).exp(), rigid="are not zero"),
        ),
    ),
    Operator(
        torch.bmm,
        axes=matmul_axes,
        zeros=keeps,
        onnx=matmul_onnx,
        samples=(Sample(lambda x: torch.bmm(x.flatten(2).mT, x.flatten(2))),),
    ),
    Operator(
        torch.mm,
        axes=matmul_axes,
        zeros=keeps,
        onnx=matmul_onnx,
        samples=(Sample(lambda x, w: x.mean((2, 3)).mm(w), weights=((8, 5),)),),
    ),
    Operator(
        torch.mv,
        axes=matmul_axes,
        zeros=keeps,
        onnx=matmul_onnx,
        samples=(
            Sample(lambda x, w, v: x * torch.mv(w, v)[:, None, None], weights=((8, 5), (5,))),
            Sample(lambda x, w: x * torch.mv(w, x.mean((0, 1, 3)))[:, None, None], weights=((8, 4),)),
        ),
    ),
    Operator(torch.dot, axes=matmul_axes, samples=(Sample(lambda x, w: x * torch.dot(w, w), weights=((8,),)),)),
    Operator(torch.vdot, axes=matmul_axes, samples=(Sample(lambda x, w: x * torch.vdot(w, w), weights=((8,),)),)),
    Operator(
        torch.baddbmm,
        axes=addmm_axes,
        onnx=add_matmul_onnx,
        samples=(Sample(lambda x, b: torch.baddbmm(b, x.flatten(2).mT, x.flatten(2)), weights=((1,),)),),
    ),
    Operator(
        torch.addmm,
        axes=addmm_axes,
        onnx=add_matmul_onnx,
        samples=(Sample(lambda x, b, w: torch.addmm(b, x.mean((2, 3)), w, beta=0.5), weights=((5,), (8, 5))),),
    ),
    Operator(
        torch.addmv,
        axes=addmm_axes,
        samples=(Sample(lambda x, b, w: x * torch.addmv(b, w, b)[:, None, None], weights=((8,), (8, 8))),),
    ),
    Operator(
        torch.outer,
        spellings=(torch.ger, "ger"),
        axes=outer_axes,
        zeros=outer_product,
        onnx=outer_onnx,
        samples=(
            Sample(lambda x, w, v: x * torch.outer(w, v).sum(1)[:, None, None], weights=((8,), (3,))),
            Sample(lambda x, w: x * torch.outer(w, x.mean((0, 1, 3))).sum(1)[:, None, None], weights=((8,),)),
        ),
    ),
    Operator(
        torch.kron,
        axes=kron_axes,
        samples=(
            Sample(lambda x, w: torch.einsum("bchw,dc->bdhw", x, torch.kron(w, torch.ones(2))), weights=((5, 4),)),
        ),
    ),
    Operator(
        torch.einsum,
        aten={"einsum": _einsum},
        axes=einsum_axes,
        zeros=keeps,
        onnx=einsum_onnx,
        samples=(
            Sample(lambda x, w: torch.einsum("bchw,dc->bdhw", x, w), weights=((5, 8),)),
            Sample(lambda x: torch.einsum("b...,b...->b...", x, x.cos())),
            Sample(
                lambda x: torch.einsum("bct,bcs->bts", x.flatten(2).exp(), x.flatten(2).exp()), rigid="are not zero"
            ),
        ),
    ),
    Operator(
        F.scaled_dot_product_attention,
        axes=attention_axes,
        zeros=keeps,
        shape=shapes.attended,
        onnx=attention_onnx,
        samples=(
            Sample(lambda x: _attended(x, causal=False)),
            Sample(lambda x: _attended(x, causal=True)),
        ),
    ),
)
