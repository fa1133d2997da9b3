"""Lifetimes of the tensors of a graph, from which activations and peak memory of sub-networks are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from bnas.passes.axes.terms import Term
from bnas.passes.axes.types import AxisTypes
from bnas.passes.frontend.structure import tensors_of
from bnas.passes.space.blocks import Block


@dataclass
class Lifetime:
    """The lifetime of an allocated tensor: from its node to the last node that reads it or a view of it."""

    node: Node
    axes: tuple[Term, ...]
    itemsize: int
    first: int
    """Position of `node` in the graph."""
    last: int
    stands_in: Block | None = None
    """The block whose sum is `node`, if any. If that block is skipped, its entry takes the place of the sum."""

    def alive_at(self, other: Lifetime) -> bool:
        """Whether the tensor is in memory when `other` is allocated."""
        return self.first <= other.first <= self.last


def lifetimes(types: AxisTypes, blocks: Mapping[str, Block]) -> list[Lifetime]:
    """Return the tensors that the graph allocates, and its inputs, in order; without parameters, views and writes.

    The sum of a block in `blocks` has its own lifetime even if it is written in place, because it remains when the
    block is skipped.
    """
    sums, found, now = {block.out: block for block in blocks.values()}, list[Lifetime](), dict[int, Lifetime]()
    stored: set[int] = set()
    for place, node in enumerate(types.ir.graph.nodes):
        for source in node.all_input_nodes:
            for tensor in _tensors(source):
                if (memory := _memory(tensor)) in now:
                    now[memory].last = place
        for tensor, axes in _made(types, node):
            memory = _memory(tensor)
            if node.op == "get_attr":
                stored.add(memory)
            if memory in stored or (memory in now and node not in sums):
                continue
            if memory in now:
                now[memory].last = place - 1
            now[memory] = Lifetime(node, tuple(axes), tensor.itemsize, place, place, sums.get(node))
            found.append(now[memory])
    return found


def _made(types: AxisTypes, node: Node) -> Iterator[tuple[Tensor, list[Term]]]:
    """The tensors of a node's value, with their types."""
    axes = types.values.get(node)
    if node.op != "output" and axes is not None:
        typed = tree_leaves(axes, is_leaf=lambda value: isinstance(value, list))
        values = tensors_of(node.meta["value"])
        yield from zip(values, (one for one in typed if isinstance(one, list)), strict=True)


def _tensors(node: Node) -> Iterator[Tensor]:
    return iter(tensors_of(node.meta.get("value")))


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata  # identifies the memory, also for meta tensors
