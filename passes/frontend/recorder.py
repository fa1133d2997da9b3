"""Runs a model once on meta tensors and notes every torch function that touches one: nothing pretends to be a tensor.

A *hot* tensor depends on the inputs or on tensors of the model and lives on the meta device, so that nobody can read
its numbers. A *cold* one does not (tables made by `arange`, masks by size): it is computed for real, at once, and the
calls that made it are noted as its recipe, for the case that it turns out to depend on the size of an input.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnas.passes.calls import DROPOUTS, ModuleForm, form_of, settings_of
from bnas.passes.errors import CaptureError, Diagnostic

from .spelling import DEVICE, LIKES, RANDOM, READS, spelled
from .structure import Attribute, Leaf, Path, at, holds_tensors, leaves_of, map_leaves, tensors_of

BATCH = 1009
"""The size of the batch axis in the graph's values: a prime, so that views of it are taken apart in one way only."""

LARGE = 1 << 22
"""A cold tensor of more entries is not computed for real: it is hot from the beginning."""

MOST_STEPS = 60_000
"""A recording that gets longer runs in a loop over the samples of a batch, or does not end."""


@dataclass(eq=False, slots=True)
class Step(Leaf):
    """One call that was noted: what a node of the graph will be."""

    op: str
    """As in torch.fx; "cold" for a call that was computed for real, "given" for a tensor that was there before."""
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    """What it gave: meta tensors, or real ones where it is cold."""
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


def inner_of(model: nn.Module) -> nn.Module:
    """The module that a wrapper runs: that behind ``torch.compile``, which computes the same."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) and type(model).__name__ == "OptimizedModule" else model


class ValueRead(CaptureError):
    """Forward asks for the numbers of a tensor that depends on the inputs."""


class Recorder(TorchFunctionMode):
    """Notes what the forward of `root` calls; see the text of this module."""

    def __init__(
        self, root: nn.Module, batch: int, modes: Mapping[nn.Module, bool], layers: Container[nn.Module] | None
    ) -> None:
        super().__init__()
        self.root, self.batch, self.modes, self.layers = root, batch, modes, layers
        self.norms: set[nn.Module] = set()
        """Modules whose own tensors a batch norm was called on in their own mode."""
        self.active = True
        """Whether calls of modules are recorded now."""
        self.steps: list[Step] = []
        self.own: dict[str, nn.Module] = {}
        """Leaf modules that the model does not have, by name."""
        self.plain: dict[str, type[nn.Module]] = {}
        """Layers of a user's class that compute what a plain layer of this class does."""
        self.diagnostics: list[Diagnostic] = []
        self.device = next((t.device for t in (*root.parameters(), *root.buffers())), torch.device("cpu"))
        self._steps: dict[int, tuple[Step, Path]] = {}
        """The step that gave a tensor (by identity), and where in its value."""
        self._alive: list[Any] = []  # an id tells objects apart only as long as none of them is freed
        self._twins: dict[int, Tensor] = {}
        """Meta tensors that stand for real ones: parameters, and cold tensors that hot values were written into."""
        self._items: dict[tuple[Step, Path], Step] = {}
        self._cold_made: set[int] = set()
        self._used: set[int] = set()
        """The memory of cold tensors that hot steps read."""
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors that were there before and are written into, with what they held."""
        self.paths = {module: name for name, module in root.named_modules()}
        self.names: dict[int, str] = {}
        self.owners: dict[int, nn.Module] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and id(tensor) not in self.names:
                        self.names[id(tensor)] = f"{path}.{name}" if path else name
                        self.owners[id(tensor)] = module
                        self._alive.append(tensor)
        self._forms: dict[nn.Module, ModuleForm | None] = {}
        self._calls: dict[str, int] = {}
        self._stack: dict[str, Any] = {}
        self._scope = ""
        self._depth = 0

    # What a model calls -----------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch while the recorder is active, with the recorder itself switched off."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args)
        if any(self.is_hot(one) for one in tensors_of((args, kwargs))):
            if name in LIKES and not self._large_like(name, args, kwargs):
                return self._cold(func, args, kwargs)
            return self.call(func, args, kwargs)
        if name in RANDOM or (name in LIKES and self._large_like(name, args, kwargs)):
            return self.call(func, args, kwargs)
        if any(
            one.untyped_storage()._cdata in self._used for one in self._writes(*spelled(func, args, kwargs), kwargs)
        ):
            return self.call(func, args, kwargs)  # a hot step has read it before: the write must come after that
        return self._cold(func, args, kwargs)

    def _attribute(self, func: Any, args: tuple[Any, ...]) -> Any:
        """A property of a tensor: a plain value, or another tensor."""
        tensor, name = args[0], func.__self__.__name__
        if not self.is_hot(tensor):
            if name in DEVICE:
                return func(*args)
            found = func(*args)
            return self._noted_cold(getattr, (tensor, name), {}, found) if isinstance(found, Tensor) else found
        if name == "device":
            return self.device
        if name in DEVICE:
            return getattr(torch.empty(0, device=self.device), name)
        if name in ("grad", "grad_fn", "_grad"):
            return None
        twin = self.value_of(tensor)
        if name == "requires_grad":
            return bool(tensor.requires_grad)
        found = getattr(twin, name)
        return self.call(getattr, (tensor, name), {}) if isinstance(found, Tensor) else found

    def unseen(self, run: Callable[..., Any], *args: Any) -> Any:
        """Run something that is not recorded: what the recorder itself calls is no part of the model."""
        before, self.active = self.active, False
        try:
            with torch._C.DisableTorchFunction():
                return run(*args)
        finally:
            self.active = before

    def is_hot(self, tensor: Tensor) -> bool:
        """Whether the numbers of `tensor` depend on the inputs or on tensors of the model."""
        known = self._steps.get(id(tensor))
        if known is not None:
            return not known[0].cold
        return id(tensor) in self.names or tensor.is_meta

    def value_of(self, tensor: Tensor) -> Tensor:
        """The meta tensor that `tensor` stands for: itself, unless it is a real one."""
        if id(tensor) in self._twins:
            return self._twins[id(tensor)]
        if tensor.is_meta:
            return tensor
        self._twins[id(tensor)] = to_meta(tensor)
        self._alive.append(tensor)
        return self._twins[id(tensor)]

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note a call with hot tensors, and give its result on meta tensors."""
        name = getattr(func, "__name__", "")
        if kwargs.get("out") is not None:
            return self._into(func, args, dict(kwargs))
        if name in READS:
            self._refuse_to_read(name, args)
        op, target, args = spelled(func, args, kwargs)
        writes = self._writes(op, target, args, kwargs)
        for tensor in writes:
            self._warm(tensor)
        layer = self._as_layer(target, args, kwargs)
        if layer is not None:
            return layer
        step = self._step(op, target, args, kwargs)
        values, named = self._values((args, kwargs))
        before = [(one, one._version) for one in tensors_of((values, named))]
        with torch.no_grad():
            result = run_on_meta(op, target, values, named)
        step.writes = bool(writes) or any(one._version != version for one, version in before)
        if not holds_tensors(result) and not step.writes:
            return result
        return self._keep(step, result, args, kwargs)

    def _into(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that writes its result into ``out=``: the call, and a copy into that."""
        out = kwargs.pop("out")
        made = self.__torch_function__(func, (), args, kwargs)
        for target, value in zip(tensors_of(out), tensors_of(made), strict=True):
            if target.shape != value.shape:
                raise CaptureError(
                    f"out= has the shape {tuple(target.shape)}, and what is written {tuple(value.shape)}"
                )
            self.call(Tensor.copy_, (target, value), {})
        return out

    def _writes(self, op: str, target: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """The tensors that a call says it writes into."""
        name = target if op == "call_method" else getattr(target, "__name__", "")
        found = tensors_of(kwargs["out"]) if kwargs.get("out") is not None else []
        inplace = kwargs.get("inplace") is True or target is operator.setitem
        if inplace or (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS:
            found = [*found, *tensors_of(args[:1])]
        return found

    def _keep(self, step: Step, result: Any, args: Any, kwargs: Any) -> Any:
        """Note a step with its result; the result as the model is to see it."""
        step.value = result
        self._append(step)
        given = {id(self.value_of(one)): one for one in tensors_of((args, kwargs)) if self.is_hot(one)}

        def known(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            source = given.get(id(leaf))
            if source is not None and step.writes:
                self._bind(source, step, path)
                return source
            made = leaf.view_as(leaf) if source is not None or id(leaf) in self._steps else leaf
            self._bind(made, step, path)
            return made

        if not holds_tensors(result):
            return result
        shown = map_leaves(result, known)
        if isinstance(result, Tensor) and shown is not result and not step.writes:
            step.value = shown
        return shown

    def _step(self, op: str, target: Any, args: Any, kwargs: Any) -> Step:
        """A step of the moment: where it is called, on references to earlier steps."""
        refs, named = self.refs((args, kwargs))
        cold = [one for one in tensors_of((args, kwargs)) if not self.is_hot(one)]
        self._used.update(one.untyped_storage()._cdata for one in cold)
        grad = torch.is_grad_enabled()
        return Step(op, target, refs, named, None, self._stack, self._scope, _line(), grad)

    def _append(self, step: Step) -> Step:
        step.index = len(self.steps)
        self.steps.append(step)
        if len(self.steps) > MOST_STEPS:
            raise CaptureError(f"forward makes more than {MOST_STEPS} calls: a loop over the samples of a batch?")
        return step

    def _bind(self, tensor: Tensor, step: Step, path: Path = ()) -> None:
        self._steps[id(tensor)] = step, path
        self._alive.append(tensor)

    # References and values --------------------------------------------------------------------------------------

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
        if known is None:
            return self._unknown(tensor)
        step, path = known
        for length in range(1, len(path) + 1):
            step = self._item(known[0], path[:length], step)
        if torch.is_grad_enabled() and not step.grad and step.op in ("call_function", "call_method", "call_module"):
            return self._detached(step)
        return step

    def _unknown(self, tensor: Tensor) -> Step:
        """A tensor that no step gave: of the model, or there before."""
        if tensor.is_meta and id(tensor) not in self.names:
            raise CaptureError("a tensor was made by code that is no torch function (a scripted one, or C++)")
        if id(tensor) in self.names:
            step = Step("get_attr", self.names[id(tensor)], value=self.value_of(tensor))
            step.scope = self._scope
        else:
            step = Step("given", tensor, value=tensor)
        self._append(step)
        self._bind(tensor, step)
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
            self._items[source, path] = self._append(step)
        return self._items[source, path]

    def _detached(self, step: Step) -> Step:
        """What was computed without gradients is a constant for those who compute with them."""
        if (step, ("detached",)) not in self._items:
            made = Step("call_method", "detach", (step,), {}, step.value, step.stack, step.scope, step.line)
            self._items[step, ("detached",)] = self._append(made)
        return self._items[step, ("detached",)]

    def _values(self, value: Any) -> Any:
        def meta(path: Path, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.value_of(leaf)
            return torch.device("meta") if isinstance(leaf, torch.device) else leaf

        return map_leaves(value, meta)

    def _refuse_to_read(self, name: str, args: Any) -> None:
        tensor = args[0]
        owner = self.names.get(id(tensor))
        what = f"the tensor {owner!r} of the model" if owner else "a tensor that depends on the inputs"
        raise ValueRead(f"it reads the numbers of {what} (by {name.strip('_')})")

    # Cold tensors -----------------------------------------------------------------------------------------------

    def _large_like(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a factory makes a tensor that is too large to be computed for real."""
        first = args[0] if args else kwargs.get("size", kwargs.get("input"))
        if name.endswith("_like") and isinstance(first, Tensor):
            return first.numel() > LARGE
        sizes = [leaf for _, leaf in leaves_of((args, kwargs)) if type(leaf) is int and leaf > 0]
        total = 1
        for size in sizes:
            total *= size
        return name not in ("tensor", "arange") and total > LARGE

    def _cold(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute a call for real, and note it as a part of a recipe."""
        op, target, plain = spelled(func, args, kwargs)
        writes = self._writes(op, target, plain, kwargs)
        for tensor in writes:
            self._remember(tensor)
        real = map_leaves((args, kwargs), lambda _, leaf: self._real_like(leaf))
        result = func(*real[0], **real[1])
        return self._noted_cold(target, plain, kwargs, result, op, bool(writes))

    def _real_like(self, leaf: Any) -> Any:
        """A real tensor of the type and shape of a hot one, whose numbers nobody may need."""
        if not isinstance(leaf, Tensor) or not self.is_hot(leaf):
            return leaf
        return torch.zeros((), dtype=leaf.dtype, device=self.device).expand(leaf.shape)

    def _noted_cold(
        self, target: Any, args: Any, kwargs: Any, result: Any, op: str = "call_function", writes: bool = False
    ) -> Any:
        if not holds_tensors(result) and not writes:
            return result
        refs, named = self.refs((args, kwargs))
        step = Step("cold", (op, target), refs, named, result, self._stack, self._scope, _line(), writes=writes)
        self._append(step)
        for path, leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                self._cold_made.add(leaf.untyped_storage()._cdata)
                self._bind(leaf, step, path)
        return result

    def _remember(self, tensor: Tensor) -> None:
        """Keep what a tensor holds that was there before and is written into."""
        memory = tensor.untyped_storage()._cdata
        if memory not in self._cold_made and memory not in self._before:
            self._before[memory] = tensor, tensor.detach().clone()

    def give_back(self) -> None:
        """Undo what was written into tensors that were there before."""
        with torch.no_grad():
            for tensor, value in self._before.values():
                tensor.detach().copy_(value)

    def _warm(self, tensor: Tensor) -> None:
        """Make a cold tensor hot, since a hot value is written into it: its recipe is run again on meta tensors."""
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
        """A tensor that was there before is copied in every forward: what is written stays out of the original."""
        step = Step("call_method", "clone", (self.step_of(tensor),), {}, to_meta(tensor), self._stack, self._scope)
        step.line = _line()
        self._append(step)
        self._twins[id(tensor)] = step.value
        self._bind(tensor, step)

    def _replay(self, step: Step) -> None:
        """The calls of a recipe as calls on meta tensors; the real tensors stand for their results from now on."""
        op, target = step.target
        made = Step(op, target, step.args, step.kwargs, None, step.stack, step.scope, step.line)
        made.args, made.kwargs = map_leaves(
            (step.args, step.kwargs), lambda _, leaf: self._warmed.get(leaf, leaf) if isinstance(leaf, Step) else leaf
        )
        values, named = map_leaves((made.args, made.kwargs), lambda _, leaf: self._meta_of(leaf))
        with torch.no_grad():
            made.value = run_on_meta(op, target, values, named)
        made.writes = step.writes
        self._append(made)
        self._warmed[step] = made
        for path, leaf in leaves_of(step.value):
            if isinstance(leaf, Tensor):
                self._twins[id(leaf)] = at(made.value, path)
                self._bind(leaf, made, path)

    @property
    def _warmed(self) -> dict[Step, Step]:
        """Cold steps that became hot ones."""
        return self.__dict__.setdefault("_warm_steps", {})

    def _meta_of(self, leaf: Any) -> Any:
        if isinstance(leaf, Step):
            return map_leaves(leaf.value, lambda _, one: to_meta(one) if isinstance(one, Tensor) else one)
        return torch.device("meta") if leaf is DEVICE_OF_MODEL or isinstance(leaf, torch.device) else leaf

    # Modules ----------------------------------------------------------------------------------------------------

    def call_module(self, module: nn.Module, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        """Called in place of ``module(...)``; `run` is the call itself, hooks and all."""
        path = self.paths.get(module)
        if path is None or not self.active:
            return run(*args, **kwargs)
        if type(module) is nn.Identity and not _hooked(module):
            return args[0] if args else kwargs["input"]
        form = self._form(module) if path else None  # a graph calls no root: a model that is one layer is its function
        if form is not None and not _hooked(module) and self._is_leaf(module, form, args, kwargs):
            return self._inside(module, path, partial(self.unseen, self.leaf, module, form, path, args, kwargs))
        mark, stack, scope = len(self.steps), self._stack, self._scope
        known = dict(self._steps)
        try:
            result = self._inside(module, path, lambda: run(*args, **kwargs))
            self._note_returned(result, path)
            return result
        except Exception as error:
            if not path:
                raise
            self._stack, self._scope = stack, scope
            del self.steps[mark:]
            self._steps = known
            self._items = {key: step for key, step in self._items.items() if step.index < mark}
            return self.unseen(self._opaque, module, path, args, kwargs, error)

    def _note_returned(self, result: Any, path: str) -> None:
        """Note that a call of a module returned one tensor: hooks on the module see its value."""
        known = self._steps.get(id(result)) if isinstance(result, Tensor) else None
        if known is not None and not known[1] and path:
            count = self._calls[path] - 1
            call = f"{path}@{count}" if count else path
            if call in known[0].stack:  # else it was made elsewhere, and handed on here
                known[0].returned = (*known[0].returned, call)

    def _form(self, module: nn.Module) -> ModuleForm | None:
        if module not in self._forms:
            self._forms[module] = self.unseen(form_of, module)
        return self._forms[module]  # type: ignore[no-any-return]

    def _inside(self, module: nn.Module, path: str, run: Callable[[], Any]) -> Any:
        """Run something as a part of the call of a module."""
        if not path:
            return run()
        count = self._calls.get(path, 0)
        self._calls[path] = count + 1
        stack, scope = self._stack, self._scope
        call = f"{path}@{count}" if count else path
        self._stack, self._scope = {**stack, call: (path, type(module))}, path
        try:
            return run()
        finally:
            self._stack, self._scope = stack, scope

    def _is_leaf(self, module: nn.Module, form: ModuleForm, args: Any, kwargs: Any) -> bool:
        """Whether a layer is itself: its tensors are its own, its mode follows the model's, and it gets hot tensors."""
        for name in form.tensors:
            tensor = getattr(module, name, None)
            if tensor is not None and module._parameters.get(name) is None and module._buffers.get(name) is None:
                return False
            if tensor is not None and id(tensor) not in self.names:
                return False
        if not self.modes.get(module, True) and has_modes(module):
            return False  # its user keeps it in evaluation mode: its function is noted, with that flag
        return bool(form.tensors) or any(self.is_hot(one) for one in tensors_of((args, kwargs)))

    def leaf(
        self, module: nn.Module, form: ModuleForm | None, path: str, args: Any, kwargs: Any, inplace: bool = False
    ) -> Any:
        """Note the call of a layer as one step."""
        step = self._step("call_module", path, args, kwargs)
        values, named = self._values((args, kwargs))
        before = [(one, one._version) for one in tensors_of((values, named))]
        with torch.no_grad():
            result = run_leaf(module, form, values, named)
        inplace = inplace or getattr(module, "inplace", False) is True
        if path in self._calls and isinstance(result, Tensor):
            count = self._calls[path] - 1
            step.returned = (f"{path}@{count}" if count else path,)
        step.writes = inplace or any(one._version != version for one, version in before)
        return self._keep(step, result, args, kwargs)

    def add_module(self, module: nn.Module) -> str:
        """The name of a new leaf module that belongs to the graph and not to the model."""
        name = f"_{type(module).__name__.lower()}_{len(self.own)}"
        self.own[name] = module
        return name

    def call_own(self, module: nn.Module, args: Any, kwargs: Any, form: ModuleForm | None = None) -> Any:
        """Note the call of a new leaf module."""
        name = self.add_module(module)
        return self._inside(module, name, partial(self.unseen, self.leaf, module, form, name, args, kwargs))

    def _as_layer(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The call of a batch norm on the tensors of one module, as that module in the form of a plain layer."""
        if target is not F.batch_norm:
            return None
        given = dict(zip(BATCH_NORM_ARGUMENTS, args, strict=False))
        given |= kwargs
        mean = given.get("running_mean")
        owner = self.owners.get(id(mean)) if mean is not None else None
        if owner is None or not _is_its_own(owner, given) or not self.paths.get(owner):
            return None  # of nobody, of several, or of the root, which a graph cannot call
        training = bool(given.get("training", False))
        if training != bool(owner.training) or not self.modes.get(owner, True):
            return None
        if training and given.get("momentum", 0.1) != owner.momentum:
            return None
        if self.layers is not None and owner not in self.layers:
            return None  # in training it is called in another way
        self.norms.add(owner)
        self._forget_counter(owner)
        path, kind = self.paths[owner], LAYER_OF_RANK.get(given["input"].ndim, nn.BatchNorm2d)
        self.plain[path] = kind
        step = self._step("call_module", path, (given["input"],), {})
        with torch.no_grad():
            result = torch.empty_like(self.value_of(given["input"]))
        return self._keep(step, result, (given["input"],), {})

    def _forget_counter(self, owner: nn.Module) -> None:
        """The number of batches is counted by the layer itself."""
        counter = owner._buffers.get("num_batches_tracked")
        if counter is None:
            return
        mine = [
            s for s in self.steps if s.writes and s.op == "call_method" and s.args and _reads(s.args[0], counter, self)
        ]
        read = {step.args[0] for step in mine}
        for step in [*mine, *read]:
            step.op, step.target, step.args, step.writes = "nothing", None, (), False
        if mine:
            self._steps.pop(id(counter), None)

    def _opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        """Note the call of a module that cannot be recorded as one step: all of it stays as it is."""
        from .opaque import run_opaque

        reason = described(module, path, error)
        step = self._inside(module, path, lambda: self._step("call_module", path, args, kwargs))
        values, named = self._values((args, kwargs))
        try:
            result = run_opaque(module, values, named, self.batch, self.device)
        except Exception as inner:
            raise reason from inner
        self.diagnostics.append(Diagnostic(path, f"opaque, its inputs and outputs are rigid: {reason}"))
        return self._keep(step, result, args, kwargs)


@dataclass(frozen=True)
class _DeviceOfModel(Leaf):
    """Stands among arguments for the device that the model is on."""


DEVICE_OF_MODEL = _DeviceOfModel()

IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"})

LAYER_OF_RANK: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

BATCH_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""Those of `F.batch_norm`, in order."""

MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.dropout._DropoutNd)


def has_modes(module: nn.Module) -> bool:
    """Whether a layer computes something else in training than in evaluation."""
    return isinstance(module, MODAL)


def to_meta(value: Any) -> Any:
    """A meta tensor of the shape, strides and type of a real one; anything else as it is."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def run_on_meta(op: str, target: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call on meta tensors; moves to another device stay on the meta device."""
    if op == "call_method":
        if target in ("cpu", "cuda"):
            return args[0]
        if target == "to":
            args = tuple("meta" if isinstance(one, str) else one for one in args)
            kwargs = {**kwargs, **({"device": "meta"} if kwargs.get("device") is not None else {})}
        elif str(target).startswith("new_") and "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        return getattr(args[0], target)(*args[1:], **kwargs)
    if getattr(target, "__name__", "") in LIKES and target is not getattr:
        kwargs = {**kwargs, "device": "meta"}
    return target(*args, **kwargs)


def run_leaf(module: nn.Module, form: ModuleForm | None, args: Any, kwargs: Any) -> Any:
    """The result of a layer in evaluation mode on meta tensors, its own tensors being meta tensors too."""
    if form is None:
        return module(*args, **kwargs)
    tensors = {name: to_meta(getattr(module, name)) for name in form.tensors}
    settings = {name: value for name, value in settings_of(module, form).items() if name != "padding_mode"}
    if form.op is F.batch_norm:
        settings["training"] = tensors["running_mean"] is None
    elif form.op in DROPOUTS:  # in evaluation mode they hand on their input itself: its memory is then shared
        settings["training"] = False
    return form.op(*args, **tensors, **settings, **kwargs)  # type: ignore[operator]


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or getattr(module, "_backward_hooks", None)
        or getattr(module, "_backward_pre_hooks", None)
    )


def _touches(step: Step, memory: int) -> bool:
    """Whether a cold step made, viewed or wrote into a memory."""
    written = [leaf.value for _, leaf in leaves_of(step.args) if isinstance(leaf, Step)] if step.writes else []
    return any(one.untyped_storage()._cdata == memory for one in tensors_of((step.value, written)))


def _is_its_own(owner: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a batch norm is called on the statistics, weight, bias and settings of `owner`."""
    if not isinstance(owner, nn.modules.batchnorm._BatchNorm):
        return False
    tables: dict[str, Any] = {**owner._parameters, **owner._buffers}
    same = all(tables.get(name) is given.get(name) for name in ("running_mean", "running_var", "weight", "bias"))
    return same and getattr(owner, "eps", None) == given.get("eps", 1e-5)


def _reads(argument: Any, tensor: Tensor, recorder: Recorder) -> bool:
    return isinstance(argument, Step) and argument.op == "get_attr" and argument.target == recorder.names[id(tensor)]


_OURS = (f"{FilePath(torch.__file__).parent}/", f"{FilePath(__file__).parents[1]}/")


def _line() -> tuple[str, int] | None:
    """File and line of the innermost frame that is neither torch's nor ours."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<"):
            return name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def described(module: nn.Module, path: str, error: BaseException) -> CaptureError:
    """The error that a module cannot be captured: where, what came, and what to do."""
    if isinstance(error, CaptureError) and error.__cause__ is not None:
        return error
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_OURS) and not f.filename.startswith("<")]
    line = f", {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    where = f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    told = str(error) if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}"
    made = CaptureError(f"cannot capture {where}{line}: {told}{remedy(error)}")
    made.__cause__ = error
    return made


def remedy(error: BaseException) -> str:
    """What to do about an error of a forward, where that is known."""
    text = str(error)
    if isinstance(error, ValueRead) or "meta tensor" in text or "data-independent" in text:
        return (
            ". Code that depends on the values of tensors belongs in a submodule of its own, which then stays rigid "
            "while the rest becomes elastic"
        )
    if isinstance(error, CaptureError):
        return ""
    return ". Call the model on the example inputs yourself: they may not be what its forward takes"
