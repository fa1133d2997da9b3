"""What is changed in PyTorch while a model is recorded, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from bnas.passes.attention import DECOMPOSITIONS

from .exported import ExportedModel
from .on_meta import hooked
from .own_layers import CustomFunction
from .recorder import Recorder
from .structure import tensors_of

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that call another one on several devices or in several processes: the other one is what is captured."""


def inner_of(model: nn.Module) -> nn.Module:
    """The module that a wrapper runs: that behind ``torch.compile``, which computes the same."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) and type(model).__name__ == "OptimizedModule" else model


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """While it lasts, calls of modules, functions of torch and custom autograd functions go through `recorder`.

    Libraries that ask hear that the model is being exported, so that they skip checks of values, and PyTorch's fused
    path of encoders is off: it knows no axes. All of it is put back at the end.
    """
    owner = next(one for one in torch.autograd.Function.__mro__ if "apply" in vars(one))
    apply, call = vars(owner)["apply"], nn.Module.__call__

    def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not recorder.active:
            return call(module, *args, **kwargs)
        if isinstance(module, WRAPPERS):
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
            return args[0](*args[2:])  # checkpointing changes when something is computed, not what
        if not recorder.active or not any(recorder.is_hot(one) for one in tensors_of(args)):
            return apply.__get__(None, cls)(*args, **kwargs)
        return recorder.call_own(CustomFunction(cls), args, kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "__call__", module_call))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(function_apply)))
        for flag in ("_is_compiling_flag", "_is_exporting_flag"):
            if hasattr(torch.compiler, flag):
                stack.enter_context(mock.patch.object(torch.compiler, flag, True))
        # Distributions check their arguments by value, unless they are told not to.
        stack.enter_context(mock.patch.object(torch.distributions.Distribution, "_validate_args", False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(recorder)
        yield


def _scripted(*args: Any, **kwargs: Any) -> Tensor:
    raise TypeError("it is scripted: its code runs outside of Python")
