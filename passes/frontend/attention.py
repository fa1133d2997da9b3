"""`nn.MultiheadAttention` and its function in plain operators, so that heads and widths become axes of the graph.

PyTorch's own forward branches on flags that a trace would bake, and on a fused kernel that knows nothing of axes.
State-dict keys stay as they are; the outputs agree to rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.errors import CaptureError


@dataclass(frozen=True)
class _Attention:
    """The settings and the tensors of one attention."""

    heads: int
    width: int
    """Entries of a query in one head."""
    packed: Tensor | None
    """The weights of queries, keys and values in one, or None if they are `separate`."""
    separate: Sequence[Tensor]
    bias: Tensor | None
    """The biases of queries, keys and values in one."""
    out: tuple[Tensor, Tensor | None]
    """Weight and bias of the last projection."""
    extra: tuple[Tensor | None, Tensor | None]
    """A key and a value that each sequence gets in addition, of the shape (1, 1, tokens' width)."""
    zero: bool
    """Whether each sequence also gets a key and a value of zeros."""
    dropout: float
    training: bool
    batch_first: bool


def multi_head_attention(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute `nn.MultiheadAttention.forward` in plain operators; return output and weights."""
    own = _Attention(
        attention.num_heads,
        attention.head_dim,
        attention.in_proj_weight,
        (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight),
        attention.in_proj_bias,
        (attention.out_proj.weight, attention.out_proj.bias),
        (attention.bias_k, attention.bias_v),
        attention.add_zero_attn,
        attention.dropout,
        attention.training,
        attention.batch_first,
    )
    return _attend(own, query, key, value, *args, **kwargs)


def multi_head_attention_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Compute the function of this name in `torch.nn.functional` in plain operators; tokens are the first axis.

    Raises:
        CaptureError: The keys or values are already projected (static_k, static_v).
    """
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    call = SimpleNamespace(**given.arguments)
    if call.static_k is not None or call.static_v is not None:
        raise CaptureError("multi_head_attention_forward with static_k or static_v: pass only key and value")
    own = _Attention(
        call.num_heads,
        call.embed_dim_to_check // call.num_heads,
        None if call.use_separate_proj_weight else call.in_proj_weight,
        (call.q_proj_weight, call.k_proj_weight, call.v_proj_weight),
        call.in_proj_bias,
        (call.out_proj_weight, call.out_proj_bias),
        (call.bias_k, call.bias_v),
        call.add_zero_attn,
        call.dropout_p,
        call.training,
        batch_first=False,
    )
    masks = call.key_padding_mask, call.need_weights, call.attn_mask, call.average_attn_weights
    return _attend(own, call.query, call.key, call.value, *masks)


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def _attend(
    attention: _Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return output and weights; if the weights are not read, they are removed as dead code.

    ``is_causal`` is only a hint to PyTorch that the mask is causal; the mask itself is used.
    """
    batched = query.dim() == 3
    same_key, same_value = key is query, value is key
    query = _batch_first(query, attention.batch_first, batched)
    key = query if same_key else _batch_first(key, attention.batch_first, batched)
    value = key if same_value else _batch_first(value, attention.batch_first, batched)
    q, k, v = _project(attention, query, key, value)
    mask = _mask(attention.heads, query, attn_mask, key_padding_mask)
    k, v, mask = _extended(attention, k, v, mask)
    dropout = attention.dropout if attention.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=attention.width**-0.5)
    # PyTorch puts the tokens first in memory, which decides what a dropout behind it drops.
    tokens_first = batched and (not attention.batch_first or attention.dropout > 0)
    out = out.permute(2, 0, 1, 3).flatten(2) if tokens_first else out.transpose(1, 2).flatten(2)
    out = F.linear(out, *attention.out)
    weights = _weights(q, k, mask, average_attn_weights) if need_weights else None
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return out.transpose(0, 1) if tokens_first == attention.batch_first else out, weights


def _batch_first(x: Tensor, batch_first: bool, batched: bool) -> Tensor:
    if not batched:
        return x.unsqueeze(0)
    return x if batch_first else x.transpose(0, 1)


def _project(attention: _Attention, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Return queries, keys and values (N, heads, tokens, width), from a single product if their input is the same."""
    weight, bias = attention.packed, attention.bias
    shape = attention.heads, attention.width
    if weight is not None and key is query and value is key:
        packed = torch.unflatten(F.linear(query, weight, bias), -1, (3, *shape))
        return list(packed.permute(2, 0, 3, 1, 4).unbind(0))
    weights: Sequence[Tensor] = attention.separate if weight is None else weight.chunk(3)
    biases: Sequence[Tensor | None] = [None] * 3 if bias is None else bias.chunk(3)
    products = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    return [torch.unflatten(x, -1, shape).transpose(1, 2) for x in products]


def _extended(
    attention: _Attention, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return keys, values and mask with the tokens that the attention adds to each sequence, unmasked."""
    shape = attention.heads, attention.width
    more = [[one[:, :, :1] * 0] if attention.zero else [] for one in (key, value)]
    for added, extra in zip(more, attention.extra, strict=True):
        if extra is not None:
            added.insert(0, torch.unflatten(extra, -1, shape).transpose(1, 2).expand(key.shape[0], -1, -1, -1))
    if mask is not None and more[0]:
        mask = F.pad(mask, (0, len(more[0])))
    key, value = (torch.cat([one, *added], 2) if added else one for one, added in zip((key, value), more, strict=True))
    return key, value, mask


def _mask(heads: int, query: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Combine both masks into one that is added to the scores (N or 1, heads or 1, L, S)."""
    if mask is not None:
        mask = _added(mask, query.dtype)
        mask = mask.view(-1, heads, *mask.shape[1:]) if mask.dim() == 3 and mask.shape[0] > 1 else mask
    if padding is None:
        return mask
    padding = _added(padding, query.dtype)
    padding = padding.view(padding.shape[0] if padding.dim() == 2 else 1, 1, 1, padding.shape[-1])
    return padding if mask is None else mask + padding


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask that is true at hidden places to numbers that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, average: bool) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights: Tensor = (scores if mask is None else scores + mask).softmax(-1)
    return weights.mean(1) if average else weights


DECOMPOSITIONS: dict[type[nn.Module], Callable[..., Any]] = {nn.MultiheadAttention: multi_head_attention}
"""Modules (of exactly the type) whose forward is traced as another function of the module and its inputs."""

DECOMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention_forward
}
"""Functions of torch that are traced as another function of the same arguments."""
