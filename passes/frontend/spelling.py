"""How torch functions that a recorder sees are spelled in a graph: methods by name, operators as in Python."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bnas.passes.ops.calls import is_in_place
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS

from .structure import tensors_of

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

RANDOM = frozenset(
    {
        *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
        *("rand_like", "randn_like", "randint_like", "dropout", "alpha_dropout", "feature_dropout"),
        *("bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
    }
)
"""Functions that give other numbers at every call: never computed ahead."""

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


@cache
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
