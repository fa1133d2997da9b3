"""Torch functions: their spelling in a graph, and their results on meta tensors."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.ops.calls import MadeOnMeta, is_in_place, settings_of
from bnas.passes.ops.record import Layer, Trait
from bnas.passes.ops.registry import OPERATORS
from bnas.passes.ops.shapes import like, quick

from .structure import map_leaves, tensors_of

# The spelling of recorded torch functions in a graph: methods by name, operators as Python operators.

DEVICE = frozenset({"device", "is_cuda", "is_cpu", "is_mps", "is_meta", "is_xpu"})
"""Properties of a tensor that tell where it is."""

FACTORIES = frozenset(
    {
        *("zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "tensor", "as_tensor"),
        *("hann_window", "hamming_window", "scalar_tensor", "empty_strided", "tril_indices", "triu_indices"),
    }
)
LIKES = FACTORIES | {
    *("zeros_like", "ones_like", "full_like", "empty_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
}
"""Functions that make a tensor by size and type: of a tensor that they are given they read no number."""

FILLED = {"full": 1, "full_like": 1, "new_full": 2}
"""Those of them that fill it with a number, and the place of that among the arguments: it may be in a tensor."""

RANDOM = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
        *("rand_like", "randn_like", "randint_like", "dropout", "alpha_dropout", "feature_dropout"),
        *("feature_alpha_dropout", "rrelu", "binomial", "_standard_gamma", "_sample_dirichlet"),
        *("bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
    }
)
"""Random functions, which are never computed in advance."""

WITHOUT_META = (torch.binomial, torch._sample_dirichlet)
"""Random functions that PyTorch cannot run on meta tensors; their results have the shape of their first argument."""

READS = frozenset(
    {
        *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__"),
        *("__array__", "__contains__", "__format__", "__repr__", "equal", "allclose", "is_nonzero", "_is_all_true"),
    }
)
"""Functions that hand numbers of a tensor to Python."""

_REVERSED = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
    "__rand__": operator.and_,
    "__ror__": operator.or_,
    "__rxor__": operator.xor,
}

_OPERATORS = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__add__": operator.add,
    "__sub__": operator.sub,
    "__mul__": operator.mul,
    "__truediv__": operator.truediv,
    "__div__": operator.truediv,
    "__floordiv__": operator.floordiv,
    "__mod__": operator.mod,
    "__pow__": operator.pow,
    "__matmul__": operator.matmul,
    "__neg__": operator.neg,
    "__invert__": operator.invert,
    "__abs__": operator.abs,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__eq__": operator.eq,
    "__ne__": operator.ne,
    "__lt__": operator.lt,
    "__le__": operator.le,
    "__gt__": operator.gt,
    "__ge__": operator.ge,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
}


def spelled(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Any, tuple[Any, ...]]:
    """The kind of a node, its target and its arguments, for a torch function called with `args` and `kwargs`."""
    name = getattr(func, "__name__", "")
    if func is getattr:
        return "call_function", getattr, args
    if name in _REVERSED:
        return "call_function", _REVERSED[name], (args[1], args[0])
    if name in _OPERATORS:
        return "call_function", _OPERATORS[name], args
    if _is_method(func, name):
        plain = _python_operator(name) if len(args) <= 2 and not kwargs else None
        return ("call_method", name, args) if plain is None else ("call_function", plain, args)
    if OPERATORS.canonical(func) is torch.cat:
        return "call_function", torch.cat, _without_empty(args)
    return "call_function", _in_functional(func), args


@lru_cache(maxsize=1024)
def _python_operator(name: str) -> Any:
    """The operator of Python that a method such as ``add`` is written as; None if there is none, or if it writes."""
    if is_in_place(name):
        return None
    record = OPERATORS.of(name)
    return next((one for one in record.spellings if getattr(one, "__module__", "") == "_operator"), None)


def _in_functional(func: Any) -> Any:
    """A pool of torch that has a function of the same name in `torch.nn.functional`, which takes layers' settings."""
    record = OPERATORS.of(func)
    return record.op if func is not record.op and record.has(Trait.POOL) else func


def _without_empty(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of `torch.cat` without ``torch.tensor([])``, which it takes beside tensors of any rank and ignores.

    Caches of keys and values begin with one. It has no axes that fit the others'. One of another type stays, since it
    takes part in the type of the result.
    """
    parts = args[0] if args else ()
    if not isinstance(parts, list | tuple) or not all(isinstance(one, Tensor) for one in parts):
        return args
    full = [one for one in parts if one.dim() != 1]
    if not full or any(one.dtype != full[0].dtype for one in parts):
        return args
    return (type(parts)(full), *args[1:])


def _is_method(func: Any, name: str) -> bool:
    """Whether a function is one of `torch.Tensor`'s methods, and none of torch's own functions."""
    found = getattr(Tensor, name, None)
    if found is None or isinstance(func, type):
        return False
    if found is func or getattr(func, "__objclass__", None) is torch._C.TensorBase:
        return True
    return str(getattr(func, "__qualname__", "")).startswith(("Tensor.", "TensorBase."))


def written_by(op: str, target: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a call says it writes into."""
    name = target if op == "call_method" else getattr(target, "__name__", "")
    found = tensors_of(kwargs["out"]) if kwargs.get("out") is not None else []
    inplace = kwargs.get("inplace") is True or target is operator.setitem
    if inplace or is_in_place(name):
        found = [*found, *tensors_of(args[:1])]
    return found


# Arguments that say no more than a default does are left out.


def without_defaults(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that have the default anyway: functions of torch state all of them."""
    defaults = _defaults(function) if kwargs and not isinstance(function, str | tuple) else {}
    return {
        name: value
        for name, value in kwargs.items()
        if name != "_stacklevel"
        and not (name in defaults and type(value) is type(defaults[name]) and value == defaults[name])
    }


@lru_cache(maxsize=1024)
def _defaults(function: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (bool, int, float, str, type(None))
    return {one.name: one.default for one in parameters if isinstance(one.default, plain)}


# Layers and functions on meta tensors, which have shapes and types and no numbers.

BATCH = 1009
"""The size of the batch axis in the graph's values: a prime, so that views of it are taken apart in one way only."""


Types = Mapping[torch.dtype, torch.dtype]
"""Replacements of number types in a recording."""


def to_meta(value: Any, types: Types = MappingProxyType({})) -> Any:
    """A meta tensor of the shape, strides and type of a real one; anything else as it is."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    dtype = types.get(value.dtype, value.dtype)
    return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device="meta")


def as_meta(value: Any) -> Any:
    """A nested value with meta tensors for real ones."""
    return map_leaves(value, lambda _, leaf: to_meta(leaf))


def run_on_meta(op: str, target: Any, args: Any, kwargs: Any) -> Any:
    """The result of a call on meta tensors; moves to another device stay on the meta device."""
    found = quick_call(op, target, args, kwargs)
    if found is not None:
        return found
    if op == "call_method":
        if target in ("cpu", "cuda"):
            return args[0]
        if target == "to":
            args = tuple("meta" if isinstance(one, str) else one for one in args)
            kwargs = {**kwargs, **({"device": "meta"} if kwargs.get("device") is not None else {})}
        elif str(target).startswith("new_") and "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        return getattr(args[0], target)(*args[1:], **kwargs)
    if target in WITHOUT_META:
        return torch.empty_like(args[0])
    if getattr(target, "__name__", "") in LIKES and target is not getattr:
        kwargs = {**kwargs, "device": "meta"}
    return target(*args, **kwargs)


def hooked(module: nn.Module) -> bool:
    """Whether a user's code runs when a module is called: hooks, or a forward that replaces that of its class."""
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or getattr(module, "_backward_hooks", None)
        or getattr(module, "_backward_pre_hooks", None)
    )


def run_leaf(module: nn.Module, form: Layer | None, args: Any, kwargs: Any, types: Types = MappingProxyType({})) -> Any:
    """The result of a layer in evaluation mode on meta tensors, its own tensors being meta tensors too."""
    if form is None:
        with MadeOnMeta():  # type: ignore[no-untyped-call]
            return module(*args, **kwargs)
    found = quick_leaf(module, form, args, kwargs, types)
    if found is not None:
        return found
    record, settings = OPERATORS.of(form.op), settings_of(module, form)
    settings.pop("padding_mode", None)
    tensors = {name: to_meta(getattr(module, name), types) for name in form.tensors}
    if form.op is F.batch_norm:
        settings |= {"training": tensors["running_mean"] is None, "momentum": 0.0}  # which may be None in a module
    elif record.trained is not None:  # in evaluation mode they hand on their input itself: its memory is then shared
        settings["training"] = False
    return form.op(*args, **tensors, **settings, **kwargs)


def quick_call(op: str, target: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The result of a function that its record gives without running it; None where PyTorch is to compute it."""
    if op != "call_function" or any(one is True for one in args):  # a True may say that the call writes in place
        return None
    record = OPERATORS.of(target)
    return None if record.shape is None or OPERATORS.writes(target) else quick(record, args, kwargs)


def quick_leaf(
    module: nn.Module, form: Layer, args: Any, kwargs: Any, types: Types = MappingProxyType({})
) -> Tensor | None:
    """The result of a layer that its record gives without running it; None where PyTorch is to compute it."""
    record = OPERATORS.of(form.op)
    if not args or not isinstance(args[0], Tensor):
        return None
    if record.has(Trait.HANDS_ON):
        return args[0]
    if record.shape is None:
        return None
    kwargs = {**settings_of(module, form), **kwargs}
    if kwargs.get("inplace"):
        return args[0].zero_() if record.shape is like else None
    tensors = {name: getattr(module, name) for name in form.tensors}
    if types:  # else of the tensors only shape and type are read
        tensors = {name: to_meta(value, types) for name, value in tensors.items()}
    return quick(record, args, {**tensors, **kwargs})
