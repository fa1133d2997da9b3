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
    """As in torch.fx; "cold" for a call that was computed for real, "given" for a tensor that was there before."""
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    """The result: with meta tensors, or with real ones if the step is cold."""
    stack: Mapping[str, Any] = field(default_factory=dict)
    """The calls of modules around it, as torch.fx notes them."""
    scope: str = ""
    line: tuple[str, int] | None = None
    """File and line of the user's code."""
    grad: bool = True
    """Whether gradients were enabled."""
    index: int = -1
    writes: bool = False
    returned: tuple[str, ...] = ()
    """The calls of modules that returned its value, from the innermost."""

    @property
    def cold(self) -> bool:
        """Whether its value does not depend on inputs and tensors of the model."""
        return self.op in ("cold", "given")

    def place(self) -> str:
        """Where it is in the user's code, for messages."""
        where = f"{self.line[0]}:{self.line[1]}" if self.line else "forward"
        return f"{where}, in module {self.scope!r}" if self.scope else where


def has_gradients(step: Step) -> bool:
    """Whether gradients may go back through a step."""
    if step.op == "get_attr":
        return True
    return step.grad and step.op in ("call_function", "call_method", "call_module") and isinstance(step.value, Tensor)


@dataclass(frozen=True)
class _DeviceOfModel(Leaf):
    """Stands among arguments for the device that the model is on."""


DEVICE_OF_MODEL = _DeviceOfModel()


STOPS = ("detach", "detach_")
"""Calls that no gradient passes."""
MOST_STEPS = 60_000
"""A recording that gets longer runs in a loop over the samples of a batch, or does not end."""


class Tape:
    """The steps of one recording of `root`."""

    def __init__(self, root: nn.Module, types: Types) -> None:
        super().__init__()
        self.root, self.types = root, types
        self.steps: list[Step] = []
        self.device = next((t.device for t in (*root.parameters(), *root.buffers())), torch.device("cpu"))
        self._steps: dict[int, tuple[Step, Path]] = {}
        """The step that gave a tensor (by identity), and where in its value."""
        self._journal: list[tuple[int, tuple[Step, Path] | None]] = []
        """What `_steps` had before each change, so that a module that fails is undone."""
        self._alive: list[Any] = []  # an id tells objects apart only as long as none of them is freed
        self._twins: dict[int, Tensor] = {}
        """Meta tensors that stand for real ones: parameters, and cold tensors that hot values were written into."""
        self._items: dict[tuple[Step, Path], Step] = {}
        self._used: set[int] = set()
        """The memory of cold tensors that hot steps read."""
        self.names: dict[int, str] = {}
        """The names of the model's tensors, by identity."""
        self.owners: dict[int, nn.Module] = {}
        """The modules that have them."""
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
        """Whether gradients were enabled outside of the model, and are inside, as its code says."""
        self._stack: dict[str, Any] = {}
        self._scope = ""

    def is_hot(self, tensor: Tensor) -> bool:
        """Whether the numbers of `tensor` depend on the inputs or on tensors of the model."""
        known = self._steps.get(id(tensor))
        if known is not None:
            return not known[0].cold
        return id(tensor) in self.names or tensor.is_meta

    def has_gradient(self, tensor: Tensor) -> bool:
        """Whether a training step computes a gradient of `tensor`: a parameter that is trained leads to it."""
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
        """The parameters that a step reads by itself."""
        name = str(step.target)
        if step.op == "get_attr":
            return (self.tensors[name],)
        if step.op != "call_module":
            return ()
        return (self.own[name] if name in self.own else self.root.get_submodule(name)).parameters()

    def value_of(self, tensor: Tensor) -> Tensor:
        """The meta tensor that `tensor` stands for: itself, unless it is a real one."""
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
        """`value` with the step that gives it in place of every tensor."""

        def ref(path: Path, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.step_of(leaf)
            return DEVICE_OF_MODEL if isinstance(leaf, torch.device) and leaf == self.device else leaf

        return map_leaves(value, ref)

    def step_of(self, tensor: Tensor) -> Step:
        """The step whose value is `tensor`."""
        known = self._steps.get(id(tensor))
        step, path = (self._unknown(tensor), ()) if known is None else known
        first = step
        for length in range(1, len(path) + 1):
            step = self._item(first, path[:length], step)
        return self._detached(step) if self._without_gradients and has_gradients(step) else step

    @property
    def _without_gradients(self) -> bool:
        """Whether forward is in a part that it runs without gradients."""
        return self._outer and not torch.is_grad_enabled()

    def _unknown(self, tensor: Tensor) -> Step:
        """A tensor that no step gave: of the model, or there before."""
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
        """The step that takes a part of the value of another."""
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
        """What is computed without gradients takes its inputs detached: the same memory, and nothing to go back to."""
        if (step, ("detached",)) not in self._items:
            value = step.value.detach() if isinstance(step.value, Tensor) else step.value
            made = Step("call_method", "detach", (step,), {}, value, self._stack, self._scope, step.line)
            made.grad = False
            self._items[step, ("detached",)] = self.append(made)
        return self._items[step, ("detached",)]

    def _step(self, op: str, target: Any, args: Any, kwargs: Any) -> Step:
        """A step of the moment: where it is called, on references to earlier steps."""
        refs, named = self.refs((args, kwargs))
        cold = [one for one in tensors_of((args, kwargs)) if not self.is_hot(one)]
        self._used.update(one.untyped_storage()._cdata for one in cold)
        grad = not self._without_gradients
        return Step(op, target, refs, named, None, self._stack, self._scope, user_line(), grad)

    def append(self, step: Step) -> Step:
        """Note a step after all others."""
        step.index = len(self.steps)
        self.steps.append(step)
        if len(self.steps) > MOST_STEPS:
            raise CaptureError(
                f"forward makes more than {MOST_STEPS} calls: if it loops over samples or pixels, "
                "compute on whole tensors"
            )
        return step

    def _undo(self, mark: int) -> None:
        """Forget which steps gave which tensors since the journal had `mark` entries."""
        while len(self._journal) > mark:
            key, before = self._journal.pop()
            if before is None:
                del self._steps[key]
            else:
                self._steps[key] = before

    def bind(self, tensor: Tensor, step: Step, path: Path = ()) -> None:
        """From now on `step` gives `tensor`, at `path` in its value."""
        self._journal.append((id(tensor), self._steps.get(id(tensor))))
        self._steps[id(tensor)] = step, path
        self._alive.append(tensor)
