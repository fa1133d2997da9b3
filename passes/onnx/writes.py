"""In-place operations. ONNX values never change, so a write creates a new value for the whole written memory.

Every value knows its memory, and the views by which it shows that memory. After a write, the memory has a new value.
All other values of this memory are derived from it again, through their views, when they are read next.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx.node import map_aggregate

from bnas.passes.errors import StateError
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS

from .builder import OnnxBuilder
from .site import Site
from .steps import Step, seen_again
from .values import Value


class Writes:
    """Keeps all values of written memory up to date."""

    def __init__(self, builder: OnnxBuilder) -> None:
        self.any = False
        """Whether anything was written."""
        self._builder = builder

    def current(self, value: Value) -> Value:
        """Return the current form of `value`; if its memory was written, derive it again."""
        memory = value.memory
        if value.version == memory.version:
            return value
        if memory.root is None:
            return _renewed(value)
        found = memory.root
        for step in value.steps:
            found = seen_again(self._builder, step, found)
        return replace(found, memory=memory, steps=value.steps, version=memory.version)

    def of_constants(self, step: Step, written: Sequence[Value], lowered: Any) -> Any:
        """Return the result of a call that was executed and wrote into `written`, tensors with known numbers."""
        self.any = True
        for value in written:
            _check_no_state(step.place, value)
        for memory in {value.memory for value in written}:
            memory.version += 1
        return map_aggregate(lowered, lambda leaf: self._shown(leaf, written))

    def _shown(self, leaf: Any, written: Sequence[Value]) -> Any:
        """Return the current form of a result, which may be one of the written values."""
        if not isinstance(leaf, Value):
            return leaf
        return self.current(next((one for one in written if one.tensor is leaf.tensor), leaf))

    def of_value(self, site: Site, target: Value, name: str) -> Value:
        """Return `target` after a call that writes the value called `name` into it."""
        self.any = True
        memory, root = target.memory, target.steps[0].source if target.steps else target
        _check_no_state(site.scope, root)
        whole = new = Value(
            _meta(target.tensor), name, twin=_meta(target.tensor if target.twin is None else target.twin)
        )
        for step in reversed(target.steps):
            whole = self._put_back(site, step, whole)
        memory.version += 1
        memory.root = replace(whole, memory=memory, version=memory.version)
        return replace(new, memory=memory, steps=target.steps, version=memory.version)

    def _put_back(self, site: Site, step: Step, new: Value) -> Value:
        """Return the viewed value after the view got the content `new`."""
        source = self.current(step.source)  # type: ignore[arg-type]
        before = site.like(source, "")
        data = step.call.op is getattr and step.call.args[1] == "data"
        if data or OPERATORS.of(step.call.op).has(Trait.SAME_ENTRIES):
            return replace(before, name=site.reshape(new, source.sizes))
        order = _order(step, source)
        if order is not None:
            return replace(before, name=site.transpose(new, [order.index(axis) for axis in range(len(order))]))
        if step.call.op is operator.getitem:
            write = site.at(operator.setitem, source, step.call.args[1], new)
            return replace(before, name=write.written())
        seen = seen_again(self._builder, step, site.positions(source))
        return replace(before, name=scattered(site, source, seen, site.name(new)))


def scattered(site: Site, source: Value, positions: Value, new: str) -> str:
    """Return `source` with its entries at row-major `positions` replaced by those of `new`."""
    flat = [site.emit("Reshape", one, site.ints([-1])) for one in (source, positions, new)]
    return site.emit("Reshape", site.emit("ScatterElements", *flat, axis=0), site.shape(source))


def _order(step: Step, source: Value) -> list[int] | None:
    """Return the order of axes if a view is a transpose, found with a dummy of distinct sizes; else ``None``."""
    turns = step.call.op is getattr and step.call.args[1] in ("T", "mT")
    if not OPERATORS.of(step.call.op).has(Trait.PERMUTATION) and not turns:
        return None
    numbered = Value(torch.empty(tuple(range(source.tensor.ndim)), device="meta"), "")
    return list(step.on(numbered).run().result.shape)


def _check_no_state(place: str, value: Value) -> None:
    if value.state:
        raise StateError(
            f"{place}: writes into {value.name!r} in place, which an ONNX graph cannot do: let forward write only "
            "where self.training is true, or make what it writes an output"
        )


def _renewed(value: Value) -> Value:
    """Return the tensor as a new object: the builder knows tensors by identity and has stored the old numbers."""
    return replace(value, tensor=value.tensor.view_as(value.tensor), version=value.memory.version)


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
