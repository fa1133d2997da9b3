"""Run activations and sums in place, if nothing else reads their input.

The numbers are bitwise the same, with less memory traffic: on a CPU, a ReLU into new memory may take a third of the
time of the convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnas.passes.ops.record import UNKNOWN, Operator, Trait
from bnas.passes.ops.registry import OPERATORS


def record_of(run: Any) -> Operator:
    """Return the operator record of a function, or of a layer that is exactly a class of torch.

    A function that writes in place has none here: its result must stay in the memory of its first argument.
    """
    if not isinstance(run, nn.Module):
        return UNKNOWN if OPERATORS.writes(run) else OPERATORS.of(run)
    form = OPERATORS.layer(type(run))
    return UNKNOWN if form is None else OPERATORS.of(form.op)


def is_fresh(run: Any) -> bool:
    """Whether the result of a function or layer never shares memory with its arguments."""
    return record_of(run).has(Trait.OWNS_MEMORY)


def add_(target: Any, other: Any) -> Any:
    """Return ``target + other``, written into `target` if the sum has its type, shape and layout."""
    if isinstance(target, Tensor) and isinstance(other, Tensor) and _form(target) == _form(other):
        return target.add_(other)
    return target + other


def first_only(run: Any) -> bool:
    """Whether `run` is a function that `overwrite` may insert: it writes into its first argument only."""
    return run is add_ or (not isinstance(run, nn.Module) and record_of(run).has(Trait.OVERWRITES))


def overwrite(module: GraphModule) -> GraphModule:
    """Make activations and sums of `module` write into their input, if nothing else reads it; changes `module`.

    The input must be the result of a layer that allocates its output, such as a convolution. Layers with hooks are left
    unchanged.
    """
    owned: set[Node] = set()
    changed = False
    for node in list(module.graph.nodes):
        target = next((n for n in _operands(module, node) if n in owned and len(n.users) == 1), None)
        if target is None:
            if _is_fresh(module, node):
                owned.add(node)
            continue
        owned.add(_rewritten(module, node, target))
        changed = True
    if changed:
        module.recompile()
    return module


def _operands(module: GraphModule, node: Node) -> list[Node]:
    """Return the operands of `node` that its result may overwrite."""
    if _is_sum(node) and not node.kwargs:
        return list(node.all_input_nodes) if len(node.all_input_nodes) == 2 else []
    return list(node.all_input_nodes) if _activation(module, node) is not None and _is_plain(node) else []


def _activation(module: GraphModule, node: Node) -> Callable[..., Any] | None:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return None if _is_watched(layer) else _overwriting(layer)
    return _overwriting(node.target) if node.op == "call_function" else None


def _overwriting(run: Any) -> Callable[..., Any] | None:
    """Return the function with an ``inplace`` argument that computes the same as a function or layer."""
    record = record_of(run)
    return record.op if record.has(Trait.OVERWRITES) else None  # type: ignore[return-value]


def _is_sum(node: Node) -> bool:
    return node.op == "call_function" and record_of(node.target).has(Trait.SUM)


def _rewritten(module: GraphModule, node: Node, target: Node) -> Node:
    """Replace `node` by a node that writes its result into `target`."""
    with module.graph.inserting_before(node):
        if _is_sum(node):
            first, second = node.args
            other = second if first is target else first
            new = module.graph.call_function(add_, (target, other))
        else:
            function = _activation(module, node)
            assert function is not None
            new = module.graph.call_function(function, (target,), {"inplace": True})
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def _is_fresh(module: GraphModule, node: Node) -> bool:
    """Whether the result of `node` has its own memory, shared with no other tensor."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        known = is_fresh(layer) or (_overwriting(layer) is not None and not getattr(layer, "inplace", False))
        return known and not _is_watched(layer)
    if node.op != "call_function":
        return False
    return is_fresh(node.target) or (_overwriting(node.target) is not None and _is_plain(node))


def _is_plain(node: Node) -> bool:
    """Whether an activation is called without settings, except ``inplace=False``."""
    return len(node.args) == 1 and node.kwargs in ({}, {"inplace": False})


def _is_watched(layer: nn.Module) -> bool:
    """Whether a hook may have kept the output of the layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _form(value: Tensor) -> Any:
    return value.shape, value.stride(), value.dtype, value.device
