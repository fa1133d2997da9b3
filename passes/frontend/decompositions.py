"""What a graph has in place of what the model has: attention and shuffles in plain operators, layers of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnas.passes.errors import CaptureError
from bnas.passes.ops.registry import OPERATORS

# `nn.MultiheadAttention` in plain operators on its own parameters, so that heads and widths become axes of the graph.
#
# Its own forward branches on flags that a trace would bake, and on a fused kernel that knows nothing of axes.
# State-dict keys stay as they are; the outputs agree to rounding.


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
        raise CaptureError("attention that adds keys of its own: add_bias_kv, add_zero_attn")
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


# Layers that a graph has and the model has not: they give what no function of torch gives.


class Follows(nn.Module):
    """Gives one plain value in evaluation mode and another in training mode."""

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.evaluation, self.in_training = evaluation, training

    def forward(self) -> Any:
        """The value of the mode."""
        return self.in_training if self.training else self.evaluation

    def extra_repr(self) -> str:
        """Both values."""
        return f"evaluation={self.evaluation!r}, training={self.in_training!r}"


class Filled(nn.Module):
    """Makes a plain object of a user's class with the given attributes, without calling its constructor."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, **attributes: Any) -> Any:
        """The object."""
        kind: Any = self.kind
        made = kind.__new__(kind)
        vars(made).update(attributes)
        return made

    def extra_repr(self) -> str:
        """The name of the class."""
        return self.kind.__name__


# Channel shuffles: a view, a transposition and a view back are one permutation of the channels.
#
# Read operator by operator they would split the channels into a product, and a later split of the shuffled ones would
# cut that into ever smaller pieces; as a permutation the channels stay what they are.


def spell_shuffles(graph: Graph) -> None:
    """Replace every shuffle of axis 1 that is written with views by a call of ``F.channel_shuffle``."""
    for node in list(graph.nodes):
        found = _match(node)
        if found is not None:
            source, groups = found
            with graph.inserting_before(node):
                shuffle = _shuffle(graph, node, source, groups)
            node.replace_all_uses_with(shuffle)
            while node is not source:
                dead, node = node, node.all_input_nodes[0]
                sizes = [one for one in dead.all_input_nodes if _is_size(one)]
                graph.erase_node(dead)
                for one in dict.fromkeys(sizes):
                    if not one.users:
                        graph.erase_node(one)


def _shuffle(graph: Graph, node: Node, source: Node, groups: int) -> Node:
    """The call, in plain memory order as the view back was: what reads it computes otherwise, to rounding, if not."""
    shuffle = graph.call_function(F.channel_shuffle, (source, groups))
    plain = graph.call_method("contiguous", (shuffle,))
    for made in (shuffle, plain):
        made.meta.update(node.meta)
    return plain


def _match(last: Node) -> tuple[Node, int] | None:
    """What is shuffled, and by how many groups, if `last` is the view back."""
    moved = _only_source(last, torch.reshape)
    while moved is not None and _operator(moved) in ("contiguous", torch.clone):
        moved = _only_source(moved, "contiguous", torch.clone)
    split = None if moved is None else _only_source(moved, torch.transpose, torch.permute)
    source = None if split is None or moved is None else _only_source(split, torch.reshape, shared=True)
    if source is None or split is None or moved is None:
        return None
    before, groups = _shape(source), _shape(split)[1] if len(_shape(split)) > 1 else 0
    if len(before) < 3 or _shape(last) != before or groups < 2 or before[1] % groups:
        return None
    if _shape(split) != (before[0], groups, before[1] // groups, *before[2:]):
        return None
    return (source, groups) if _order(moved) == [0, 2, 1, *range(3, len(before) + 1)] else None


def _only_source(node: Node, *operators: Any, shared: bool = False) -> Node | None:
    """The only input of a call of one of `operators`; nobody else may read it unless it is `shared`."""
    tensors = [one for one in node.all_input_nodes if isinstance(one.meta.get("value"), Tensor)]
    if _operator(node) not in operators or len(tensors) != 1:  # the others are sizes
        return None
    source = tensors[0]
    sizes = [user for user in source.users if _is_size(user)]
    alone = len(source.users) - len(sizes) == 1 and all(set(one.users) <= {node} for one in sizes)
    return source if shared or alone else None


def _is_size(node: Node) -> bool:
    """Whether a node is a number: a size that a view reads."""
    return isinstance(node.meta.get("value"), int)


def _operator(node: Node) -> Any:
    return OPERATORS.canonical(node.target) if node.op in ("call_function", "call_method") else None


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("value"), "shape", ()))


def _order(node: Node) -> list[int]:
    """Where each axis of a transposition comes from, read off a dummy with distinct sizes."""
    dummy = torch.empty([*range(len(_shape(node)))], device="meta")
    moved = getattr(dummy, _operator(node).__name__)(*node.args[1:], **node.kwargs)
    return list(moved.shape)
