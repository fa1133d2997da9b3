"""Programs in segments: values inside a segment are recomputed in the backward pass instead of kept in memory.

Normally a training step keeps all activations until the backward pass has used them. In segments, it keeps only the
values that pass from one segment to the next, and the inner values of one segment at a time. This costs a second
forward pass of all segments except the last. Gradients are bitwise the same: dropout drops the same entries again, and
statistics are updated once.
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
    """One segment of a program. It runs in the forward pass, and again in the backward pass."""

    def __init__(self, interpreter: Interpreter, segment: Segment) -> None:
        self.interpreter, self.segment = interpreter, segment
        self._before: Buffers | None = None

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Return the outputs of the segment for its inputs."""
        if self._before is None:
            self._before = Buffers.of(self.interpreter, self.segment)
            return self.run(values)
        with self._before.given():
            return self.run(values)

    def run(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Run the segment once."""
        self.interpreter.env = env = dict(zip(self.segment.takes, values, strict=True))
        try:
            for node in self.segment.nodes:
                env[node] = self.interpreter.run_node(node)
                for one in self.segment.ends.get(node, ()):
                    del env[one]
            return tuple(env[node] for node in self.segment.gives)
        finally:
            self.interpreter.env = {}  # otherwise the interpreter would keep the values of its last run alive


class Buffers:
    """Copies of the buffers that a segment may change, such as BatchNorm statistics, from before its first run."""

    def __init__(self) -> None:
        self.tables: list[tuple[dict[str, Any], str, Tensor]] = []
        self.gathered: list[tuple[Gathered, dict[str, Tensor]]] = []

    @classmethod
    def of(cls, interpreter: Interpreter, segment: Segment) -> Buffers:
        """Copy the current buffers of a segment."""
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
        """Inside, layers read and change these copies; afterwards they have their own buffers again."""
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
    """Return a function that computes the same as `program` and keeps less memory for the backward pass.

    It keeps the values that pass between segments of the graph. The cuts are where they need the least memory.
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
            last = segment is plan.segments[-1]  # the backward pass needs the inner values of the last segment first
            env |= zip(segment.gives, part.run(values) if last else _kept(part, values), strict=True)
        return plain(
            map_arg(plan.output.args[0], lambda node: env[node] if node in env else interpreter.run_node(node))
        )

    return run


def _kept(part: Part, values: Sequence[Any]) -> Any:
    """Run a part and keep only its inputs `values` for the backward pass.

    If something outside the graph writes into them, PyTorch raises an error in the backward pass.
    """
    return checkpoint(part, *values, use_reentrant=False)


def plain(value: Any) -> Any:
    """Replace the immutable lists and dicts of a graph by plain ones."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return tuple(map(plain, value)) if type(value) is tuple else value
