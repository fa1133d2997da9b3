"""What a graph takes of memory, measured: the storages of its values while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

COPYING = ("reshape", "flatten", "contiguous", torch.reshape, torch.flatten, nn.functional.layer_norm)
"""What copies only where it must."""


class Watched(Interpreter):
    """Notes the storages of all values after each node, and the entries of those that are new."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.made: dict[str, int] = {}
        self.peak = 0
        self.viewed = 0
        """Entries of what is a view, but may be a copy where an axis has more than one entry."""
        state = [*module.parameters(), *module.buffers()]
        self._stored = {tensor.untyped_storage()._cdata for tensor in state}

    def run_node(self, n: Node) -> Any:
        before = self._storages()
        result = super().run_node(n)
        if n.op in ("output", "get_attr"):
            return result
        new = {_memory(t): t for t in _tensors(result) if _memory(t) not in {**before, **dict.fromkeys(self._stored)}}
        self.made[n.name] = sum(t.numel() for t in new.values())
        layer = self.module.get_submodule(str(n.target)) if n.op == "call_module" else n.target
        if not new and (isinstance(layer, nn.Flatten) or layer in COPYING):
            self.viewed += sum(t.numel() for t in _tensors(result))
        alive = {**before, **{memory: t.numel() * t.itemsize for memory, t in new.items()}}
        self.peak = max(self.peak, sum(alive.values()))
        return result

    def _storages(self) -> dict[int, int]:
        """Bytes of each storage that a value is in which somebody still reads."""
        values = [t for value in self.env.values() for t in _tensors(value)]
        return {_memory(t): t.untyped_storage().nbytes() for t in values if _memory(t) not in self._stored}


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def watch(module: GraphModule, inputs: Tensor) -> Watched:
    """The memory that `module` takes on `inputs`."""
    watched = Watched(module)
    with torch.no_grad():
        watched.run(inputs.clone())
    return watched
