"""The tape of a recording: its steps, and which step returned which tensor."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import CaptureError

from .functions import Types, to_meta
from .places import user_line
from .structure import Attribute, Leaf, Path, at, leaves_of, map_leaves, tensors_of

# Steps: the recorded calls.


@dataclass(eq=False, slots=True)
class Step(Leaf):
    """One recorded call, which becomes a node of the graph."""

    op: str
    """As in torch.fx; "cold" for a call that was computed for real, "given" for a tensor from before the recording."""
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    """The result: with meta tensors, or with real ones if the step is cold."""
    stack: Mapping[str, Any] = field(default_factory=dict)
    """The calls of modules around it, as in torch.fx."""
    scope: str = ""
    line: tuple[str, int] | None = None
    """File and line of the user's code."""
    grad: bool = True
    """Whether gradients were enabled."""
    index: int = -1
    writes: bool = False
    returned: tuple[str, ...] = ()
    """The calls of modules that returned its value, innermost first."""

    @property
    def cold(self) -> bool:
        """Whether its value does not depend on inputs and tensors of the model."""
        return self.op in ("cold", "given")

    def place(self) -> str:
        """Return the place in the user's code, for messages."""
        where = f"{self.line[0]}:{self.line[1]}" if self.line else "forward"
        return f"{where}, in module {self.scope!r}" if self.scope else where


def has_gradients(step: Step) -> bool:
    """Whether gradients may flow back through a step."""
    if step.op == "get_attr":
        return True
    return step.grad and step.op in ("call_function", "call_method", "call_module") and isinstance(step.value, Tensor)


@dataclass(frozen=True)
class _DeviceOfModel(Leaf):
    """Stands for the device of the model among arguments."""


DEVICE_OF_MODEL = _DeviceOfModel()


STOPS = ("detach", "detach_")
"""Calls that stop gradients."""
MOST_STEPS = 60_000
"""Limit of steps: a longer recording loops over the samples of a batch, or does not end."""


class Tape:
    """The steps of one recording of `root`."""

    def __init__(self, root: nn.Module, types: Types) -> None:
        super().__init__()
        self.root, self.types = root, types
        self.steps: list[Step] = []
        self.device = next((t.device for t in (*root.parameters(), *root.buffers())), torch.device("cpu"))
        self._steps: dict[int, tuple[Step, Path]] = {}
        """The step that returned a tensor (by identity), and the path in its value."""
        self._journal: list[tuple[int, tuple[Step, Path] | None]] = []
        """The entries of `_steps` before each change, so that the steps of a failed module can be undone."""
        self._alive: list[Any] = []  # an id tells objects apart only as long as none of them is freed
        self._twins: dict[int, Tensor] = {}
        """Meta tensors that stand for real ones: parameters, and cold tensors that hot values were written into."""
        self._items: dict[tuple[Step, Path], Step] = {}
        self._used: set[int] = set()
        """The memory of cold tensors that hot steps have read."""
        self.names: dict[int, str] = {}
        """The names of the model's tensors, by identity."""
        self.owners: dict[int, nn.Module] = {}
        """The modules of these tensors, by identity of the tensor."""
        self.tensors: dict[str, Tensor] = {}
        """The model's tensors, by name."""
        self.own: dict[str, nn.Module] = {}
        """Leaf modules that the model does not have, by name."""
        for path, module in root.named_modules(remove_duplicate=False):
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and id(tensor) not in self.names:
                        self.names[id(tensor)] = f"{path}.{name}" if path else name
                        self.owners[id(tensor)] = module
                        self.tensors[self.names[id(tensor)]] = tensor
        self._outer = self.gradients = torch.is_grad_enabled()
        """Whether gradients were enabled outside of the model, and whether its code has them enabled now."""
        self._stack: dict[str, Any] = {}
        self._scope = ""

    def is_hot(self, tensor: Tensor) -> bool:
        """Whether the numbers of `tensor` depend on the inputs or on tensors of the model."""
        known = self._steps.get(id(tensor))
        if known is not None:
            return not known[0].cold
        return id(tensor) in self.names or tensor.is_meta

    def has_gradient(self, tensor: Tensor) -> bool:
        """Whether a training step computes a gradient of `tensor`, because it depends on a trained parameter."""
        if id(tensor) not in self._steps:
            return id(tensor) in self.names and tensor.requires_grad
        waiting, seen = [self._steps[id(tensor)][0]], set[Step]()
        while waiting:
            step = waiting.pop()
            if step in seen or not has_gradients(step) or getattr(step.target, "__name__", step.target) in STOPS:
                continue
            if any(one.requires_grad for one in self._parameters(step)):
                return True
            seen.add(step)
            waiting += [leaf for _, leaf in leaves_of((step.args, step.kwargs)) if isinstance(leaf, Step)]
        return False

    def _parameters(self, step: Step) -> Iterable[Tensor]:
        """Return the parameters that a step reads itself."""
        name = str(step.target)
        if step.op == "get_attr":
            return (self.tensors[name],)
        if step.op != "call_module":
            return ()
        return (self.own[name] if name in self.own else self.root.get_submodule(name)).parameters()

    def value_of(self, tensor: Tensor) -> Tensor:
        """Return the meta tensor for `tensor`: itself, or a twin of a real tensor."""
        if id(tensor) in self._twins:
            return self._twins[id(tensor)]
        if tensor.is_meta:
            return tensor
        self._twins[id(tensor)] = to_meta(tensor, self.types if id(tensor) in self.names else {})
        self._alive.append(tensor)
        return self._twins[id(tensor)]

    def _values(self, value: Any) -> Any:
        def meta(path: Path, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.value_of(leaf)
            return torch.device("meta") if isinstance(leaf, torch.device) else leaf

        return map_leaves(value, meta)

    def refs(self, value: Any) -> Any:
        """Return `value` with each tensor replaced by the step that returns it."""

        def ref(path: Path, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.step_of(leaf)
            return DEVICE_OF_MODEL if isinstance(leaf, torch.device) and leaf == self.device else leaf

        return map_leaves(value, ref)

    def step_of(self, tensor: Tensor) -> Step:
        """Return the step whose value is `tensor`."""
        known = self._steps.get(id(tensor))
        step, path = (self._unknown(tensor), ()) if known is None else known
        first = step
        for length in range(1, len(path) + 1):
            step = self._item(first, path[:length], step)
        return self._detached(step) if self._without_gradients and has_gradients(step) else step

    @property
    def _without_gradients(self) -> bool:
        """Whether forward is in a part that runs without gradients."""
        return self._outer and not torch.is_grad_enabled()

    def _unknown(self, tensor: Tensor) -> Step:
        """Record a tensor that no step returned: a tensor of the model, or from before the recording."""
        if tensor.is_meta and id(tensor) not in self.names:
            raise CaptureError("a tensor was made by code other than torch functions (scripted code, or C++)")
        if id(tensor) in self.names:
            step = Step("get_attr", self.names[id(tensor)], value=self.value_of(tensor))
            step.scope = self._scope
        else:
            step = Step("given", tensor, value=tensor)
        self.append(step)
        self.bind(tensor, step)
        return step

    def _item(self, source: Step, path: Path, owner: Step) -> Step:
        """Return the step that reads a part of the value of another step."""
        if (source, path) not in self._items:
            last, function = path[-1], operator.getitem
            if isinstance(last, Attribute):
                last, function = last.name, getattr  # type: ignore[assignment]
            step = Step(
                "call_function", function, (owner, last), {}, at(source.value, path), source.stack, source.scope
            )
            step.line, step.grad = source.line, source.grad
            if source.cold:
                step.op, step.target = "cold", function
            self._items[source, path] = self.append(step)
        return self._items[source, path]

    def _detached(self, step: Step) -> Step:
        """Return the detached value of a step, for a call without gradients: the same memory, but no backward."""
        if (step, ("detached",)) not in self._items:
            value = step.value.detach() if isinstance(step.value, Tensor) else step.value
            made = Step("call_method", "detach", (step,), {}, value, self._stack, self._scope, step.line)
            made.grad = False
            self._items[step, ("detached",)] = self.append(made)
        return self._items[step, ("detached",)]

    def _step(self, op: str, target: Any, args: Any, kwargs: Any) -> Step:
        """Return a step at the current place, with references to earlier steps as arguments."""
        refs, named = self.refs((args, kwargs))
        cold = [one for one in tensors_of((args, kwargs)) if not self.is_hot(one)]
        self._used.update(one.untyped_storage()._cdata for one in cold)
        grad = not self._without_gradients
        return Step(op, target, refs, named, None, self._stack, self._scope, user_line(), grad)

    def append(self, step: Step) -> Step:
        """Append a step.

        Raises:
            CaptureError: The recording is too long.
        """
        step.index = len(self.steps)
        self.steps.append(step)
        if len(self.steps) > MOST_STEPS:
            raise CaptureError(
                f"forward makes more than {MOST_STEPS} calls: if it loops over samples or pixels, "
                "compute on whole tensors"
            )
        return step

    def _undo(self, mark: int) -> None:
        """Undo the entries of `_steps` since the journal had `mark` entries."""
        while len(self._journal) > mark:
            key, before = self._journal.pop()
            if before is None:
                del self._steps[key]
            else:
                self._steps[key] = before

    def bind(self, tensor: Tensor, step: Step, path: Path = ()) -> None:
        """Note that `step` returns `tensor`, at `path` in its value."""
        self._journal.append((id(tensor), self._steps.get(id(tensor))))
        self._steps[id(tensor)] = step, path
        self._alive.append(tensor)
