"""Cold tensors, which do not depend on inputs: they are computed at once, and the calls are kept as a recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import CaptureError

from .functions import Types, as_meta, run_on_meta, spelled, to_meta, written_by
from .places import user_line
from .structure import at, holds_tensors, leaves_of, map_leaves, tensors_of
from .tape import DEVICE_OF_MODEL, Step, Tape

TRIAL = 1 << 25
"""Largest number of entries that a recording at sizes far from the example's computes for real. It is only a trial, and
without this limit, masks of attention in windows took it most of the time of a capture."""
LARGE = 1 << 22
"""Largest number of entries of a cold tensor; larger ones are treated as hot and never computed."""


class Recipes(Tape):
    """A tape that also has the steps of tensors that are computed for real."""

    def __init__(self, root: nn.Module, types: Types, hot_lines: set[Any]) -> None:
        super().__init__(root, types)
        self.hot_lines = hot_lines
        """Lines whose calls make tensors that are too large, at this or at another size."""
        self.computed, self.most_computed = 0, math.inf
        """Entries of tensors computed for real so far, and their limit."""
        self._warmed: dict[Step, Step] = {}
        """Cold steps that became hot ones."""
        self._cold_made: set[int] = set()
        """The memory of tensors that cold steps made."""
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors from before the recording that forward writes into, with their former content."""

    def _large_like(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a factory makes a tensor that is too large to be computed for real, at this or another size."""
        line = name, user_line()
        if line in self.hot_lines:
            return True
        if not _is_large(name, args, kwargs):
            return False
        self.hot_lines.add(line)
        return True

    def _grows(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call on real tensors makes a tensor that is too large, at this or another size.

        Example: numbers that are broadcast to each sample and pixel need gigabytes, because the batch is 1,009.
        """
        line = getattr(func, "__name__", ""), user_line()
        if line in self.hot_lines:
            return True
        given = [one.numel() for one in tensors_of((args, kwargs))]
        if not given:
            return False
        op, target, plain = spelled(func, args, kwargs)
        try:
            with torch.no_grad():
                made = run_on_meta(op, target, *as_meta((plain, kwargs)))
        except Exception:  # the call needs the numbers of its tensors
            return False
        held = (one.untyped_storage().nbytes() // one.itemsize for one in tensors_of(made))
        if max(held, default=0) <= max(LARGE, *given):
            return False
        self.hot_lines.add(line)
        return True

    def _cold(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute a call for real, and record it as part of a recipe."""
        op, target, plain = spelled(func, args, kwargs)
        writes = written_by(op, target, plain, kwargs)
        for tensor in writes:
            self._remember(tensor)
        real = map_leaves((args, kwargs), lambda _, leaf: self._real_like(leaf))
        result = func(*real[0], **real[1])
        self.computed += sum(one.numel() for one in tensors_of(result))
        if self.computed > self.most_computed:
            raise CaptureError("forward makes tensors there that take long to compute")
        return self._noted_cold(target, plain, kwargs, result, op, bool(writes))

    def _real_like(self, leaf: Any) -> Any:
        """Return a real tensor with type and shape of a hot one; its numbers are zeros."""
        if not isinstance(leaf, Tensor) or not self.is_hot(leaf):
            return leaf
        return torch.zeros((), dtype=leaf.dtype, device=self.device).expand(leaf.shape)

    def _noted_cold(
        self, target: Any, args: Any, kwargs: Any, result: Any, op: str = "call_function", writes: bool = False
    ) -> Any:
        if not holds_tensors(result) and not writes:
            return result
        refs, named = self.refs((args, kwargs))
        step = Step("cold", (op, target), refs, named, result, self._stack, self._scope, user_line(), writes=writes)
        self.append(step)
        for path, leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                self._cold_made.add(leaf.untyped_storage()._cdata)
                self.bind(leaf, step, path)
        return result

    def _remember(self, tensor: Tensor) -> None:
        """Keep the content of a tensor from before the recording, because it is written into."""
        memory = tensor.untyped_storage()._cdata
        if memory not in self._cold_made and memory not in self._before:
            self._before[memory] = tensor, tensor.detach().clone()

    def give_back(self) -> None:
        """Restore the tensors from before the recording that were written into."""
        with torch.no_grad():
            for tensor, value in self._before.values():
                tensor.detach().copy_(value)

    def _warm(self, tensor: Tensor) -> None:
        """Make a cold tensor hot because a hot value is written into it: run its recipe again on meta tensors."""
        if self.is_hot(tensor):
            return
        known = self._steps.get(id(tensor))
        if known is None or known[0].op == "given":
            self._copied(tensor)
            return
        memory = tensor.untyped_storage()._cdata
        for step in [one for one in self.steps if one.op == "cold" and _touches(one, memory)]:
            self._replay(step)

    def _copied(self, tensor: Tensor) -> None:
        """Record a copy of a tensor from before the recording, so that no forward writes into the original."""
        step = Step("call_method", "clone", (self.step_of(tensor),), {}, to_meta(tensor), self._stack, self._scope)
        step.line = user_line()
        self.append(step)
        self._twins[id(tensor)] = step.value
        self.bind(tensor, step)

    def _replay(self, step: Step) -> None:
        """Run a call of a recipe on meta tensors; its real tensors stand for the results from now on."""
        op, target = step.target
        made = Step(op, target, step.args, step.kwargs, None, step.stack, step.scope, step.line)
        made.args, made.kwargs = map_leaves(
            (step.args, step.kwargs), lambda _, leaf: self._warmed.get(leaf, leaf) if isinstance(leaf, Step) else leaf
        )
        values, named = map_leaves((made.args, made.kwargs), lambda _, leaf: self._meta_of(leaf))
        with torch.no_grad():
            made.value = run_on_meta(op, target, values, named)
        made.writes = step.writes
        self.append(made)
        self._warmed[step] = made
        for path, leaf in leaves_of(step.value):
            if isinstance(leaf, Tensor):
                self._twins[id(leaf)] = at(made.value, path)
                self.bind(leaf, made, path)

    def _meta_of(self, leaf: Any) -> Any:
        if isinstance(leaf, Step):
            return as_meta(leaf.value)
        return torch.device("meta") if leaf is DEVICE_OF_MODEL or isinstance(leaf, torch.device) else leaf


def _is_large(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a factory makes more than `LARGE` entries."""
    first = args[0] if args else kwargs.get("size", kwargs.get("input"))
    if name.endswith("_like") and isinstance(first, Tensor):
        return first.numel() > LARGE
    total = 1
    for _, leaf in leaves_of((args, kwargs)):
        total *= leaf if type(leaf) is int and leaf > 0 else 1
    return name not in ("tensor", "arange") and total > LARGE


def _touches(step: Step, memory: int) -> bool:
    """Whether a cold step made, viewed or wrote into this memory."""
    written = [leaf.value for _, leaf in leaves_of(step.args) if isinstance(leaf, Step)] if step.writes else []
    return any(one.untyped_storage()._cdata == memory for one in tensors_of((step.value, written)))
