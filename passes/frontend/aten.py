"""ATen operators as the Python functions that call them: exported programs are made of these operators.

The general rule is by the schema of an operator: a Python function of `torch.nn.functional` gets its arguments by
name, a method or function from C++ gets them as the operator does. The table has those with another name or other
arguments. An operator that neither has stays what it is: axis rules do not know it, so all its axes are rigid.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

Spelled = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A function with its positional and keyword arguments."""


def in_python(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Spelled:
    """`func` and its arguments; for an ATen operator the Python function that does the same.

    The arguments may be tensors or nodes of a graph: nothing is read from them.
    """
    if not isinstance(func, OpOverload) or func.namespace != "aten":
        return func, args, dict(kwargs)
    name = func.overloadpacket.__name__
    special = SPECIAL.get(name)
    found = special(**arguments(func, args, kwargs)) if special is not None else None
    found = found or _functional(func, name, args, kwargs)
    if found is not None:
        return found
    target = _from_cpp(name, func._schema.arguments[0].name if func._schema.arguments else "")
    return (func, args, dict(kwargs)) if target is None else (target, args, _stated(func, kwargs))


def arguments(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by the names of its schema, with its defaults."""
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
    """Whether two arguments are equal and no tensors."""
    return not isinstance(value, Tensor | Node) and type(value) is type(other) and value == other


RENAMED = {"self": "input", "train": "training"}
"""Names of arguments in the schemas that are others in Python."""

IGNORED = frozenset({"cudnn_enabled", "cudnn_enable"})
"""Arguments that Python functions do not have: which library computes a norm."""

OWN = frozenset({"inplace", "_stacklevel"})
"""Arguments that only Python functions have; their defaults are what the operators do."""


def _functional(func: OpOverload, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Spelled | None:
    """The call of a Python function of `torch.nn.functional`, by name; None where its arguments are others."""
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


@cache
def parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a Python function by name; none where it takes any."""
    found = inspect.signature(function).parameters
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {} if any(one.kind in free for one in found.values()) else found


METHODS = frozenset({"split", "unflatten", "norm"})
"""Methods written in Python that take the arguments of their operators."""

PREFIXES = {"linalg_": torch.linalg, "special_": torch.special, "fft_": torch.fft}
"""Modules of functions, by what the names of their operators begin with."""


@cache
def _from_cpp(name: str, first: str) -> Any:
    """The method or function from C++ that is the operator `name`: its arguments are those of the schema."""
    method = getattr(Tensor, name, None)
    if first == "self" and (inspect.ismethoddescriptor(method) or name in METHODS):
        return method
    for prefix, module in PREFIXES.items():
        if name.startswith(prefix) and hasattr(module, name.removeprefix(prefix)):
            return getattr(module, name.removeprefix(prefix))
    owners = (torch, torch._C._nn, torch._C._VariableFunctions)
    found = (getattr(owner, name, None) for owner in owners)
    return next((one for one in found if inspect.isbuiltin(one)), None)


# Operators with another name or other arguments in Python -----------------------------------------------------------


def nothing(*_: Any, **__: Any) -> None:
    """In place of a check that exported programs make, of the types of tensors or of the ranges of sizes."""


def _slice(self: Any, dim: int, start: Any, end: Any, step: int) -> Spelled:
    end = None if isinstance(end, int) and end == sys.maxsize else end
    start = None if isinstance(start, int) and start == 0 else start
    part = slice(start, end, None if step == 1 else step)
    before, after = (dim, 0) if dim >= 0 else (0, -dim - 1)
    places = ((slice(None),) * before, (Ellipsis,) * (dim < 0), (part,), (slice(None),) * after)
    return Tensor.__getitem__, (self, sum(places, ())), {}


def _index(self: Any, indices: Any) -> Spelled:
    return Tensor.__getitem__, (self, tuple(slice(None) if one is None else one for one in indices)), {}


def _embedding(weight: Any, indices: Any, padding_idx: int, scale_grad_by_freq: bool, sparse: bool) -> Spelled:
    settings: dict[str, Any] = {} if padding_idx < 0 else {"padding_idx": padding_idx}
    settings |= {"scale_grad_by_freq": True} if scale_grad_by_freq else {}
    return F.embedding, (indices, weight), settings | ({"sparse": True} if sparse else {})


def _to(self: Any, **settings: Any) -> Spelled | None:
    if "other" in settings:
        return Tensor.to, (self, settings["other"]), {}
    layout, memory = settings.get("layout"), settings.get("memory_format")
    if layout not in (None, torch.strided):
        return None
    kept = {name: settings.get(name) for name in ("device", "dtype")} | {"memory_format": memory}
    flags = {name: True for name in ("non_blocking", "copy") if settings.get(name)}
    return Tensor.to, (self,), {name: value for name, value in kept.items() if value is not None} | flags


def _to_copy(self: Any, **settings: Any) -> Spelled | None:
    return _to(self, **settings, copy=True)


def _rsub(self: Any, other: Any, alpha: Any) -> Spelled | None:
    return (Tensor.__rsub__, (self, other), {}) if alpha == 1 else None


def _einsum(equation: str, tensors: Any, path: Any) -> Spelled:
    return torch.einsum, (equation, *tensors), {}


def _meshgrid(tensors: Any, indexing: str = "ij") -> Spelled:
    return torch.meshgrid, tuple(tensors), {"indexing": indexing}


def _feature_dropout(input: Any, p: float, train: bool) -> Spelled | None:
    return None if train else (F.dropout2d, (input, p), {"training": False})


def _resize(mode: str) -> Callable[..., Spelled | None]:
    """`F.interpolate` with `mode`."""

    def spelled(input: Any, output_size: Any = None, scale_factors: Any = None, **settings: Any) -> Spelled | None:
        if output_size is None and scale_factors is None:
            return None
        size = {"size": output_size} if scale_factors is None else {"scale_factor": list(scale_factors)}
        align = {"align_corners": True} if settings.get("align_corners") else {}
        return F.interpolate, (input,), {**size, "mode": mode, **align}

    def by_overload(**settings: Any) -> Spelled | None:
        return None if "self" in settings else spelled(**settings)  # that with the scales of single axes

    return by_overload


def _renamed(function: Any) -> Callable[..., Spelled]:
    """`function` with the same arguments, by position."""
    return lambda **named: (function, tuple(named.values()), {})


SPECIAL: dict[str, Callable[..., Spelled | None]] = {
    "slice": _slice,
    "index": _index,
    "embedding": _embedding,
    "to": _to,
    "_to_copy": _to_copy,
    "rsub": _rsub,
    "einsum": _einsum,
    "meshgrid": _meshgrid,
    "feature_dropout": _feature_dropout,
    "sym_size": _renamed(Tensor.size),
    "sym_numel": _renamed(Tensor.numel),
    "sym_stride": _renamed(Tensor.stride),
    "lift_fresh_copy": _renamed(Tensor.clone),
    "upsample_nearest1d": _resize("nearest"),
    "upsample_nearest2d": _resize("nearest"),
    "upsample_nearest3d": _resize("nearest"),
    "upsample_linear1d": _resize("linear"),
    "upsample_bilinear2d": _resize("bilinear"),
    "upsample_bicubic2d": _resize("bicubic"),
    "upsample_trilinear3d": _resize("trilinear"),
    **dict.fromkeys(("_assert_tensor_metadata", "_assert_scalar", "_assert_async"), _renamed(nothing)),
    **dict.fromkeys(("sym_constrain_range", "sym_constrain_range_for_size"), _renamed(nothing)),
}
"""What operators are in Python, by name; None for an overload that the general rule is for."""
