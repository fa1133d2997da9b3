"""Copies and casts: the same numbers in other memory, with another type or on another device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.builder import onnx_type
from bnas.passes.onnx.site import Site

from .aten import renamed
from .calls import Call, identity
from .record import Layer, OnnxRule, Operator, Sample, Spelled, Target, Trait
from .zeros import keeps


def copied_axes(types: AxisTypes, call: Call) -> Axes:
    """The first operand; another one, as in ``x.type_as(other)``, gives its number type only."""
    return types.type(call.argument(0, "input"))


def cast_onnx(site: Site) -> str:
    """The value in another dtype."""
    return site.emit("Cast", site.x, to=onnx_type(site.result.dtype, site.scope))


def same_onnx(site: Site) -> str:
    """The value itself, because ONNX has neither memory nor gradients."""
    return site.name(site.x)


def _copy(op: Target, rule: OnnxRule | None, *samples: Callable[[Tensor], Any], **facts: Any) -> Operator:
    """The record of an operator that returns the numbers of its first operand; its default sample calls the method."""
    found = samples or ((lambda x: getattr(x, str(op))()) if isinstance(op, str) else op,)
    return Operator(op, axes=copied_axes, onnx=rule, samples=tuple(map(Sample, found)), **{"zeros": keeps, **facts})


def to_in_python(self: Any, **settings: Any) -> Spelled | None:
    """``self.to(...)`` with what says something."""
    if "other" in settings:
        return Tensor.to, (self, settings["other"]), {}
    layout, memory = settings.get("layout"), settings.get("memory_format")
    if layout not in (None, torch.strided):
        return None
    kept = {name: settings.get(name) for name in ("device", "dtype")} | {"memory_format": memory}
    flags = {name: True for name in ("non_blocking", "copy") if settings.get(name)}
    return Tensor.to, (self,), {name: value for name, value in kept.items() if value is not None} | flags


def typed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled:
    """Replace an old name of a number type, such as "torch.FloatTensor" or the class of this name, by the type.

    An old name says a device too. A model runs on one device, so it is that of the model.
    """
    given = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    if func is not Tensor.type or not isinstance(given, str | type(torch.FloatTensor)):
        return func, args, kwargs
    kept = {name: value for name, value in kwargs.items() if name != "dtype"}
    dtype = getattr(torch, given.rpartition(".")[2]).dtype if isinstance(given, str) else given.dtype
    return func, (args[0], dtype, *args[2:]), kept


def copy_in_python(self: Any, **settings: Any) -> Spelled | None:
    """``self.to(..., copy=True)``."""
    return to_in_python(self, **settings, copy=True)


_SAME = {Trait.SAME_ENTRIES}

RECORDS = (
    Operator(
        identity,
        layers={nn.Identity: Layer()},
        traits={Trait.HANDS_ON, Trait.SAME_ENTRIES},
        axes=copied_axes,
        zeros=keeps,
        samples=(Sample(lambda x, layer: layer(x).relu(), layer=nn.Identity),),
    ),
    _copy(torch.clone, same_onnx, aten={"lift_fresh_copy": renamed(Tensor.clone)}),
    _copy(torch.detach, same_onnx, traits=_SAME),
    _copy("contiguous", same_onnx),
    _copy("cpu", None),
    _copy("cuda", None, lambda x: x),
    _copy("to", cast_onnx, lambda x: x.to(torch.float32), aten={"to": to_in_python, "_to_copy": copy_in_python}),
    _copy("type", cast_onnx, lambda x: x.type(torch.int32)),
    _copy("type_as", cast_onnx, lambda x: x.int().type_as(x)),
    *(_copy(name, cast_onnx) for name in ("float", "double", "half", "bfloat16", "int", "long", "short", "bool")),
)
