"""A recording: all calls of a model in one run at given sizes and in a given mode, and its result."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from bnas.passes.alone import unfused
from bnas.passes.errors import CaptureError, Diagnostic
from bnas.passes.ops.calls import CustomFunction

from .attention import DECOMPOSITIONS
from .exported.modules import Exports
from .exported.program import ExportedModel
from .functions import Types, hooked
from .methods import Again, Methods, patched
from .opaque import Draws
from .places import described
from .recorder import Recorder
from .state import ModelState, set_modes
from .structure import PLAIN, Path, at, leaves_of, map_leaves, tensors_of
from .tape import Step

# Temporary changes of PyTorch while a model is recorded.

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that call another module on several devices or in several processes; the other module is captured."""


def inner_of(model: nn.Module) -> nn.Module:
    """Return the module behind ``torch.compile``, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) and type(model).__name__ == "OptimizedModule" else model


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Inside, calls of modules, functions of torch and custom autograd functions go through `recorder`.

    Libraries see that a model is being exported, so that they skip checks of values. PyTorch's fused path of encoders
    is off, because it hides the axes. Everything is restored at the end.
    """
    owner = next(one for one in torch.autograd.Function.__mro__ if "apply" in vars(one))
    apply, call = vars(owner)["apply"], nn.Module.__call__

    def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not recorder.active:
            return call(module, *args, **kwargs)
        if isinstance(module, WRAPPERS) and not hooked(module):
            return module.module(*args, **kwargs)
        if inner_of(module) is not module:
            return inner_of(module)(*args, **kwargs)
        if isinstance(module, torch.jit.ScriptModule):
            return recorder.call_module(module, args, kwargs, _scripted)
        if isinstance(module, ExportedModel):
            return recorder.call_module(module, args, kwargs, lambda *a, **k: module.run(a, k, recorder.within))
        if type(module) in DECOMPOSITIONS and not hooked(module):
            return recorder.call_module(module, args, kwargs, partial(DECOMPOSITIONS[type(module)], module))
        return recorder.call_module(module, args, kwargs, module._call_impl)

    def function_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if issubclass(cls, CheckpointFunction):
            return args[0](*args[2:])  # checkpointing changes when values are computed, not the values
        if not recorder.active or not any(recorder.is_hot(one) for one in tensors_of(args)):
            return apply.__get__(None, cls)(*args, **kwargs)
        return recorder.call_own(CustomFunction(cls), args, kwargs)

    def forward_of(kind: Any) -> Any:
        """Return a patched forward, for code that keeps ``ste = STE.apply`` and so does not see the patched `apply`."""
        forward = kind.forward

        def noted(*args: Any) -> Any:
            inputs = args[1:] if args and isinstance(args[0], FunctionCtx) else args
            if not recorder.active or not any(recorder.is_hot(one) for one in tensors_of(inputs)):
                return forward(*args)
            return recorder.call_own(CustomFunction(kind), inputs, {})

        return staticmethod(noted)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "__call__", module_call))
        for kind in _own_functions(torch.autograd.Function):
            stack.enter_context(mock.patch.object(kind, "forward", forward_of(kind)))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(function_apply)))
        stack.enter_context(exporting())
        # Distributions check the values of their arguments by default.
        stack.enter_context(mock.patch.object(torch.distributions.Distribution, "_validate_args", False))
        stack.enter_context(unfused())
        stack.enter_context(recorder)
        yield


@contextmanager
def exporting() -> Iterator[None]:
    """Inside, PyTorch reports that a model is being exported."""
    with ExitStack() as stack:
        for flag in ("_is_compiling_flag", "_is_exporting_flag"):
            if hasattr(torch.compiler, flag):
                stack.enter_context(mock.patch.object(torch.compiler, flag, True))
        yield


def _own_functions(base: Any) -> Iterator[Any]:
    """Yield the classes of autograd functions that are not PyTorch's own."""
    for kind in base.__subclasses__():
        if kind.__module__.partition(".")[0] != "torch":
            yield kind
        yield from _own_functions(kind)


def _scripted(*args: Any, **kwargs: Any) -> Tensor:
    raise TypeError("it is scripted: its code runs outside of Python")


@dataclass(frozen=True)
class Recording:
    """The calls of a model, in order."""

    steps: Sequence[Step]
    output: Any
    """The result of the model, with steps instead of tensors."""
    dropped: tuple[Path, ...]
    """Parts of the result that a graph cannot return, such as caches; the graph returns None there."""
    own: Mapping[str, nn.Module]
    plain: Mapping[str, type[nn.Module]]
    diagnostics: Sequence[Diagnostic]
    recorder: Recorder
    """Keeps all tensors of the recording alive."""

    @cached_property
    def hot(self) -> list[Step]:
        """The steps that are nodes of the graph."""
        return [step for step in self.steps if not step.cold and step.op != "nothing"]


Shapes = Mapping[Path, tuple[int, ...]]
"""The shape of each tensor among the inputs, by its path in ``(args, kwargs)``."""


def record(
    model: nn.Module,
    state: ModelState,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    names: Mapping[Path, str],
    shapes: Shapes,
    *,
    batch: int,
    training: bool,
    modes: Mapping[nn.Module, bool],
    layers: Container[nn.Module] | None,
    hot_lines: set[Any],
    exports: Exports,
    methods: Methods,
    turn: int,
    types: Types = MappingProxyType({}),
) -> Recording:
    """Run `model` on meta tensors of the given `shapes`, and restore the model with everything that it holds.

    Args:
        model: The model.
        state: The state of the model to restore.
        inputs: Positional and keyword inputs; only types and structure matter.
        names: The placeholder of each argument, by its path.
        shapes: The shape of each tensor among the inputs.
        batch: The size of the batch axis in `shapes`.
        training: Whether the model runs in training mode.
        modes: The mode of each module when the model is in training mode.
        layers: The modules that are batch norms in both modes; None while they are still unknown.
        hot_lines: Lines whose tensors are not computed for real; lines that make very large tensors are added.
        exports: Programs of modules that cannot be recorded; new ones are added.
        methods: Opaque methods; new ones are added.
        turn: The number of these sizes. Numbers that depend on values differ between turns.
        types: Replacements of the number types of the model and of the inputs.

    Raises:
        CaptureError: The model cannot be recorded.
    """

    def answered() -> bool:
        try:
            set_modes(modes, training)
            return exports.answer()
        finally:
            state.restore()

    while True:
        recorder = Recorder(model, batch, modes, layers, hot_lines, types, exports, methods, Draws(turn))
        try:
            found = _recorded(recorder, state, inputs, names, shapes, training)
        except Again as again:
            methods.learn(again.__cause__, recorder.paths, modes)
            continue
        except CaptureError:
            if not answered():
                raise
            continue
        if not answered():
            return found


def _recorded(
    recorder: Recorder,
    state: ModelState,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    names: Mapping[Path, str],
    shapes: Shapes,
    training: bool,
) -> Recording:
    """Run the recorder's model once, and return the recording."""
    model, modes = recorder.root, recorder.modes
    try:
        set_modes(modes, training)
        args, kwargs = _placeholders(recorder, inputs, names, shapes)
        try:
            with recording(recorder), patched(recorder), torch.random.fork_rng(devices=[]):
                result = inner_of(model)(*args, **kwargs)
                recorder.write_back()
                output, dropped = recorder.unseen(_returned, recorder, result)
        except Exception as error:
            raise recorder.methods.explained(described(model, "", error)) from error
    finally:
        recorder.give_back()
        state.restore()
    return Recording(recorder.steps, output, dropped, recorder.own, recorder.plain, recorder.diagnostics, recorder)


def _returned(recorder: Recorder, result: Any) -> tuple[Any, tuple[Path, ...]]:
    """Return a result with steps instead of tensors and None for other objects, and the paths of these objects."""
    dropped: list[Path] = []

    def ref(path: Path, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return recorder.step_of(leaf)
        if isinstance(leaf, PLAIN):
            return leaf
        dropped.append(path)
        return None

    return map_leaves(result, ref), tuple(dropped)


def _placeholders(
    recorder: Recorder, inputs: tuple[tuple[Any, ...], dict[str, Any]], names: Mapping[Path, str], shapes: Shapes
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs with meta tensors, and record a step for each argument that holds one."""

    def meta(path: Path, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        dtype = recorder.types.get(leaf.dtype, leaf.dtype)
        return torch.empty(shapes[path], dtype=dtype, device="meta")

    given: tuple[tuple[Any, ...], dict[str, Any]] = map_leaves(inputs, meta)
    for path, name in names.items():
        value = at(given, path)
        step = recorder.append(Step("placeholder", name, value=value))

        def bind(inner: Path, leaf: Any, step: Step = step) -> Any:
            if isinstance(leaf, Tensor):
                recorder.bind(leaf, step, inner)
            return leaf

        map_leaves(value, bind)
    for _, leaf in leaves_of(given):
        if isinstance(leaf, Tensor):
            recorder.step_of(leaf)
    if not names:
        raise CaptureError(
            "there is no tensor among the example inputs; give a tensor, a tuple of inputs, or a dict of them by name"
        )
    return given


def preparing(recording: Recording) -> frozenset[str]:
    """Return the paths of outermost modules without tensors that process only inputs of the model."""
    root, given, computed = recording.recorder.root, set[Step](), set[Step]()
    inside: dict[str, list[Step]] = {}
    for step in recording.hot:
        operands = {leaf for _, leaf in leaves_of((step.args, step.kwargs)) if isinstance(leaf, Step)}
        if step.op in ("get_attr", "call_module") or operands & computed:
            computed.add(step)
        elif step.op == "placeholder" or operands & given:
            given.add(step)
        inside.setdefault(next(iter(step.stack), "").partition("@")[0], []).append(step)
    alone = [path for path, steps in inside.items() if path and given & set(steps) and not computed & set(steps)]
    modules = {path: root.get_submodule(path) for path in alone}
    return frozenset(path for path, one in modules.items() if not [*one.parameters(), *one.buffers()])
