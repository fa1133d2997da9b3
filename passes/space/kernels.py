"""Elastic kernels: convolutions whose kernel can shrink without changing the size of their outputs.

The choice k is one number for all axes: an axis of `a` entries keeps its ``min(a, k)`` central ones. At k = 5, a 7 x 7
kernel becomes 5 x 5 and a 7 x 1 kernel becomes 5 x 1; a 7 x 5 kernel becomes 5 x 5 and then 3 x 3. There are two
conditions. The kernel must have a centre, so no even axis is cut. And outputs must stay in place: if `c` entries are
cut on each side, the padding falls by ``dilation * c`` and must not become negative. Stride does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.fx import Node

from bnas.passes.axes.terms import Sym
from bnas.passes.axes.types import AxisTypes
from bnas.passes.errors import Diagnostic
from bnas.passes.ops.calls import Call, TensorRef
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS

SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution, of exactly that class."""
    form = OPERATORS.layer(type(layer))
    return form is not None and OPERATORS.of(form.op).has(Trait.CONVOLUTION)


@dataclass(frozen=True)
class Kernel:
    """An elastic kernel. Once-for-All (Cai et al. 2020, section 3) shrinks square ones of depthwise convolutions."""

    name: str
    """Module path of the convolution; if several share the weight, of the first one."""
    weight: str
    """First name of the weight."""
    sizes: tuple[int, ...]
    """Entries of each axis at full size."""
    choices: tuple[int, ...]
    """The sizes, ascending in steps of 2; the last is the largest axis at full size."""
    nodes: frozenset[Node] = field(repr=False)
    """The calls that read the weight."""
    symbol: Sym = field(repr=False)
    """The symbol for the chosen size in an assignment."""

    def at(self, choice: int) -> tuple[int, ...]:
        """Return the size of each axis for a choice."""
        return tuple(min(size, choice) for size in self.sizes)


@dataclass(frozen=True)
class Kernels:
    """The elastic kernels of a graph by name, in network order, and those left unchanged, with the reason."""

    found: Mapping[str, Kernel] = field(default_factory=dict)
    refused: tuple[Diagnostic, ...] = ()

    @cached_property
    def by_weight(self) -> Mapping[str, Kernel]:
        """The elastic kernels by the first name of their weight."""
        return {kernel.weight: kernel for kernel in self.found.values()}


def find_kernels(types: AxisTypes, min_kernel: int = 3, max_num_kernels: int | None = None) -> Kernels:
    """Find the convolutions whose kernel can shrink to `min_kernel` or a larger size; skip smaller kernels.

    Args:
        types: The typed graph; it is not changed.
        min_kernel: The smallest choice.
        max_num_kernels: Largest number of choices for a kernel, counted from the largest.
    """
    found, refused, elsewhere = dict[str, Kernel](), list[Diagnostic](), _other_readers(types)
    for weight, calls in _convolutions(types).items():
        place, sizes = _place(calls[0]), types.shape(calls[0].argument(1, "weight"))[2:]
        if max(sizes) % 2 and max(sizes) <= min_kernel:
            continue
        reason = _refusal(types, weight, calls, sizes, elsewhere)
        choices, reason = _choices(types, calls[0], sizes, min_kernel) if reason is None else ((), reason)
        if reason is not None:
            refused.append(Diagnostic(place, reason))
        choices = choices[-max_num_kernels:] if max_num_kernels else choices
        if len(choices) > 1:
            symbol = Sym(choices[-1], f"kernel of {place}")
            found[place] = Kernel(place, weight, sizes, choices, frozenset(call.node for call in calls), symbol)
    return Kernels(found, tuple(refused))


def _convolutions(types: AxisTypes) -> dict[str, list[Call]]:
    """Return the convolution calls by their weight: by its first name or, if it is computed, by its node."""
    calls: dict[str, list[Call]] = {}
    for call in types.ir.calls.values():
        if OPERATORS.of(call.op).has(Trait.CONVOLUTION):
            weight = call.argument(1, "weight")
            name = types.ir.aliases.get(weight.name, weight.name) if isinstance(weight, TensorRef) else weight.name
            calls.setdefault(name, []).append(call)
    return calls


def _place(call: Call) -> str:
    return str(call.node.target) if call.node.op == "call_module" else call.node.name


def _layer(types: AxisTypes, call: Call) -> Any:
    return types.ir.root.get_submodule(str(call.node.target))


def _other_readers(types: AxisTypes) -> dict[str, str]:
    """Return tensors that forward reads directly or in an opaque module, by first name, with their reader."""
    ir, readers = types.ir, dict[str, str]()
    for node in ir.graph.nodes:
        if node.op == "get_attr":
            reader = next(iter(node.users), node)
            readers.setdefault(ir.aliases.get(str(node.target), str(node.target)), reader.name)
        elif node.op == "call_module" and node not in ir.calls:
            for name, _ in ir.module(str(node.target)).named_parameters(remove_duplicate=False):
                path = f"{node.target}.{name}"
                readers.setdefault(ir.aliases.get(path, path), str(node.target))
    return readers


def _refusal(
    types: AxisTypes, weight: str, calls: list[Call], sizes: tuple[int, ...], elsewhere: Mapping[str, str]
) -> str | None:
    """Return why the kernel cannot shrink at all; None if it can."""
    if max(sizes) % 2 == 0:
        return f"the kernel {_shown(sizes)} is even: it has no centre"
    if any(call.node.op != "call_module" or not is_convolution(_layer(types, call)) for call in calls):
        return "forward computes the kernel or reads it directly: only kernels of convolution layers can shrink"
    if not isinstance(types.ir.tensor(weight), nn.Parameter):
        return "the kernel is not a parameter"
    layers = [_layer(types, call) for call in calls]
    if len({tuple(str(getattr(layer, name)) for name in SETTINGS) for layer in layers}) > 1:
        return f"convolutions of different settings share the kernel: {', '.join(dict.fromkeys(map(_place, calls)))}"
    others = sorted(node.name for node in types.users.get(weight, set()) - {call.node for call in calls})
    if others or weight in elsewhere:
        return f"the kernel is also read by {others[0] if others else elsewhere[weight]}"
    return None


def _choices(types: AxisTypes, call: Call, sizes: tuple[int, ...], least: int) -> tuple[tuple[int, ...], str | None]:
    """Return the possible sizes of the kernel, ascending, and why it cannot get as small as `least`."""
    choices, layer = [max(sizes)], _layer(types, call)
    while choices[-1] - 2 >= least:
        obstacle = _obstacle(layer, sizes, choices[-1] - 2)
        if obstacle is not None:
            return tuple(reversed(choices)), obstacle
        choices.append(choices[-1] - 2)
    return tuple(reversed(choices)), None


def _obstacle(layer: Any, sizes: tuple[int, ...], choice: int) -> str | None:
    """Return why a kernel cannot get as small as `choice`; None if it can."""
    padding = per_axis(0 if layer.padding == "valid" else layer.padding, len(sizes))
    dilation = per_axis(layer.dilation, len(sizes))
    for axis, size in enumerate(sizes):
        cut = f"axis {axis} of the kernel {_shown(sizes)} cannot be cut to {choice}"
        needed = dilation[axis] * (size - choice) // 2
        if size > choice and size % 2 == 0:
            return f"{cut}: it is even and has no centre"
        if size > choice and layer.padding != "same" and padding[axis] < needed:
            return f"{cut}: its padding is {padding[axis]}, and outputs keep their size only with {needed} or more"
    return None


def per_axis(setting: Any, axes: int) -> tuple[Any, ...]:
    """A setting of a convolution layer, which may be one value for all axes."""
    return tuple(setting) if isinstance(setting, tuple | list) else (setting,) * axes


def _shown(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
