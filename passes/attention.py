"""`nn.MultiheadAttention` in plain operators on its own parameters, so that heads and widths become axes of the graph.

Its own forward branches on flags that a trace would bake, and on a fused kernel that knows nothing of axes. State-dict
keys stay as they are; the outputs agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CaptureError


def multi_head_attention(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `nn.MultiheadAttention.forward` computes; the weights that nobody reads are dead code.

    ``is_causal`` is a hint that goes with a causal mask, which is used itself.

    Raises:
        CaptureError: the module adds keys of its own (add_bias_kv, add_zero_attn).
    """
    if attention.bias_k is not None or attention.add_zero_attn:
        raise CaptureError("attention with keys of its own: add_bias_kv, add_zero_attn")
    batched = query.dim() == 3
    same_key, same_value = key is query, value is key
    query = _batch_first(query, attention.batch_first, batched)
    key = query if same_key else _batch_first(key, attention.batch_first, batched)
    value = key if same_value else _batch_first(value, attention.batch_first, batched)
    q, k, v = _project(attention, query, key, value)
    mask = _mask(attention.num_heads, query, attn_mask, key_padding_mask)
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=attention.head_dim**-0.5)
    # PyTorch puts the tokens first in memory, which decides what a dropout behind it drops.
    tokens_first = batched and (not attention.batch_first or attention.dropout > 0)
    out = out.permute(2, 0, 1, 3).flatten(2) if tokens_first else out.transpose(1, 2).flatten(2)
    out = F.linear(out, attention.out_proj.weight, attention.out_proj.bias)
    weights = _weights(q, k, mask, average_attn_weights) if need_weights else None
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return out.transpose(0, 1) if tokens_first == attention.batch_first else out, weights


def _batch_first(x: Tensor, batch_first: bool, batched: bool) -> Tensor:
    if not batched:
        return x.unsqueeze(0)
    return x if batch_first else x.transpose(0, 1)


def _project(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Queries, keys and values (N, heads, tokens, width); from one product where all are made of the same."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    shape = attention.num_heads, attention.head_dim
    if weight is not None and key is query and value is key:
        packed = torch.unflatten(F.linear(query, weight, bias), -1, (3, *shape))
        return list(packed.permute(2, 0, 3, 1, 4).unbind(0))
    separate = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    weights: Sequence[Tensor] = separate if weight is None else weight.chunk(3)
    biases: Sequence[Tensor | None] = [None] * 3 if bias is None else bias.chunk(3)
    products = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    return [torch.unflatten(x, -1, shape).transpose(1, 2) for x in products]


def _mask(heads: int, query: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Both masks as one that is added to the scores (N or 1, heads or 1, L, S)."""
    if mask is not None:
        mask = _added(mask, query.dtype)
        mask = mask.view(-1, heads, *mask.shape[1:]) if mask.dim() == 3 and mask.shape[0] > 1 else mask
    if padding is None:
        return mask
    padding = _added(padding, query.dtype)
    padding = padding.view(padding.shape[0] if padding.dim() == 2 else 1, 1, 1, padding.shape[-1])
    return padding if mask is None else mask + padding


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is true where nobody may look, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, average: bool) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights: Tensor = (scores if mask is None else scores + mask).softmax(-1)
    return weights.mean(1) if average else weights


DECOMPOSITIONS: dict[type[nn.Module], Callable[..., Any]] = {nn.MultiheadAttention: multi_head_attention}
"""Modules (of exactly the type) whose forward is traced as another function of the module and its inputs."""
