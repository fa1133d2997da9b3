"""`nn.MultiheadAttention` with a total head width that differs from the width of the tokens.

PyTorch's own class computes the number of heads times their size from the width of its input. A sub-network may keep
other numbers of heads, so its module form has this class where they differ: the same tensors under the same names.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.MultiheadAttention):
    """Attention with `num_heads` heads of `head_dim` entries, independent of the width of query, key and value.

    `narrow` turns an attention module with smaller tensors into this class.
    """

    scale: float
    """Scale of the products of queries and keys: that of the full module."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `nn.MultiheadAttention`; the tensors have a batch axis or not, as there."""
        single = query.ndim == 2
        if single:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = (self._heads(x, part) for part, x in enumerate((query, key, value)))
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), drop)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask, drop, scale=self.scale)
        out = F.linear(found.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, x: Tensor, part: int) -> Tensor:
        """The queries (0), keys (1) or values (2) of each head: batch, heads, tokens, entries."""
        own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[part]
        weight = self.in_proj_weight.chunk(3)[part] if self.in_proj_weight is not None else own
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[part]
        made = F.linear(x, weight, bias)
        return made.reshape(*made.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, given: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores."""
        total = None
        if given is not None:
            given = _added(given, q)
            total = given if given.ndim == 2 else given.view(len(q), self.num_heads, *given.shape[-2:])
        if padding is not None:
            padding = _added(padding, q)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
            total = padding if total is None else total + padding
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: minus infinity where a mask of booleans is true."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, float("-inf"))


def narrow(layer: nn.MultiheadAttention) -> None:
    """Adjust an attention module, in place, to its smaller tensors and ``num_heads``.

    The class changes if PyTorch's own class cannot have these sizes.
    """
    settings: dict[str, Any] = vars(layer)
    width, inner = layer.out_proj.weight.shape
    heads = int(layer.num_heads)
    scale, before = float(layer.head_dim) ** -0.5, layer.head_dim
    settings.update(embed_dim=width, head_dim=inner // heads)
    for name, weight in (("kdim", layer.k_proj_weight), ("vdim", layer.v_proj_weight)):
        settings[name] = width if weight is None else weight.shape[1]
    if inner != width or layer.head_dim != before:
        layer.__class__ = NarrowAttention
        settings.update(scale=scale, _qkv_same_embed_dim=False)  # turns off PyTorch's fused path


def can_be_narrow(layer: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether `narrow` supports the settings of a module."""
    return type(layer) is nn.MultiheadAttention and layer.bias_k is None and not layer.add_zero_attn
