"""The distance of two results, and the first node at which a graph differs from its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.overrides import TorchFunctionMode

from bnas.passes.assembly.frames import GraphInterpreter
from bnas.passes.ops.aten import in_python

from .functions import spelled
from .ir import IR
from .places import user_line
from .recording import inner_of
from .state import preserved, set_modes
from .structure import holds_tensors, leaves_of, parts_of, spelled_path, tensors_of

# The distance of two results.

TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Largest difference, relative to the largest output, that counts as rounding: during a capture, libraries may take
another path through PyTorch, and attention is computed by plain operators."""


def distance(expected: Any, found: Any, label: str = "output") -> float | str:
    """Return the largest relative difference of two nested values, or a text if their structures differ.

    A tensor is itself rounding if it is smaller than the squared rounding error of the largest tensor (at most 1).
    Example: a model that returns its distance from a teacher that is its copy.
    """
    right = {path: leaf for path, leaf in leaves_of(found)}
    left = {path: leaf for path, leaf in leaves_of(expected) if path in right or not _is_object(leaf)}
    if list(left) != list(right):
        return f"{label}: another structure ({type(found).__name__} instead of {type(expected).__name__})"
    if (kinds := _kinds(expected)) != _kinds(found):
        return f"{label}: another type than {', '.join(sorted({kind.__name__ for kind in kinds}))}"
    worst, largest = 0.0, min(1.0, max(map(_size, left.values()), default=0.0))
    for path, one in left.items():
        error = _distance(one, right[path], largest)
        name = f"{label} {spelled_path(path)}".rstrip()
        if isinstance(error, str):
            return f"{name}: {error}"
        worst = max(worst, error)
    return worst


def _kinds(value: Any) -> list[type]:
    """Return the types of all containers inside, in order; sizes count as tuples, and immutable lists as lists."""
    parts = parts_of(value)
    if parts is None:
        return []
    plain: dict[Any, type] = {torch.Size: tuple, immutable_list: list, immutable_dict: dict}
    kind = plain.get(type(value), type(value))
    return [kind, *(inner for _, part in parts for inner in _kinds(part))]


def _is_object(leaf: Any) -> bool:
    """Whether a graph returns None for this leaf, such as a cache; some output classes then omit the part."""
    return not isinstance(leaf, Tensor | bool | int | float | complex | str | dict | list | tuple | None)


def _size(leaf: Any) -> float:
    """Return the largest absolute entry of a tensor; 0 for other values."""
    if not isinstance(leaf, Tensor) or leaf.is_meta or not leaf.numel() or leaf.dtype == torch.bool:
        return 0.0
    return float(torch.nan_to_num(leaf.to(torch.complex128 if leaf.is_complex() else torch.float64)).abs().max())


def _distance(one: Any, other: Any, largest: float) -> float | str:
    if not isinstance(one, Tensor):
        dropped = other is None and _is_object(one)
        return 0.0 if dropped or isinstance(other, type(one)) else f"{other!r} instead of {one!r}"
    if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        shape = f"{tuple(other.shape)} {other.dtype}" if isinstance(other, Tensor) else type(other).__name__
        return f"{shape} instead of {tuple(one.shape)} {one.dtype}"
    if one.is_meta or torch.equal(one, other):
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    a, b = torch.nan_to_num(one.to(wide)), torch.nan_to_num(other.to(wide))
    limit = TOLERANCES.get(one.dtype, 0.0)
    size, most = max(float(a.abs().max()), limit * largest), float((a - b).abs().max())
    same_nan = torch.equal(one.isnan(), other.isnan()) if one.is_floating_point() else True
    error = most / size if size else most
    if not same_nan or not error <= limit:
        return f"differs by {most:.3g} where the largest is {size:.3g}"
    return error


# Finding the first node at which a graph differs from its model, by recording the calls of a real run of the model.

Call = tuple[Any, Any, list[Tensor]]
"""The called function or module, the line of the call, and the tensors that it returned."""


class Follower(TorchFunctionMode):
    """Record every call of a torch function with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "__get__" and holds_tensors(result):
            _, target, _ = spelled(*in_python(func, args, kwargs or {}))
            self.calls.append((target, user_line(), [one.detach().clone() for one in tensors_of(result)]))
        return result


def first_node(ir: IR, inputs: Any, modes: Mapping[nn.Module, bool]) -> str:
    """Return a text that names the first node whose value differs from the model's value on the same line."""
    calls, values = _calls_of_model(ir, inputs, modes), _values_of_graph(ir, inputs, modes)
    place = 0
    for node, found in values:
        name = str(node.target) if node.op == "call_module" else node.target
        match = next((i for i in range(place, len(calls)) if _same_call(calls[i], name, node)), None)
        if match is None:
            continue
        place = match + 1
        for one, other in zip(calls[match][2], found, strict=False):
            if one.shape != other.shape or not torch.allclose(one.double(), other.double(), 1e-3, 1e-5, equal_nan=True):
                return f"; first at {node.name} ({_where(node)}): {_shown(other)} instead of {_shown(one)}"
    return ""


def failing_node(ir: IR, inputs: Any, modes: Mapping[nn.Module, bool]) -> str:
    """Return a text that names the node at which the graph fails."""
    started: list[Node] = []
    _values_of_graph(ir, inputs, modes, started)
    return f"; it fails at {started[-1].name} ({_where(started[-1])})" if started else ""


def _same_call(call: Call, name: Any, node: Node) -> bool:
    line = node.meta.get("line")
    return call[0] == name and (line is None or call[1] is None or call[1] == line)


def _where(node: Node) -> str:
    line = node.meta.get("line")
    return f"{line[0]}:{line[1]}" if line else f"in {node.meta.get('scope') or 'the model'}"


def _shown(value: Tensor) -> str:
    flat = value.detach().flatten()[:3].tolist()
    return f"{tuple(value.shape)} {', '.join(f'{one:.4g}' for one in flat)}, ..."


def _calls_of_model(ir: IR, inputs: Any, modes: Mapping[nn.Module, bool]) -> list[Call]:
    follower, original = Follower(), nn.Module.__call__
    paths = {module: name for name, module in ir.root.named_modules()}

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(module, *args, **kwargs)
        if module in paths:
            follower.calls.append((paths[module], user_line(), [one.detach().clone() for one in tensors_of(result)]))
        return result

    with preserved(ir.root, inputs, data=True) as state, mock.patch.object(nn.Module, "__call__", called), follower:
        set_modes(modes)
        state.seed()
        inner_of(ir.root)(*inputs[0], **inputs[1])
    return follower.calls


def _values_of_graph(
    ir: IR, inputs: Any, modes: Mapping[nn.Module, bool], started: list[Node] | None = None
) -> list[tuple[Node, list[Tensor]]]:
    """Return the values of the nodes until one fails; append each node that was begun to `started`."""
    found: list[tuple[Node, list[Tensor]]] = []

    class Noting(GraphInterpreter):
        def run_node(self, n: Node) -> Any:
            if started is not None:
                started.append(n)
            value = super().run_node(n)
            if n.op in ("call_module", "call_function", "call_method"):
                found.append((n, [one.detach().clone() for one in tensors_of(value)]))
            return value

    with preserved(ir.root, inputs, data=True) as state:
        set_modes(modes)
        state.seed()
        try:
            Noting(ir, ir.root).run(*[one for one in (*inputs[0], *inputs[1].values()) if holds_tensors(one)])
        except Exception:
            return found
    return found
