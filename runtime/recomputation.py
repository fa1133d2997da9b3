"""Programs in segments: what lies inside of one is computed again on the way back, instead of kept.

A step keeps what its layers computed until the way back has used it. In segments it keeps what passes from one segment
to the next, and the inner values of one segment at a time; that costs one more forward pass of all but the last. The
gradients are the same to the bit: dropout drops the same again, and statistics are updated once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter
from torch.fx.node import map_arg
from torch.utils.checkpoint import checkpoint

from .program import Gathered, Program
from .segments import Segment, plan_of


class Part:
    """One segment of a program: called on the way forward, and again on the way back."""

    def __init__(self, interpreter: Interpreter, segment: Segment) -> None:
        self.interpreter, self.segment = interpreter, segment
        self._before: Buffers | None = None

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """What the segment gives for what it takes."""
        if self._before is None:
            self._before = Buffers.of(self.interpreter, self.segment)
            return self.run(values)
        with self._before.given():
            return self.run(values)

    def run(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The same, once."""
        self.interpreter.env = env = dict(zip(self.segment.takes, values, strict=True))
        try:
            for node in self.segment.nodes:
                env[node] = self.interpreter.run_node(node)
                for one in self.segment.ends.get(node, ()):
                    del env[one]
            return tuple(env[node] for node in self.segment.gives)
        finally:
            self.interpreter.env = {}  # else the last segment's values would stay with it


class Buffers:
    """What a segment may change beside its values, such as BatchNorm statistics, as it was before."""

    def __init__(self) -> None:
        self.tables: list[tuple[dict[str, Any], str, Tensor]] = []
        self.gathered: list[tuple[Gathered, dict[str, Tensor]]] = []

    @classmethod
    def of(cls, interpreter: Interpreter, segment: Segment) -> Buffers:
        """Copies of what there is now."""
        found, copies = cls(), dict[int, Tensor]()
        for node in segment.nodes:
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                found._add(interpreter.module.get_submodule(owner)._buffers, name, copies)
            if node.op == "call_module":
                for layer in interpreter.module.get_submodule(str(node.target)).modules():
                    if isinstance(layer, Gathered):
                        found.gathered.append((layer, layer.buffers_now()))
                    for name in layer._buffers:
                        found._add(layer._buffers, name, copies)
        return found

    def _add(self, table: dict[str, Any], name: str, copies: dict[int, Tensor]) -> None:
        tensor = table.get(name)
        if tensor is not None and not tensor.is_meta:
            self.tables.append((table, name, copies.setdefault(id(tensor), tensor.detach().clone())))

    @contextmanager
    def given(self) -> Iterator[None]:
        """Layers find and change copies of these inside, and what they had before after."""
        now = [(table, name, table[name]) for table, name, _ in self.tables]
        copies = {id(one): one.clone() for _, _, one in self.tables}
        for table, name, one in self.tables:
            table[name] = copies[id(one)]
        for layer, buffers in self.gathered:
            layer.__dict__["repeated"] = buffers
        try:
            yield
        finally:
            for table, name, one in now:
                table[name] = one
            for layer, _ in self.gathered:
                layer.__dict__["repeated"] = None


def in_segments(program: Program) -> Callable[..., Any]:
    """What computes as `program` does, and keeps less for the way back.

    It keeps what passes between segments of the graph, which are cut where the least memory is needed.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        ready = program.ready()
        plan = plan_of(ready.graph, ready.ir)
        if len(plan.segments) < 2 or not torch.is_grad_enabled():
            return program(*args, **kwargs)
        given = inspect.signature(ready.forward).bind(*args, **kwargs)
        given.apply_defaults()
        env = dict(zip(plan.inputs, given.arguments.values(), strict=True))
        interpreter = Interpreter(ready, garbage_collect_values=False)
        for segment in plan.segments:
            values, part = [env[node] for node in segment.takes], Part(interpreter, segment)
            for node in (one for ended in segment.ends.values() for one in ended):
                env.pop(node, None)
            last = segment is plan.segments[-1]  # its inner values are needed at once
            env |= zip(segment.gives, part.run(values) if last else _kept(part, values), strict=True)
        return plain(
            map_arg(plan.output.args[0], lambda node: env[node] if node in env else interpreter.run_node(node))
        )

    return run


def _kept(part: Part, values: Sequence[Any]) -> Any:
    """What a part gives; of what it computes, only `values` are kept for the way back.

    If something writes into them that the graph does not show, PyTorch raises an error on the way back.
    """
    return checkpoint(part, *values, use_reentrant=False)


def plain(value: Any) -> Any:
    """Nested outputs with plain lists and dicts, where those in a graph cannot be changed."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return tuple(map(plain, value)) if type(value) is tuple else value
