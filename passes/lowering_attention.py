"""Lowering of matrix products and attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .lowering_site import Site, Source, register_lowering
from .lowering_sizes import AnySize


@register_lowering(torch.matmul, torch.bmm, torch.mm, torch.mv)
def matmul(site: Site) -> str:
    """Products of matrices, broadcast over all other axes."""
    second = site.optional(1, "other") or site.optional(1, "mat2") or site.value(1, "vec")
    return site.emit("MatMul", site.x, second)


@register_lowering(torch.addmm, torch.baddbmm)
def add_matmul(site: Site) -> str:
    """``beta * input + alpha * (first @ second)``."""
    names = ("mat1", "mat2") if site.call.op is torch.addmm else ("batch1", "batch2")
    product = site.emit("MatMul", site.value(1, names[0]), site.value(2, names[1]))
    return site.emit("Add", _times(site, site.name(site.x), "beta"), _times(site, product, "alpha"))


def _times(site: Site, source: str, factor: str) -> str:
    number = site.call.kwargs.get(factor, 1)
    return source if number == 1 else site.emit("Mul", source, site.operand(number, site.result.dtype))


@register_lowering(torch.einsum)
def einsum(site: Site) -> str:
    """An equation and its operands, given one by one or as one list."""
    operands = site.call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return site.emit("Einsum", *operands, equation=site.arg(0, "equation").replace(" ", ""))


@register_lowering(F.scaled_dot_product_attention)
def attention(site: Site) -> str:
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
    """The scores with those taken out that a query must not see."""
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
    """Which keys a query sees that sees none behind its own place."""
    if isinstance(length, int) and isinstance(width, int):
        return torch.ones(length, width, dtype=torch.bool).tril()
    rows = site.emit("Unsqueeze", site.range(length), site.ints([1]))
    return site.emit("GreaterOrEqual", rows, site.range(width))
