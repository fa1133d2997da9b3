"""Finds the first node at which a graph and its model part: the model runs for real while its calls are noted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from bnas.passes.interpreter import GraphInterpreter
from bnas.passes.ir import IR
from bnas.passes.ops.aten import in_python

from .patches import inner_of
from .places import user_line
from .spelling import spelled
from .state import preserved, set_modes
from .structure import holds_tensors, tensors_of

Call = tuple[Any, Any, list[Tensor]]
"""What was called, from which line, and the tensors that it gave."""


class Follower(TorchFunctionMode):
    """Notes every call of a torch function with its result."""

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
    """The first node of the graph whose value is not what the model computed on the same line, in words."""
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


def _values_of_graph(ir: IR, inputs: Any, modes: Mapping[nn.Module, bool]) -> list[tuple[Node, list[Tensor]]]:
    found: list[tuple[Node, list[Tensor]]] = []

    class Noting(GraphInterpreter):
        def run_node(self, n: Node) -> Any:
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
