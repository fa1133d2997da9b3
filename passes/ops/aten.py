"""ATen operators, of which exported programs consist, as the Python functions that call them.

The general rule is by the schema of an operator: a Python function of `torch.nn.functional` gets its arguments by
name, a method or function from C++ gets them as the operator does. The table has those with another name or other
arguments. An operator that neither has stays what it is: axis rules do not know it, so all its axes are rigid.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from .record import AtenRule, Spelled
from .registry import OPERATORS


def in_python(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Spelled:
    """Return `func` and its arguments; for an ATen operator, the equivalent Python function.

    The arguments may be tensors or nodes of a graph: nothing is read from them.
    """
    if not isinstance(func, OpOverload) or func.namespace != "aten":
        return func, args, dict(kwargs)
    name = func.overloadpacket.__name__
    special = renamed(nothing) if name in CHECKS else OPERATORS.aten(name)
    found = special(**arguments(func, args, kwargs)) if special is not None else None
    found = found or _functional(func, name, args, kwargs)
    if found is not None:
        return found
    target = _from_cpp(name, func._schema.arguments[0].name if func._schema.arguments else "")
    return (func, args, dict(kwargs)) if target is None else (target, args, _stated(func, kwargs))


def arguments(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operator by the names of its schema, with defaults."""
    schema = func._schema.arguments
    given = dict(zip((one.name for one in schema), args, strict=False)) | dict(kwargs)
    return {one.name: given.get(one.name, one.default_value) for one in schema}


def _stated(func: OpOverload, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that say something: no defaults of the operator, and how memory is laid out."""
    defaults = {one.name: one.default_value for one in func._schema.arguments}
    said = {name: value for name, value in kwargs.items() if not same(value, defaults[name])}
    plain = {"pin_memory": False, "layout": torch.strided}
    return {name: value for name, value in said.items() if name not in plain or value != plain[name]}


def same(value: Any, other: Any) -> bool:
    """Whether two arguments are equal and not tensors."""
    return not isinstance(value, Tensor | Node) and type(value) is type(other) and value == other


RENAMED = {"self": "input", "train": "training"}
"""Names of arguments in the schemas that are others in Python."""

IGNORED = frozenset({"cudnn_enabled", "cudnn_enable"})
"""Arguments that Python functions do not have: which library computes a norm."""

OWN = frozenset({"inplace", "_stacklevel"})
"""Arguments that only Python functions have; their defaults are what the operators do."""


def _functional(func: OpOverload, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Spelled | None:
    """Return the call of the function of this name in `torch.nn.functional`; None if it has other arguments."""
    function, inplace = getattr(F, name, None), False
    if function is None and name.endswith("_"):
        function, inplace = getattr(F, name.removesuffix("_"), None), True
    known = parameters(function) if inspect.isfunction(function) else {}
    if not known or (inplace and "inplace" not in known):
        return None
    named = {RENAMED.get(key, key): value for key, value in arguments(func, args, kwargs).items()}
    first = next(iter(named))
    defaults = {RENAMED.get(one.name, one.name): one.default_value for one in func._schema.arguments}
    lost = [key for key in named if key not in known and key not in IGNORED and not same(named[key], defaults[key])]
    if lost or first not in known or set(known) - set(named) - OWN:
        return None
    stated = {key: value for key, value in named.items() if key in known and not same(value, known[key].default)}
    value = stated.pop(first)
    return function, (value,), stated | ({"inplace": True} if inplace else {})


@lru_cache(maxsize=1024)
def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a Python function by name; none if it accepts any arguments."""
    found = inspect.signature(function).parameters
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {} if any(one.kind in free for one in found.values()) else found


METHODS = frozenset({"split", "unflatten", "norm"})
"""Methods written in Python that take the arguments of their operators."""

PREFIXES = {"linalg_": torch.linalg, "special_": torch.special, "fft_": torch.fft}
"""Modules of functions, by what the names of their operators begin with."""


@lru_cache(maxsize=1024)
def _from_cpp(name: str, first: str) -> Any:
    """Return the method or function from C++ for the operator `name`; its arguments are those of the schema."""
    method = getattr(Tensor, name, None)
    if first == "self" and (inspect.ismethoddescriptor(method) or name in METHODS):
        return method
    for prefix, module in PREFIXES.items():
        if name.startswith(prefix) and hasattr(module, name.removeprefix(prefix)):
            return getattr(module, name.removeprefix(prefix))
    owners = (torch, torch._C._nn, torch._C._VariableFunctions)
    found = (getattr(owner, name, None) for owner in owners)
    return next((one for one in found if inspect.isbuiltin(one)), None)


def renamed(function: Any) -> AtenRule:
    """`function` with the same arguments, by position."""
    return lambda **named: (function, tuple(named.values()), {})


def nothing(*_: Any, **__: Any) -> None:
    """Replaces checks of tensor types and of ranges of sizes in exported programs."""


CHECKS = frozenset(
    {
        *("_assert_tensor_metadata", "_assert_scalar", "_assert_async"),
        *("sym_constrain_range", "sym_constrain_range_for_size"),
    }
)
"""Operators that compute nothing."""
