"""Replacements in a graph: layers that only the graph has, and channel shuffles as one operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnas.passes.ops.registry import OPERATORS

# Layers that only the graph has: no function of torch returns these values.


class Follows(nn.Module):
    """Return one plain value in evaluation mode and another in training mode."""

    def __init__(self, evaluation: Any, training: Any) -> None:
        super().__init__()
        self.evaluation, self.in_training = evaluation, training

    def forward(self) -> Any:
        """Return the value of the current mode."""
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
        """Return the object."""
        kind: Any = self.kind
        made = kind.__new__(kind)
        vars(made).update(attributes)
        return made

    def extra_repr(self) -> str:
        """The name of the class."""
        return self.kind.__name__


# Channel shuffles: a view, a transposition and a view back are one permutation of the channels.
#
# Read operator by operator, they would split the channels into a product, and each later shuffle would split it again.
# As a permutation, the channels stay one axis.


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
    """Return the call in plain memory order, as the replaced view: another order would change results by rounding."""
    shuffle = graph.call_function(F.channel_shuffle, (source, groups))
    plain = graph.call_method("contiguous", (shuffle,))
    for made in (shuffle, plain):
        made.meta.update(node.meta)
    return plain


def _match(last: Node) -> tuple[Node, int] | None:
    """Return the shuffled value and the number of groups if `last` is the final view of a shuffle, else None."""
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
    """Return the only input of a call of one of `operators`; other nodes may read it only if `shared`."""
    tensors = [one for one in node.all_input_nodes if isinstance(one.meta.get("value"), Tensor)]
    if _operator(node) not in operators or len(tensors) != 1:  # the others are sizes
        return None
    source = tensors[0]
    sizes = [user for user in source.users if _is_size(user)]
    alone = len(source.users) - len(sizes) == 1 and all(set(one.users) <= {node} for one in sizes)
    return source if shared or alone else None


def _is_size(node: Node) -> bool:
    """Whether the value of a node is an integer: a size for a view."""
    return isinstance(node.meta.get("value"), int)


def _operator(node: Node) -> Any:
    return OPERATORS.canonical(node.target) if node.op in ("call_function", "call_method") else None


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("value"), "shape", ()))


def _order(node: Node) -> list[int]:
    """Return the source of each axis of a transposition, found with a dummy that has distinct sizes."""
    dummy = torch.empty([*range(len(_shape(node)))], device="meta")
    moved = getattr(dummy, _operator(node).__name__)(*node.args[1:], **node.kwargs)
    return list(moved.shape)
