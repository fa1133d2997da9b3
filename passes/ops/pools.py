"""Pooling: batch and channels pass, spatial axes are rigid.

ONNX and its runtimes round up the number of windows differently from PyTorch. So bnas never uses their rounding: the
nodes contain the missing entries after the last element as explicit padding. Padding that PyTorch counts in an average
is added as real zeros if ONNX would count it differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.builder import onnx_type
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size, Source, leaves, same_size

from .calls import Call
from .convolutions import spatial_axes, spread
from .record import AxisRule, Layer, OnnxRule, Operator, Sample, Target, Trait
from .zeros import keeps


def pooled_over(types: AxisTypes, call: Call, leading: int) -> Any:
    """Return a type for each result, because some poolings return values and places."""
    inputs, value = types.type(call.argument(0, "input")), call.node.meta["value"]
    leading = leading % (len(inputs) + 1)
    types.pin_axes(inputs[leading:], "pooling or resizing runs over it")
    shape = value[0].shape if isinstance(value, tuple) else value.shape
    out = [*inputs[:leading], *(K(n) for n in shape[leading:])]
    return (out,) * len(value) if isinstance(value, tuple) else out


def unpooling_axes(types: AxisTypes, call: Call) -> Axes:
    """Values and the places that they came from have the same leading axes; places count within a channel."""
    inputs, places = types.type(call.argument(0, "input")), types.type(call.argument(1, "indices"))
    rank = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d).index(call.op) + 1
    types.pin_axes([*inputs[-rank:], *places[-rank:]], "pooling runs over it")
    leading = types.broadcast(inputs[:-rank], places[:-rank])
    return [*leading, *(K(n) for n in types.output_shape(call)[-rank:])]


@dataclass(frozen=True)
class Windows:
    """The windows of a pooling layer along each of its axes."""

    kernel: list[int]
    stride: list[int]
    before: list[int]
    """Padding before the first element."""
    behind: list[int]
    """Padding behind the last element that the last window reaches: it may be less or more than what was asked for."""
    dilation: list[int]

    @property
    def pads(self) -> list[int]:
        """The padding as ONNX wants it."""
        return [*self.before, *self.behind]


def windows(site: Site, axes: int, dilation: int | Sequence[int] = 1) -> Windows:
    """The windows that give exactly as many results as PyTorch has, rounded down."""
    spatial_axes(site, axes)
    settings = [site.arg(place, name) for place, name in ((1, "kernel_size"), (2, "stride"), (3, "padding"))]
    if any(isinstance(one, Size) for one in leaves(settings)):
        raise site.refuse("has windows whose size follows the inputs")
    kernel = spread(site.arg(1, "kernel_size"), axes)
    stride = spread(site.arg(2, "stride") or kernel, axes)
    before, steps = spread(site.arg(3, "padding", 0), axes), spread(dilation, axes)
    if is_open(site):
        return Windows(kernel, stride, before, before, steps)
    sizes = zip(site.result.shape[2:], site.x.tensor.shape[2:], strict=True)
    behind = [
        max(0, (made - 1) * s + (k - 1) * d + 1 - given - p)
        for (made, given), s, k, d, p in zip(sizes, stride, kernel, steps, before, strict=True)
    ]
    return Windows(kernel, stride, before, behind, steps)


def _is_whole(site: Site, axes: int) -> bool:
    """Whether the window follows the input, and is then all of it: ONNX has no other windows of a dynamic size."""
    given = site.arg(1, "kernel_size")
    kernel = list(given) if isinstance(given, list | tuple) else [given] * axes
    if not any(isinstance(size, Size) for size in kernel):
        return False
    whole = all(same_size(size, of) for size, of in zip(kernel, site.x.sizes[-axes:], strict=True))
    if not whole or any(spread(site.arg(3, "padding", 0), axes)) or len(site.x.sizes) != axes + 2:
        raise site.refuse("has a window that follows the size of the input and is not all of it")
    return True


def max_pool_onnx(site: Site) -> str:
    """All settings but returned indices."""
    if not isinstance(site.result, torch.Tensor):
        raise site.refuse("returns indices")
    axes = _rank(site.call)
    if _is_whole(site, axes):
        return site.emit("GlobalMaxPool", site.x)
    found = windows(site, axes, site.arg(4, "dilation", 1))
    source, pads = site.name(site.x), found.pads
    if is_open(site) and site.arg(5, "ceil_mode", False):
        source, pads = _rounded_up(site, found, _all_missing(site, found), -math.inf), [0] * (2 * axes)
    if any(pad >= size for pad, size in zip(pads, found.kernel * 2, strict=True)):
        # ONNX Runtime takes no padding as wide as the kernel, which dilation can need.
        source, pads = _padded(site, pads, -math.inf), [0] * (2 * axes)
    settings = {"strides": found.stride, "dilations": found.dilation, "pads": pads}
    return site.emit("MaxPool", source, kernel_shape=found.kernel, **settings)


def average_pool_onnx(site: Site) -> str:
    """All settings, also a divisor of the user."""
    axes = _rank(site.call)
    if site.arg(6, "divisor_override") is None and _is_whole(site, axes):
        return site.emit("GlobalAveragePool", site.x)
    found = windows(site, axes)
    settings = {"kernel_shape": found.kernel, "strides": found.stride}
    divisor = site.arg(6, "divisor_override")
    if is_open(site) and site.arg(4, "ceil_mode", False):
        return _average_rounded_up(site, found, divisor)
    if is_open(site) and divisor is None:
        counted = int(bool(site.arg(5, "count_include_pad", True)))
        return site.emit("AveragePool", site.x, pads=found.pads, count_include_pad=counted, **settings)
    if divisor is not None:
        mean = site.emit("AveragePool", _padded(site, found.pads, 0.0), **settings)
        return site.emit("Mul", mean, site.operand(math.prod(found.kernel) / divisor, site.result.dtype))
    if not site.arg(5, "count_include_pad", True) or not any(found.before):
        return site.emit("AveragePool", site.x, pads=found.pads, count_include_pad=0, **settings)
    # Zeros that count are made real; what rounding up needs beyond them is not counted.
    beyond = [max(0, behind - pad) for behind, pad in zip(found.behind, found.before, strict=True)]
    pads = [0] * axes + beyond
    return site.emit("AveragePool", _padded(site, found.before * 2, 0.0), pads=pads, count_include_pad=0, **settings)


def is_open(site: Site) -> bool:
    """Whether the size of an axis that is pooled over follows the inputs."""
    return any(isinstance(size, Size) for size in site.x.sizes[2:])


def _missing(site: Site, found: Windows, axis: int) -> Any:
    """Return the padding behind the last element that PyTorch's rounding up of the number of windows needs."""
    given, kernel, stride, before = site.x.sizes[axis + 2], found.kernel[axis], found.stride[axis], found.before[axis]
    reach = (kernel - 1) * found.dilation[axis] + 1
    room = site.calculated("Add", given, 2 * before - reach + stride - 1)
    last = site.calculated("FloorDiv", room, stride)
    # A window must begin at an element, or in the padding before the first one.
    last = site.calculated("Min", last, site.calculated("FloorDiv", site.calculated("Add", given, before - 1), stride))
    needed = site.calculated("Add", site.calculated("Mul", last, stride), reach - before)
    return site.calculated("Max", site.calculated("Sub", needed, given), 0)


def _all_missing(site: Site, found: Windows) -> list[Any]:
    return [_missing(site, found, axis) for axis in range(len(found.kernel))]


def _rounded_up(site: Site, found: Windows, behind: list[Any], number: float, source: Source = None) -> str:
    """The first argument, or `source` in its shape, with `number` wherever windows reach beyond it."""
    pads = site.ints([0, 0, *found.before, 0, 0, *behind])
    return site.emit("Pad", source or site.x, pads, site.operand(number, site.result.dtype))


def _average_rounded_up(site: Site, found: Windows, divisor: int | None) -> str:
    """The mean of windows, divided by the mean of ones where there is something that counts."""
    settings = {"kernel_shape": found.kernel, "strides": found.stride}
    missing = _all_missing(site, found)
    mean = site.emit("AveragePool", _rounded_up(site, found, missing, 0.0), **settings)
    if divisor is not None:
        return site.emit("Mul", mean, site.operand(math.prod(found.kernel) / divisor, site.result.dtype))
    one = site.emit("Expand", site.operand(1.0, site.result.dtype), site.shape(site.x))
    if site.arg(5, "count_include_pad", True):
        axes = len(found.kernel)
        wide = site.ints([0, 0, *found.before, 0, 0, *found.before])
        one = site.emit("Pad", one, wide, site.operand(1.0, site.result.dtype))
        fewer = [site.calculated("Sub", *both) for both in zip(missing, found.before, strict=True)]
        rest = site.ints([0] * (axes + 4) + fewer)
        ones = site.emit("Pad", one, rest, site.operand(0.0, site.result.dtype))
    else:
        ones = _rounded_up(site, found, missing, 0.0, one)
    return site.emit("Div", mean, site.emit("AveragePool", ones, **settings))


def _padded(site: Site, pads: Sequence[int], number: float) -> str:
    if not any(pads):
        return site.name(site.x)
    axes = len(pads) // 2
    everywhere = site.ints([0, 0, *pads[:axes], 0, 0, *pads[axes:]])
    return site.emit("Pad", site.x, everywhere, site.operand(number, site.result.dtype))


def adaptive_average_pool_onnx(site: Site) -> str:
    """The mean of everything, equal windows, or one product with a matrix of weights for each axis."""
    kernel = _equal_windows(site)
    if all(size == 1 for size in site.result.shape[2:]):
        return site.emit("GlobalAveragePool", site.x)
    if kernel is not None:
        return site.emit("AveragePool", site.x, kernel_shape=kernel, strides=kernel)
    source, last = site.name(site.x), site.x.tensor.ndim - 1
    for axis in range(2, last + 1):
        given, made = site.x.sizes[axis], site.made[axis]
        if not same_size(given, made):
            source = _mixed(site, source, axis, _weights(site, given, made))
    return source


def _weights(site: Site, given: AnySize, made: AnySize) -> Source:
    """The weights of `averages`; calculated in the graph if a size is dynamic."""
    if isinstance(given, int) and isinstance(made, int):
        return averages(given, made).to(site.result.dtype)
    windows, entries = site.range(made), site.emit("Unsqueeze", site.range(given), site.ints([1]))
    one, both = site.name(torch.tensor(1)), site.scalar(given)
    number = site.ints([made])
    start = site.emit("Div", site.emit("Mul", windows, both), number)
    behind = site.emit("Mul", site.emit("Add", windows, one), both)
    stop = site.emit("Div", site.emit("Sub", site.emit("Add", behind, number), one), number)
    inside = site.emit("And", site.emit("GreaterOrEqual", entries, start), site.emit("Less", entries, stop))
    kind = onnx_type(site.result.dtype, site.scope)
    width = site.emit("Cast", site.emit("Sub", stop, start), to=kind)
    return site.emit("Div", site.emit("Cast", inside, to=kind), width)


def _mixed(site: Site, source: str, axis: int, weights: Source) -> str:
    """`source` with the entries of `axis` replaced by weighted sums of them."""
    order = list(range(site.x.tensor.ndim))
    order[axis], order[-1] = order[-1], order[axis]
    if axis == order[axis]:
        return site.emit("MatMul", source, weights)
    turned = site.transpose(source, order)
    return site.transpose(site.emit("MatMul", turned, weights), order)


def averages(given: int, made: int) -> torch.Tensor:
    """The matrix, given x made, whose product with a row is what adaptive average pooling makes of the row."""
    return F.adaptive_avg_pool1d(torch.eye(given, dtype=torch.float64), made)


def adaptive_max_pool_onnx(site: Site) -> str:
    """The maximum of everything, or equal windows."""
    if not isinstance(site.result, torch.Tensor):
        raise site.refuse("returns indices")
    kernel = _equal_windows(site)
    if kernel is None:
        raise site.refuse(f"pools {tuple(site.x.tensor.shape[2:])} to {tuple(site.result.shape[2:])}, not a divisor")
    if all(size == 1 for size in site.result.shape[2:]):
        return site.emit("GlobalMaxPool", site.x)
    return site.emit("MaxPool", site.x, kernel_shape=kernel, strides=kernel)


def _equal_windows(site: Site) -> list[int] | None:
    """Return the kernel, equal to its stride, that pools to the wanted size; ``None`` if there is none."""
    spatial_axes(site, _rank(site.call))
    if is_open(site):
        pairs = zip(site.x.sizes[2:], site.made[2:], strict=True)
        return None if not all(made == 1 for _, made in pairs) else [1]
    sizes = list(zip(site.x.tensor.shape[2:], site.result.shape[2:], strict=True))
    return None if any(given % made for given, made in sizes) else [given // made for given, made in sizes]


def pooled(rank: int) -> AxisRule:
    """The rule of a pool over the last `rank` axes: all others pass."""
    return lambda types, call: pooled_over(types, call, -rank - 1)


def _rank(call: Call) -> int:
    """Return the number of axes that an operator pools over, from its name."""
    return int(call.op.__name__.partition("_pool")[2][0])  # type: ignore[union-attr]


_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_MEAN = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


def _records(rank: int) -> Iterator[Operator]:
    """Return the records of the pools over `rank` axes; pools that also return places are separate functions."""
    facts: dict[str, Any] = {"axes": pooled(rank), "zeros": keeps}
    window: dict[str, Any] = {"traits": {Trait.POOL, *([Trait.WINDOW] if rank > 1 else [])}}
    size, sizes = 2 if rank < 3 else (1, 2, 2), {1: 4, 2: (2, 3), 3: 1}[rank]
    divisor = ("divisor_override",) if rank > 1 else ()

    def record(name: str, rule: OnnxRule | None, settings: tuple[str, ...], *args: Any, **more: Any) -> Operator:
        function, kind = getattr(F, f"{name}_pool{rank}d"), "".join(part.capitalize() for part in name.split("_"))
        layers = {getattr(nn, f"{kind}Pool{rank}d"): Layer(settings=settings)}
        samples = (Sample(lambda x: function(_spatial(x, rank), *args)),)
        return Operator(function, layers=layers, onnx=rule, samples=samples, **facts, **more)

    other = (getattr(torch, f"max_pool{rank}d"),)
    yield record("max", max_pool_onnx, _POOL, size, spellings=other, **window)
    yield record("avg", average_pool_onnx, (*_MEAN, *divisor), size, **window)
    more = {"spellings": (torch.adaptive_avg_pool1d,)} if rank == 1 else {}
    yield record("adaptive_avg", adaptive_average_pool_onnx, ("output_size",), sizes, **more)
    yield record("adaptive_max", adaptive_max_pool_onnx, ("output_size",), sizes)
    for name in ("max", "adaptive_max"):
        function = getattr(F, f"{name}_pool{rank}d_with_indices")
        plain = f"{name}_pool{rank}d" + ("_with_indices" if name == "max" else "")
        examples = (_with_places(function, rank, size),)
        yield Operator(function, spellings=_in_torch(plain), axes=pooled(rank), samples=examples)
    unpool = getattr(F, f"max_unpool{rank}d")
    places = getattr(F, f"max_pool{rank}d_with_indices")
    back = Sample(lambda x: unpool(*places(_spatial(x, rank), size), size))
    places_of: dict[Target, tuple[str, ...]] = {
        one: ("input", "indices", "output_size") for one in _in_torch(f"max_unpool{rank}d")
    }
    yield Operator(unpool, reordered=places_of, axes=unpooling_axes, samples=(back,))


def _in_torch(name: str) -> tuple[Callable[..., Any], ...]:
    """The functions of torch behind one of `torch.nn.functional`, which exported programs call."""
    return tuple(getattr(owner, name) for owner in (torch, torch._C._nn) if hasattr(owner, name))


def _spatial(x: Tensor, rank: int) -> Tensor:
    """A batch of images with `rank` axes behind the channels."""
    return {1: x.flatten(2), 2: x, 3: x.unsqueeze(2)}[rank]


def _with_places(function: Callable[..., Any], rank: int, size: Any) -> Sample:
    """Values, and the places that they come from."""
    window = 1 if "adaptive" in function.__name__ else size
    return Sample(lambda x: function(_spatial(x, rank), window)[0])


RECORDS = tuple(record for rank in (1, 2, 3) for record in _records(rank))
