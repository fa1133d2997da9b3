"""Run a model once on meta tensors and record every call of a torch function on them; there are no proxies.

A *hot* tensor depends on the inputs or on tensors of the model. It is on the meta device, so that its numbers cannot be
read. A *cold* tensor (a table made by `arange`, a mask by size) does not depend on them. It is computed for real, at
once, and the calls that made it are kept as its recipe, in case it turns out to depend on the size of an input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnas.passes.errors import CaptureError, Diagnostic
from bnas.passes.generators import put_back, python_numbers
from bnas.passes.ops.aten import in_python
from bnas.passes.ops.calls import NORM_OF_RANK, form_of
from bnas.passes.ops.casts import typed
from bnas.passes.ops.record import Layer
from bnas.passes.ops.statistics import taken_apart

from .attention import DECOMPOSED
from .exported.modules import Exports
from .exported.program import ExportedModel
from .functions import DEVICE, FILLED, LIKES, RANDOM, READS, Types, hooked, run_leaf, run_on_meta, spelled, written_by
from .masks import Picks, choose
from .methods import Again, Method, Methods, keeps_values
from .opaque import Draws, draws_itself, run_opaque
from .places import HookSet, ValueRead, described, passing, told, user_frame
from .recipes import TRIAL, Recipes
from .structure import PLAIN, Path, holds_tensors, leaves_of, map_leaves, tensors_of
from .tape import Step


class Recorder(Recipes, TorchFunctionMode):
    """Records the calls of the forward of `root`; the docstring of this module explains how."""

    def __init__(
        self,
        root: nn.Module,
        batch: int,
        modes: Mapping[nn.Module, bool],
        layers: Container[nn.Module] | None,
        hot_lines: set[Any],
        types: Types,
        exports: Exports,
        methods: Methods,
        draws: Draws,
    ) -> None:
        super().__init__(root, types, hot_lines)
        self.methods, self.draws = methods, draws
        if methods.trial:
            self.most_computed = TRIAL
        self.batch, self.modes, self.layers = batch, modes, layers
        self.exports = exports
        self.norms: set[nn.Module] = set()
        """Modules on whose own tensors a batch norm was called, in their own mode."""
        self.autocast = casts(self.device)
        """Whether autocast is on, and for which type, outside of the model."""
        self.active = True
        """Whether calls of modules are recorded now."""
        self.plain: dict[str, type[nn.Module]] = {}
        """Layers of a user's class that compute what a plain layer of this class does."""
        self.diagnostics: list[Diagnostic] = []
        self.paths = {module: name for name, module in root.named_modules()}
        self.picks = Picks(self.is_hot)
        self._forms: dict[nn.Module, Layer | None] = {}
        self._calls: dict[str, int] = {}

    # Calls of torch functions.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a call of a torch function; PyTorch calls this with the recorder switched off."""
        func, args, kwargs = typed(*in_python(func, args, kwargs or {}))
        if func is torch._C._set_grad_enabled:
            self.gradients = bool(args[0])
        name = getattr(func, "__name__", "")
        if name in FILLED and isinstance(
            fill := dict(enumerate(args)).get(FILLED[name], kwargs.get("fill_value")), Tensor
        ):
            return self._filled(func, fill, args, kwargs)
        if name == "__get__":
            return self._attribute(func, args)
        if name == "__set__" and func.__self__.__name__ == "data" and any(map(self.is_hot, tensors_of(args))):
            return self._put_into(args[0], args[1])
        if func is Tensor.type and len(args) + len(kwargs) == 1 and self.is_hot(args[0]):
            return torch.empty(0, dtype=self.value_of(args[0]).dtype, device=self.device).type()
        if (picked := self.picks.taken(func, args)) is not None:
            return picked
        if (put := self.picks.put(func, args)) is not None:
            with self:
                return choose(*put)
        if any(self.is_hot(one) for one in tensors_of((args, kwargs))):
            if (apart := DECOMPOSED.get(func) or taken_apart(func, args, kwargs)) is not None:
                with self:
                    return apart(*args, **kwargs)
            if name in LIKES and not self._large_like(name, args, kwargs):
                return self._cold(func, args, kwargs)
            return self.call(func, args, kwargs)
        if name in RANDOM or (name in LIKES and self._large_like(name, args, kwargs)):
            return self.call(func, args, kwargs)
        if any(one.untyped_storage()._cdata in self._used for one in written_by(*spelled(func, args, kwargs), kwargs)):
            return self.call(func, args, kwargs)  # a hot step has read this memory, so the write must come later
        if self._grows(func, args, kwargs):
            return self.call(func, args, kwargs)
        return self._cold(func, args, kwargs)

    def _filled(self, func: Any, fill: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a factory with a tensor as fill value as zeros plus this tensor: meta tensors have no numbers."""
        zero = torch.zeros((), dtype=fill.dtype).item()
        args = tuple(zero if one is fill else one for one in args)
        kwargs = {name: zero if one is fill else one for name, one in kwargs.items()}
        made = self.__torch_function__(func, (), args, kwargs)
        if fill.is_floating_point() and not made.is_floating_point():
            fill = self.__torch_function__(Tensor.to, (), (fill, made.dtype), {})
        return self.__torch_function__(Tensor.add, (), (made, fill), {})

    def _attribute(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return a property of a tensor: a plain value, or another tensor."""
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
            return bool(tensor.requires_grad) or (self.root.training and self.has_gradient(tensor))
        found = getattr(twin, name)
        return self.call(getattr, (tensor, name), {}) if isinstance(found, Tensor) else found

    def _put_into(self, tensor: Tensor, value: Tensor) -> None:
        """Record ``tensor.data = value`` as a copy into the memory of `tensor`, which graph and model share."""
        ours, theirs = self.value_of(tensor), self.value_of(value)
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            name = self.names.get(id(tensor), "a tensor")
            raise CaptureError(
                f"it gives .data of {name} another shape or type: {tuple(theirs.shape)}, {theirs.dtype} in place of "
                f"{tuple(ours.shape)}, {ours.dtype}"
            )
        with torch.no_grad():
            self.call(Tensor.copy_, (self._attribute(_DATA, (tensor,)), value), {})

    def write_back(self) -> None:
        """Copy into each buffer the tensor that forward put in its place, because the next call reads that tensor.

        A tensor of another shape or type is not copied. If the model reads it again, the comparison with the model
        finds the difference.

        Raises:
            CaptureError: Forward replaced a parameter.
        """
        for name, tensor in self.tensors.items():
            owner, attribute = self.owners[id(tensor)], name.rpartition(".")[2]
            if isinstance(owner, torch.jit.ScriptModule):
                continue  # its code assigns nothing here
            now = owner._parameters.get(attribute) if attribute in owner._parameters else owner._buffers.get(attribute)
            if now is None or now is tensor or self.unseen(self._is_content, tensor, now):
                continue
            if attribute in owner._parameters:
                raise CaptureError(f"forward replaces the parameter {name}: assign to {name}.data instead")
            ours, theirs = self.value_of(tensor), self.value_of(now)
            if (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
                with torch.no_grad():
                    Tensor.copy_(tensor, now)

    def _is_content(self, tensor: Tensor, now: Tensor) -> bool:
        """Whether `now` has the content of `tensor` already, so that nothing must be copied."""
        if not self.is_hot(now):
            return torch.equal(now, tensor) if now.dtype == tensor.dtype and now.shape == tensor.shape else False
        ours, theirs = self.value_of(tensor), self.value_of(now)
        same = ours.untyped_storage()._cdata == theirs.untyped_storage()._cdata
        return same and (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)

    def unseen(self, run: Callable[..., Any], *args: Any) -> Any:
        """Run a function without recording its calls."""
        before, self.active = self.active, False
        try:
            with torch._C.DisableTorchFunction():
                return run(*args)
        finally:
            self.active = before

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call with hot tensors, and return its result on meta tensors."""
        name = getattr(func, "__name__", "")
        if kwargs.get("out") is not None:
            return self._into(func, args, dict(kwargs))
        if name in READS:
            return self._read(name, args)
        if func in GRADIENTS:
            raise CaptureError(
                f"forward computes gradients by {name}: return what is differentiated and call it outside of forward, "
                "or move that code into a submodule of its own: only that part is then kept unchanged"
            )
        if name == "register_hook":
            raise HookSet(
                "forward sets a hook on a gradient (register_hook), and no graph can hold that: change the gradient by "
                "a torch.autograd.Function, or set the hook in a submodule of its own, if x.requires_grad: only that "
                "part is then kept unchanged"
            )
        if name == "retain_grad":
            return None  # only keeps a gradient for inspection; no result depends on it
        if name == "_pack_padded_sequence":
            raise CaptureError(
                "forward packs a sequence by its lengths (pack_padded_sequence), and no graph can hold that: give the "
                "padded tensor to the recurrent layer, and mask what comes out of it by the lengths"
            )
        if self.autocast != casts(self.device):
            raise CaptureError(
                "forward changes torch.autocast: call the model, or its programs, inside of torch.autocast instead, or "
                "convert tensors by .to(dtype)"
            )
        op, target, args = spelled(func, args, kwargs)
        writes = written_by(op, target, args, kwargs)
        for tensor in writes:
            self._warm(tensor)
        layer = self._as_layer(target, args, kwargs)
        if layer is not None:
            return layer
        step = self._step(op, target, args, kwargs)
        result = self._on_meta(step, args, kwargs, partial(run_on_meta, op, target))
        step.writes |= bool(writes)
        if not holds_tensors(result) and not step.writes:
            return result
        return self._keep(step, result, args, kwargs)

    def _into(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call with ``out=`` as the call and a copy into that tensor."""
        out = kwargs.pop("out")
        made = self.__torch_function__(func, (), args, kwargs)
        for target, value in zip(tensors_of(out), tensors_of(made), strict=True):
            if target.shape != value.shape:
                raise CaptureError(f"out= has the shape {tuple(target.shape)}, but the result has {tuple(value.shape)}")
            self.call(Tensor.copy_, (target, value), {})
        return out

    def _keep(self, step: Step, result: Any, args: Any, kwargs: Any) -> Any:
        """Record a step with its result, and return the result for the model."""
        step.value = result
        self.append(step)
        given = {id(self.value_of(one)): one for one in tensors_of((args, kwargs)) if self.is_hot(one)}

        def known(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            source = given.get(id(leaf))
            if source is not None and step.writes:
                self.bind(source, step, path)
                return source
            made = leaf.view_as(leaf) if source is not None or id(leaf) in self._steps else leaf
            self.bind(made, step, path)
            return made

        if not holds_tensors(result):
            return result
        shown = map_leaves(result, known)
        if isinstance(result, Tensor) and shown is not result and not step.writes:
            step.value = shown
        return shown

    def _read(self, name: str, args: Any) -> bool:
        """Return the value at which a check of values passes, and leave the check out; refuse other reads."""
        tensor = args[0]
        owner = self.names.get(id(tensor))
        frame = user_frame() if name == "__bool__" else None
        answer = None if frame is None else passing(frame)
        if answer is None or frame is None:
            what = f"the tensor {owner!r} of the model" if owner else "a tensor that depends on the inputs"
            raise ValueRead(f"it reads values of {what} in Python (by {name.strip('_')})")
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        left_out = Diagnostic(self._scope or "the model", f"a check of tensor values is left out: {where}")
        if left_out not in self.diagnostics:
            self.diagnostics.append(left_out)
        return answer

    # Calls of modules.

    def call_module(self, module: nn.Module, args: Any, kwargs: Any, run: Callable[..., Any]) -> Any:
        """Record ``module(...)``; `run` is the call itself, with hooks."""
        path = self.paths.get(module)
        if path is None or not self.active:
            return run(*args, **kwargs)
        if kwargs and not hooked(module) and not _takes(module, args, kwargs):
            return run(*args, **kwargs)  # raises Python's own error, which models expect that try a keyword
        if type(module) is nn.Identity and not hooked(module):
            return args[0] if args else kwargs["input"]
        form = self._form(module) if path else None  # a graph calls no root: a model that is one layer is its function
        if form is not None and not hooked(module) and self._is_leaf(module, form, args, kwargs):
            return self._inside(module, path, partial(self.unseen, self.leaf, module, form, path, args, kwargs))
        if path in self.methods.opaque:
            return self.unseen(self._opaque, module, path, args, kwargs, CaptureError(PREPARES))
        mark, written, drawn = len(self.steps), len(self._journal), python_numbers()
        program = self.exports.program(module, args, kwargs)
        if program is not None:
            run = partial(self._replay_program, program, path)
        try:
            result = self._inside(module, path, lambda: run(*args, **kwargs))
            if python_numbers() != drawn and self.unseen(self._draws, module, args, kwargs):
                raise CaptureError(DRAWS)
            self._note_returned(result, path)
            return result
        except RecursionError:
            raise  # every alternative would call at least as many functions
        except Exception as error:
            if self.methods.trial:
                raise
            if self.unseen(self.methods.find, self.paths, error) is not None:
                raise Again(error) from error
            if not path:
                raise
            del self.steps[mark:]
            self._undo(written)
            self._items = {key: step for key, step in self._items.items() if step.index < mark}
            # An export leaves hooks out, and takes very long where a method reads values.
            if not (isinstance(error, HookSet) or self.methods.tried_in(path)):
                self.exports.ask(module, args, kwargs)
            return self.unseen(self._opaque, module, path, args, kwargs, described(module, path, error))
        finally:
            put_back(drawn)

    def _replay_program(self, program: ExportedModel, path: str, *args: Any, **kwargs: Any) -> Any:
        """Record the program of a module in place of its forward."""
        inside, known = self._last_call(path), set(self.paths.values())

        def within(calls: Mapping[str, str]) -> AbstractContextManager[None]:
            inner = {f"{inside}.{call}": f"{path}.{at}" for call, at in calls.items()}
            return self.within({call: at for call, at in inner.items() if at in known})

        result = program.run(args, kwargs, within)
        told = "captured by torch.export, without its assertions about values: its forward cannot be recorded"
        self.diagnostics.append(Diagnostic(path, told))
        return result

    def _note_returned(self, result: Any, path: str) -> None:
        """Note which call of a module returned a tensor, because hooks on the module see this value."""
        known = self._steps.get(id(result)) if isinstance(result, Tensor) else None
        if known is not None and not known[1] and path:
            call = self._last_call(path)
            if call in known[0].stack:  # else the tensor was made elsewhere and only passed on
                known[0].returned = (*known[0].returned, call)

    def _form(self, module: nn.Module) -> Layer | None:
        if module not in self._forms:
            self._forms[module] = self.unseen(form_of, module)
        return self._forms[module]

    def _inside(self, module: nn.Module, path: str, run: Callable[[], Any]) -> Any:
        """Run a function as part of a call of a module."""
        if not path:
            return run()
        self._calls[path] = self._calls.get(path, 0) + 1
        with self.within({self._last_call(path): path}, type(module)):
            return run()

    @contextmanager
    def within(self, calls: Mapping[str, str], kind: type[nn.Module] | None = None) -> Iterator[None]:
        """Inside, recorded calls belong to these calls of modules: names and paths, outermost first.

        Their class is `kind`; if it is unknown, as in an exported program, the class of the model is noted.
        """
        stack, scope, kind = self._stack, self._scope, kind or type(self.root)
        self._stack = {**stack, **{call: (path, kind) for call, path in calls.items()}}
        self._scope = list(calls.values())[-1] if calls else scope
        try:
            yield
        finally:
            self._stack, self._scope = stack, scope

    def _last_call(self, path: str) -> str:
        """Return the name of the last call of a module, as in torch.fx: numbered from the second call on."""
        count = self._calls[path] - 1
        return f"{path}@{count}" if count else path

    def _is_leaf(self, module: nn.Module, form: Layer, args: Any, kwargs: Any) -> bool:
        """Whether a call can be recorded as a layer: it has its own tensors, the mode of the model, and hot inputs."""
        for name in form.tensors:
            tensor = getattr(module, name, None)
            if tensor is not None and module._parameters.get(name) is None and module._buffers.get(name) is None:
                return False
            if tensor is not None and id(tensor) not in self.names:
                return False
        if form.tensors and self._without_gradients:
            return False  # its tensors get no gradients there: record its function, on detached tensors
        if not self.modes.get(module, True) and has_modes(module):
            return False  # its user keeps it in evaluation mode: record its function, with this flag
        return bool(form.tensors) or any(self.is_hot(one) for one in tensors_of((args, kwargs)))

    def leaf(self, module: nn.Module, form: Layer | None, path: str, args: Any, kwargs: Any) -> Any:
        """Record the call of a layer as one step."""
        step = self._step("call_module", path, args, kwargs)
        result = self._on_meta(step, args, kwargs, partial(run_leaf, module, form, types=self.types))
        if isinstance(result, Tensor):
            step.returned = (self._last_call(path),)
        step.writes |= getattr(module, "inplace", False) is True
        return self._keep(step, result, args, kwargs)

    def _on_meta(self, step: Step, args: Any, kwargs: Any, run: Callable[[Any, Any], Any]) -> Any:
        """Return the result of a step on meta tensors, and note in the step whether it wrote into any of them."""
        values, named = self._values((args, kwargs))
        before = [(one, one._version) for one in tensors_of((values, named))]
        with torch.no_grad():
            result = run(values, named)
        step.writes = any(one._version != version for one, version in before)
        return result

    def call_own(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Record the call of a new leaf module, which belongs to the graph and not to the model."""
        name = f"_{type(module).__name__.lower()}_{len(self.own)}"
        self.own[name] = module

        def run() -> Any:
            with torch.set_grad_enabled(self.gradients):  # PyTorch calls the forward of an autograd function without
                return self.leaf(module, None, name, args, kwargs)

        return self._inside(module, name, partial(self.unseen, run))

    def _as_layer(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Record a batch norm on the tensors of one module as a call of this module in the form of a plain layer."""
        if target is not F.batch_norm or self._without_gradients:
            return None
        given = dict(zip(BATCH_NORM, args, strict=False))
        given |= kwargs
        mean = given.get("running_mean")
        owner = self.owners.get(id(mean)) if mean is not None else None
        if owner is None or not _is_its_own(owner, given, self.names) or not self.paths.get(owner):
            return None  # tensors of no module, of several, or of the root, which a graph cannot call
        training = bool(given.get("training", False))
        if training != bool(owner.training) or not self.modes.get(owner, True):
            return None
        if training and given.get("momentum", 0.1) != owner.momentum:
            return None
        if self.layers is not None and owner not in self.layers:
            return None  # in training mode it is called differently
        self.norms.add(owner)
        self._forget_counter(owner)
        path, kind = self.paths[owner], NORM_OF_RANK.get(given["input"].ndim, nn.BatchNorm2d)
        self.plain[path] = kind
        step = self._step("call_module", path, (given["input"],), {})
        with torch.no_grad():
            result = torch.empty_like(self.value_of(given["input"]))
        return self._keep(step, result, (given["input"],), {})

    def _forget_counter(self, owner: nn.Module) -> None:
        """Forget steps that count the batches, because the layer itself counts them."""
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

    def _draws(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        values, named = self._values((args, kwargs))
        return draws_itself(module, values, named, self.batch, self.device)

    def _opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, reason: CaptureError) -> Any:
        """Record the call of a module whose inside cannot be recorded as one step; the module stays unchanged."""
        if (kind := _foreign((args, kwargs))) is not None:
            raise CaptureError(f"{reason}; and it is called with an object of the class {kind}") from reason
        step = self._inside(module, path, lambda: self._step("call_module", path, args, kwargs))
        values, named = self._values((args, kwargs))
        try:
            result = run_opaque(module, values, named, self.batch, self.device, self.draws, training=module.training)
        except Exception as inner:
            raise reason from inner
        self.diagnostics.append(Diagnostic(path, f"opaque, its inputs and outputs are rigid: {reason}"))
        return self._keep(step, result, args, kwargs)

    def call_method(
        self, key: tuple[str, str], method: Method, before: Mapping[str, Any], args: Any, kwargs: Any
    ) -> Any:
        """Record the call of an opaque method as one step; `before` has the earlier attributes of its module.

        Raises:
            Again: The method cannot be one step.
        """
        if why := self.unseen(keeps_values, method.holder, before, self):
            self._refuse_method(key, why)
        if (kind := _foreign((args, kwargs))) is not None:
            self._refuse_method(key, f"it is called with an object of the class {kind}")
        name = self._name_of_method(method)
        return self._inside(
            method.layer, name, partial(self.unseen, self._method_step, key, method, name, args, kwargs)
        )

    def _method_step(self, key: tuple[str, str], method: Method, name: str, args: Any, kwargs: Any) -> Any:
        step = self._step("call_module", name, args, kwargs)
        values, named = self._values((args, kwargs))
        mode = method.holder.training
        try:
            result = run_opaque(
                method.layer, values, named, self.batch, self.device, self.draws, training=mode, pure=True
            )
        except Exception as error:
            self._refuse_method(key, told(error))
        return self._keep(step, result, args, kwargs)

    def _name_of_method(self, method: Method) -> str:
        """Return the name of the layer that calls an opaque method; all calls share one layer."""
        for name, module in self.own.items():
            if module is method.layer:
                return name
        name = f"_opaque_{len(self.own)}_{method.name}"
        self.own[name] = method.layer
        what = f"an opaque method, its inputs and outputs are rigid: it cannot be recorded, {method.why}"
        self.diagnostics.append(Diagnostic(method.layer.place, what))
        return name

    def _refuse_method(self, key: tuple[str, str], why: str) -> NoReturn:
        self.methods.refuse(key, why)
        raise Again


def _takes(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether the forward of a module accepts these arguments."""
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


GRADIENTS = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})
"""Functions that compute gradients."""


def casts(device: torch.device) -> torch.dtype | None:
    """Return the type that autocast converts to on a device; None if it is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _foreign(value: Any) -> str | None:
    """Return the name of the class of an argument that is neither a tensor nor a plain value, or None."""
    leaves = (leaf for _, leaf in leaves_of(value))
    return next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, slice, *PLAIN))), None)


DRAWS = (
    "it draws numbers from Python's random or from numpy.random, which the graph would draw only once. Draw them with "
    "torch, as torch.rand(()), or move that code into a submodule of its own: only that part is then kept unchanged"
)
"""Reason why a forward that draws numbers outside of torch cannot be recorded."""


PREPARES = "it prepares inputs for a model with an opaque method, using numbers that depend on the sizes of the inputs"
"""Reason why a module is opaque although it could be recorded."""

_DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]
"""Reads ``tensor.data``."""

BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""The parameters of `torch.nn.functional.batch_norm`."""

MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.dropout._DropoutNd)


def has_modes(module: nn.Module) -> bool:
    """Whether a layer computes different results in training and evaluation mode."""
    return isinstance(module, MODAL)


def _is_its_own(owner: nn.Module, given: Mapping[str, Any], names: Container[int]) -> bool:
    """Whether a batch norm is called on the statistics, weight, bias and settings of `owner`.

    `names` has the identities of the model's tensors: ``torch.func.functional_call`` puts others in their place.
    """
    if not isinstance(owner, nn.modules.batchnorm._BatchNorm):
        return False
    tables: dict[str, Any] = {**owner._parameters, **owner._buffers}
    tensors = [(tables.get(name), given.get(name)) for name in BATCH_NORM[1:5]]
    same = all(own is one and (one is None or id(one) in names) for own, one in tensors)
    return same and getattr(owner, "eps", None) == given.get("eps", 1e-5)


def _reads(argument: Any, tensor: Tensor, recorder: Recorder) -> bool:
    return isinstance(argument, Step) and argument.op == "get_attr" and argument.target == recorder.names[id(tensor)]
