"""The analysis: every axis of every tensor in the graph gets a type, by one rule per operator.

An operator without a rule pins all its inputs and gives rigid outputs: sound by default, never a guess.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from bnas.passes.errors import Diagnostic
from bnas.passes.frontend.ir import IR
from bnas.passes.frontend.opaque import OpaqueMethod
from bnas.passes.frontend.structure import holds_tensors, is_record
from bnas.passes.ops.calls import Call, CustomFunction, TensorRef, with_numbers
from bnas.passes.ops.record import AxisRule
from bnas.passes.ops.registry import OPERATORS, operator_name
from bnas.passes.ops.zeros import note_zeros

from .terms import K, Term, symbols
from .types import AxisTypes


def analyse(ir: IR) -> AxisTypes:
    """Type all axes of the graph. Nothing of the model or the graph is changed."""
    types = AxisTypes(ir=ir)
    _type_nodes(types)
    if ir.trained is not None:
        types.trained = replace(types, ir=ir.trained, **_fresh())
        _type_nodes(types.trained)
        types.trained.settle()
        _pin_only_trained(types)
        _pin_opaque_in_training(types, types.trained.ir)
    _pin_unread(types)
    types.settle()
    return types


def _fresh() -> dict[str, Any]:
    """Return empty tables for another graph; parameters, pins and reasons are shared."""
    return {"values": {}, "zeros": {}, "users": {}, "rewrites": [], "macs": [], "fills": [], "following": set()}


def _pin_only_trained(types: AxisTypes) -> None:
    """Pin the widths of parts that only training mode has, such as auxiliary heads."""
    read = {s for name in types.users for axis in types.tensor(name) for s in symbols(axis)}
    for name, axes in types.tensors.items():
        if name not in types.users:
            for axis in axes:
                types.pin_axes([s for s in set(symbols(axis)) if s not in read], "only training mode reads it")


def _pin_opaque_in_training(types: AxisTypes, trained: IR) -> None:
    """Pin the widths inside modules that are opaque only in training mode, because their code may read them."""
    for node in trained.graph.nodes:
        if node.op == "call_module" and node not in trained.calls:
            module = trained.module(str(node.target))
            for name, _ in (*module.named_parameters(), *module.named_buffers()):
                known = types.tensors.get(trained.aliases.get(f"{node.target}.{name}", ""), ())
                types.pin_axes(known, "it is inside a module that is opaque in training mode")


def _type_nodes(types: AxisTypes) -> None:
    """Type every node of the graph of `types`."""
    for node in types.ir.graph.nodes:
        if node.op == "placeholder" or not types.following.isdisjoint(_tensors(node)):
            types.following.add(node)
        types.values[node] = _type_of(types, node)
        note_zeros(types, node)


def _tensors(node: Node) -> list[Node]:
    """Return the inputs of a node that are not sizes."""
    return [source for source in node.all_input_nodes if not isinstance(source.meta.get("value"), int)]


def _pin_unread(types: AxisTypes) -> None:
    """Pin parts of parameters and buffers that slices always drop, such as positions for longer inputs: not widths."""
    left = {symbol for axis, _ in types.slices for symbol in symbols(axis)}
    if not left:
        return
    read = [taken for _, taken in types.slices]
    for node in types.following:
        read += tree_leaves(types.values[node], is_leaf=lambda value: isinstance(value, Term))
    used = {symbol for term in read if isinstance(term, Term) for symbol in symbols(term)}
    for symbol in left - used:
        types.pin(symbol, "no operator reads this part of it")


def _type_of(types: AxisTypes, node: Node) -> Any:
    if node.op == "placeholder":
        return rigid(node.meta["value"], "the input of the model fixes it")
    if node.op == "get_attr":
        return types.tensor(str(node.target))
    if node.op == "output":
        _pin_inputs(types, node, "the output of the model fixes it")
        return None
    gives = holds_tensors(node.meta["value"])
    if not gives and node.target is not operator.setitem:
        return None  # a size: a number and not a tensor
    if isinstance(node.target, type):  # a container of a user's class, which is made to be returned, or to be given
        returned = all(user.op == "output" for user in node.users)
        why = "the output of the model fixes it" if returned else "it is inside a container of a user's class"
        _pin_inputs(types, node, why)
        return None
    call = types.ir.calls.get(node)
    rule = None if call is None else OPERATORS.of(call.op).axes
    for ref in node.all_input_nodes if call is None else call.tensors():
        _note_use(types, node, ref)
    if rule is None or call is None:
        what = _opaque_name(types, node) if call is None else f"operator {operator_name(call.op)}"
        return _refuse(types, node, f"{what} has no rule")
    return _by_rule(types, node, rule, with_numbers(call))


def _by_rule(types: AxisTypes, node: Node, rule: AxisRule, call: Call) -> Any:
    """Return the type by the operator's rule. If the rule fails or returns a wrong shape, the node becomes rigid."""
    try:
        found = rule(types, call)
    except Exception as error:
        return _refuse(types, node, f"operator {operator_name(call.op)}: {error}")
    if fits(found, node.meta["value"]):
        return None if node.meta["value"] is None else found  # a write into an item has no result
    why = "its axis rule returns axes of a wrong shape; this is a bug in the rule, please report it"
    return _refuse(types, node, f"operator {operator_name(call.op)}: {why}")


def fits(axes: Any, value: Any) -> bool:
    """Whether a (nested) type has the same structure and sizes as a value."""
    if isinstance(value, Tensor):
        terms = isinstance(axes, list) and all(isinstance(term, Term) for term in axes)
        return terms and [term.size for term in axes] == list(value.shape)
    if not holds_tensors(value):
        return True
    if isinstance(value, list | tuple):
        return isinstance(axes, list | tuple) and all(map(fits, axes, value)) and len(axes) == len(value)
    if isinstance(value, dict):
        return isinstance(axes, dict) and all(fits(axes.get(key), item) for key, item in value.items())
    return True


def _opaque_name(types: AxisTypes, node: Node) -> str:
    """Return the class of an opaque module, so that modules of one class have one reason; for a method, its name."""
    module = types.ir.module(str(node.target))
    if isinstance(module, OpaqueMethod):
        return f"the opaque method {module.place}"
    if isinstance(module, CustomFunction):
        return f"the autograd function {module.extra_repr()}"
    return f"the opaque module {type(module).__name__}"


def _note_use(types: AxisTypes, node: Node, ref: Node | TensorRef) -> None:
    name = ref.name if isinstance(ref, TensorRef) else str(ref.target) if ref.op == "get_attr" else None
    if name is not None:
        types.users.setdefault(types.ir.aliases.get(name, name), set()).add(node)


def _refuse(types: AxisTypes, node: Node, why: str) -> Any:
    """Make a node that bnas does not understand rigid, and record why."""
    types.pins.append(Diagnostic(node.name, f"{why}: its inputs and outputs are rigid"))
    types.rewrites[:] = [rewrite for rewrite in types.rewrites if rewrite.node is not node]
    types.macs[:] = [(counted, axes) for counted, axes in types.macs if counted is not node]
    _pin_inputs(types, node, why)
    call = types.ir.calls.get(node)
    for ref in [] if call is None else call.tensors():
        if isinstance(ref, TensorRef):
            types.pin_axes(types.tensor(ref.name), why)
    return rigid(node.meta["value"], why)


def _pin_inputs(types: AxisTypes, node: Node, why: str) -> None:
    def pin(value: Any) -> None:
        if isinstance(value, Term):
            types.pin(value, why)

    for source in node.all_input_nodes:
        tree_map(pin, types.values[source], is_leaf=lambda v: isinstance(v, Term))


def rigid(value: Any, why: str = "") -> Any:
    """Return the rigid type of a (nested) value; None for parts that are not tensors."""
    if isinstance(value, Tensor):
        return [K(n, why) for n in value.shape]
    if isinstance(value, list | tuple):
        return tuple(rigid(item, why) for item in value)
    if isinstance(value, dict):
        return {key: rigid(item, why) for key, item in value.items()}
    if is_record(value):
        return {name: rigid(item, why) for name, item in vars(value).items()}
    return None
